"""Differences between models on the same images: paired bootstrap, DeLong's test, and Holm's correction."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from evaluation_tier.statistics.bootstrap import (
    QUANTILE_975,
    bootstrap,
    defined_values,
    mean_over_findings,
    percentile_interval,
)
from evaluation_tier.statistics.metrics import select_known
from evaluation_tier.statistics.resampling import find_too_few


class Resampled(NamedTuple):
    """The metrics of one model, by name as [`bootstrap`] names them."""

    point: dict[str, np.ndarray]  # (findings,): on all images
    resampled: dict[str, np.ndarray]  # (resamples, findings)


class PairedDifference(NamedTuple):
    """The gain of a second model over a first one on the same images, per finding and for their mean."""

    difference: np.ndarray  # (findings,): second minus first, on all images
    interval: np.ndarray  # (findings, 2)
    p_value: np.ndarray  # (findings,), two-sided
    mean_difference: float
    mean_interval: np.ndarray  # (2,)
    mean_p_value: float


class DeLong(NamedTuple):
    """Two correlated AUROCs, see [`delong`]."""

    aurocs: np.ndarray  # (2,)
    covariance: np.ndarray  # (2, 2)
    intervals: np.ndarray  # (2, 2): lower and upper bound of each AUROC
    difference: float  # second minus first
    difference_interval: np.ndarray  # (2,)
    p_value: float  # two-sided


def bootstrap_p_value(differences: np.ndarray) -> float:
    """
    Two-sided p-value of a difference of 0: twice the smaller share of resampled differences at 0 or on one side of it.

    One resample is added on each side (Davison & Hinkley 1997, equation 4.11), so that p is never 0. It is at most 1,
    and NaN without [`defined_values`].
    """
    differences = defined_values(differences)
    if not len(differences):
        return float("nan")
    smaller = min((differences <= 0).sum(), (differences >= 0).sum())
    return min(1.0, float(2 * (smaller + 1) / (len(differences) + 1)))


def paired_bootstrap(
    labels: np.ndarray,
    first_scores: np.ndarray,
    second_scores: np.ndarray,
    draws: np.ndarray,
    first_thresholds: Sequence[float] | Mapping[str, Sequence[float]] | None = None,
    second_thresholds: Sequence[float] | Mapping[str, Sequence[float]] | None = None,
    unit_ids: Sequence | None = None,
) -> dict[str, PairedDifference]:
    """
    The second model's metrics minus the first's, both on the same resamples of the same images.

    Args:
        labels, draws: see [`bootstrap`].
        first_scores, second_scores (`np.ndarray`): (images, findings).
        first_thresholds, second_thresholds: as for [`bootstrap`], for both models or for neither.
        unit_ids (`Sequence`, *optional*):
            (images,), the patients that were drawn. A finding with too few patients does not get an interval or a
            p-value. If all findings have too few, the mean gets neither as well.

    Returns:
        `dict[str, PairedDifference]`: by metric, as [`bootstrap`] names them. An undefined difference is NaN, and the
        mean leaves it out.
    """
    if (first_thresholds is None) != (second_thresholds is None):
        raise ValueError("Only one of the two models has thresholds: give thresholds for both, or for neither.")
    models = ((first_scores, first_thresholds), (second_scores, second_thresholds))
    first, second = (resample(labels, scores, draws, thresholds) for scores, thresholds in models)
    too_few = np.zeros(labels.shape[1], dtype=bool) if unit_ids is None else find_too_few(labels, unit_ids)
    return paired_differences(first, second, too_few)


def resample(
    labels: np.ndarray,
    scores: np.ndarray,
    draws: np.ndarray,
    thresholds: Sequence[float] | Mapping[str, Sequence[float]] | None = None,
) -> Resampled:
    """A model's metrics on all images and on each resample; arguments as of [`bootstrap`]."""
    point = bootstrap(labels, scores, np.ones((1, len(labels))), thresholds)
    return Resampled(
        {name: of_data[0] for name, of_data in point.items()}, bootstrap(labels, scores, draws, thresholds)
    )


def paired_differences(first: Resampled, second: Resampled, too_few: np.ndarray) -> dict[str, PairedDifference]:
    """
    The second model's metrics minus the first's, see [`paired_bootstrap`].

    Args:
        first, second ([`Resampled`]): on the same resamples of the same images.
        too_few (`np.ndarray`): (findings,) bool, of [`find_too_few`].
    """
    results = {}
    for name in first.point:
        point, resampled = second.point[name] - first.point[name], second.resampled[name] - first.resampled[name]
        mean, resampled_mean = mean_over_findings(point, resampled)
        resampled[:, too_few] = np.nan
        if too_few.all():
            resampled_mean[:] = np.nan
        results[name] = PairedDifference(
            difference=point,
            interval=np.array([percentile_interval(column) for column in resampled.T]).reshape(-1, 2),
            p_value=np.array([bootstrap_p_value(column) for column in resampled.T]),
            mean_difference=mean,
            mean_interval=percentile_interval(resampled_mean),
            mean_p_value=bootstrap_p_value(resampled_mean),
        )
    return results


def holm(p_values: Sequence[float]) -> np.ndarray:
    """
    p-values of a family of tests, adjusted by Holm's step-down method (Holm 1979): the chance of any false rejection
    in the family is at most the level that they are compared with, whatever the tests have in common.

    Args:
        p_values (`Sequence[float]`): (tests,), 0 to 1; NaN is a test that could not be made and is not in the family.

    Returns:
        `np.ndarray`: (tests,), at least as high as the p-values and at most 1; NaN stays NaN.
    """
    p_values = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(p_values.shape, np.nan)
    known = np.flatnonzero(~np.isnan(p_values))
    ascending = known[np.argsort(p_values[known], kind="stable")]
    steps = p_values[ascending] * np.arange(len(ascending), 0, -1)
    adjusted[ascending] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def delong(labels: np.ndarray, first_scores: np.ndarray, second_scores: np.ndarray) -> DeLong:
    """
    DeLong's test of two models' AUROCs on the same images (DeLong et al. 1988), by midranks (Sun & Xu 2014).

    It takes the images as independent: with several images per patient, use [`paired_bootstrap`].

    Args:
        labels (`np.ndarray`): (images,), 1, 0, -1 or NaN; -1 and NaN are left out.
        first_scores, second_scores (`np.ndarray`): (images,).

    Returns:
        [`DeLong`]: 95 % intervals from the normal distribution, clipped to 0..1 for the AUROCs. Covariance, intervals
        and p-value are NaN with fewer than 2 positives or 2 negatives. If the difference has a variance of 0, p is 1
        for a difference of 0 and NaN otherwise.
    """
    known_labels, first = select_known(labels, first_scores)
    scores = np.stack([first, select_known(labels, second_scores)[1]])  # (2, samples)
    positive, negative = scores[:, known_labels], scores[:, ~known_labels]
    m, n = positive.shape[1], negative.shape[1]
    if min(m, n) == 0:
        aurocs = np.full(2, np.nan)
    else:
        # each positive's share of negatives that it beats, and each negative's share of positives that beat it
        ranks = np.array([midranks(row) for row in scores])
        over = (ranks[:, known_labels] - [midranks(row) for row in positive]) / n  # (2, m)
        under = 1 - (ranks[:, ~known_labels] - [midranks(row) for row in negative]) / m  # (2, n)
        aurocs = over.mean(axis=1)
    if min(m, n) < 2:
        nothing = np.full((2, 2), np.nan)
        return DeLong(aurocs, nothing, nothing, float(aurocs[1] - aurocs[0]), nothing[0], float("nan"))
    covariance = np.cov(over) / m + np.cov(under) / n
    errors = np.sqrt(np.diag(covariance))
    intervals = aurocs[:, None] + QUANTILE_975 * errors[:, None] * [-1, 1]
    difference = float(aurocs[1] - aurocs[0])
    variance = max(float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]), 0.0)
    if variance > 1e-16 * (1 + np.trace(covariance)):  # otherwise rounding alone
        p_value = math.erfc(abs(difference) / math.sqrt(2 * variance))
    else:
        p_value = 1.0 if abs(difference) < 1e-12 else float("nan")
    half = QUANTILE_975 * math.sqrt(variance)
    return DeLong(
        aurocs, covariance, intervals.clip(0, 1), difference, np.array([difference - half, difference + half]), p_value
    )


def midranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, the mean rank among equal values."""
    _, group, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[group]
