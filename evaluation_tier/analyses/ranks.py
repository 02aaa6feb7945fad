"""Where the first right item stands among all that a query is compared with, and recall and median rank from that.

Ties count by the expectation of a random order, without drawing one: a model that scores everything equally gets the
result of chance.
"""

from typing import NamedTuple

import numpy as np
import torch

TIE = 1e-6  # cosines nearer than this are equal: float32 sums of another order differ by as much


class Ranks(NamedTuple):
    """The numbers that determine the rank of the first correct item, one entry per query."""

    above: np.ndarray  # (queries,): wrong items that score higher than every right one
    tied_wrong: np.ndarray  # (queries,): wrong items with the score of the best correct item
    tied_right: np.ndarray  # (queries,): right items that do so, at least 1


def ranks(
    queries: np.ndarray,
    gallery: np.ndarray,
    query_groups: np.ndarray,
    gallery_groups: np.ndarray,
    chunk_size: int = 256,
) -> Ranks:
    """The place of the first correct item of the gallery for each query, best score first.

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
        raise ValueError(f"Query {without[0]} has no correct item in the gallery: leave it out.")

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
    """The ranks of a model for which all items score the same: chance."""
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
