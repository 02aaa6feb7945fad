"""What frozen towers gave for images and texts, read from the disk; `feature_cache.py` computes it."""

from collections.abc import Iterator, Sequence
from hashlib import blake2b

import datasets
import numpy as np
import torch
from transformers import PreTrainedModel

from evaluation_tier.models.embedding import Outputs, embed_pixels, inference
from processing_tier import TierImageProcessor
from training_tier.data.feature_store import KEY_BYTES, FeatureStore


def text_key(input_ids: Sequence[int]) -> bytes:
    """16 bytes that identify a tokenized text."""
    return blake2b(np.array(input_ids, dtype=np.int64).tobytes(), digest_size=KEY_BYTES).digest()


class ImageFeatures:
    """
    The hidden states of an image tower for the images of some records.

    Args:
        store ([`FeatureStore`]): holds them.
        keys (`Sequence[bytes | None]`): of each record, see [`source_key`].
        records (`datasets.Dataset`): with the column `image`, for images that do not decode.
        image_processor ([`TierImageProcessor`]): says why such an image does not decode.
    """

    def __init__(
        self,
        store: FeatureStore,
        keys: Sequence[bytes | None],
        records: datasets.Dataset,
        image_processor: TierImageProcessor,
    ):
        self.store, self.keys = store, keys
        self.records = records.select_columns(["image"])
        self.image_processor = image_processor

    def __len__(self) -> int:
        return len(self.keys)

    def __contains__(self, index: int) -> bool:
        return self.keys[index] in self.store

    def read(self, index: int) -> torch.Tensor:
        """
        `(1 + patches, hidden)` or `(hidden, rows, columns)`, as the tower gives it.

        Raises:
            `ValueError`: the image does not decode.
        """
        if index not in self:
            self.image_processor.read(self.records[index]["image"])
            raise ValueError("An image has changed since its features were computed; start the run again.")
        return self.store.read(self.keys[index])


def embed_features(
    model: PreTrainedModel, features: ImageFeatures, batch_size: int
) -> Iterator[tuple[np.ndarray, Outputs]]:
    """
    What [`embed_batches`] yields for the records of `features`, without running the image tower. Images that do not
    decode are left out.
    """
    rows = np.array([i for i in range(len(features)) if i in features], dtype=np.int64)
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        hidden = torch.stack([features.read(i) for i in batch]).to(model.device)
        with inference(model):
            outputs = embed_pixels(model, {"vision_hidden_state": hidden}, patches=True)
        yield batch, outputs


class TextFeatures:
    """
    The hidden states of a text tower for tokenized texts.

    Args:
        store ([`FeatureStore`]): holds them.
    """

    def __init__(self, store: FeatureStore):
        self.store = store

    def read(self, input_ids: Sequence[Sequence[int]], length: int) -> torch.Tensor | None:
        """`(texts, length, hidden)`, zeros for padding; `None` if one of the texts is not in the store."""
        keys = [text_key(ids) for ids in input_ids]
        if any(key not in self.store for key in keys):
            return None
        found = [self.store.read(key) for key in keys]
        padded = found[0].new_zeros(len(found), length, found[0].shape[-1])
        for row, hidden in zip(padded, found, strict=True):
            row[: len(hidden)] = hidden
        return padded
