"""Pairs to a batch, and images that do not decode."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import NoReturn

import torch
from transformers import BatchEncoding, PreTrainedTokenizerBase
from transformers.data.data_collator import pad_without_fast_tokenizer_warning
from transformers.utils import logging

from modeling_tier.texts_tier import is_any_truncated
from training_tier.data.features import TextFeatures

logger = logging.get_logger(__name__)

IMAGES = ("pixel_values", "vision_hidden_state")  # the images of a batch: their pixels, or what the tower gave


def count_images(batch: Mapping) -> int:
    """The images of a batch, or their views; 0 if none decodes."""
    return next((len(batch[name]) for name in IMAGES if name in batch), 0)


def list_unreadable(items: list[dict]) -> list[tuple[int, str, str]]:
    """
    Number of the record, image id and reason for each item of a [`PairDataset`] whose image does not decode. Ids may
    repeat; numbers do not.
    """
    return [(item["index"], item["image_id"], item["error"]) for item in items if "error" in item]


def refuse_batch(unreadable: Sequence[tuple[int, str, str]]) -> NoReturn:
    """
    Args:
        unreadable (`Sequence[tuple]`): all the items of a batch, see [`list_unreadable`].

    Raises:
        `ValueError`: always.
    """
    raise ValueError(
        f"None of the {len(unreadable)} images of a batch decodes: repair or remove them. The last one: "
        f"{unreadable[-1][2]}"
    )


@dataclass
class PairCollator:
    """
    Stacks the pixels (first all first views of the images, then all second ones), and pads the texts (likewise first
    all first sentences, if an image has several) to the longest of the batch, or to a multiple of
    `pad_to_multiple_of`.

    Pairs whose image does not decode are left out and listed under `unreadable`, see [`list_unreadable`]. If no image
    of a batch decodes, the batch has no pixels and texts. `indices` are the numbers of the other records, `image_ids`
    their ids. [`TierTrainer`] removes all three from the batch.

    Args:
        tokenizer ([`PreTrainedTokenizerBase`]): truncates at its `model_max_length`.
        pad_to_multiple_of (`int`, *optional*):
            tokens. A batch is padded to the next multiple, but never beyond `model_max_length`. With 16, the lengths
            are 16, 32, 48, 64 and CLIP's 77.
        for_siglip (`bool`, *optional*, defaults to `False`):
            Texts as SigLIP's kinds read them: in lower case, padded to `model_max_length`, without an attention mask.
        text_features ([`TextFeatures`], *optional*):
            Where it holds all texts of a batch, the batch also has their `text_hidden_state`.
    """

    tokenizer: PreTrainedTokenizerBase
    pad_to_multiple_of: int | None = None
    for_siglip: bool = False
    text_features: TextFeatures | None = None

    def __call__(self, pairs: list[dict]) -> dict:
        readable = [pair for pair in pairs if "error" not in pair]
        reports = {
            "image_ids": [pair["image_id"] for pair in readable],
            "indices": [pair["index"] for pair in readable],
            "unreadable": list_unreadable(pairs),
        }
        if not readable:
            return reports
        images = next(name for name in IMAGES if name in readable[0])
        batch = {images: torch.stack([pair[images] for pair in readable])}
        if images == "pixel_values" and batch[images].ndim == 5:  # (pairs, views, 1, height, width)
            batch["image_views"] = batch["pixel_values"].shape[1]
            batch["pixel_values"] = batch["pixel_values"].transpose(0, 1).flatten(0, 1)
        if "texts" in readable[0]:
            batch["texts_per_image"] = len(readable[0]["texts"])
            rows = (zip(*(pair[name] for pair in readable), strict=True) for name in ("texts", "groups"))
            texts, groups = (list(chain.from_iterable(row)) for row in rows)
        else:
            texts, groups = ([pair[name] for pair in readable if name in pair] for name in ("text", "group"))
        tokens = self.tokenize(texts)
        batch.update(self.pad(tokens))
        if self.text_features is not None:
            hidden = self.text_features.read(tokens["input_ids"], batch["input_ids"].shape[1])
            if hidden is not None:
                batch["text_hidden_state"] = hidden
        if groups:
            batch["text_groups"] = torch.tensor(groups)
        batch.update(reports)
        batch["return_loss"] = True  # last: accelerate takes the batch size from the first value
        return batch

    def tokenize(self, texts: list[str]) -> BatchEncoding:
        """The texts as token ids, truncated with a warning and not padded."""
        if self.for_siglip:
            texts = [text.lower() for text in texts]
        tokens = self.tokenizer(texts, truncation=True)
        if is_any_truncated(self.tokenizer, tokens, texts, self.tokenizer.model_max_length):
            logger.warning_once(
                f"A text is longer than the {self.tokenizer.model_max_length} tokens that the model reads, and is "
                "truncated. --text selects the sections."
            )
        return tokens

    def pad(self, tokens: Mapping[str, list]) -> Mapping[str, torch.Tensor]:
        """Tokenized texts as tensors of one length."""
        longest, multiple = max(map(len, tokens["input_ids"])), self.pad_to_multiple_of or 1
        length = self.tokenizer.model_max_length
        if not self.for_siglip:
            length = min(-(-longest // multiple) * multiple, length)
        padded = pad_without_fast_tokenizer_warning(
            self.tokenizer, tokens, padding="max_length", max_length=length, return_tensors="pt"
        )
        if self.for_siglip:
            padded.pop("attention_mask", None)
        return padded
