"""Embeddings of images and of sentences, each computed once.

Decoding is in `images.py`, the pass that feeds scores and analyses in `single_pass.py`.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import datasets
import numpy as np
import torch
from transformers import CLIPModel, PreTrainedModel, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor

from evaluation_tier.models.cache import EmbeddingCache, hash_image, stack
from evaluation_tier.models.images import Batch, read_batches
from evaluation_tier.models.loading import is_classifier
from modeling_tier import TierCLIPModel
from modeling_tier.maps_tier import mean_direction, patch_weights
from modeling_tier.pooling_tier import ADDS_UP
from modeling_tier.texts_tier import embed_texts
from processing_tier.prompts.loader import Prompts

Outputs = dict[str, torch.Tensor]  # of a batch: name to (batch, ...)

Embedders = Mapping[str, Callable[[Batch], Outputs]]  # by the cache's name of their outputs


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
    caches = (
        {} if cache_dir is None else {what: EmbeddingCache(cache_dir, model, processor, what) for what in embedders}
    )
    hashes: dict[int, str | None] = {}  # of the images that are not in the cache
    was_training = model.training
    model.eval()
    try:
        if caches:
            missing = []
            rows = np.arange(len(dataset)) if rows is None else rows
            for found, of_images, outputs in look_up(dataset, rows, batch_size, caches):
                if outputs is not None:
                    yield found, {name: array.to(model.device) for name, array in outputs.items()}
                else:  # the whole batch, because rounding depends on the other images of a batch
                    missing.append(found)
                    hashes.update(zip(found.tolist(), of_images, strict=True))
            if not missing:
                return
            rows = np.concatenate(missing)
        for batch in read_batches(model, processor, dataset, batch_size, rows=rows):
            parts = {what: embed(batch) for what, embed in embedders.items()}
            for what, cache in caches.items():
                arrays = {name: tensor.cpu().numpy() for name, tensor in parts[what].items()}
                for i, row in enumerate(batch.rows.tolist()):
                    cache.write(hashes[row], {name: array[i] for name, array in arrays.items()})
            yield batch.rows, {name: tensor for outputs in parts.values() for name, tensor in outputs.items()}
    finally:
        model.train(was_training)


def look_up(
    dataset: datasets.Dataset, rows: np.ndarray, batch_size: int, caches: Mapping[str, EmbeddingCache]
) -> Iterator[tuple[np.ndarray, list[str | None], Outputs | None]]:
    """Rows of each batch, the hashes of its images, and its outputs if the caches hold all of them."""
    images = dataset.select_columns("image").select(rows)
    start = 0
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for batch in images.iter(batch_size):
            hashes = list(pool.map(hash_image, batch["image"]))
            entries = [list(pool.map(cache.read, hashes)) for cache in caches.values()]
            outputs = None
            if all(entry is not None for of_cache in entries for entry in of_cache):
                outputs = {
                    name: stack([entry[name] for entry in of_cache]) for of_cache in entries for name in of_cache[0]
                }
            yield rows[start : start + len(hashes)], hashes, outputs
            start += len(hashes)


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


def embed_pixels(model: PreTrainedModel, pixels: torch.Tensor | Mapping[str, torch.Tensor], patches: bool) -> Outputs:
    """The outputs of `image_embedders` for the pixels of one batch."""
    with torch.inference_mode():
        if isinstance(pixels, Mapping):
            return {"image": to_unit_length(model.get_image_features(**pixels).pooler_output)}
        if not patches:
            if is_classifier(model):
                return {"logits": check_finite(model(pixels).logits)}
            return {"image": to_unit_length(model.get_image_features(pixel_values=pixels).pooler_output)}
        weights = {}
        if hasattr(model, "encode_images"):
            outputs, grid = model.encode_images(pixels)  # grid (images, rows, columns, dim)
            patch_features = grid.flatten(1, 2)
            if model.config.image_pooling in ADDS_UP:
                weights = {"patch_weights": patch_weights(grid).flatten(1)}
        else:  # CLIP itself has all that it takes
            outputs = model.get_image_features(pixel_values=pixels)
            patch_features = TierCLIPModel.project_patches(model, outputs.last_hidden_state)
        pooled = outputs.pooler_output
        if is_classifier(model):
            whole = {"logits": check_finite(model.score_embeddings(pooled))}
        else:
            whole = {"image": to_unit_length(pooled)}
        return {**whole, "patches": to_unit_length(patch_features), **weights}


def has_patches(model: PreTrainedModel) -> bool:
    """Whether a model embeds patches in the space of the texts."""
    return hasattr(model, "get_patch_features") and not is_classifier(model)


def can_project_patches(model: PreTrainedModel) -> bool:
    """Whether `embed_pixels` can embed a model's patches where the texts are: if it does so itself, or is CLIP's."""
    return has_patches(model) or isinstance(model, CLIPModel) and not is_classifier(model)


def embed_prompts(
    model: PreTrainedModel, processor: ProcessorMixin, prompts: Mapping[Any, Prompts], batch_size: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """Positive and negative embeddings of each finding, both (findings, dim) float32 and L2-normalised; the negative
    one of a finding without negative sentences is zero.

    Each sentence is embedded once; those of one side of a finding give their `mean_direction`.
    """
    sentences = list(dict.fromkeys(text for prompt in prompts.values() for text in prompt.positive + prompt.negative))
    with inference(model):
        embeddings = check_finite(embed_texts(model, processor.tokenizer, sentences, batch_size)).cpu()
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
    """Features of length 1 along the last axis, as float32. ValueError when some are not finite, or are zero."""
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
