"""Embeddings of images and of sentences, each computed once."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import datasets
import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor

from modeling_tier.pipeline_tier import embed_texts
from processing_tier.prompts import Prompts
from processing_tier.radiograph_tier import read_radiograph

logger = logging.getLogger(__name__)

MAX_UNREADABLE = 0.01  # share of the images that may fail to decode before the evaluation stops


def embed_images(
    model: PreTrainedModel, processor: ProcessorMixin, dataset: datasets.Dataset, batch_size: int = 32
) -> np.ndarray:
    """L2-normalised image embeddings, (images, dim) float32; see `run_on_images`."""
    return run_on_images(
        lambda pixels: normalize(model.get_image_features(pixel_values=pixels).pooler_output),
        model.config.projection_dim,
        model,
        processor,
        dataset,
        batch_size,
    )


def classify_images(
    model: PreTrainedModel,
    processor: BaseImageProcessor,
    dataset: datasets.Dataset,
    findings: Sequence[str],
    batch_size: int = 32,
) -> np.ndarray:
    """A classifier's logits, (images, findings) float32; see `run_on_images`."""
    columns = [model.config.label2id[finding] for finding in findings]
    return run_on_images(
        lambda pixels: check_finite(model(pixels).logits[:, columns]).cpu().numpy(),
        len(columns),
        model,
        processor,
        dataset,
        batch_size,
    )


def run_on_images(
    compute: Callable[[torch.Tensor], np.ndarray],
    width: int,
    model: PreTrainedModel,
    processor: ProcessorMixin | BaseImageProcessor,
    dataset: datasets.Dataset,
    batch_size: int,
) -> np.ndarray:
    """What `compute` makes of the pixels of each batch, one row per image; see `read_batches`.

    Args:
        compute: from pixels (batch, ...) on the model's device to (batch, width) float32, in inference mode.

    Returns:
        (images, width) float32; a row of NaN for an image that does not decode.

    Raises:
        ValueError: as `read_batches`, and when the model's results are not finite.
    """
    results = np.full((len(dataset), width), np.nan, dtype=np.float32)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for rows, pixels in read_batches(model, processor, dataset, batch_size):
            results[rows] = compute(pixels)
    model.train(was_training)
    return results


def read_batches(
    model: PreTrainedModel,
    processor: ProcessorMixin | BaseImageProcessor,
    dataset: datasets.Dataset,
    batch_size: int,
    description: str = "embedding images",
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """The pixels of a data set's images as the model wants them, in order, each image read once.

    An image that does not decode is logged and left out.

    Args:
        model: where the pixels go, and whether it normalises them itself (see `takes_uint8`).
        processor: reads and resizes the images; a `ProcessorMixin` or an image processor.
        dataset: with the column `image` (undecoded: bytes or path).
        batch_size: images read at once.
        description: before the progress bar.

    Yields:
        The rows of `dataset` (batch,) int64, and their pixels (batch, ...) on the model's device; a batch is smaller
        than `batch_size` at the end and where images do not decode, but never empty.

    Raises:
        ValueError: for an empty data set, and when more than 1 % of the images do not decode.
    """
    if not len(dataset):
        raise ValueError("The data set is empty: there is no image to evaluate.")
    image_processor = getattr(processor, "image_processor", processor)
    options = {"output_dtype": "uint8"} if takes_uint8(model, processor) else {}
    read = getattr(image_processor, "read", read_radiograph)  # an image processor of CLIP itself has none

    def read_pixels(image) -> torch.Tensor | ValueError:
        try:
            radiograph = read(image)
        except ValueError as error:
            return error
        return image_processor(images=[radiograph], return_tensors="pt", **options)["pixel_values"]

    start = num_unreadable = 0
    bar = tqdm(total=len(dataset), desc=description, unit="image", delay=3, leave=False, disable=None)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool, bar:
        for batch in dataset.select_columns("image").iter(batch_size):
            pixels = list(pool.map(read_pixels, batch["image"]))
            failed = [error for error in pixels if isinstance(error, ValueError)]
            for error in failed:
                logger.warning("Skipped an image. %s", error)
            num_unreadable += len(failed)
            if num_unreadable > MAX_UNREADABLE * len(dataset):
                raise ValueError(
                    f"At least {num_unreadable} of {len(dataset)} images do not decode, more than 1 %: repair or "
                    f"remove them. The last one: {failed[-1]}"
                )
            readable = [i for i, image in enumerate(pixels) if not isinstance(image, ValueError)]
            if readable:
                yield start + np.array(readable), torch.cat([pixels[i] for i in readable]).to(model.device)
            start += len(pixels)
            bar.update(len(pixels))


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


def embed_prompts(
    model: PreTrainedModel, processor: ProcessorMixin, prompts: Mapping[str, Prompts], batch_size: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """Positive and negative embeddings of each finding, both (findings, dim) float32 and L2-normalised.

    Each sentence is embedded once, normalised, averaged within its ensemble, and the average normalised again
    (TIER, CLIP_Embedding.py:221-232; CheXzero, zero_shot.py:119-124).
    """
    sentences = list(dict.fromkeys(text for prompt in prompts.values() for text in prompt.positive + prompt.negative))
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        embeddings = normalize(embed_texts(model, processor.tokenizer, sentences, batch_size))
    model.train(was_training)
    embedding_of = dict(zip(sentences, embeddings, strict=True))

    def average(texts: Sequence[str]) -> np.ndarray:
        mean = np.mean([embedding_of[text] for text in texts], axis=0)
        return mean / np.linalg.norm(mean)

    positive = np.stack([average(prompt.positive) for prompt in prompts.values()])
    negative = np.stack([average(prompt.negative) for prompt in prompts.values()])
    return positive, negative


def normalize(features: torch.Tensor) -> np.ndarray:
    """Features of length 1, as numpy float32. ValueError when some are not finite."""
    features = check_finite(features)
    return (features / features.norm(dim=-1, keepdim=True)).cpu().numpy()


def check_finite(features: torch.Tensor) -> torch.Tensor:
    """The features as float32. ValueError when some are not finite."""
    features = features.float()
    if not torch.isfinite(features).all():
        raise ValueError("The model's embeddings are not finite: its weights are damaged or the training diverged.")
    return features
