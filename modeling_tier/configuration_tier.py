"""Configurations of the TIER models: the towers, and the weights and the definition of the two entropy terms."""

import difflib
import math
import os
from dataclasses import dataclass, fields
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, CLIPConfig, PreTrainedConfig
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)
from transformers.utils import logging

from .findings_tier import check_findings
from .pooling_tier import IMAGE_POOLINGS

logger = logging.get_logger(__name__)

ENTROPY_TOKENS = ("words", "attended", "all")

# What transformers itself passes to a configuration or writes into config.json, beside the declared fields.
LIBRARY_KEYS = {
    "attn_implementation",
    "auto_map",
    "bos_token_id",  # these three from the Trainer, which up to 5.17 puts the tokenizer's here
    "custom_pipelines",
    "eos_token_id",
    "experts_implementation",
    "fusion_config",
    "initializer_range",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "pad_token_id",
    "per_layer_config",
    "quantization_config",
    "text_config_dict",
    "tie_word_embeddings",
    "torch_dtype",
    "use_cache",
    "vision_config_dict",
}


NEAR = 0.7  # similarity (`difflib`) from which on an unknown key is taken for a misspelt option
STORED = "_stored"  # passed by `from_dict`: the keys come from a file, and no person has typed them

Channels = float | int | list[float | int] | tuple[float | int, ...]


@dataclass(kw_only=True)
class TierOptions:
    """The fields that the configurations of both architectures have, documented at [`TierCLIPConfig`]."""

    keys_to_ignore_at_inference = [
        "text_model_output",
        "vision_model_output",
        "contrastive_loss",
        "token_entropy",
        "patch_entropy",
        "token_embeds",
        "patch_embeds",
    ]

    token_entropy_weight: float | int = 0.0
    patch_entropy_weight: float | int = 0.0
    entropy_temperature: float | int = 1.0
    entropy_normalization: bool = False
    entropy_tokens: str = "words"
    image_pooling: str = "cls"
    pixel_mean: Channels = tuple(OPENAI_CLIP_MEAN)
    pixel_std: Channels = tuple(OPENAI_CLIP_STD)
    zero_shot_findings: dict | None = None

    def __post_init__(self, **kwargs):
        stored = kwargs.pop(STORED, False)
        for key in kwargs.keys() - LIBRARY_KEYS:
            nearest = self.nearest_option(key)
            if nearest is not None and not stored:
                raise ValueError(f"{type(self).__name__} has no option {key!r}; the nearest one is {nearest!r}.")
            if (nearest is not None or not stored) and not key.startswith("_"):
                resembles = f" (did you mean {nearest!r}?)" if nearest else ""
                logger.warning(f"{type(self).__name__} has no option {key!r}{resembles}; it is kept, without effect.")
        kwargs.pop("model_type", None)  # a class attribute; as an instance attribute it could disagree
        # as they come back from JSON
        self.pixel_mean, self.pixel_std = per_channel(self.pixel_mean), per_channel(self.pixel_std)
        self.validate_tier()  # here too, since @strict would wrap the ValueError into an exception of its own
        super().__post_init__(**kwargs)

    def validate_tier(self):
        """Checks the values of this class's own fields; `@strict` calls it again when the configuration is saved."""
        for name in ("token_entropy_weight", "patch_entropy_weight"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(
                    f"{name} must be a finite number of at least 0 (0 switches the term off), not {value}."
                )
        if not 0 < self.entropy_temperature < math.inf:
            raise ValueError(
                "entropy_temperature must be a finite number above 0 (1.0 is the paper's), "
                f"not {self.entropy_temperature}."
            )
        for name, choices in (("entropy_tokens", ENTROPY_TOKENS), ("image_pooling", IMAGE_POOLINGS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}.")
        for name in ("pixel_mean", "pixel_std"):
            if len(per_channel(getattr(self, name))) != 3:
                raise ValueError(f"{name} must have 3 numbers, one per channel, not {len(getattr(self, name))}.")
        if not all(0 < value < math.inf for value in per_channel(self.pixel_std)):
            raise ValueError(f"pixel_std must have numbers above 0 only, not {self.pixel_std}.")
        check_findings(self.zero_shot_findings or {})

    @classmethod
    def options(cls) -> set[str]:
        """The names of the fields that these models have and others of transformers need not."""
        return {field.name for field in fields(cls)} - {field.name for field in fields(PreTrainedConfig)}

    @classmethod
    def nearest_option(cls, key: str) -> str | None:
        """The option that an unknown key may be a misspelling of, if there is one."""
        return next(iter(difflib.get_close_matches(key, sorted(cls.options()), n=1, cutoff=NEAR)), None)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """
        Builds the configuration from what a file says. Keys that are not known are kept, since other tools and persons
        leave notes there; one that resembles an option is warned about. Keyword arguments for a model's own fields
        are checked like the file's, and a misspelt one is an error.
        """
        overrides = {
            key: kwargs.pop(key) for key in list(kwargs) if key in cls.options() and key not in cls.sub_configs
        }
        for key in kwargs.keys() - LIBRARY_KEYS - cls.sub_configs.keys():
            nearest = cls.nearest_option(key)
            if nearest is not None and key not in config_dict:
                raise ValueError(f"{cls.__name__} has no option {key!r}; the nearest one is {nearest!r}.")
        return super().from_dict({**config_dict, **overrides, STORED: True}, **kwargs)


@strict
class TierCLIPConfig(TierOptions, CLIPConfig):
    r"""
    Configuration of a [`TierCLIPModel`]. It has everything that [`CLIPConfig`] has and the fields below. Values are
    checked when the configuration is built, loaded or saved. A keyword that resembles one of these fields, but is
    none, is an error; in a stored `config.json` such a key is warned about, and every other one is kept in silence.

    The lambdas that the authors of TIER used are not recoverable from their code, which defaults to 0 for both; the
    defaults here are 0 as well, so that a configuration without them is plain CLIP.

    Args:
        token_entropy_weight (`float`, *optional*, defaults to 0.0):
            Weight, at least 0, of the mean entropy (nats) of each token's distribution over the image's patches.
            It is `lam_words`, the first of the two lambdas in the authors' code.
        patch_entropy_weight (`float`, *optional*, defaults to 0.0):
            Weight, at least 0, of the mean entropy (nats) of each patch's distribution over the text's tokens.
            It is `lam_patches`, the second of the two lambdas in the authors' code.
        entropy_temperature (`float`, *optional*, defaults to 1.0):
            Positive number that divides the cosines before the softmax. 1.0 is the paper's; there, with 49 patches,
            the token entropy can only move between 3.748 and 3.892 nats. Smaller is sharper.
        entropy_normalization (`bool`, *optional*, defaults to `False`):
            Divide each entropy by ln K, K being the number of patches or of that text's counted tokens, so that it
            lies in [0, 1] whatever the image size and the text length. An entropy over one element is 0.
        entropy_tokens (`str`, *optional*, defaults to `"words"`):
            The tokens that count. `"words"`: attended tokens except BOS and EOS. `"attended"`: these too. `"all"`:
            what the authors' code did, padding and the 1e-7 added after the softmax included, to reproduce it.
        image_pooling (`str`, *optional*, defaults to `"cls"`):
            `"cls"`: the global image embedding comes from the class token, as in CLIP and CheXzero. `"patch_mean"`:
            it is the mean of the projected patch embeddings, as in TIER.
        pixel_mean (`list[float]` or `float`, *optional*, defaults to CLIP's):
            Mean of each of the 3 channels, or of all, on the 0..1 scale; only used for pixels that arrive as uint8.
        pixel_std (`list[float]` or `float`, *optional*, defaults to CLIP's):
            Standard deviation, above 0, of each of the 3 channels, or of all, on the 0..1 scale; used like
            `pixel_mean`.
        zero_shot_findings (`dict[str, dict]`, *optional*):
            What the pipeline `cxr-zero-shot-classification` knows of each finding, by name: the sentences `"positive"`
            and `"negative"` (lists), and, measured with these sentences, the `"scale"` (above 0, 1.0 by default) and
            the `"bias"` (0.0 by default) that make a probability of their difference in cosine, and the
            `"threshold"` (0..1), from which on the finding is called present. `"measured_on"` says on which images:
            `{"dataset": name, "split": name, "images": number, "date": "YYYY-MM-DD"}`.
            `eval_zeroshot.py --save_thresholds` writes it.
        kwargs:
            The fields of [`CLIPConfig`].

    Raises:
        ValueError: a value is out of range, or a keyword is a misspelt option.
        StrictDataclassFieldValidationError: a value has the wrong type.
    """

    model_type = "tier_clip"

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads `config.json`. That of a plain CLIP checkpoint, less its code, is a TIER one's too."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if config_dict.get("model_type") == CLIPConfig.model_type:
            config_dict = {key: value for key, value in config_dict.items() if key != "auto_map"}
            config_dict["model_type"] = cls.model_type
        return config_dict, kwargs


@strict
class TierDualEncoderConfig(TierOptions, PreTrainedConfig):
    r"""
    Configuration of a [`TierDualEncoderModel`]: the paper's own architecture, from any image backbone and any text
    encoder of transformers. Values are checked as those of [`TierCLIPConfig`] are.

    Args:
        text_config (`dict` or [`PreTrainedConfig`], *optional*, defaults to BERT's):
            Of the text encoder, which must be bidirectional or CLIP's; a `dict` names its kind by `model_type`.
        vision_config (`dict` or [`PreTrainedConfig`], *optional*, defaults to ResNet-50's):
            Of the image backbone, likewise.
        projection_dim (`int`, *optional*, defaults to 128):
            Dimensions of the space that texts and images share.
        logit_scale_init_value (`float`, *optional*, defaults to ln(1/0.07)):
            Where the logarithm of the factor of the cosines starts.
        image_size (`int`, *optional*):
            Edge in pixels of the square that the model sees. That of the backbone where it has one, else 224. Where it
            differs from the backbone's, the position embeddings are interpolated.
        frozen_text_layers (`int`, *optional*, defaults to 0):
            The embeddings and so many of the first layers of the text encoder are never trained; 0 trains all. The
            paper's model has 8 of BERT's 12 (authors' code, CLIP_Embedding.py:38-45 at ce1e171).
        image_pooling (`str`, *optional*, defaults to `"patch_mean"`):
            As in [`TierCLIPConfig`]; `"cls"` needs a backbone with a class token.
        pixel_mean, pixel_std (`list[float]`, *optional*, default to ImageNet's):
            As in [`TierCLIPConfig`]. A backbone with one channel needs three equal numbers in each.
        kwargs:
            The other fields of [`TierCLIPConfig`] that are its own.

    Raises:
        ValueError: a value is out of range, a keyword is a misspelt option, or a kind of tower is unknown.
        StrictDataclassFieldValidationError: a value has the wrong type.
    """

    model_type = "tier_dual_encoder"
    sub_configs = {"text_config": AutoConfig, "vision_config": AutoConfig}

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    projection_dim: int = 128
    logit_scale_init_value: float | int = math.log(1 / 0.07)
    image_size: int | None = None
    frozen_text_layers: int = 0
    image_pooling: str = "patch_mean"
    pixel_mean: Channels = tuple(IMAGENET_DEFAULT_MEAN)
    pixel_std: Channels = tuple(IMAGENET_DEFAULT_STD)

    def __post_init__(self, **kwargs):
        self.text_config = tower_config(self.text_config, "bert")
        self.vision_config = tower_config(self.vision_config, "resnet")
        own_size = getattr(self.vision_config, "image_size", None)
        if self.image_size is None:
            self.image_size = 224 if own_size is None else own_size if isinstance(own_size, int) else max(own_size)
        super().__post_init__(**kwargs)

    def validate_tier(self):
        super().validate_tier()
        for name in ("projection_dim", "image_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")
        layers = getattr(self.text_config, "num_hidden_layers", 0)
        if not 0 <= self.frozen_text_layers <= layers:
            raise ValueError(
                f"frozen_text_layers must lie between 0 (nothing frozen) and the {layers} layers of the text encoder, "
                f"not {self.frozen_text_layers}."
            )
        channels = getattr(self.vision_config, "num_channels", 3)
        if channels not in (1, 3):
            raise ValueError(f"The image backbone must have 1 or 3 channels (num_channels), not {channels}.")
        if channels == 1 and (len({*per_channel(self.pixel_mean)}) > 1 or len({*per_channel(self.pixel_std)}) > 1):
            raise ValueError(
                "A backbone with one channel needs three equal numbers in pixel_mean and in pixel_std, not "
                f"{self.pixel_mean} and {self.pixel_std}."
            )


def located(name: str | os.PathLike) -> dict[str, str]:
    """
    What `from_pretrained` takes for a model.

    Args:
        name (`str` or `os.PathLike`):
            A folder, or a name on the Hub: `"owner/name"`, or `"owner/name@revision"` for a branch, a tag or a commit.
    """
    repository, _, revision = os.fspath(name).partition("@")
    if not revision or os.path.isdir(name):
        return {"pretrained_model_name_or_path": os.fspath(name)}
    return {"pretrained_model_name_or_path": repository, "revision": revision}


def per_channel(value: Channels) -> list[float]:
    """Three numbers, also where one stands for all."""
    return list(value) if isinstance(value, (list, tuple)) else [value] * 3


def tower_config(config: dict | PreTrainedConfig | None, default_type: str) -> PreTrainedConfig:
    """The configuration of a tower, which a `dict` describes by the fields of its `model_type`."""
    if isinstance(config, PreTrainedConfig):
        return config
    config = dict(config or {})
    model_type = config.pop("model_type", default_type)
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"transformers has no model_type {model_type!r}; name one of its own for each tower, for example "
            f"{default_type!r}."
        )
    return AutoConfig.for_model(model_type, **config)


TierCLIPConfig.register_for_auto_class()
TierDualEncoderConfig.register_for_auto_class()

__all__ = ["TierCLIPConfig", "TierDualEncoderConfig"]
