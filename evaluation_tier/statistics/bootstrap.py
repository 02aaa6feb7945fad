"""How sure a number is: metrics of all findings in all resamples at once, and percentile intervals, in numpy.

A value that is undefined in a resample (AUROC without both classes) is NaN and is left out of the percentiles. An
interval needs at least half of the resamples to be defined. A finding with fewer than 5 positive or 5 negative
patients does not get an interval either: the bootstrap draws the same few again and again, and a single patient would
give a width of 0. How resamples are drawn is in `resampling.py`.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from evaluation_tier.statistics.metrics import divide, metrics_from_counts, select_known, weighted_areas
from evaluation_tier.statistics.resampling import PATIENT_BOOTSTRAP, Resampling, chunks, find_too_few

AREAS = ("auroc", "auprc")

AT_THRESHOLD = ("mcc", "f1", "sensitivity", "specificity")

QUANTILE_975 = 1.959963984540054  # of the standard normal distribution


class BootstrapAUROC(NamedTuple):
    """Intervals of the AUROC, one row or entry per finding, and of the mean over the findings."""

    interval: np.ndarray  # (findings, 2): lower and upper bound
    mean_interval: np.ndarray  # (2,)
    num_dropped: np.ndarray  # (findings,): resamples in which the finding lacks a class
    mean_num_dropped: int  # resamples in which any finding lacks a class


def bootstrap(
    labels: np.ndarray,
    scores: np.ndarray,
    draws: np.ndarray,
    thresholds: Sequence[float] | Mapping[str, Sequence[float]] | None = None,
) -> dict[str, np.ndarray]:
    """
    The metrics of every finding in every resample: scikit-learn's on `np.repeat`ed labels and scores, to rounding.

    Args:
        labels (`np.ndarray`): (images, findings), 1, 0, -1 or NaN; -1 and NaN are left out.
        scores (`np.ndarray`): (images, findings).
        draws (`np.ndarray`):
            How often each image was drawn, (resamples, images), or (findings, resamples, images) for separate draws of
            each finding; see [`Resampling.draw`]. `np.ones((1, images))` gives the metrics of the data themselves.
        thresholds (`Sequence[float]` or `Mapping[str, Sequence[float]]`, *optional*):
            (findings,), fixed in all resamples: present means score >= threshold. NaN gives NaN. To give F1 its own
            thresholds, pass `{"mcc": ..., "f1": ...}`; the other metrics use those of MCC.

    Returns:
        `dict[str, np.ndarray]`: `auroc`, `auprc` and, with thresholds, `mcc`, `f1`, `sensitivity`, `specificity`,
        each (resamples, findings); NaN where undefined.

    Raises:
        `ValueError`: shapes that do not fit, negative draws; labels or scores that [`select_known`] refuses.
    """
    labels, scores, draws = (
        np.asarray(labels, dtype=np.float64),
        np.asarray(scores, dtype=np.float64),
        np.asarray(draws),
    )
    check_arrays(labels, scores, draws)
    num_images, num_findings = labels.shape
    if thresholds is not None and not isinstance(thresholds, Mapping):
        thresholds = {"mcc": thresholds}
    for given in (thresholds or {}).values():
        if len(given) != num_findings:
            raise ValueError(f"There are {num_findings} findings, but {len(given)} thresholds.")

    rows_of = [np.flatnonzero((column == 0) | (column == 1)) for column in labels.T]
    known = [select_known(labels[:, i], scores[:, i]) for i in range(num_findings)]
    num_resamples = draws.shape[-2]
    names = AREAS + (AT_THRESHOLD if thresholds is not None else ())
    results = {name: np.empty((num_resamples, num_findings)) for name in names}
    for part in chunks(num_resamples, num_images):
        if draws.ndim == 2:
            shared = np.ascontiguousarray(draws[part].T, dtype=np.float64)  # images x resamples: rows to add up
        for i, (known_labels, known_scores) in enumerate(known):
            weights = shared if draws.ndim == 2 else draws[i, part].T.astype(np.float64)
            weights = weights[rows_of[i]]
            results["auroc"][part, i], results["auprc"][part, i] = weighted_areas(known_labels, known_scores, weights)
            if thresholds is None:
                continue
            found = weighted_metrics(known_labels, known_scores, weights, thresholds["mcc"][i])
            if "f1" in thresholds:
                found["f1"] = weighted_metrics(known_labels, known_scores, weights, thresholds["f1"][i])["f1"]
            for name in AT_THRESHOLD:
                results[name][part, i] = found[name]
    return results


def check_arrays(labels: np.ndarray, scores: np.ndarray, draws: np.ndarray) -> None:
    """Raise ValueError for shapes that do not fit and negative draws."""
    if labels.ndim != 2 or labels.shape != scores.shape:
        raise ValueError(
            f"Labels and scores must both be images x findings, but have shapes {labels.shape} and {scores.shape}."
        )
    num_images, num_findings = labels.shape
    if draws.ndim not in (2, 3) or draws.shape[-1] != num_images or draws.shape[:-2] not in ((), (num_findings,)):
        raise ValueError(
            f"Draws of {num_images} images and {num_findings} findings must be resamples x images or findings x "
            f"resamples x images, but have shape {draws.shape}."
        )
    if draws.size and draws.min() < 0:
        raise ValueError("Draws count how often an image was drawn, but some are negative.")


def weighted_metrics(
    labels: np.ndarray, scores: np.ndarray, weights: np.ndarray, threshold: float
) -> dict[str, np.ndarray]:
    """[`metrics_from_counts`] of score >= threshold, each (weightings,), with weights (samples, weightings)."""
    predicted = scores >= threshold
    counts = (weights[rows].sum(axis=0) for rows in (predicted & labels, predicted, labels, slice(None)))
    found = metrics_from_counts(*counts)
    return {name: np.full_like(values, np.nan) for name, values in found.items()} if np.isnan(threshold) else found


def bootstrap_mean(values: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """
    The mean of a value per image in every resample.

    Args:
        values (`np.ndarray`): (images,); NaN is left out.
        draws (`np.ndarray`): (resamples, images), see [`bootstrap`].

    Returns:
        `np.ndarray`: (resamples,); NaN in a resample without a known value.
    """
    known = ~np.isnan(values)
    means = np.empty(len(draws))
    for part in chunks(*draws.shape):
        weights = draws[part][:, known].astype(np.float64)
        means[part] = divide(weights @ values[known], weights.sum(axis=1))
    return means


def defined_values(values: np.ndarray) -> np.ndarray:
    """
    The values (resamples,) that are not NaN. Empty if they are fewer than half of the resamples, because a few lucky
    draws are not representative.
    """
    defined = values[~np.isnan(values)]
    return defined if 2 * len(defined) >= len(values) else defined[:0]


def percentile_interval(values: np.ndarray) -> np.ndarray:
    """The 2.5th and 97.5th percentile of the [`defined_values`]; NaN without any."""
    values = defined_values(values)
    return np.percentile(values, [2.5, 97.5]) if len(values) else np.full(2, np.nan)


def mean_over_findings(point: np.ndarray, resampled: np.ndarray) -> tuple[float, np.ndarray]:
    """
    The mean over the findings whose value is defined: of the data, and in each resample (NaN where one is undefined).

    Args:
        point (`np.ndarray`): (findings,), of the data.
        resampled (`np.ndarray`): (resamples, findings).
    """
    defined = ~np.isnan(point)
    if not defined.any():
        return float("nan"), np.full(len(resampled), np.nan)
    return float(point[defined].mean()), resampled[:, defined].mean(axis=1)


def bootstrap_auroc(
    labels: np.ndarray, scores: np.ndarray, patient_ids: Sequence, resampling: Resampling = PATIENT_BOOTSTRAP
) -> BootstrapAUROC:
    """95 % percentile intervals of each finding's AUROC and of their mean."""
    resampled = bootstrap(labels, scores, resampling.draw(patient_ids, labels))["auroc"]
    complete = resampled.mean(axis=1) if resampled.shape[1] else np.full(resampling.num_resamples, np.nan)
    dropped, mean_dropped = np.isnan(resampled).sum(axis=0), int(np.isnan(complete).sum())
    too_few = find_too_few(labels, patient_ids)
    resampled[:, too_few] = np.nan
    if too_few.all():
        complete[:] = np.nan
    return BootstrapAUROC(
        interval=np.array([percentile_interval(column) for column in resampled.T]).reshape(-1, 2),
        mean_interval=percentile_interval(complete),
        num_dropped=dropped,
        mean_num_dropped=mean_dropped,
    )
