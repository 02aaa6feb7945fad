"""Processor: radiographs and report text together, as inputs of the model. Pixels: `image_processing_tier.py`."""

from typing import Any

from transformers import CLIPProcessor
from transformers.processing_utils import ProcessingKwargs

from .image_processing_tier import TierImageProcessor, TierImageProcessorKwargs


class TierProcessorKwargs(ProcessingKwargs, total=False):
    images_kwargs: TierImageProcessorKwargs
    _defaults = {"text_kwargs": {"padding": True, "truncation": True}}


class TierProcessor(CLIPProcessor):
    """
    An image processor and a tokenizer as one, `processor(images=..., text=..., return_tensors="pt")`.

    By default, text is padded to the longest of the batch and truncated to `tokenizer.model_max_length`. CLIP's own
    processor does neither, and a long impression then exceeds the position embeddings.

    Args:
        image_processor ([`TierImageProcessor`]): for images.
        tokenizer ([`CLIPTokenizer`] or a BERT's): for text. Its pad token may equal eos, so use `attention_mask`.
    """

    valid_processor_kwargs = TierProcessorKwargs

    # Both names are written out: from this signature, transformers knows the parts to save and load.
    def __init__(self, image_processor: TierImageProcessor | None = None, tokenizer: Any = None) -> None:
        super().__init__(image_processor, tokenizer)

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> list:
        """Like [`ProcessorMixin.save_pretrained`], but this processor stays equal to the one that will be loaded."""
        saved = super().save_pretrained(save_directory, **kwargs)
        vars(self).pop("auto_map", None)  # it belongs in the file, and loading drops it
        return saved

    def push_to_hub(self, repo_id: str, *, private: bool = True, **kwargs: Any) -> str:
        """
        Like [`ProcessorMixin.push_to_hub`], but the repository is private by default: words of the tokenizer may come
        from private reports, and the weights will follow into the same repository.
        """
        return super().push_to_hub(repo_id, private=private, **kwargs)


TierProcessor.register_for_auto_class("AutoProcessor")
