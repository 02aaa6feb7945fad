"""The model and the processor that a training starts from."""

import math
import os
from collections.abc import Iterable

import torch
from safetensors import SafetensorError
from transformers import (
    CLIPConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SiglipConfig,
)
from transformers.image_utils import SizeDict
from transformers.models.auto.image_processing_auto import (
    AutoImageProcessor,
)  # the top level hides it without torchvision

from modeling_tier import (
    TierCLIPConfig,
    TierCLIPModel,
    TierDualEncoderConfig,
    TierDualEncoderModel,
    TierSiglipConfig,
    TierSiglipModel,
)
from modeling_tier.checkpoints.model_folder import check_model_folder, check_not_adapter
from modeling_tier.configuration_tier import located
from modeling_tier.score_levels_tier import default_level
from modeling_tier.texts_tier import check_tokenizer
from processing_tier import TierImageProcessor, TierProcessor, TierSiglipProcessor, train_tokenizer
from processing_tier.hub_names import check_hub_name
from training_tier.options.model import ModelArguments
from training_tier.start.presets import PRESETS, preset_config
from training_tier.start.pretrained_towers import join_towers
from training_tier.start.tokenizers import load_tokenizer

POSITION_SCALE = 0.5

MODEL_CLASSES = {  # by the `model_type` of a checkpoint
    CLIPConfig.model_type: TierCLIPModel,
    TierCLIPConfig.model_type: TierCLIPModel,
    SiglipConfig.model_type: TierSiglipModel,
    TierSiglipConfig.model_type: TierSiglipModel,
    TierDualEncoderConfig.model_type: TierDualEncoderModel,
}

TierModel = TierCLIPModel | TierSiglipModel | TierDualEncoderModel
TierConfig = TierCLIPConfig | TierSiglipConfig | TierDualEncoderConfig


def make_model(arguments: ModelArguments, texts: Iterable[str]) -> tuple[TierModel, TierProcessor]:
    """
    A model and its processor: a preset with random weights, a checkpoint, or two pretrained towers under new
    projection heads.

    Args:
        arguments ([`ModelArguments`]): name the model.
        texts (`Iterable[str]`): the training texts. A preset trains its tokenizer on them unless one is named.

    Raises:
        `ValueError`: the preset or checkpoint does not exist, does not fit, or an option has no effect on it.
    """
    if arguments.vision_model is not None:
        check_names(arguments)
        return join_towers(arguments)
    if arguments.model not in PRESETS:
        return load_checkpoint(arguments)
    if arguments.adapter_layers:
        raise ValueError(
            f"adapter_layers={arguments.adapter_layers} is for a pretrained image tower, and the weights of "
            f"{arguments.model!r} are random; name a --vision_model, or leave it out."
        )
    if arguments.tokenizer is not None:
        tokenizer = load_tokenizer(arguments.tokenizer)
    else:
        tokenizer = train_tokenizer(texts, vocab_size=arguments.vocab_size)
    overrides = arguments.config_overrides()
    if "model_type" not in PRESETS[arguments.model]["vision_config"]:
        refuse_dual_options(overrides, arguments.model)
    config = preset_config(arguments.model, tokenizer, arguments.image_size, **overrides)
    if isinstance(config, TierDualEncoderConfig):
        model = TierDualEncoderModel(config)
    else:
        model = TierCLIPModel(config)
        set_sine_positions(model)
    return model, TierProcessor(make_image_processor(config, arguments.geometry or "pad"), tokenizer)


def make_image_processor(config: TierConfig, geometry: str) -> TierImageProcessor:
    """The image processor of a model, with its image size, mean and standard deviation."""
    return TierImageProcessor(
        geometry=geometry,
        size={"height": model_size(config), "width": model_size(config)},
        image_mean=config.pixel_mean,
        image_std=config.pixel_std,
    )


def model_size(config: TierConfig) -> int:
    """Edge in pixels of the square image that a model sees."""
    return config.image_size if isinstance(config, TierDualEncoderConfig) else config.vision_config.image_size


def set_sine_positions(model: TierCLIPModel) -> None:
    """
    Starts the position embeddings of the patches from sines and cosines of their row and column (Beyer et al. 2022,
    "Better plain ViT baselines for ImageNet-1k"), scaled to the spread of the patch embeddings.

    CLIP starts from faint noise, so that the image tower at first hardly knows where a patch lies. With a few thousand
    radiographs, it needs much of the training to learn this.
    """
    embedding = model.vision_model.embeddings.position_embedding.weight  # (1 + patches, hidden)
    side = math.isqrt(embedding.shape[0] - 1)
    frequencies = 1 / 10_000 ** torch.linspace(0, 1, embedding.shape[1] // 4)
    angles = torch.arange(side)[:, None] * frequencies  # (side, hidden / 4)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # (side, hidden / 2)
    rows, columns = waves[:, None].expand(side, side, -1), waves[None].expand(side, side, -1)
    grid = torch.cat([rows, columns], dim=2).flatten(0, 1)  # (patches, hidden)
    with torch.no_grad():
        embedding[1:] = POSITION_SCALE * grid


def read_stored_config(arguments: ModelArguments) -> dict:
    """config.json of the checkpoint `arguments.model`, which has to exist and hold weights."""
    name = arguments.model
    check_start(name)
    check_not_adapter(name)
    if os.path.isdir(name) and not any(file.endswith(".safetensors") for file in os.listdir(name)):
        raise ValueError(
            f"The checkpoint folder {name!r} does not hold weights (*.safetensors); name the folder that "
            "save_pretrained wrote."
        )
    try:
        stored_config = PreTrainedConfig.get_config_dict(**located(name))[0]
    except OSError as error:
        raise ValueError(
            f"{name!r} is neither a preset ({', '.join(PRESETS)}) nor a checkpoint that can be loaded: "
            f"{str(error).splitlines()[0]}"
        ) from error
    if stored_config.get("model_type") not in MODEL_CLASSES:
        raise ValueError(
            f"The checkpoint {name!r} has the model_type {stored_config.get('model_type')!r}; name a CLIP, SigLIP or "
            "TIER checkpoint (docs/models.md says which others tier-convert makes one of)."
        )
    return stored_config


def load_checkpoint(arguments: ModelArguments) -> tuple[TierModel, TierProcessor]:
    """The model of a CLIP, SigLIP or TIER checkpoint in float32, with its processor."""
    model = load_weights(MODEL_CLASSES[read_stored_config(arguments)["model_type"]], arguments)
    tokenizer = load_tokenizer(arguments.model)
    image_processor = load_image_processor(arguments, model.config)
    if isinstance(model, TierSiglipModel):
        fit_siglip_tokenizer(tokenizer, model.config)
        return model, TierSiglipProcessor(image_processor, tokenizer)
    return model, TierProcessor(image_processor, tokenizer)


def fit_siglip_tokenizer(tokenizer: PreTrainedTokenizerBase, config: TierSiglipConfig) -> None:
    """
    Makes the tokenizer of a SigLIP model end its texts where the model's positions end, without a mask, and tells the
    model the ids of end token and padding, which the configurations of published models do not name rightly.

    Raises:
        `ValueError`: see [`check_tokenizer`].
    """
    check_tokenizer(config, tokenizer)
    text_config = config.text_config
    tokenizer.model_max_length = min(tokenizer.model_max_length, text_config.max_position_embeddings)
    tokenizer.model_input_names = ["input_ids"]
    text_config.pad_token_id, text_config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    text_config.bos_token_id = tokenizer.bos_token_id


def load_weights(model_class: type[PreTrainedModel], arguments: ModelArguments) -> PreTrainedModel:
    """
    The checkpoint `arguments.model` as a model of a class, in float32.

    Raises:
        `ValueError`: it cannot be read, or its tensors are not exactly those of the model.
    """
    name = arguments.model
    check_model_folder(name)
    overrides = arguments.config_overrides()
    if not hasattr(model_class.config_class, "frozen_text_layers"):
        overrides.pop("frozen_text_layers", None)  # see freeze_towers
        refuse_dual_options(overrides, name)
    try:
        model, info = model_class.from_pretrained(
            **located(name),
            dtype=torch.float32,  # not the checkpoint's own: a training in float16 diverges
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # reported below
            output_loading_info=True,
            image_size=arguments.image_size,
            **overrides,
        )
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{name!r} is neither a preset ({', '.join(PRESETS)}) nor a checkpoint that can be loaded: "
            f"{str(error).splitlines()[0]}"
        ) from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = sorted(str(key) for key in info[problem] if not str(key).endswith("position_ids"))
        if problem == "missing_keys" and arguments.adapter_layers:
            keys = [key for key in keys if not key.startswith("image_adapter.")]  # new layers
        if keys:
            raise ValueError(
                f"The checkpoint {name!r} does not fit a {type(model).__name__}: {len(keys)} "
                f"{problem.replace('_', ' ')}, for example {keys[0]}."
            )
    if findings := getattr(model.config, "zero_shot_findings", None):  # measured with other weights
        model.config.zero_shot_findings = {
            name: {side: entry[side] for side in ("positive", "negative")} | {"score_level": default_level(model)}
            for name, entry in findings.items()
        }
    return model


def refuse_dual_options(overrides: dict, name: str) -> None:
    """Takes the options that only dual encoders have out of `overrides`; ValueError if one of them is not 0."""
    for option in ("adapter_layers", "image_head_dropout"):
        if value := overrides.pop(option, None):
            raise ValueError(
                f"{option}={value} is for dual encoders, which {name!r} is not; join its towers by --vision_model and "
                "--text_model, or leave it out."
            )


def load_image_processor(arguments: ModelArguments, config: TierConfig) -> TierImageProcessor:
    """The checkpoint's image processor, or one of ours with its numbers. Sets mean and deviation in `config`."""
    try:
        place = located(arguments.model)
        stored = AutoImageProcessor.from_pretrained(**place, backend="pil", trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds for damaged files
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ValueError(f"The image processor of {arguments.model!r} cannot be loaded: {reason}") from error
    image_processor = stored if isinstance(stored, TierImageProcessor) else TierImageProcessor.from_clip(stored)
    if arguments.geometry not in (None, image_processor.geometry):
        image_processor.geometry, image_processor.resize_edge = arguments.geometry, None
    size, own_size = model_size(config), image_processor.size["height"]
    if size != own_size:  # the same part of the image in more or fewer pixels
        if image_processor.resize_edge is not None:
            image_processor.resize_edge = round(image_processor.resize_edge * size / own_size)
        image_processor.size = SizeDict(height=size, width=size)
    config.pixel_mean = list(image_processor.image_mean)
    config.pixel_std = list(image_processor.image_std)
    return image_processor


def check_start(name: str) -> None:
    """
    Raises:
        `ValueError`: `--model` is neither a folder nor a possible name on the Hub, which is then not asked.
    """
    if os.path.isdir(name):
        return
    hint = "it was not looked up on the Hub."
    try:
        check_hub_name(name, "checkpoint folder", known=PRESETS)
        if "/" in name:
            return
    except ValueError as error:
        if "did you mean" in str(error):
            hint = str(error).rpartition(": ")[2]
    raise ValueError(
        f"The checkpoint folder {name!r} does not exist; name one, or a preset ({', '.join(PRESETS)}): {hint}"
    )


def check_names(arguments: ModelArguments) -> None:
    """ValueError for a tower or tokenizer that is mistyped or unsafe to read, before any data are read."""
    for name in (arguments.vision_model, arguments.text_model):
        if name is not None:
            check_hub_name(name, "tower")
            check_model_folder(name)
    if arguments.tokenizer is not None:
        check_hub_name(arguments.tokenizer, "tokenizer")
