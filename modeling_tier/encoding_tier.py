"""Embeddings of images and of texts as numpy arrays, in batches."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers.utils.logging import tqdm

from .pipeline_images_tier import is_one_image
from .texts_tier import embed_texts


class EncodingMixin:
    """
    Methods of the pipeline, which has the model, its tokenizer and its image processor.

    ```python
    >>> pipe = pipeline("cxr-zero-shot-classification", model=folder, trust_remote_code=True)
    >>> pipe.encode_images(["a.png", "b.dcm"]) @ pipe.encode_texts("Small left pleural effusion.")
    array([0.31, 0.12], dtype=float32)
    ```
    """

    def encode_images(
        self, images: Any, batch_size: int = 32, timeout: float | None = 30.0, show_progress_bar: bool = False
    ) -> np.ndarray:
        """
        Embeddings of images: `model.get_image_features`, L2-normalised. A dot product with a text's embedding is their
        cosine.

        Args:
            images: One image or several, as in a call of the pipeline. They are read batch by batch.
            batch_size (`int`, *optional*, defaults to 32): Images that are in memory at once.
            timeout (`float`, *optional*, defaults to 30.0): As in a call.
            show_progress_bar (`bool`, *optional*, defaults to `False`): Whether to show one.

        Returns:
            `np.ndarray` of shape `(dim,)`, or `(images, dim)` for several: float32.

        Raises:
            ValueError: No image is given, an image cannot be read (the message names it and its place), or the
                embeddings are not finite.
        """
        check_batch_size(batch_size)
        if is_one_image(images):
            return self.encode_images([images], batch_size, timeout)[0]
        total = len(images) if hasattr(images, "__len__") else None
        entries = ({"image": image, "place": f"image {i}"} for i, image in enumerate(images, 1))
        embeds = []
        with tqdm(total=total, desc="encoding images", unit="image", disable=not show_progress_bar) as bar:
            while batch := [self.preprocess(entry, timeout)["pixel_values"] for entry in islice(entries, batch_size)]:
                with torch.no_grad():
                    outputs = self.model.get_image_features(pixel_values=torch.cat(batch).to(self.device))
                embeds.append(to_numpy(F.normalize(outputs.pooler_output.float(), dim=-1)))
                bar.update(len(batch))
        if not embeds:
            raise ValueError("There is no image to encode: pass at least one.")
        return np.concatenate(embeds)

    def encode_texts(self, texts: str | Sequence[str], batch_size: int = 64) -> np.ndarray:
        """
        Embeddings of texts, read as in training: `model.get_text_features`, L2-normalised.

        Args:
            texts (`str` or `Sequence[str]`):
                Such as sentences of reports. A text longer than the model's limit is truncated with a warning.
            batch_size (`int`, *optional*, defaults to 64): Texts embedded at once.

        Returns:
            `np.ndarray` of shape `(dim,)`, or `(texts, dim)` for several: float32.

        Raises:
            ValueError: No text is given, or the embeddings are not finite.
        """
        check_batch_size(batch_size)
        if isinstance(texts, str):
            return self.encode_texts([texts])[0]
        if not len(texts):
            raise ValueError("There is no text to encode: pass at least one.")
        with torch.no_grad():
            return to_numpy(embed_texts(self.model, self.tokenizer, list(texts), batch_size))


def check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, not {batch_size!r}.")


def to_numpy(embeds: torch.Tensor) -> np.ndarray:
    """Embeddings, float32, on the CPU. ValueError if they are not finite."""
    if not embeds.isfinite().all():
        raise ValueError("The model's embeddings are not finite: its weights are damaged, or its training diverged.")
    return embeds.cpu().numpy()
