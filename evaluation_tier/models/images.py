"""Images of a data set, decoded batch by batch into the pixels that a model takes.

Embeddings of the pixels are in `embedding.py`.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import datasets
import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor

from evaluation_tier.models.processes import is_main_process
from processing_tier.radiograph_tier import original_size, read_radiograph

logger = logging.getLogger(__name__)

MAX_UNREADABLE = 0.01  # share of the images that may fail to decode before the evaluation stops


class Batch(NamedTuple):
    """Decoded images, on the model's device."""

    rows: np.ndarray  # (batch,) int64, of the data set
    pixels: torch.Tensor | dict[str, torch.Tensor]  # (batch, ...); by name where a processor makes more than pixels
    sizes: torch.Tensor  # (batch, 2) int64: height and width of the pictures in the files


class PixelReader:
    """
    Turns one image into the input of a model.

    Args:
        model: whether it normalises the pixels itself decides their type, see `takes_uint8`.
        processor: reads and resizes the images; a `ProcessorMixin` or an image processor.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin | BaseImageProcessor):
        self.image_processor = getattr(processor, "image_processor", processor)
        self.read_image = getattr(self.image_processor, "read", read_radiograph)  # CLIP's own does not read files
        self.names = getattr(self.image_processor, "model_input_names", ["pixel_values"])
        self.options = {"output_dtype": "uint8"} if takes_uint8(model, processor) else {}
        self.device = model.device

    def read(self, image: Any) -> tuple[Mapping[str, torch.Tensor], tuple[int, int]] | ValueError:
        """The inputs of one image and its (height, width), or the error of an image that does not decode."""
        try:
            radiograph = self.read_image(image)
        except ValueError as error:
            return error
        width, height = original_size(radiograph)
        if len(self.names) > 1:  # SigLIP 2's takes grey for one channel
            radiograph = radiograph.convert("RGB")
        return self.image_processor(images=[radiograph], return_tensors="pt", **self.options), (height, width)

    def stack(self, rows: np.ndarray, images: list[tuple[Mapping[str, torch.Tensor], tuple[int, int]]]) -> Batch:
        inputs = {name: torch.cat([image[name] for image, _ in images]).to(self.device) for name in self.names}
        pixels = inputs if len(self.names) > 1 else inputs["pixel_values"]
        return Batch(rows, pixels, torch.tensor([size for _, size in images]).to(self.device))


def read_batches(
    model: PreTrainedModel,
    processor: ProcessorMixin | BaseImageProcessor,
    dataset: datasets.Dataset,
    batch_size: int,
    description: str = "embedding images",
    rows: np.ndarray | None = None,
) -> Iterator[Batch]:
    """The pixels of a data set's images as the model takes them, in order, each image read once.

    An image that does not decode is logged and left out.

    Args:
        model: see [`PixelReader`]; so is `processor`.
        dataset: with the column `image` (undecoded: bytes or path).
        batch_size: images read at once.
        description: before the progress bar.
        rows: the rows to read, by default all. The share of images that may fail is of the whole data set.

    Yields:
        Batches, smaller than `batch_size` at the end and where images do not decode, but never empty.

    Raises:
        ValueError: for an empty data set, and when more than 1 % of the images do not decode.
    """
    if not len(dataset):
        raise ValueError("The data set is empty: choose another split or data set.")
    reader = PixelReader(model, processor)
    images = dataset.select_columns("image")
    if rows is None:
        rows = np.arange(len(dataset))
    else:
        images = images.select(rows)
    start = num_unreadable = 0
    bar = tqdm(
        total=len(rows),
        desc=description,
        unit="image",
        delay=3,
        leave=False,
        disable=None if is_main_process() else True,
    )
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool, bar:
        # Each batch is read while the model works on the one before
        reading = (pool.map(reader.read, batch["image"]) for batch in images.iter(batch_size))
        current = next(reading, None)
        while current is not None:
            upcoming = next(reading, None)
            read: list[Any] = list(current)
            failed = [error for error in read if isinstance(error, ValueError)]
            num_unreadable += len(failed)
            check_readable(failed, num_unreadable, len(dataset))
            readable = [i for i, image in enumerate(read) if not isinstance(image, ValueError)]
            if readable:
                yield reader.stack(rows[start + np.array(readable)], [read[i] for i in readable])
            start += len(read)
            bar.update(len(read))
            current = upcoming


def check_readable(failed: list[ValueError], num_unreadable: int, num_images: int) -> None:
    """Log the images of a batch that do not decode. ValueError when these are more than 1 % of all images so far."""
    for error in failed:
        logger.warning("Skipped an image. %s", error)
    if num_unreadable > MAX_UNREADABLE * num_images:
        raise ValueError(
            f"At least {num_unreadable} of {num_images} images do not decode, more than 1 %: repair or remove them. "
            f"The last one: {failed[-1]}"
        )


def check_any_readable(readable: np.ndarray, what: str) -> None:
    """ValueError when none of the images decodes that an analysis needs, those with a report or with a box or mask."""
    if not readable.any():
        raise ValueError(
            f"None of the images with a {what} ({len(readable)}) decodes: repair them, or use other data."
        )


def takes_uint8(model: PreTrainedModel, processor: ProcessorMixin | BaseImageProcessor) -> bool:
    """Whether the model normalises 8-bit pixels itself: the same numbers, a twelfth of the bytes to move."""
    image_processor, config = getattr(processor, "image_processor", processor), model.config
    if not hasattr(config, "pixel_mean") or not hasattr(image_processor, "output_dtype"):
        return False
    same = np.allclose(config.pixel_mean, image_processor.image_mean) and np.allclose(
        config.pixel_std, image_processor.image_std
    )
    resampled_after_normalising = (
        image_processor.geometry == "pad" and image_processor.resize_edge
    )  # CheXzero's pixels
    return same and not resampled_after_normalising
