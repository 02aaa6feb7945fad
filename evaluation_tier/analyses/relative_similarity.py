"""How the similarity of a whole text is shared out among the patches of its image, from the highest patch down."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

FEWEST_MEAN_COSINE = 0.01  # of a pair's patches; a share is undefined for a total near or below zero


class RelativeSimilarity:
    """
    Mean and standard deviation, over pairs of text and image, of the ranked shares of the total similarity.

    TIER divides the cosines of a text and the patches by their sum and sorts them (token_patch_sims.py:72-108). The
    sum may be near zero or negative there; here such pairs are left out and counted.
    """

    def __init__(self) -> None:
        self.moments: Any = 0.0  # `np.ndarray` from the first pair on
        self.num_pairs = self.num_left_out = 0

    def add(self, ranked: torch.Tensor) -> None:
        """
        Args:
            ranked (`torch.Tensor` of shape `(pairs, patches)`): cosines, the highest first.
        """
        kept = ranked[ranked.mean(dim=1) >= FEWEST_MEAN_COSINE].cpu().double()
        shares = kept / kept.sum(dim=1, keepdim=True)
        self.moments = self.moments + torch.stack([shares.sum(dim=0), (shares**2).sum(dim=0)]).numpy()
        self.num_pairs += len(kept)
        self.num_left_out += len(ranked) - len(kept)

    def merge(self, other: "RelativeSimilarity") -> "RelativeSimilarity":
        """That of the pairs of both."""
        both = RelativeSimilarity()
        both.moments = self.moments + other.moments
        both.num_pairs = self.num_pairs + other.num_pairs
        both.num_left_out = self.num_left_out + other.num_left_out
        return both

    def result(self) -> dict:
        """`mean` and `std` (lists of a number per patch, NaN without pairs), `n_pairs` and `n_left_out`."""
        total, squares = self.moments
        mean = total / self.num_pairs if self.num_pairs else np.full_like(total, np.nan)
        variance = squares / self.num_pairs - mean**2 if self.num_pairs else mean
        counts = {"n_pairs": self.num_pairs, "n_left_out": self.num_left_out}
        return {"mean": mean.tolist(), "std": np.sqrt(np.maximum(variance, 0)).tolist(), **counts}


def name_ranked(
    ranked: np.ndarray, ranked_counts: np.ndarray, relative: RelativeSimilarity, word_classes: Sequence[str]
) -> dict:
    """
    Mean and standard deviation of the rank-ordered similarities, by class of words and of whole texts, and of the
    `"relative"` ones of whole texts.

    Args:
        ranked: (classes + 2, 2, patches), sums of the cosines and of their squares: of the classes of words, of
            punctuation, of whole texts.
        ranked_counts: (classes + 2,).
    """
    words = len(word_classes)
    ranked = np.concatenate([ranked[:words].sum(axis=0, keepdims=True), ranked])
    counts = np.append(ranked_counts[:words].sum(), ranked_counts)
    results = {}
    for name, (total, squares), count in zip(
        ("all", *word_classes, "punctuation", "text"), ranked, counts, strict=True
    ):
        mean = total / count if count > 0 else np.full_like(total, np.nan)
        variance = squares / count - mean**2 if count > 0 else mean
        results[name] = {"mean": mean.tolist(), "std": np.sqrt(np.maximum(variance, 0)).tolist()}
    return {**results, "relative": relative.result()}
