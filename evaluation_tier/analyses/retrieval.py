"""Retrieval: whether a model finds the report of a radiograph among all reports, and the radiograph of a report.

Reports repeat ("No acute disease."), and a report that says the same as the one looked for is as good as it: it
counts as found. Equal scores are decided as if by lot, in expectation and so without any lot being drawn: a model that
answers everything alike gets what chance gets, never more.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import datasets
import numpy as np
import torch
from transformers import PreTrainedModel, ProcessorMixin

from evaluation_tier.models.embedding import embed_images, normalize
from evaluation_tier.models.loading import is_classifier
from evaluation_tier.output.metrics_file import installed_versions
from evaluation_tier.statistics.bootstrap import percentile_interval
from evaluation_tier.statistics.resampling import Resampling, chunks
from modeling_tier.texts_tier import embed_texts
from processing_tier.records.schema import select_text
from processing_tier.reports.deidentification import clean_text
from processing_tier.reports.duplicates import duplicate_groups

WORD = re.compile(r"[^\W_]+")

TIE = 1e-6  # cosines nearer than this are equal: float32 sums of another order differ by as much


class Ranks(NamedTuple):
    """What the rank of the first right item follows from, one entry per query."""

    above: np.ndarray  # (queries,): wrong items that score higher than every right one
    tied_wrong: np.ndarray  # (queries,): wrong items that score as high as the best right one
    tied_right: np.ndarray  # (queries,): right items that do so, at least 1


def ranks(
    queries: np.ndarray,
    gallery: np.ndarray,
    query_groups: np.ndarray,
    gallery_groups: np.ndarray,
    chunk_size: int = 256,
) -> Ranks:
    """Where the first right item of the gallery stands for each query, best score first.

    A chunk of queries is compared with the whole gallery at a time: memory grows with the gallery, not with its
    square.

    Args:
        queries: (queries, dim) float32; a score is the scalar product, for L2-normalised rows the cosine.
        gallery: (items, dim) float32.
        query_groups: (queries,) integers; an item is right when its group is the query's.
        gallery_groups: (items,) integers.
        chunk_size: queries at a time; it changes memory and speed, not the result.

    Raises:
        ValueError: shapes that do not fit, embeddings that are not finite, or a query without a right item.
    """
    if chunk_size < 1:
        raise ValueError(f"The number of queries in a chunk must be at least 1, but is {chunk_size}.")
    for rows, groups, name in ((queries, query_groups, "queries"), (gallery, gallery_groups, "gallery")):
        if rows.ndim != 2 or groups.shape != rows.shape[:1]:
            raise ValueError(
                f"The {name} must be rows of numbers with one group each, but have shapes {rows.shape} and "
                f"{groups.shape}."
            )
        if not np.isfinite(rows).all():
            raise ValueError(f"The embeddings of the {name} must be finite: leave out images that do not decode.")
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"Queries of {queries.shape[1]} numbers have no score with items of {gallery.shape[1]}.")
    without = np.flatnonzero(~np.isin(query_groups, gallery_groups))
    if len(without):
        raise ValueError(f"Query {without[0]} has no right item in the gallery: leave it out.")

    counts = np.empty((3, len(queries)), dtype=np.int64)
    for start in range(0, len(queries), chunk_size):
        chunk = slice(start, start + chunk_size)
        scores = queries[chunk] @ gallery.T  # (chunk, items)
        right = query_groups[chunk, None] == gallery_groups
        best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
        tied = np.abs(scores - best) <= TIE
        counts[0, chunk] = ((scores > best + TIE) & ~right).sum(axis=1)
        counts[1, chunk] = (tied & ~right).sum(axis=1)
        counts[2, chunk] = (tied & right).sum(axis=1)
    return Ranks(*counts)


def chance_ranks(query_groups: np.ndarray, gallery_groups: np.ndarray) -> Ranks:
    """The ranks of a model for which all items score the same: what drawing lots gives."""
    groups, sizes = np.unique(gallery_groups, return_counts=True)
    num_right = sizes[np.searchsorted(groups, query_groups)]
    return Ranks(np.zeros_like(num_right), len(gallery_groups) - num_right, num_right)


def found(found_ranks: Ranks, k: np.ndarray | int) -> np.ndarray:
    """Chance that a right item is among the first `k`, ties being decided by lot.

    With `j` places left for the tied items, all of them go to wrong ones with the chance C(w, j) / C(w + r, j), where
    w wrong and r right items are tied (hypergeometric distribution).

    Args:
        found_ranks: of (queries,).
        k: a number, or one per query, or (..., 1) to be compared with each query.

    Returns:
        In [0, 1], of the shape to which `k` and (queries,) broadcast.
    """
    above, wrong, right, k = np.broadcast_arrays(*found_ranks, np.asarray(k))
    places = k - above
    chance = (places > wrong).astype(np.float64)
    by_lot = (places > 0) & (places <= wrong)
    if by_lot.any():
        places, wrong, right = (torch.from_numpy(array[by_lot]).double() for array in (places, wrong, right))
        all_wrong = torch.lgamma(wrong + 1) - torch.lgamma(wrong - places + 1)
        all_wrong -= torch.lgamma(wrong + right + 1) - torch.lgamma(wrong + right - places + 1)
        chance[by_lot] = -torch.expm1(all_wrong).numpy()
    return chance


def recall_at(found_ranks: Ranks, k: int, weights: np.ndarray | None = None) -> np.ndarray:
    """R@k: the share of the queries with a right item among the first `k`, (weightings,), in [0, 1].

    Args:
        weights: (weightings, queries), by default all 1; in a bootstrap, how often each query was drawn.
    """
    weights = np.ones((1, len(found_ranks.above))) if weights is None else weights
    return weights @ found(found_ranks, k) / weights.sum(axis=1)


def median_rank(found_ranks: Ranks, weights: np.ndarray | None = None) -> np.ndarray:
    """The smallest k for which R@k is at least one half, (weightings,), from 1; `weights` as in `recall_at`."""
    weights = np.ones((1, len(found_ranks.above))) if weights is None else weights
    low = np.zeros(len(weights), dtype=np.int64)  # R@low is below one half, R@high is not
    high = np.full(len(weights), int((found_ranks.above + found_ranks.tied_wrong).max()) + 1)
    half = weights.sum(axis=1) * (0.5 - 1e-12)  # the chances of ties do not add up to the last bit
    while (high - low > 1).any():
        middle = (low + high) // 2
        enough = (weights * found(found_ranks, middle[:, None])).sum(axis=1) >= half
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return high


def read_texts(dataset: datasets.Dataset, text: str = "both", deidentified: str = "keep") -> list[str]:
    """The text of each record as a training with the same two options reads it; `""` where there is none.

    Args:
        text: `"impression"`, `"findings"` or `"both"`, see `processing_tier.records.schema.select_text`.
        deidentified: `"keep"`, `"remove"` or `"replace"`, see `processing_tier.reports.deidentification.clean_text`.

    Raises:
        ValueError: for a data set without these columns or without a word in them, or an unknown option.
    """
    sections = ("impression", "findings")
    missing = [section for section in sections if section not in dataset.column_names]
    if missing:
        raise ValueError(
            f"The data set has no column {missing[0]!r}: name it with --columns, or use one with reports."
        )
    records = dataset.with_format(None).select_columns(list(sections))
    texts = [clean_text(select_text(record, text), deidentified) for record in records]
    if not any(map(WORD.search, texts)):
        raise ValueError(f"No record has a word in its {text!r} text: choose another text or other data.")
    return texts


def check_embeds_texts(model: PreTrainedModel) -> None:
    """ValueError for a classifier."""
    if is_classifier(model):
        raise ValueError(
            f"A {type(model).__name__} embeds no texts, so there is nothing to retrieve: use a TIER model."
        )


def evaluate_retrieval(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    dataset: datasets.Dataset,
    text: str = "both",
    deidentified: str = "keep",
    ks: Sequence[int] = (1, 5, 10),
    n_bootstrap: int = 1000,
    seed: int = 0,
    batch_size: int = 32,
    chunk_size: int = 256,
    dataset_name: str = "",
) -> dict:
    """R@k and median rank of finding each image's text among all texts, and each text's image among all images.

    Every record is a query both ways. The gallery of texts has each text once, that of images each image. Texts that
    say the same (see `duplicate_groups`) stand for one another: any of them, and the image of any
    of them, is a hit. Records without a word of text and images that do not decode are left out of both sides.

    Args:
        model: of images and texts, as `load_model` gives it.
        dataset: in the schema of `processing_tier.records`.
        text: see `read_texts`; so is `deidentified`.
        ks: the numbers of items that R@k looks at.
        n_bootstrap: resamples of patients for the 95 % intervals; seeded by `seed`. The queries are resampled, the
            gallery stays.
        batch_size: images, and texts, embedded at once.
        chunk_size: queries compared with the gallery at once, see `ranks`.
        dataset_name: what the results call the data.

    Returns:
        `"image_to_text"` and `"text_to_image"`, each with `recall_at_<k>` in [0, 1] and `median_rank` from 1. Beside
        each number stand `<name>_ci95`; `<name>_chance`, what drawing lots gives; and `<name>_most_frequent`, what a
        model gives that never looks at the query and always puts what is repeated most often first.

    Raises:
        ValueError: for a classifier, no usable pair, or what `read_texts` and `embed_images` refuse.
    """
    check_embeds_texts(model)
    resampling = Resampling(n_bootstrap, seed)
    if not ks or min(ks) < 1:
        raise ValueError(f"R@k needs numbers of at least 1, but ks is {tuple(ks)}.")
    texts = read_texts(dataset, text, deidentified)
    groups = duplicate_groups(texts)
    with_text = np.flatnonzero(groups >= 0)
    dataset = dataset.select(with_text)
    image_embeds = embed_images(model, processor, dataset, batch_size)
    readable = ~np.isnan(image_embeds).any(axis=1)
    image_ids, patient_ids = np.array(dataset["image_id"][:]), np.array(dataset["patient_id"][:])
    image_embeds, groups, patient_ids = image_embeds[readable], groups[with_text][readable], patient_ids[readable]

    # Each text once: were copies to stand side by side in the gallery, a wrong one would fill the first k places.
    distinct, first, text_of_image = np.unique(
        [texts[i] for i in with_text[readable]], return_index=True, return_inverse=True
    )
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        text_embeds = normalize(embed_texts(model, processor.tokenizer, distinct.tolist(), batch_size))
    model.train(was_training)

    _, group_of_image, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    frequency = sizes[group_of_image].astype(np.float32)[:, None]
    draws = resampling.draw(patient_ids)
    results = {}
    for direction, queries, gallery, gallery_groups, gallery_frequency in (
        ("image_to_text", image_embeds, text_embeds, groups[first], frequency[first]),
        ("text_to_image", text_embeds[text_of_image], image_embeds, groups, frequency),
    ):
        measured = ranks(queries, gallery, groups, gallery_groups, chunk_size)
        levels = {
            "chance": chance_ranks(groups, gallery_groups),
            "most_frequent": ranks(np.ones_like(frequency), gallery_frequency, groups, gallery_groups, chunk_size),
        }
        results[direction] = summarize(measured, levels, ks, draws)
    return {
        "dataset": dataset_name,
        "protocol": {
            "text": text,
            "deidentified": deidentified,
            "hits": "every text that says the same, and the images of all of them",
            "galleries": "each text once; each image",
            "ties": f"by lot, in expectation; cosines nearer than {TIE:g} are tied",
            **resampling.describe(patient_ids.tolist(), "95 % percentile bootstrap over the patients of the queries"),
            "n_without_text": len(texts) - len(with_text),
            "images_skipped": image_ids[~readable].tolist(),
        },
        "n_images": len(groups),
        "n_texts": len(distinct),
        "n_most_frequent_text": int(sizes.max()),
        **results,
        "versions": installed_versions(),
    }


def summarize(measured: Ranks, levels: dict[str, Ranks], ks: Sequence[int], draws: np.ndarray) -> dict:
    """The numbers of one direction, each with its interval and its levels, see `evaluate_retrieval`."""

    def numbers(of: Ranks, weights: np.ndarray | None = None) -> dict[str, np.ndarray]:
        recalls = {f"recall_at_{k}": recall_at(of, k, weights) for k in ks}
        return {**recalls, "median_rank": median_rank(of, weights)}

    parts = chunks(*draws.shape)
    resampled = [numbers(measured, draws[part].astype(np.float64)) for part in parts]
    result = {}
    for name, value in numbers(measured).items():
        result[name] = value.item()
        result[f"{name}_ci95"] = percentile_interval(np.concatenate([draw[name] for draw in resampled])).tolist()
    for level, level_ranks in levels.items():
        result |= {f"{name}_{level}": value.item() for name, value in numbers(level_ranks).items()}
    return result
