"""Pairs to a batch."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase


@dataclass
class PairCollator:
    """
    Stacks the pixels, and pads the texts to the longest of the batch.

    Pairs whose image did not decode are left out and reported under `unreadable` (image id to reason), which
    [`TierTrainer`] takes out of the batch again.

    Args:
        tokenizer ([`PreTrainedTokenizerBase`]): truncates at its `model_max_length`.
    """

    tokenizer: PreTrainedTokenizerBase

    def __call__(self, pairs: list[dict]) -> dict:
        readable = [pair for pair in pairs if "error" not in pair]
        unreadable = {pair["image_id"]: pair["error"] for pair in pairs if "error" in pair}
        if not readable:
            raise ValueError(
                f"None of the {len(pairs)} images of a batch decodes: repair or remove them. "
                f"The last one: {pairs[-1]['error']}"
            )
        batch = {"pixel_values": torch.stack([pair["pixel_values"] for pair in readable])}
        texts = [pair["text"] for pair in readable]
        batch.update(self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt"))
        if unreadable:
            batch["unreadable"] = unreadable
        batch["return_loss"] = True  # last: accelerate takes the batch size from the first value
        return batch
