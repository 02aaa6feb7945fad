"""Configurations of the TIER models: their fields, defaults and checks. Entries of findings are checked elsewhere."""

import difflib
import math
import os
from dataclasses import dataclass, fields
from typing import Any, ClassVar

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
from .pooling_tier import ADDS_UP, IMAGE_POOLINGS, TEXT_POOLINGS

logger = logging.get_logger(__name__)

ENTROPY_TOKENS = ("words", "attended", "all")
PROJECTION_HEADS = ("tier", "linear", "mlp")

# Keys that transformers itself passes to a configuration or writes into config.json, beside the declared fields.
LIBRARY_KEYS = {
    "attn_implementation",
    "auto_map",
    "bos_token_id",  # these three come from the Trainer, which writes the tokenizer's ids here (up to 5.17)
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


NEAR = 0.7  # an unknown key of at least this similarity (`difflib`) to an option is a misspelling of it
STORED = "_stored"  # passed by `from_dict`: the keys come from a file, not from a caller

Channels = float | int | list[float | int] | tuple[float | int, ...]


@dataclass(kw_only=True)
class TierOptions:
    """The fields that both configurations share, documented at [`TierCLIPConfig`]."""

    keys_to_ignore_at_inference = [
        "text_model_output",
        "vision_model_output",
        "contrastive_loss",
        "token_entropy",
        "patch_entropy",
        "evidence_entropy",
        "token_embeds",
        "patch_embeds",
    ]
    image_poolings: ClassVar[tuple[str, ...]] = IMAGE_POOLINGS  # the choices of `image_pooling`

    token_entropy_weight: float | int = 0.0
    patch_entropy_weight: float | int = 0.0
    evidence_entropy_weight: float | int = 0.0
    evidence_patches: float | int = 1.0
    entropy_temperature: float | int = 1.0
    entropy_normalization: bool = False
    entropy_tokens: str = "words"
    image_pooling: str = "cls"
    pixel_mean: Channels = tuple(OPENAI_CLIP_MEAN)
    pixel_std: Channels = tuple(OPENAI_CLIP_STD)
    zero_shot_findings: dict | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        stored = kwargs.pop(STORED, False)
        for key in kwargs.keys() - LIBRARY_KEYS:
            nearest = self.nearest_option(key)
            if nearest is not None and not stored:
                raise ValueError(f"{type(self).__name__} has no option {key!r}; the nearest one is {nearest!r}.")
            if (nearest is not None or not stored) and not key.startswith("_"):
                resembles = f" (did you mean {nearest!r}?)" if nearest else ""
                logger.warning(
                    f"{type(self).__name__} has no option {key!r}{resembles}; it is kept but has no effect."
                )
        kwargs.pop("model_type", None)  # a class attribute; as an instance attribute it could disagree
        # lists, as in JSON
        self.pixel_mean, self.pixel_std = per_channel(self.pixel_mean), per_channel(self.pixel_std)
        self.validate_tier()  # here too: @strict would wrap the ValueError in its own exception
        super().__post_init__(**kwargs)

    def validate_tier(self) -> None:
        """Checks the values of this class's own fields; `@strict` calls it again when the configuration is saved."""
        for name in ("token_entropy_weight", "patch_entropy_weight", "evidence_entropy_weight"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise ValueError(
                    f"{name} must be a finite number of at least 0 (0 switches the term off), not {value}."
                )
        if not 1 <= self.evidence_patches < math.inf:
            raise ValueError(
                "evidence_patches must be a finite number of at least 1 (evidence from one patch), "
                f"not {self.evidence_patches}."
            )
        if not 0 < self.entropy_temperature < math.inf:
            raise ValueError(
                "entropy_temperature must be a finite number above 0 (1.0 is the paper's), "
                f"not {self.entropy_temperature}."
            )
        for name, choices in (("entropy_tokens", ENTROPY_TOKENS), ("image_pooling", self.image_poolings)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}.")
        if self.evidence_entropy_weight and self.image_pooling not in ADDS_UP:
            can_add_up = ADDS_UP[0] in self.image_poolings  # not with SigLIP's head
            remedy = f'image_pooling="{ADDS_UP[0]}", or the weight to 0' if can_add_up else "the weight to 0"
            raise ValueError(
                f"evidence_entropy_weight={self.evidence_entropy_weight} needs scores that are sums over the patches, "
                f'unlike those of image_pooling="{self.image_pooling}"; set {remedy}.'
            )
        for name in ("pixel_mean", "pixel_std"):
            if len(per_channel(getattr(self, name))) != 3:
                raise ValueError(f"{name} must have 3 numbers, one per channel, not {len(getattr(self, name))}.")
        if not all(0 < value < math.inf for value in per_channel(self.pixel_std)):
            raise ValueError(f"pixel_std must have numbers above 0 only, not {self.pixel_std}.")
        check_findings(self.zero_shot_findings or {})

    @classmethod
    def options(cls) -> set[str]:
        """The names of the fields that other models of transformers need not have."""
        return {field.name for field in fields(cls)} - {field.name for field in fields(PreTrainedConfig)}

    @classmethod
    def nearest_option(cls, key: str) -> str | None:
        """The option that an unknown key probably misspells, or None."""
        return next(iter(difflib.get_close_matches(key, sorted(cls.options()), n=1, cutoff=NEAR)), None)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """
        Builds the configuration from the content of a file. Unknown keys are kept, because other tools leave notes
        there; one that resembles an option causes a warning. Keyword arguments are checked like the file's values, and
        a misspelt one is an error.
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
    Configuration of a [`TierCLIPModel`]: the fields of [`CLIPConfig`] and those below. Values are checked when the
    configuration is built, loaded or saved. A keyword that misspells one of these fields is an error. In a stored
    `config.json` such a key causes a warning; other unknown keys are kept silently.

    The authors' code does not record the lambdas of the paper and defaults to 0 for both. The defaults here are 0 as
    well, so that a configuration without them is plain CLIP.

    Args:
        token_entropy_weight (`float`, *optional*, defaults to 0.0):
            Weight, at least 0, of the mean entropy (nats) of each token's distribution over the image's patches.
            It is `lam_words`, the first of the two lambdas in the authors' code.
        patch_entropy_weight (`float`, *optional*, defaults to 0.0):
            Weight, at least 0, of the mean entropy (nats) of each patch's distribution over the text's tokens.
            It is `lam_patches`, the second of the two lambdas in the authors' code.
        evidence_entropy_weight (`float`, *optional*, defaults to 0.0):
            Weight, at least 0, of the evidence entropy, a term of this project: the entropy (nats) of the shares of
            the patches in the evidence for a text, see `evidence_tier.py`. Needs `image_pooling="patch_mean"`.
        evidence_patches (`float`, *optional*, defaults to 1.0):
            At least 1. The evidence entropy does not penalise evidence that comes from so many patches or fewer.
        entropy_temperature (`float`, *optional*, defaults to 1.0):
            Positive number that divides the cosines before the softmax. A smaller one gives sharper distributions. At
            the paper's 1.0 and with 49 patches, the token entropy can only move between 3.748 and 3.892 nats.
        entropy_normalization (`bool`, *optional*, defaults to `False`):
            Whether to divide each entropy by ln K, where K is the number of patches or of that text's counted tokens.
            It then lies in [0, 1] for every image size and text length. An entropy over one element is 0.
        entropy_tokens (`str`, *optional*, defaults to `"words"`):
            The tokens that count. `"words"`: attended tokens except BOS and EOS. `"attended"`: all attended tokens.
            `"all"`: also padding, with 1e-7 added after the softmax, which reproduces the authors' code.
        image_pooling (`str`, *optional*, defaults to `"cls"`):
            `"cls"`: the global image embedding comes from the class token, as in CLIP and CheXzero. `"patch_mean"`:
            it is the mean of the projected patch embeddings, as in TIER. See `pooling_tier.py`.
        pixel_mean (`list[float]` or `float`, *optional*, defaults to CLIP's):
            Mean of each of the 3 channels, or of all, on the 0..1 scale; only used for pixels that arrive as uint8.
        pixel_std (`list[float]` or `float`, *optional*, defaults to CLIP's):
            Standard deviation, above 0, of each of the 3 channels, or of all, on the 0..1 scale; used like
            `pixel_mean`.
        zero_shot_findings (`dict[str, dict]`, *optional*):
            The entries of the pipeline `cxr-zero-shot-classification`, by finding. `"positive"` and
            `"negative"` are lists of sentences. Three numbers are measured with these sentences: `"scale"` (above 0,
            1.0 by default) and `"bias"` (0.0 by default) turn the difference in cosine into a probability; at
            `"threshold"` (0..1) and above, the finding is present. `"score_level"` is what they were measured at, one
            of `score_levels_tier.LEVELS` (`"global"` by default). `"measured_on"` names the images:
            `{"dataset": name, "split": name, "images": number, "date": "YYYY-MM-DD"}`.
            `eval_zeroshot.py --save_thresholds` writes it.
        kwargs:
            The fields of [`CLIPConfig`].

    Raises:
        ValueError: A value is out of range, or a keyword is a misspelt option.
        StrictDataclassFieldValidationError: A value has the wrong type.
    """

    model_type = "tier_clip"

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads `config.json`. A plain CLIP checkpoint's becomes a TIER configuration, without the CLIP's own code."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if config_dict.get("model_type") == CLIPConfig.model_type:
            config_dict = {key: value for key, value in config_dict.items() if key != "auto_map"}
            config_dict["model_type"] = cls.model_type
        return config_dict, kwargs


@strict
class TierDualEncoderConfig(TierOptions, PreTrainedConfig):
    r"""
    Configuration of a [`TierDualEncoderModel`]: the paper's architecture, from any image backbone and any text
    encoder of transformers. Values are checked as in [`TierCLIPConfig`].

    Args:
        text_config (`dict` or [`PreTrainedConfig`], *optional*, defaults to BERT's):
            The text encoder, which must be bidirectional or CLIP's; a `dict` names its kind by `model_type`.
        vision_config (`dict` or [`PreTrainedConfig`], *optional*, defaults to ResNet-50's):
            The image backbone, likewise.
        projection_dim (`int`, *optional*, defaults to 128):
            Dimensions of the space that texts and images share.
        logit_scale_init_value (`float`, *optional*, defaults to ln(1/0.07)):
            Initial logarithm of the factor of the cosines.
        image_size (`int`, *optional*):
            Edge in pixels of the square that the model sees. By default the backbone's, or 224 for a backbone without
            one. Another size than the backbone's makes the model interpolate the position embeddings.
        frozen_text_layers (`int`, *optional*, defaults to 0):
            Number of first layers of the text encoder that are never trained, and its embeddings with them; 0 trains
            everything. The paper freezes 8 of BERT's 12 (authors' code, CLIP_Embedding.py:38-45 at ce1e171).
        image_head, text_head (`str`, *optional*, default to `"tier"`):
            How patches and tokens are projected. `"tier"`: the authors' heads, see [`TierDualEncoderModel`].
            `"linear"`: one linear layer. `"mlp"`: linear layer, GELU, linear layer, where the width in the middle is
            the mean of `projection_dim` and the tower's width (the text head of OpenCLIP 3.3, hf_model.py:146-152).
        head_bias (`bool`, *optional*, defaults to `False`):
            Whether the layers of `"linear"` and `"mlp"` heads have biases.
        image_head_dropout (`float`, *optional*, defaults to 0.0):
            Probability, below 1, that training leaves out a channel before the image head, in all patches of an image.
        adapter_layers (`int`, *optional*, defaults to 0):
            Transformer layers on the image tower's class token and patches, before head and pooling; see
            [`AdapterLayer`].
        image_pooling (`str`, *optional*, defaults to `"patch_mean"`):
            As in [`TierCLIPConfig`]; `"cls"` needs a backbone with a class token.
        text_pooling (`str`, *optional*, defaults to `"cls"`):
            What represents a text: `"cls"`, the first token, `"eos"`, the last attended one ([SEP]), or `"mean"`, the
            mean of all attended tokens. CLIP's text encoder always uses its end token.
        pixel_mean, pixel_std (`list[float]`, *optional*, default to ImageNet's):
            As in [`TierCLIPConfig`]. A backbone with one channel needs three equal numbers in each.
        kwargs:
            The other fields that [`TierCLIPConfig`] adds to CLIP's.

    Raises:
        ValueError: A value is out of range, a keyword is a misspelt option, or a kind of tower is unknown.
        StrictDataclassFieldValidationError: A value has the wrong type.
    """

    model_type = "tier_dual_encoder"
    sub_configs = {"text_config": AutoConfig, "vision_config": AutoConfig}

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    projection_dim: int = 128
    logit_scale_init_value: float | int = math.log(1 / 0.07)
    image_size: int | None = None
    frozen_text_layers: int = 0
    image_head: str = "tier"
    text_head: str = "tier"
    head_bias: bool = False
    image_head_dropout: float | int = 0.0
    adapter_layers: int = 0
    image_pooling: str = "patch_mean"
    text_pooling: str = "cls"
    pixel_mean: Channels = tuple(IMAGENET_DEFAULT_MEAN)
    pixel_std: Channels = tuple(IMAGENET_DEFAULT_STD)

    def __post_init__(self, **kwargs: Any) -> None:
        self.text_config = tower_config(self.text_config, "bert")
        self.vision_config = tower_config(self.vision_config, "resnet")
        if self.image_size is None:
            self.image_size = tower_image_size(self.vision_config) or 224
        super().__post_init__(**kwargs)
        if self.head_bias and self.image_head == self.text_head == "tier":
            logger.warning('head_bias=True has no effect on heads of the kind "tier".')
        if self.text_pooling != "cls" and self.text_config.model_type in ("clip", "clip_text_model"):
            logger.warning(
                f"text_pooling={self.text_pooling!r} has no effect on CLIP's text encoder, whose end token is used."
            )

    def validate_tier(self) -> None:
        super().validate_tier()
        for name in ("projection_dim", "image_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")
        for name, choices in (
            ("image_head", PROJECTION_HEADS),
            ("text_head", PROJECTION_HEADS),
            ("text_pooling", TEXT_POOLINGS),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}.")
        if not 0 <= self.image_head_dropout < 1:
            raise ValueError(f"image_head_dropout must be at least 0 and below 1, not {self.image_head_dropout}.")
        if self.adapter_layers < 0:
            raise ValueError(f"adapter_layers must be at least 0 (none), not {self.adapter_layers}.")
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
    The arguments of `from_pretrained` that select a model.

    Args:
        name (`str` or `os.PathLike`):
            A folder, or a name on the Hub: `"owner/name"`, or `"owner/name@revision"` for a branch, a tag or a commit.
    """
    repository, _, revision = os.fspath(name).partition("@")
    if not revision or os.path.isdir(name):
        return {"pretrained_model_name_or_path": os.fspath(name)}
    return {"pretrained_model_name_or_path": repository, "revision": revision}


def per_channel(value: Channels) -> list[float]:
    """Three numbers; a single number counts for each channel."""
    return list(value) if isinstance(value, (list, tuple)) else [value] * 3


def tower_image_size(config: PreTrainedConfig) -> int | None:
    """Edge in pixels of the images that a backbone was made for, by its configuration; `None` if it does not say."""
    size = getattr(config, "image_size", None)
    if size is None:  # as timm writes it
        of_timm = getattr(config, "pretrained_cfg", None) or {}
        size = (getattr(config, "model_args", None) or {}).get("img_size") or (of_timm.get("input_size") or [None])[-1]
    return max(size) if isinstance(size, (list, tuple)) else size


def tower_config(config: dict | PreTrainedConfig | None, default_type: str) -> PreTrainedConfig:
    """The configuration of a tower, which a `dict` describes by the fields of its `model_type`."""
    if isinstance(config, PreTrainedConfig):
        return config
    config = dict(config or {})
    model_type = config.pop("model_type", default_type)
    if model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"transformers does not know the model_type {model_type!r}. Name one that it knows for each tower, for "
            f"example {default_type!r}."
        )
    return AutoConfig.for_model(model_type, **config)


TierCLIPConfig.register_for_auto_class()
TierDualEncoderConfig.register_for_auto_class()

__all__ = ["TierCLIPConfig", "TierDualEncoderConfig"]
