"""Configuration of the TIER models: CLIP's, plus the weights and the definition of the two entropy terms."""

import difflib
import math
from dataclasses import fields
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import CLIPConfig, PreTrainedConfig
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

ENTROPY_TOKENS = ("words", "attended", "all")
IMAGE_POOLINGS = ("cls", "patch_mean")

# What transformers itself passes to a configuration or writes into config.json, beside the declared fields.
LIBRARY_KEYS = {
    "attn_implementation",
    "auto_map",
    "custom_pipelines",
    "experts_implementation",
    "fusion_config",
    "model_type",
    "name_or_path",
    "num_labels",
    "output_attentions",
    "per_layer_config",
    "quantization_config",
    "text_config_dict",
    "tie_word_embeddings",
    "torch_dtype",
    "use_cache",
    "vision_config_dict",
}


@strict
class TierCLIPConfig(CLIPConfig):
    r"""
    Configuration of a [`TierCLIPModel`]. It has everything that [`CLIPConfig`] has and the fields below. Values are
    checked when the configuration is built, loaded or saved, and a key that is not known is an error.

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
        pixel_mean (`list[float]`, *optional*, defaults to CLIP's):
            Mean of each of the 3 channels on the 0..1 scale; only used for pixels that arrive as uint8.
        pixel_std (`list[float]`, *optional*, defaults to CLIP's):
            Standard deviation, above 0, of each of the 3 channels on the 0..1 scale; used like `pixel_mean`.
        kwargs:
            The fields of [`CLIPConfig`].

    Raises:
        ValueError: a value is out of range, or a key is unknown.
        StrictDataclassFieldValidationError: a value has the wrong type.
    """

    model_type = "tier_clip"
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
    pixel_mean: list[float | int] | tuple[float | int, ...] = tuple(OPENAI_CLIP_MEAN)
    pixel_std: list[float | int] | tuple[float | int, ...] = tuple(OPENAI_CLIP_STD)

    def __post_init__(self, **kwargs):
        options = {field.name for field in fields(self)} - {field.name for field in fields(PreTrainedConfig)}
        for key in kwargs:
            if key not in LIBRARY_KEYS and not key.startswith("_"):
                nearest = difflib.get_close_matches(key, sorted(options), n=1, cutoff=0.0)[0]
                raise ValueError(f"{type(self).__name__} has no option {key!r}; the nearest one is {nearest!r}.")
        kwargs.pop("model_type", None)  # a class attribute; as an instance attribute it could disagree
        self.pixel_mean, self.pixel_std = list(self.pixel_mean), list(self.pixel_std)  # as they come back from JSON
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
            if len(getattr(self, name)) != 3:
                raise ValueError(f"{name} must have 3 numbers, one per channel, not {len(getattr(self, name))}.")
        if not all(0 < value < math.inf for value in self.pixel_std):
            raise ValueError(f"pixel_std must have numbers above 0 only, not {self.pixel_std}.")

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads `config.json`. That of a plain CLIP checkpoint, less what CLIP does not know, is a TIER one's too."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if config_dict.get("model_type") == CLIPConfig.model_type:
            known = {field.name for field in fields(cls)} | LIBRARY_KEYS
            config_dict = {key: value for key, value in config_dict.items() if key in known and key != "auto_map"}
            config_dict["model_type"] = cls.model_type
        return config_dict, kwargs

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """Builds the configuration; keyword arguments for this class's own fields are checked like the file's."""
        own = {field.name for field in fields(cls)} - {field.name for field in fields(CLIPConfig)}
        overrides = {key: kwargs.pop(key) for key in own & kwargs.keys()}
        return super().from_dict({**config_dict, **overrides}, **kwargs)


TierCLIPConfig.register_for_auto_class()

__all__ = ["TierCLIPConfig"]
