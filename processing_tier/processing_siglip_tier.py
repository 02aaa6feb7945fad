"""Processor of SigLIP models: as `processing_tier.py`, with text as SigLIP was trained to read it."""

from typing import Any

from transformers.processing_utils import ProcessingKwargs
from transformers.utils import logging

from .image_processing_tier import TierImageProcessor, TierImageProcessorKwargs
from .processing_tier import TierProcessor

logger = logging.get_logger(__name__)


class TierSiglipProcessorKwargs(ProcessingKwargs, total=False):
    images_kwargs: TierImageProcessorKwargs
    _defaults = {"text_kwargs": {"padding": "max_length", "truncation": True, "return_attention_mask": False}}


class TierSiglipProcessor(TierProcessor):
    """
    As [`TierProcessor`], but text is in lower case, padded and truncated to `tokenizer.model_max_length`, and has no
    attention mask. What else happens to a text is the tokenizer's business: [`SiglipTokenizer`] also removes
    punctuation, [`Siglip2Tokenizer`] does not.

    Args:
        image_processor ([`TierImageProcessor`]): for images.
        tokenizer ([`SiglipTokenizer`], [`Siglip2Tokenizer`] or [`GemmaTokenizer`]): for text.
    """

    valid_processor_kwargs = TierSiglipProcessorKwargs

    # Both names are written out: from this signature, transformers knows the parts to save and load.
    def __init__(self, image_processor: TierImageProcessor | None = None, tokenizer: Any = None) -> None:
        super().__init__(image_processor, tokenizer)

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> Any:
        padding = {**kwargs, **(kwargs.get("text_kwargs") or {})}.get("padding", "max_length")
        if text is not None and padding != "max_length":
            logger.warning_once(
                f"padding={padding!r} makes texts shorter than those that SigLIP was trained on, and so other "
                "embeddings; leave it out."
            )
        if isinstance(text, str):
            text = text.lower()
        elif text is not None:
            text = [line.lower() for line in text]
        return super().__call__(images=images, text=text, **kwargs)


TierSiglipProcessor.register_for_auto_class("AutoProcessor")
