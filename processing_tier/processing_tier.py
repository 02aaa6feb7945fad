"""Processor: radiographs and report text together, in the form that the model takes."""

from transformers import CLIPProcessor
from transformers.processing_utils import ProcessingKwargs

from .image_processing_tier import TierImageProcessor, TierImageProcessorKwargs


class TierProcessorKwargs(ProcessingKwargs, total=False):
    images_kwargs: TierImageProcessorKwargs
    _defaults = {"text_kwargs": {"padding": True, "truncation": True}}


class TierProcessor(CLIPProcessor):
    """
    An image processor and a tokenizer as one, `processor(images=..., text=..., return_tensors="pt")`.

    Text is padded to the longest of the batch and truncated to `tokenizer.model_max_length` unless the call says
    otherwise; CLIP does neither, and a long impression then overruns the position embeddings.

    Args:
        image_processor ([`TierImageProcessor`]): pixels.
        tokenizer ([`CLIPTokenizer`] or that of a BERT): text; pad is set, and may equal eos (use `attention_mask`).
    """

    valid_processor_kwargs = TierProcessorKwargs

    # Both names are spelt out: transformers finds the parts to save and load in this signature.
    def __init__(self, image_processor: TierImageProcessor | None = None, tokenizer=None):
        super().__init__(image_processor, tokenizer)

    def save_pretrained(self, save_directory, **kwargs) -> list:
        """As [`ProcessorMixin.save_pretrained`], after which this is still equal to what is loaded."""
        saved = super().save_pretrained(save_directory, **kwargs)
        vars(self).pop("auto_map", None)  # which is for the file, and what loads it drops
        return saved

    def push_to_hub(self, repo_id: str, *, private: bool = True, **kwargs) -> str:
        """
        Uploads as [`ProcessorMixin.push_to_hub`] does, but makes the repository private unless told otherwise: the
        words of the tokenizer may come from reports that are, and the weights will follow into the same repository.
        """
        return super().push_to_hub(repo_id, private=private, **kwargs)


TierProcessor.register_for_auto_class("AutoProcessor")
