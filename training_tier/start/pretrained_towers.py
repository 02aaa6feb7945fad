"""Two pretrained towers under new projection heads, with the pixels and the tokens that they were trained on."""

import logging
from typing import Any, NamedTuple

from transformers import PreTrainedConfig, PreTrainedTokenizerBase
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling
from transformers.models.auto.image_processing_auto import (
    AutoImageProcessor,
)  # the top level hides it without torchvision

from modeling_tier import TierDualEncoderModel
from modeling_tier.configuration_tier import located, per_channel
from modeling_tier.sentence_settings_tier import read_sentence_settings
from processing_tier import TierImageProcessor, TierProcessor
from training_tier.options.model import ModelArguments
from training_tier.start.tokenizers import load_tokenizer

logger = logging.getLogger(__name__)

MAX_TOKENS = 128  # of a text with a pretrained encoder, as in the paper (authors' code, CLIP_Embedding.py:79-82)

FILTERS = {name: getattr(PILImageResampling, name.upper()) for name in ("nearest", "bilinear", "bicubic", "lanczos")}


class TowerPixels(NamedTuple):
    """The pixels that an image tower was trained on; mean and deviation on the 0..1 scale."""

    mean: list[float]
    std: list[float]
    size: int | None  # edge in pixels of the square that the tower sees
    resample: int


def join_towers(arguments: ModelArguments) -> tuple[TierDualEncoderModel, TierProcessor]:
    """
    A pretrained image backbone and text encoder under new projection heads, with the text encoder's tokenizer. Size,
    mean, deviation and filter of the pixels are the backbone's; the geometry is ours, because its owner may cut off
    the edges of a radiograph.

    Raises:
        `ValueError`: see [`TierDualEncoderModel.from_vision_text_pretrained`], [`read_pixels`] and [`fit_tokenizer`].
    """
    overrides = arguments.config_overrides()
    pixels = read_pixels(arguments.vision_model)
    if pixels is None:
        logger.warning(
            "The image model %s does not say which pixels it was trained on: it gets ImageNet's mean and deviation.",
            arguments.vision_model,
        )
        pixels = TowerPixels(list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD), None, FILTERS["bicubic"])
    overrides |= {"pixel_mean": pixels.mean, "pixel_std": pixels.std}
    size = arguments.image_size or pixels.size
    if size is not None:
        overrides["image_size"] = size
    model = TierDualEncoderModel.from_vision_text_pretrained(arguments.vision_model, arguments.text_model, **overrides)
    logger.info("Image size %d, text pooling %s.", model.config.image_size, model.config.text_pooling)
    image_processor = TierImageProcessor(
        geometry=arguments.geometry or "pad",
        size={"height": model.config.image_size, "width": model.config.image_size},
        image_mean=pixels.mean,
        image_std=pixels.std,
        resample=pixels.resample,
    )
    return model, TierProcessor(image_processor, fit_tokenizer(arguments.text_model))


def read_pixels(name: str) -> TowerPixels | None:
    """
    The pixels that the files of an image tower ask for: `preprocessor_config.json`, or `config.json` of timm.

    Args:
        name (`str`): Folder or name on the Hub.

    Returns:
        [`TowerPixels`], or `None` for a tower without such a file.

    Raises:
        `ValueError`: the file is damaged, or asks for pixels that are not square.
    """
    place = located(name)
    try:
        config = PreTrainedConfig.get_config_dict(**place)[0]
    except (OSError, ValueError):
        return None  # loading the tower says what is wrong
    if isinstance(of_timm := config.get("pretrained_cfg"), dict):
        return pixels_of_timm(name, config.get("model_args") or {}, of_timm)
    try:
        settings = BaseImageProcessor.get_image_processor_dict(**place)[0]
    except OSError as error:
        if "valid JSON" in str(error):
            raise ValueError(f"The image processor of {name!r} cannot be loaded: {first_line(error)}") from error
        return None
    try:  # for the defaults of its class
        stored = AutoImageProcessor.from_pretrained(**place, backend="pil", trust_remote_code=False)
        settings = {**settings, **{key: value for key, value in stored.to_dict().items() if value is not None}}
    except Exception as error:  # some classes need torchvision; what the file says is enough
        logger.info("The image processor of %s is read without its class: %s", name, first_line(error))
    try:
        return pixels_of_settings(settings)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"The image processor of {name!r} cannot be used: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]


def pixels_of_timm(name: str, model_args: dict, settings: dict) -> TowerPixels:
    """From `pretrained_cfg` of timm (timm/data/config.py at 1.0, `resolve_data_config`)."""
    size = model_args.get("img_size") or (settings.get("input_size") or [None])[-1]
    size = max(size) if isinstance(size, (list, tuple)) else size
    filter_name = settings.get("interpolation", "bicubic")
    if filter_name not in FILTERS:
        raise ValueError(
            f"The image model {name!r} asks for the interpolation {filter_name!r}; only {', '.join(FILTERS)} are "
            "supported."
        )
    mean = per_channel(settings.get("mean") or list(IMAGENET_DEFAULT_MEAN))
    std = per_channel(settings.get("std") or list(IMAGENET_DEFAULT_STD))
    return TowerPixels(mean, std, size, FILTERS[filter_name])


def pixels_of_settings(settings: dict[str, Any]) -> TowerPixels:
    """From the settings of an image processor of transformers, whatever its class."""
    size = settings.get("crop_size") if settings.get("do_center_crop") else settings.get("size")
    if isinstance(size, dict):
        edges = {size.get(key) for key in ("height", "width", "shortest_edge")} - {None}
        if len(edges) != 1:
            raise ValueError(f"it does not make squares (size={size}); pass --image_size.")
        size = edges.pop()
    mean, std = [0.0] * 3, [1.0] * 3
    if settings.get("do_normalize", True):
        mean = per_channel(settings.get("image_mean") or list(IMAGENET_DEFAULT_MEAN))
        std = per_channel(settings.get("image_std") or list(IMAGENET_DEFAULT_STD))
    # It divides pixels of 0..255 by another number than 255? Then so do mean and deviation.
    scale = 255 * settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 255.0
    if abs(scale - 1) > 1e-6:
        mean, std = [value / scale for value in mean], [value / scale for value in std]
    return TowerPixels(
        list(map(float, mean)),
        list(map(float, std)),
        None if size is None else int(size),
        int(settings.get("resample", FILTERS["bicubic"])),
    )


def fit_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """
    The tokenizer of a text encoder, with the length of its texts: that of sentence-transformers, or at most
    `MAX_TOKENS`.

    Raises:
        `ValueError`: it cannot be loaded, or does not make lower case of texts as sentence-transformers does.
    """
    settings, tokenizer = read_sentence_settings(name), load_tokenizer(name)
    if settings.lower_case:
        tokenizer = load_tokenizer(name, do_lower_case=True)
        if tokenizer.tokenize("CHEST") != tokenizer.tokenize("chest"):
            raise ValueError(
                f"sentence-transformers reads the texts of {name!r} in lower case, which a "
                f"{type(tokenizer).__name__} cannot do; choose another text model."
            )
    length = settings.max_length or MAX_TOKENS
    tokenizer.model_max_length = min(tokenizer.model_max_length, length)
    return tokenizer
