"""Configuration of the SigLIP model with the terms of TIER."""

import copy
import os
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import SiglipConfig, SiglipTextConfig
from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD

from .configuration_tier import Channels, TierOptions

CLIP_END = 49407
SIGLIP_END = 1


@strict
class TierSiglipConfig(TierOptions, SiglipConfig):
    r"""
    Configuration of a [`TierSiglipModel`]: the fields of [`SiglipConfig`] and those of [`TierCLIPConfig`], checked in
    the same way.

    Args:
        image_pooling (`str`, *optional*, defaults to `"attention"`):
            The only choice: the image embedding comes from SigLIP's attention-pooling head.
        entropy_tokens (`str`, *optional*, defaults to `"words"`):
            The tokens that count. SigLIP's texts consist of words, an end token and padding, without a mask.
            `"words"`: those before the end token. `"attended"`: the end token as well. `"all"`: also padding, with
            1e-7 added after the softmax. `pad_token_id` and `eos_token_id` of `text_config` tell the ends; of a
            tokenizer of your own, set them to its ids. An `eos_token_id` of 49407 becomes 1 unless the vocabulary is
            CLIP's, see [`end_token`].
        pixel_mean, pixel_std (`list[float]`, *optional*, default to 0.5):
            As in [`TierCLIPConfig`].
        kwargs:
            The other fields.

    Raises:
        ValueError: A value is out of range, a keyword is a misspelt option, or the image tower does not have
            SigLIP's pooling head.
        StrictDataclassFieldValidationError: A value has the wrong type.
    """

    model_type = "tier_siglip"
    image_poolings = ("attention",)

    image_pooling: str = "attention"
    pixel_mean: Channels = tuple(IMAGENET_STANDARD_MEAN)
    pixel_std: Channels = tuple(IMAGENET_STANDARD_STD)

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.text_config: SiglipTextConfig = copy.copy(self.text_config)  # the caller's own stays as it is
        self.text_config.eos_token_id = end_token(self.text_config.eos_token_id, self.text_config.vocab_size)

    @classmethod
    def get_config_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Reads `config.json`. That of a plain SigLIP becomes a TIER configuration, without the SigLIP's own code."""
        config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        if config_dict.get("model_type") == SiglipConfig.model_type:
            config_dict = {key: value for key, value in config_dict.items() if key != "auto_map"}
            config_dict["model_type"] = cls.model_type
        return config_dict, kwargs


def end_token(stated: int | list[int] | None, vocab_size: int) -> int | list[int] | None:
    """
    The id of the token that ends a text.

    [`SiglipTextConfig`] has CLIP's end token as its default, 49407, the last of CLIP's 49,408 tokens, and published
    models do not state another. Their tokenizers end a text with 1: `</s>` of SigLIP's, `<eos>` of SigLIP 2's, for
    whose vocabulary of 256,000 tokens 49407 is a word.

    Args:
        stated (`int` or `list[int]`, *optional*): `eos_token_id` of the text configuration.
        vocab_size (`int`): Its number of tokens.
    """
    return SIGLIP_END if stated == CLIP_END and vocab_size != CLIP_END + 1 else stated


TierSiglipConfig.register_for_auto_class()

__all__ = ["TierSiglipConfig"]
