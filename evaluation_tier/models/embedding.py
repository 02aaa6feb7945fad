"""Embeddings of images and of sentences, each computed once."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import datasets
import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor

from evaluation_tier.models.cache import EmbeddingCache, hash_image
from evaluation_tier.models.loading import is_classifier
from evaluation_tier.models.processes import is_main_process
from modeling_tier.maps_tier import mean_direction
from modeling_tier.texts_tier import embed_texts
from processing_tier.prompts.loader import Prompts
from processing_tier.radiograph_tier import read_radiograph

logger = logging.getLogger(__name__)

MAX_UNREADABLE = 0.01  # share of the images that may fail to decode before the evaluation stops


def embed_images(
    model: PreTrainedModel, processor: ProcessorMixin, dataset: datasets.Dataset, batch_size: int = 32
) -> np.ndarray:
    """L2-normalised image embeddings, (images, dim) float32; a row of NaN for an image that does not decode."""
    results = None
    for rows, outputs in embed_batches(model, processor, dataset, batch_size, patches=False):
        if results is None:
            results = np.full((len(dataset), outputs["image"].shape[1]), np.nan, dtype=np.float32)
        results[rows] = outputs["image"].cpu().numpy()
    return results


def embed_batches(
    model: PreTrainedModel,
    processor: ProcessorMixin | BaseImageProcessor,
    dataset: datasets.Dataset,
    batch_size: int = 32,
    patches: bool = True,
    cache_dir: str | os.PathLike | None = None,
    num_images: int | None = None,
) -> Iterator[tuple[np.ndarray, dict[str, torch.Tensor]]]:
    """What a model makes of a data set's images, in batches, each image read and embedded once.

    Args:
        model: of images and texts, or a classifier; left in the mode it was in.
        dataset: with the column `image` (undecoded: bytes or path).
        patches: whether to embed the patches too, where the model can (`has_patches`), in the same pass.
        cache_dir: where to keep embeddings and to look for them, see `EmbeddingCache`.
        num_images: see `read_batches`.

    Yields:
        Rows of `dataset` (batch,), and of these images, in float32 on the model's device, `"image"` (batch, dim) and
        `"patches"` (batch, patches, dim), L2-normalised; or of a classifier `"logits"` (batch, labels). Every image
        that decodes comes once; those found in the cache come first.

    Raises:
        ValueError: as `read_batches`, and when the model's results are not finite.
    """
    patches = patches and has_patches(model)
    was_training = model.training
    model.eval()
    try:
        if cache_dir is None:
            for rows, pixels in read_batches(model, processor, dataset, batch_size, num_images=num_images):
                yield rows, embed_pixels(model, pixels, patches)
            return
        what = "logits" if is_classifier(model) else "image and patches" if patches else "image"
        cache = EmbeddingCache(cache_dir, model, processor, what)
        missing, hashes = [], []
        start = 0
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for batch in dataset.select_columns("image").iter(batch_size):
                hashes += pool.map(hash_image, batch["image"])
                rows = np.arange(start, len(hashes))
                start = len(hashes)
                entries = list(pool.map(cache.read, hashes[rows[0] :]))
                if all(entry is not None for entry in entries):
                    yield (
                        rows,
                        {
                            name: torch.from_numpy(np.stack([entry[name] for entry in entries])).to(model.device)
                            for name in entries[0]
                        },
                    )
                else:  # as a whole, so that its images are embedded in the company that they always have
                    missing.append(rows)
        if not missing:
            return
        missing = np.concatenate(missing)
        part, num_images = dataset.select(missing), num_images or len(dataset)
        for rows, pixels in read_batches(model, processor, part, batch_size, num_images=num_images):
            outputs = embed_pixels(model, pixels, patches)
            arrays = {name: tensor.cpu().numpy() for name, tensor in outputs.items()}
            for i, row in enumerate(missing[rows]):
                cache.write(hashes[row], {name: array[i] for name, array in arrays.items()})
            yield missing[rows], outputs
    finally:
        model.train(was_training)


def embed_pixels(
    model: PreTrainedModel, pixels: torch.Tensor | Mapping[str, torch.Tensor], patches: bool
) -> dict[str, torch.Tensor]:
    """The outputs of one batch that `embed_batches` yields."""
    with torch.inference_mode():
        if isinstance(pixels, Mapping):
            return {"image": to_unit_length(model.get_image_features(**pixels).pooler_output)}
        if is_classifier(model):
            return {"logits": check_finite(model(pixels).logits)}
        if not patches:
            return {"image": to_unit_length(model.get_image_features(pixel_values=pixels).pooler_output)}
        outputs, grid = model.encode_images(pixels)  # grid (images, rows, columns, dim)
        return {"image": to_unit_length(outputs.pooler_output), "patches": to_unit_length(grid.flatten(1, 2))}


def has_patches(model: PreTrainedModel) -> bool:
    """Whether a model embeds patches in the space of the texts."""
    return hasattr(model, "get_patch_features") and not is_classifier(model)


def read_batches(
    model: PreTrainedModel,
    processor: ProcessorMixin | BaseImageProcessor,
    dataset: datasets.Dataset,
    batch_size: int,
    description: str = "embedding images",
    num_images: int | None = None,
) -> Iterator[tuple[np.ndarray, torch.Tensor | dict[str, torch.Tensor]]]:
    """The pixels of a data set's images as the model wants them, in order, each image read once.

    An image that does not decode is logged and left out.

    Args:
        model: where the pixels go, and whether it normalises them itself (see `takes_uint8`).
        processor: reads and resizes the images; a `ProcessorMixin` or an image processor.
        dataset: with the column `image` (undecoded: bytes or path).
        batch_size: images read at once.
        description: before the progress bar.
        num_images: of the whole, where `dataset` is a part of it, as the 1 % of images that may fail are of the whole.

    Yields:
        The rows of `dataset` (batch,) int64, and their pixels (batch, ...) on the model's device; a batch is smaller
        than `batch_size` at the end and where images do not decode, but never empty. Of a processor that makes more
        than pixels (SigLIP 2's, of images of any shape), all that it makes, by name.

    Raises:
        ValueError: for an empty data set, and when more than 1 % of the images do not decode.
    """
    if not len(dataset):
        raise ValueError("The data set is empty: there is no image to evaluate.")
    image_processor = getattr(processor, "image_processor", processor)
    options = {"output_dtype": "uint8"} if takes_uint8(model, processor) else {}
    read = getattr(image_processor, "read", read_radiograph)  # an image processor of CLIP itself has none
    names = getattr(image_processor, "model_input_names", ["pixel_values"])
    gives_more = len(names) > 1

    def read_pixels(image) -> Mapping[str, torch.Tensor] | ValueError:
        try:
            radiograph = read(image)
        except ValueError as error:
            return error
        if gives_more:  # SigLIP 2's takes grey for one channel
            radiograph = radiograph.convert("RGB")
        return image_processor(images=[radiograph], return_tensors="pt", **options)

    start = num_unreadable = 0
    num_images = num_images or len(dataset)
    bar = tqdm(
        total=len(dataset),
        desc=description,
        unit="image",
        delay=3,
        leave=False,
        disable=None if is_main_process() else True,
    )
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool, bar:
        # Each batch is read while the model works on the one before
        reading = (pool.map(read_pixels, batch["image"]) for batch in dataset.select_columns("image").iter(batch_size))
        current = next(reading)
        while current is not None:
            upcoming = next(reading, None)
            pixels = list(current)
            failed = [error for error in pixels if isinstance(error, ValueError)]
            for error in failed:
                logger.warning("Skipped an image. %s", error)
            num_unreadable += len(failed)
            if num_unreadable > MAX_UNREADABLE * num_images:
                raise ValueError(
                    f"At least {num_unreadable} of {num_images} images do not decode, more than 1 %: repair or "
                    f"remove them. The last one: {failed[-1]}"
                )
            readable = [i for i, image in enumerate(pixels) if not isinstance(image, ValueError)]
            if readable:
                batch = {name: torch.cat([pixels[i][name] for i in readable]).to(model.device) for name in names}
                yield start + np.array(readable), batch if gives_more else batch["pixel_values"]
            start += len(pixels)
            bar.update(len(pixels))
            current = upcoming


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
    """Positive and negative embeddings of each finding, both (findings, dim) float32 and L2-normalised; the negative
    one of a finding without negative sentences is zero.

    Each sentence is embedded once; those of one side of a finding give their `mean_direction`.
    """
    sentences = list(dict.fromkeys(text for prompt in prompts.values() for text in prompt.positive + prompt.negative))
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        embeddings = check_finite(embed_texts(model, processor.tokenizer, sentences, batch_size)).cpu()
    model.train(was_training)
    embedding_of = dict(zip(sentences, embeddings, strict=True))

    def average(texts: Sequence[str]) -> torch.Tensor:
        if not texts:
            return torch.zeros(embeddings.shape[1])
        return mean_direction(torch.stack([embedding_of[text] for text in texts]))

    positive = torch.stack([average(prompt.positive) for prompt in prompts.values()]).numpy()
    negative = torch.stack([average(prompt.negative) for prompt in prompts.values()]).numpy()
    return positive, negative


def normalize(features: torch.Tensor) -> np.ndarray:
    """Features of length 1, as numpy float32. ValueError when some are not finite."""
    return to_unit_length(features).cpu().numpy()


def to_unit_length(features: torch.Tensor) -> torch.Tensor:
    """Features of length 1 along the last axis, as float32. ValueError when some are not finite, or have no length."""
    features = features.float()
    return check_finite(features / features.norm(dim=-1, keepdim=True))


def check_finite(features: torch.Tensor) -> torch.Tensor:
    """The features as float32. ValueError when some are not finite."""
    features = features.float()
    if not torch.isfinite(features).all():
        raise ValueError(
            "The model's embeddings are zero or not finite: its weights are damaged or the training diverged."
        )
    return features
