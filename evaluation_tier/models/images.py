"""Images of a data set, decoded batch by batch into the pixels that a model takes.

Embeddings of the pixels are in `embedding.py`.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import datasets
import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor

from evaluation_tier.models.contract import Pixels
from evaluation_tier.models.families import family_of
from evaluation_tier.models.processes import is_main_process
from processing_tier.progress import progress
from processing_tier.radiograph_tier import original_size, read_file

logger = logging.getLogger(__name__)

MAX_UNREADABLE = 0.01  # share of the images that may fail to decode before the evaluation stops


class Batch(NamedTuple):
    """Decoded images, on the model's device."""

    rows: np.ndarray  # (batch,) int64, of the data set
    pixels: Pixels  # (batch, ...)
    sizes: torch.Tensor  # (batch, 2) int64: height and width of the pictures in the files


Member: TypeAlias = tuple[PreTrainedModel, ProcessorMixin | BaseImageProcessor | None]  # the second: see `family_of`

Read: TypeAlias = tuple[Pixels, tuple[int, int]]  # the input of an image, and its (height, width)


class PixelReader:
    """
    Turns one image into the inputs of one or several models.

    The bytes of a file are read once. Models that read grey images alike share the decoding, and models with equal
    image processors share the pixels, too.
    """

    def __init__(self, members: Sequence[Member]):
        self.families = [family_of(*member) for member in members]
        self.decodes = [family.decoding for family in self.families]
        self.prepares = [family.preprocessing for family in self.families]

    def read(self, image: Any) -> list[Read | ValueError]:
        """For each model the inputs of one image and its (height, width), or the error if it does not decode."""
        if len(set(self.decodes)) > 1:
            image = load_bytes(image)
        decoded: dict[str, Image.Image | ValueError] = {}
        results: dict[str, Read | ValueError] = {}
        for family, decodes, prepares in zip(self.families, self.decodes, self.prepares, strict=True):
            if decodes not in decoded:
                try:
                    decoded[decodes] = family.read_image(image)
                except ValueError as error:
                    decoded[decodes] = error
            if prepares not in results:
                radiograph = decoded[decodes]
                if isinstance(radiograph, ValueError):
                    results[prepares] = radiograph
                else:
                    width, height = original_size(radiograph)
                    results[prepares] = family.preprocess(radiograph), (height, width)
        return [results[prepares] for prepares in self.prepares]

    def stack(self, member: int, rows: np.ndarray, images: Sequence[Read | ValueError]) -> Batch | None:
        """The images that decode, on the model's device; None without any."""
        readable = [i for i, image in enumerate(images) if not isinstance(image, ValueError)]
        if not readable:
            return None
        device, sizes = self.families[member].device, [image[1] for image in images if isinstance(image, tuple)]
        pixels = stack_pixels([image[0] for image in images if isinstance(image, tuple)], device)
        return Batch(rows[readable], pixels, torch.tensor(sizes).to(device))


def stack_pixels(inputs: Sequence[Pixels], device: torch.device) -> Pixels:
    """The inputs of several images as one batch."""
    if isinstance(inputs[0], torch.Tensor):
        return torch.cat(inputs).to(device)
    return {name: torch.cat([one[name] for one in inputs]).to(device) for name in inputs[0]}


def load_bytes(image: Any) -> Any:
    """An undecoded image with its file in memory; the image itself if the file cannot be read."""
    path = image.get("path") if isinstance(image, Mapping) and image.get("bytes") is None else None
    if path is None:
        return image
    try:
        return {"bytes": read_file(Path(path)), "path": path}
    except (OSError, ValueError):  # decoding says what is wrong
        return image


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
        model: see [`family_of`]; so is `processor`.
        dataset: with the column `image` (undecoded: bytes or path).
        batch_size: images read at once.
        description: before the progress bar.
        rows: the rows to read, by default all. The share of images that may fail is of the whole data set.

    Yields:
        Batches, smaller than `batch_size` at the end and where images do not decode, but never empty.

    Raises:
        ValueError: for an empty data set, and when more than 1 % of the images do not decode.
    """
    for (batch,) in read_batches_together([(model, processor)], dataset, batch_size, description, rows):
        if batch is not None:
            yield batch


def read_batches_together(
    members: Sequence[Member],
    dataset: datasets.Dataset,
    batch_size: int,
    description: str = "embedding images",
    rows: np.ndarray | None = None,
) -> Iterator[list[Batch | None]]:
    """`read_batches` for several models from one reading of the images: the batch of each, None without an image."""
    if not len(dataset):
        raise ValueError("The data set is empty: choose another split or data set.")
    reader = PixelReader(members)
    images = dataset.select_columns("image")
    if rows is None:
        rows = np.arange(len(dataset))
    else:
        images = images.select(rows)
    start, num_unreadable = 0, [0] * len(members)
    bar = progress(description=description, unit="image", total=len(rows), silent=not is_main_process())
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool, bar:
        # Each batch is read while the model works on the one before
        reading = (pool.map(reader.read, batch["image"]) for batch in images.iter(batch_size))
        current = next(reading, None)
        while current is not None:
            upcoming = next(reading, None)
            of_members = list(zip(*current, strict=True))
            for i, read in enumerate(of_members):
                failed = [error for error in read if isinstance(error, ValueError)]
                num_unreadable[i] += len(failed)
                check_readable(failed, num_unreadable[i], len(dataset))
            num_read = len(of_members[0])
            of_batch = rows[start : start + num_read]
            yield [reader.stack(i, of_batch, read) for i, read in enumerate(of_members)]
            start += num_read
            bar.update(num_read)
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
