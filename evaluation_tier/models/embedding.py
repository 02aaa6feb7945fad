"""Embeddings of images and of sentences, each computed once.

Decoding is in `images.py`, the pass that feeds scores and analyses in `single_pass.py`, how a family of models embeds
in `clip.py` and beside it.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple, cast

import datasets
import numpy as np
import torch
from transformers import PreTrainedModel, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor

from evaluation_tier.models.cache import EmbeddingCache, hash_image, stack
from evaluation_tier.models.clip import project_patches
from evaluation_tier.models.contract import PatchModel, Pixels, check_finite, meets_contract, to_unit_length
from evaluation_tier.models.families import family_of, has_patches
from evaluation_tier.models.images import Batch, read_batches_together
from evaluation_tier.models.loading import is_classifier
from evaluation_tier.models.speed import Speed
from modeling_tier.maps_tier import map_kinds, mean_direction
from processing_tier.prompts.loader import Prompts

logger = logging.getLogger(__name__)

Outputs = dict[str, torch.Tensor]  # of a batch: name to (batch, ...)

Embedders = Mapping[str, Callable[[Batch], Outputs]]  # by the cache's name of their outputs


class Asked(NamedTuple):
    """What is asked of one of several models that embed the same images."""

    model: PreTrainedModel
    processor: ProcessorMixin | BaseImageProcessor | None
    embedders: Embedders
    name: str = ""  # of one of several models, in error messages
    speed: Speed | None = None  # counts the time of the first embedder


@contextmanager
def inference(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the model returns to the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def embed_images(
    model: PreTrainedModel, processor: ProcessorMixin, dataset: datasets.Dataset, batch_size: int = 32
) -> np.ndarray:
    """L2-normalised image embeddings, (images, dim) float32; a row of NaN for an image that does not decode."""
    results = None
    embedders = image_embedders(model, patches=False)
    for rows, outputs in embed_batches(model, processor, dataset, batch_size, embedders):
        if results is None:
            results = np.full((len(dataset), outputs["image"].shape[1]), np.nan, dtype=np.float32)
        results[rows] = outputs["image"].cpu().numpy()
    return results


def embed_batches(
    model: PreTrainedModel,
    processor: ProcessorMixin | BaseImageProcessor,
    dataset: datasets.Dataset,
    batch_size: int = 32,
    embedders: Embedders | None = None,
    rows: np.ndarray | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> Iterator[tuple[np.ndarray, Outputs]]:
    """A model's outputs for the images of a data set, in batches; each image is read and embedded once.

    Args:
        model: of images and texts, or a classifier; left in the mode it was in.
        dataset: with the column `image` (undecoded: bytes or path).
        embedders: the functions that compute the outputs of a batch; by default `image_embedders`.
        rows: the rows to embed, ascending; by default all.
        cache_dir: where to keep outputs and to look for them, see `EmbeddingCache`.

    Yields:
        Rows of `dataset` (batch,) and the outputs of all embedders. Every image that decodes comes once. Batches found
        in the cache come first.

    Raises:
        ValueError: as `read_batches`, and when the model's results are not finite.
    """
    embedders = image_embedders(model, has_patches(model)) if embedders is None else embedders
    asked = [Asked(model, processor, embedders)]
    for _, found, outputs in embed_together(asked, dataset, batch_size, rows, cache_dir):
        yield found, outputs


def embed_together(
    asked: Sequence[Asked],
    dataset: datasets.Dataset,
    batch_size: int = 32,
    rows: np.ndarray | None = None,
    cache_dir: str | os.PathLike | None = None,
) -> Iterator[tuple[int, np.ndarray, Outputs]]:
    """`embed_batches` of several models, which are in memory together, from one reading of the images.

    Yields:
        The place of the model in `asked`, and what `embed_batches` yields.
    """
    rows = np.arange(len(dataset)) if rows is None else rows
    hashes: dict[int, str | None] = {}
    caches: list[dict[str, EmbeddingCache]] = []
    missing = [set(rows.tolist()) for _ in asked]  # rows that are not in the cache, by model
    with ExitStack() as modes:
        for model, processor, embedders, *_ in asked:
            modes.callback(model.train, model.training)
            model.eval()
            family = family_of(model, processor)
            can_cache = cache_dir is not None and is_identified(model)
            caches.append({what: EmbeddingCache(cache_dir, family, what) for what in embedders} if can_cache else {})
        for i, of_model in enumerate(caches):
            if of_model:
                missing[i] = set()
                for found, outputs in look_up(dataset, rows, batch_size, of_model, hashes):
                    if outputs is not None:
                        device = asked[i].model.device
                        yield i, found, {name: array.to(device) for name, array in outputs.items()}
                    else:  # the whole batch, because rounding depends on the other images of a batch
                        missing[i].update(found.tolist())
        rows = rows[np.isin(rows, list(set().union(*missing)))]
        if not len(rows) and any(caches):
            return
        members = [(model, processor) for model, processor, *_ in asked]
        for batches in read_batches_together(members, dataset, batch_size, rows=rows):
            for i, batch in enumerate(batches):
                if batch is None or int(batch.rows[0]) not in missing[i]:
                    continue
                with naming(asked[i].name):
                    parts = run_embedders(asked[i], batch)
                for what, cache in caches[i].items():
                    arrays = {name: tensor.cpu().numpy() for name, tensor in parts[what].items()}
                    for j, row in enumerate(batch.rows.tolist()):
                        cache.write(hashes[row], {name: array[j] for name, array in arrays.items()})
                yield i, batch.rows, {name: tensor for outputs in parts.values() for name, tensor in outputs.items()}


def run_embedders(asked: Asked, batch: Batch) -> dict[str, Outputs]:
    """The outputs of each embedder for one batch."""
    parts: dict[str, Outputs] = {}
    for what, embed in asked.embedders.items():
        times = asked.speed is not None and not parts
        with asked.speed.timing(len(batch.rows)) if times else nullcontext():
            parts[what] = embed(batch)
    return parts


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Puts the name of a model before the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}" if name else str(error)) from error


def is_identified(model: Any) -> bool:
    """Whether the cache can know the model again; a warning if not, see `UserModel`."""
    if getattr(model, "identity", "") is not None:
        return True
    logger.warning(
        "The embeddings of %s are not kept in --cache_dir: give the adapter's model an attribute `identity`, a text "
        "that changes with its weights and its preprocessing.",
        model.name,
    )
    return False


def look_up(
    dataset: datasets.Dataset,
    rows: np.ndarray,
    batch_size: int,
    caches: Mapping[str, EmbeddingCache],
    known: dict[int, str | None],
) -> Iterator[tuple[np.ndarray, Outputs | None]]:
    """Rows of each batch, and its outputs if the caches hold all of them.

    Args:
        known: the hashes of images by row, to which those of all rows are added.
    """
    images = dataset.select_columns("image").select(rows)
    start = 0
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for batch in images.iter(batch_size):
            of_batch = rows[start : start + len(batch["image"])]
            start += len(of_batch)
            if any(row not in known for row in of_batch.tolist()):
                known.update(zip(of_batch.tolist(), pool.map(hash_image, batch["image"]), strict=True))
            hashes = [known[row] for row in of_batch.tolist()]
            entries = [list(pool.map(cache.read, hashes)) for cache in caches.values()]
            outputs = None
            if all(entry is not None for of_cache in entries for entry in of_cache):
                outputs = {
                    name: stack([entry[name] for entry in of_cache]) for of_cache in entries for name in of_cache[0]
                }
            yield of_batch, outputs


def image_embedders(model: PreTrainedModel, patches: bool) -> Embedders:
    """
    The embedder of whole images and, if asked, of their patches. Its outputs are in float32 on the model's device:
    `"image"` (batch, dim) and `"patches"` (batch, patches, dim), L2-normalised, with the `"patch_weights"` (batch,
    patches) of a model whose image embedding is their mean; of a classifier `"logits"` (batch, labels) in place of
    `"image"`; and `"original_size"` (batch, 2), height and width of the pictures in the files.
    """
    what = ("logits" if is_classifier(model) else "image") + (" and patches" if patches else "")

    def embed(batch: Batch) -> Outputs:
        return {**embed_pixels(model, batch.pixels, patches), "original_size": batch.sizes}

    return {f"{what}, original size": embed}


def direct_embedders(model: PreTrainedModel) -> Embedders:
    """The embedder of the `"direct"` map (batch, patches, dim) of a model that has one, see `get_direct_map`; it runs
    the image tower once more."""
    if meets_contract(model) or is_classifier(model) or "direct" not in map_kinds(model.config):
        return {}

    def embed(batch: Batch) -> Outputs:
        with torch.inference_mode():
            return {"direct": check_finite(model.get_direct_map(batch.pixels).flatten(1, 2))}

    return {"direct map": embed}


def embed_pixels(model: PreTrainedModel, pixels: Pixels, patches: bool) -> Outputs:
    """The outputs of `image_embedders` for the pixels of one batch."""
    with torch.inference_mode():
        if is_classifier(model):
            if not patches:
                return {"logits": check_finite(model(pixels).logits)}
            pooled, features, weights = project_patches(model, pixels)
            outputs = {"logits": check_finite(model.score_embeddings(pooled)), "patches": to_unit_length(features)}
        elif not patches:
            return {"image": family_of(model).embed_images(pixels)}
        else:
            family = cast(PatchModel, family_of(model))
            whole, features, weights = family.embed_patches(pixels)
            outputs = {"image": whole, "patches": features}
        return outputs if weights is None else {**outputs, "patch_weights": weights}


def embed_prompts(
    model: PreTrainedModel, processor: ProcessorMixin, prompts: Mapping[Any, Prompts], batch_size: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """Positive and negative embeddings of each finding, both (findings, dim) float32 and L2-normalised; the negative
    one of a finding without negative sentences is zero.

    Each sentence is embedded once; those of one side of a finding give their `mean_direction`.
    """
    sentences = list(dict.fromkeys(text for prompt in prompts.values() for text in prompt.positive + prompt.negative))
    embeddings = torch.from_numpy(embed_sentences(model, processor, sentences, batch_size))
    embedding_of = dict(zip(sentences, embeddings, strict=True))

    def average(texts: Sequence[str]) -> torch.Tensor:
        if not texts:
            return torch.zeros(embeddings.shape[1])
        return mean_direction(torch.stack([embedding_of[text] for text in texts]))

    positive = torch.stack([average(prompt.positive) for prompt in prompts.values()]).numpy()
    negative = torch.stack([average(prompt.negative) for prompt in prompts.values()]).numpy()
    return positive, negative


def embed_sentences(
    model: PreTrainedModel, processor: ProcessorMixin, texts: Sequence[str], batch_size: int = 64
) -> np.ndarray:
    """L2-normalised embeddings of texts, (texts, dim) float32; equal texts are embedded once."""
    distinct = list(dict.fromkeys(texts))
    with inference(model):
        embeddings = family_of(model, processor).embed_texts(distinct, batch_size).cpu().numpy()
    row_of = {text: row for row, text in enumerate(distinct)}
    return embeddings[[row_of[text] for text in texts]]
