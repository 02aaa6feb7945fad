"""Pairs to a batch."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase
from transformers.data.data_collator import pad_without_fast_tokenizer_warning
from transformers.utils import logging

logger = logging.get_logger(__name__)


@dataclass
class PairCollator:
    """
    Stacks the pixels, all first views of the images before all second ones, and pads the texts to the longest of the
    batch, or to a few lengths a little above.

    Pairs whose image did not decode are left out and reported under `unreadable` (image id to reason); the ids of the
    others are under `image_ids`. [`TierTrainer`] takes both out of the batch again.

    Args:
        tokenizer ([`PreTrainedTokenizerBase`]): truncates at its `model_max_length`.
        pad_to_multiple_of (`int`, *optional*):
            tokens whose next multiple a batch is padded to, but never beyond `model_max_length`: of 16, the lengths
            are 16, 32, 48, 64 and CLIP's 77.
    """

    tokenizer: PreTrainedTokenizerBase
    pad_to_multiple_of: int | None = None

    def __call__(self, pairs: list[dict]) -> dict:
        readable = [pair for pair in pairs if "error" not in pair]
        unreadable = {pair["image_id"]: pair["error"] for pair in pairs if "error" in pair}
        if not readable:
            raise ValueError(
                f"None of the {len(pairs)} images of a batch decodes: repair or remove them. "
                f"The last one: {pairs[-1]['error']}"
            )
        batch = {"pixel_values": torch.stack([pair["pixel_values"] for pair in readable])}
        if batch["pixel_values"].ndim == 5:  # (pairs, views, 1, height, width)
            batch["image_views"] = batch["pixel_values"].shape[1]
            batch["pixel_values"] = batch["pixel_values"].transpose(0, 1).flatten(0, 1)
        texts = [pair["text"] for pair in readable]
        tokens = self.tokenizer(texts, truncation=True)
        if any(text.overflowing for text in tokens.encodings or ()):
            logger.warning_once(
                f"A report has more than the {self.tokenizer.model_max_length} tokens that the model reads: it is cut "
                "before its end token; --text chooses the sections."
            )
        longest, multiple = max(map(len, tokens["input_ids"])), self.pad_to_multiple_of or 1
        length = min(-(-longest // multiple) * multiple, self.tokenizer.model_max_length)
        batch.update(
            pad_without_fast_tokenizer_warning(
                self.tokenizer, tokens, padding="max_length", max_length=length, return_tensors="pt"
            )
        )
        if "group" in readable[0]:
            batch["text_groups"] = torch.tensor([pair["group"] for pair in readable])
        batch["image_ids"] = [pair["image_id"] for pair in readable]
        if unreadable:
            batch["unreadable"] = unreadable
        batch["return_loss"] = True  # last: accelerate takes the batch size from the first value
        return batch
