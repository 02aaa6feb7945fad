"""How far a ROC curve may move with other patients: a pointwise band from the resamples of the bootstrap."""

import numpy as np

from evaluation_tier.statistics.bootstrap import defined_values, percentile_interval
from evaluation_tier.statistics.metrics import select_known


def roc_band(labels: np.ndarray, scores: np.ndarray, draws: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """
    95 % percentile interval of the sensitivity at each false positive rate (a vertical band: Fawcett, "An introduction
    to ROC analysis", Pattern Recognition Letters 2006).

    Args:
        labels (`np.ndarray`): (images,), 1, 0, -1 or NaN; -1 and NaN are left out.
        scores (`np.ndarray`): (images,).
        draws (`np.ndarray`): (resamples, images), how often each image was drawn, see [`Resampling.draw`].
        rates (`np.ndarray`): (points,), false positive rates, 0 to 1, ascending.

    Returns:
        `np.ndarray`: (points, 2), lower and upper bound; NaN with too few resamples that have both classes.
    """
    labels, scores = np.asarray(labels, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    known = np.flatnonzero((labels == 0) | (labels == 1))
    positive, scores = select_known(labels, scores)
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order], append=-np.inf))  # last image of each run of equal scores
    positive, known = positive[order], known[order]
    curves = np.full((len(draws), len(rates)), np.nan)
    for curve, drawn in zip(curves, draws, strict=True):
        weights = drawn[known].astype(np.float64)
        hits = np.concatenate([[0.0], np.cumsum(weights * positive)[ends]])
        alarms = np.concatenate([[0.0], np.cumsum(weights * ~positive)[ends]])
        if hits[-1] and alarms[-1]:
            curve[:] = np.interp(rates, alarms / alarms[-1], hits / hits[-1])
    if not len(defined_values(curves[:, 0])):
        return np.full((len(rates), 2), np.nan)
    return np.array([percentile_interval(column) for column in curves.T])
