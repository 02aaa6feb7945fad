"""The towers: made or loaded with transformers, checked, resized, frozen layer by layer. Pooling lives elsewhere."""

import copy
import dataclasses
import inspect
import math
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    BertConfig,
    CLIPTextModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import is_timm_available

from .configuration_tier import TierDualEncoderConfig, located, tower_image_size
from .pooling_tier import IMAGE_POOLINGS, NEEDS_CLASS_TOKEN
from .sentence_settings_tier import read_sentence_settings, text_pooling
from .tower_features_tier import TIMM, has_class_token


def layer_depths(tower: PreTrainedModel) -> dict[nn.Parameter, float]:
    """
    The layer of each parameter of a tower: 0 before the first layer (embeddings), 1 in the first layer, and so on;
    infinity after the last one. The layers of a hierarchical backbone are its stages.

    Raises:
        ValueError: The tower does not list its layers.
    """
    config = tower.config
    count = getattr(config, "num_hidden_layers", None) or len(getattr(config, "depths", ()))
    lists = (module for module in tower.modules() if isinstance(module, nn.ModuleList))
    layers = next((module for module in lists if len(module) == count), None)
    if layers is None:
        raise ValueError(f"{type(tower).__name__} does not list its layers, so they cannot be told apart.")
    depths = {parameter: number for number, layer in enumerate(layers, 1) for parameter in layer.parameters()}
    parameters = list(tower.parameters())
    first = next(i for i, parameter in enumerate(parameters) if parameter in depths)
    return {p: depths.get(p, 0 if i < first else math.inf) for i, p in enumerate(parameters)}


def freeze_layers(tower: PreTrainedModel, count: int) -> None:
    """
    Freezes the first layers of a tower, and the embeddings before them.

    Raises:
        ValueError: The tower has fewer layers, or does not list them.
    """
    depths = layer_depths(tower)
    layers = int(max(depth for depth in depths.values() if depth < math.inf))
    if not 0 <= count <= layers:
        raise ValueError(f"{count} layers of {type(tower).__name__} cannot be frozen: it has {layers}.")
    for parameter, depth in depths.items():
        if depth <= count:
            parameter.requires_grad_(False)


def hidden_size(config: PreTrainedConfig) -> int:
    """Channels of a tower's last hidden state."""
    size = getattr(config, "hidden_size", None) or (getattr(config, "hidden_sizes", None) or [None])[-1]
    size = size or getattr(config, "num_features", None)  # of timm
    if size is None:
        raise ValueError(
            f"The configuration of {config.model_type!r} does not give the width of its last hidden state "
            "(hidden_size or hidden_sizes). Choose another model."
        )
    return size


def tower_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The model class of transformers for a tower's configuration."""
    if type(config) not in MODEL_MAPPING:
        raise ValueError(f"transformers has no plain model for {type(config).__name__}; choose another tower.")
    found = MODEL_MAPPING[type(config)]
    return found[0] if isinstance(found, (list, tuple)) else found


def without_pooler(model_class: type[PreTrainedModel]) -> dict[str, bool]:
    """The option that leaves out the pooler of a tower that has one: nothing here would train it."""
    return {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(model_class).parameters else {}


def check_timm(config: PreTrainedConfig | dict) -> None:
    """Raises ValueError for a model of timm where a package that it needs is missing."""
    settings = config if isinstance(config, dict) else config.to_dict()
    if settings.get("model_type") == TIMM and not is_timm_available():
        raise ValueError(
            f"The image model {settings.get('architecture')!r} is one of timm, which needs the packages timm and "
            "torchvision; install them: pip install 'tier-clip[timm]'."
        )


def timm_config(settings: dict) -> PreTrainedConfig:
    """
    The configuration of a model of timm without its classifier, from the `config.json` that timm writes
    (timm/models/_hub.py at 1.0, `save_config_for_hf`).
    """
    of_owner = {"input_size": (settings.get("pretrained_cfg") or {}).get("input_size")}
    model_args = {key: value for key, value in (settings.get("model_args") or {}).items() if key != "num_classes"}
    return AutoConfig.for_model(
        TIMM,
        architecture=settings.get("architecture"),
        model_args=model_args,
        do_pooling=False,
        num_labels=0,
        pretrained_cfg=of_owner,
    )


def has_attention(model_class: type[PreTrainedModel]) -> bool:
    """Whether the implementation of attention can be chosen; convolutional backbones raise when it is set."""
    return model_class._supports_sdpa or model_class._supports_flash_attn


def make_tower(config: PreTrainedConfig) -> PreTrainedModel:
    """A tower of random weights."""
    check_timm(config)
    model_class = tower_class(config)
    if not has_attention(model_class):
        config._attn_implementation = None  # the caller's choice is for the other tower
    tower = AutoModel.from_config(config, dtype=torch.get_default_dtype(), **without_pooler(model_class))
    note_timm_width(tower)
    return tower


def note_timm_width(tower: PreTrainedModel) -> None:
    """Writes the width of a model of timm, which only the model itself knows, into its configuration."""
    if tower.config.model_type == TIMM:
        tower.config.num_features = tower.timm_model.num_features


def make_visual_projection(config: TierDualEncoderConfig) -> nn.Sequential:
    """The projection head of the patches, of random weights."""
    dim = config.projection_dim
    if config.image_head != "tier":
        return make_head(config.image_head, hidden_size(config.vision_config), dim, config.head_bias)
    return nn.Sequential(
        nn.Conv2d(hidden_size(config.vision_config), dim, kernel_size=1, bias=False),
        nn.BatchNorm2d(dim),
        nn.ReLU(),
        nn.Conv2d(dim, dim, kernel_size=1),
    )


def make_text_projection(config: TierDualEncoderConfig) -> nn.Sequential:
    """The projection head of the tokens, of random weights."""
    width, dim = hidden_size(config.text_config), config.projection_dim
    if config.text_head != "tier":
        return make_head(config.text_head, width, dim, config.head_bias)
    return nn.Sequential(nn.Linear(width, dim), nn.GELU(), nn.LayerNorm(dim, eps=1e-12), nn.Linear(dim, dim))


def make_head(kind: str, width: int, dim: int, bias: bool) -> nn.Sequential:
    """A `"linear"` or `"mlp"` head; see [`TierDualEncoderConfig`]."""
    if kind == "linear":
        return nn.Sequential(nn.Linear(width, dim, bias=bias))
    middle = (width + dim) // 2
    return nn.Sequential(nn.Linear(width, middle, bias=bias), nn.GELU(), nn.Linear(middle, dim, bias=bias))


def load_towers(vision: str, text: str, **fields: Any) -> tuple[TierDualEncoderConfig, dict[str, PreTrainedModel]]:
    """
    Two pretrained towers, and the configuration of the model that they make.

    Args:
        vision (`str`), text (`str`): See [`TierDualEncoderModel.from_vision_text_pretrained`].
        fields: Of the configuration. Without `text_pooling`, sentence-transformers' own files say it.
    """
    if "text_pooling" not in fields:
        fields["text_pooling"] = text_pooling(read_sentence_settings(text), text) or "cls"
    towers = {"vision_model": load_tower(vision, "vision"), "text_model": load_tower(text, "text")}
    configs = [tower.config for tower in towers.values()]
    attention = [config._attn_implementation for config in configs]
    whole = TierDualEncoderConfig(vision_config=configs[0], text_config=configs[1], **fields)
    for config, implementation in zip(configs, attention, strict=True):
        config._attn_implementation = implementation  # the configuration around it has reset it to eager
    return whole, towers


def load_tower(name: str, kind: str) -> PreTrainedModel:
    """The `"vision"` or `"text"` tower of a checkpoint, in float32 and with all of its weights."""
    try:
        config_dict, _ = PreTrainedConfig.get_config_dict(**located(name))
        check_timm(config_dict)
        if config_dict.get("model_type") == "cxr-bert":
            config = cxr_bert_config(config_dict)
        elif config_dict.get("model_type") == TIMM:
            config = timm_config(config_dict)
        else:
            config = AutoConfig.from_pretrained(**located(name), trust_remote_code=False)
            config = getattr(config, f"{kind}_config", config)
            if config.model_type == "siglip_vision_model":
                config.vision_use_head = False  # its pooling: nothing here would train it
        options: dict[str, Any] = dict(without_pooler(tower_class(config)))
        if config_dict.get("model_type") == TierDualEncoderConfig.model_type:  # ours, such as a classifier
            if kind == "vision" and config_dict.get("adapter_layers"):
                raise ValueError(
                    f"The image tower of {name!r} has {config_dict['adapter_layers']} adapter layers on it, which "
                    "would be lost; train it without --adapter_layers."
                )
            options["key_mapping"] = {rf"^{kind}_model\.": ""}
        tower, info = AutoModel.from_pretrained(
            **located(name),
            config=config,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # reported below
            output_loading_info=True,
            trust_remote_code=False,
            **options,
        )
    except ValueError:
        raise
    except Exception as error:  # missing, damaged or truncated files fail in many ways
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"The {kind} model {name!r} cannot be loaded: {reason}") from error
    wrong = [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]]
    missing = sorted(info["missing_keys"]) + sorted(wrong)
    if missing:
        raise ValueError(
            f"The checkpoint {name!r} lacks {len(missing)} of the tensors of {type(tower).__name__}, for example "
            f"{missing[0]}; it is incomplete or has another architecture."
        )
    note_timm_width(tower)
    return tower


def cxr_bert_config(settings: dict) -> BertConfig:
    """The configuration of the BERT inside CXR-BERT (a BERT with a projection head, in remote code)."""
    known = {field.name for field in dataclasses.fields(BertConfig)} - {"architectures"}
    return BertConfig(**{key: value for key, value in settings.items() if key in known})


def check_image_tower(vision_model: PreTrainedModel, image_pooling: str) -> None:
    """Raises ValueError for a tower that does not see whole images or lacks the class token that pooling needs."""
    if vision_model.main_input_name != "pixel_values":
        raise ValueError(
            f"vision_config describes a {type(vision_model).__name__}, which does not take pixel_values; choose an "
            "image backbone."
        )
    if hasattr(vision_model.config, "mask_ratio"):
        raise ValueError(
            f"vision_config describes a {type(vision_model).__name__}, which hides patches at random; choose a "
            "backbone that shows them all (a ViT reads the same weights)."
        )
    if image_pooling in NEEDS_CLASS_TOKEN and not has_class_token(vision_model):
        raise ValueError(
            f'image_pooling="{image_pooling}" needs a class token, which {type(vision_model).__name__} does not have; '
            f"use {' or '.join(mode for mode in IMAGE_POOLINGS if mode not in NEEDS_CLASS_TOKEN)}."
        )


def check_text_tower(text_model: PreTrainedModel) -> None:
    """Raises ValueError for a tower that is neither bidirectional nor CLIP's."""
    # [CLS] comes first, so it knows the text only in a bidirectional encoder, as masked language models are.
    config = text_model.config
    if isinstance(text_model, CLIPTextModel):
        return
    if type(config) not in MODEL_FOR_MASKED_LM_MAPPING or config.is_encoder_decoder:
        raise ValueError(
            f"text_config describes a {type(text_model).__name__}, which is not a bidirectional text encoder; choose "
            "one like BERT or RoBERTa, or CLIP's."
        )


def resize_positions(tower: PreTrainedModel, image_size: int) -> None:
    """
    Interpolates the position embeddings of an image tower once, as `interpolate_pos_encoding=True` does for every
    batch, with the tower's function (CLIP's is bicubic). Names of parameters stay the same.

    Args:
        tower ([`PreTrainedModel`]): Its configuration is left to the caller.
        image_size (`int`): Edge of the square in pixels; a multiple of the patch size.

    Raises:
        ValueError: The patches do not fill a square of that size, or the tower cannot interpolate a parameter whose
            shape depends on the size, or it is a transformer of timm.
    """
    if tower.config.model_type == TIMM:
        own_size = tower_image_size(tower.config)
        if own_size not in (None, image_size) and getattr(tower.timm_model, "patch_embed", None) is not None:
            raise ValueError(
                f"image_size={image_size}: the model {tower.config.architecture!r} of timm takes {own_size} pixels; "
                "leave image_size out."
            )
        return
    patch_size = getattr(tower.config, "patch_size", 1)
    if image_size < patch_size or image_size % patch_size:
        raise ValueError(
            f"image_size={image_size} is not a multiple of this model's {patch_size}-pixel patches; use for "
            f"example {max(1, round(image_size / patch_size)) * patch_size}."
        )
    config = copy.deepcopy(tower.config)
    config.image_size = image_size
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in type(tower)._from_config(config).named_parameters()}
    changed = [name for name, tensor in tower.named_parameters() if shapes[name] != tensor.shape]
    if changed:
        prefix, _, name = changed[0].partition(".")
        if len(changed) > 1 or prefix != "embeddings" or not hasattr(tower.embeddings, "interpolate_pos_encoding"):
            raise ValueError(
                f"image_size={image_size}: {type(tower).__name__} cannot interpolate its {changed[0]}; keep "
                f"{tower.config.image_size} pixels."
            )
        old = tower.embeddings
        state, table = old.state_dict(), shapes[changed[0]]  # (..., class token and the like + patches, hidden)
        with torch.no_grad():
            tokens = state[name].new_empty(1, *table[-2:])
            state[name] = old.interpolate_pos_encoding(tokens, image_size, image_size).reshape(table)
        new = type(old)(config).to(device=state[name].device, dtype=state[name].dtype).train(old.training)
        new.load_state_dict(state)
        for parameter, before in zip(new.parameters(), old.parameters(), strict=True):
            parameter.requires_grad_(before.requires_grad)
        tower.embeddings = new


def check_image_size(pixel_values: torch.Tensor, embeddings: nn.Module, interpolate_pos_encoding: bool) -> None:
    """
    Raises:
        ValueError: The images have another size than the positions of CLIP's or SigLIP's `embeddings`, or, with
            interpolation, are smaller than one patch.
    """
    height, width = pixel_values.shape[-2:]
    size, patch_size = embeddings.image_size, embeddings.patch_size
    if interpolate_pos_encoding and min(height, width) < patch_size:
        raise ValueError(
            f"pixel_values of {height}x{width} pixels are smaller than one {patch_size}x{patch_size} patch of this "
            f"model. Enlarge the images, preferably to {size}x{size}."
        )
    if not interpolate_pos_encoding and (height != size or width != size):
        raise ValueError(
            f"pixel_values of {height}x{width} pixels do not fit this model, which takes {size}x{size}. Use its image "
            "processor, or pass interpolate_pos_encoding=True."
        )
