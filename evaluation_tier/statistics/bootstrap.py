"""How sure a number is: the bootstrap, DeLong's test and subgroups, in numpy, for all findings and resamples at once.

A resample is a row of counts: how often each image was drawn. `np.repeat(np.arange(images), row)` are the indices of
the same resample. Images of one patient (or study) stand or fall together: drawn one by one, they would make intervals
too narrow. A value that is undefined in a resample (AUROC without both classes) is NaN and is dropped from the
percentiles, where it would otherwise count as the highest; where fewer than half of the resamples are left, there is
no interval. There is none for fewer than 5 patients either, nor for the AUROC of a finding that fewer than 5 have or
fewer than 5 do not have: the few are drawn again and again, and one patient alone would give a width of 0.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from evaluation_tier.statistics.metrics import divide, metrics_from_counts, select_known, weighted_areas

NUMBERS_IN_MEMORY = 4_000_000  # held at once while resampling; bounds the memory, not the result

RESAMPLES_AT_ONCE = 256  # what a processor's cache holds for some hundred images: 3 times as fast as 1,000

AREAS = ("auroc", "auprc")

AT_THRESHOLD = ("mcc", "f1", "sensitivity", "specificity")

MIN_PATIENTS = 5  # of each class; 95 % intervals of fewer held the true value in 31 to 86 % of simulated data sets

QUANTILE_975 = 1.959963984540054  # of the standard normal distribution


class BootstrapAUROC(NamedTuple):
    """Bootstrap intervals, one row or entry per finding, and those of the mean over the findings."""

    interval: np.ndarray  # (findings, 2): lower and upper bound
    mean_interval: np.ndarray  # (2,)
    num_dropped: np.ndarray  # (findings,): resamples in which the finding lacks a class
    mean_num_dropped: int  # resamples in which any finding lacks a class


def check_num_resamples(num_resamples: int) -> None:
    if num_resamples < 1:
        raise ValueError(f"The number of bootstrap resamples must be at least 1, but is {num_resamples}.")


def number_units(unit_ids: Sequence) -> tuple[int, np.ndarray]:
    """
    The number of different units, and each image's, in the order of the ids as text.

    Raises:
        `ValueError`: no images, or one whose id is missing (`None`, NaN or `""`), which would all be one unit.
    """
    missing = sum(bool(pd.isna(unit)) or unit == "" for unit in unit_ids)
    if missing:
        raise ValueError(
            f"{missing} of {len(unit_ids)} images have no patient id and would be resampled as one patient: give each "
            "its patient, or its own id where that is not known."
        )
    units, unit_of_image = np.unique(np.asarray(unit_ids).astype(str), return_inverse=True)
    if not len(units):
        raise ValueError("There are no images to resample.")
    return len(units), unit_of_image


def describe_intervals(unit_ids: Sequence, usual: str) -> str:
    """What results say of their intervals: `usual`, or why there are none."""
    num_units = len(set(unit_ids))
    if num_units >= MIN_PATIENTS:
        return usual
    return f"none: {num_units} patient{'' if num_units == 1 else 's'}, and an interval needs {MIN_PATIENTS}"


def find_too_few(labels: np.ndarray, unit_ids: Sequence) -> np.ndarray:
    """
    Which findings too few patients have, or too few do not have, for an interval: (findings,) bool.

    Args:
        labels (`np.ndarray`): (images, findings), 1, 0, -1 or NaN.
        unit_ids (`Sequence`): (images,), the patient or study of each image.
    """
    units = np.asarray(unit_ids).astype(str)
    counts = [[len(np.unique(units[column == label])) for label in (0, 1)] for column in np.asarray(labels).T]
    return np.array([min(pair) < MIN_PATIENTS for pair in counts], dtype=bool)


def count_units(drawn: np.ndarray, num_units: int) -> np.ndarray:
    """How often each unit was drawn, (resamples, units), from the units drawn, (resamples, draws)."""
    places = drawn + np.arange(len(drawn))[:, None] * num_units  # one bincount for all resamples
    return np.bincount(places.ravel(), minlength=len(drawn) * num_units).reshape(len(drawn), num_units)


def draw_resamples(unit_ids: Sequence, num_resamples: int = 1000, seed: int = 0) -> np.ndarray:
    """
    Resamples of whole units with replacement, as many units as there are.

    Args:
        unit_ids (`Sequence`): (images,), the patient or study of each image.
        num_resamples (`int`, *optional*, defaults to 1000): at least 1; 1,000 is what CheXzero takes.
        seed (`int`, *optional*, defaults to 0): of the draws.

    Returns:
        `np.ndarray`: (resamples, images) uint16, how often each image was drawn; no resamples, and so no intervals, of
        fewer than `MIN_PATIENTS` units.
    """
    check_num_resamples(num_resamples)
    num_units, unit_of_image = number_units(unit_ids)
    num_resamples = num_resamples if num_units >= MIN_PATIENTS else 0
    generator = np.random.default_rng(seed)
    draws = np.empty((num_resamples, len(unit_of_image)), dtype=np.uint16)
    for rows in chunks(num_resamples, num_units):
        drawn = generator.integers(num_units, size=(rows.stop - rows.start, num_units))
        draws[rows] = count_units(drawn, num_units)[:, unit_of_image]
    return draws


def draw_stratified_resamples(
    labels: np.ndarray, unit_ids: Sequence, num_resamples: int = 1000, seed: int = 0
) -> np.ndarray:
    """
    Resamples in which no finding loses a class, however rare: each finding's units are drawn within strata.

    For each finding, a unit (patient or study) belongs to one of three strata: its images hold a positive, negatives
    but no positive, or neither (uncertain or unstated). Whole units are drawn with replacement within each stratum,
    as many as it has. So the number of units with a positive is that of the data in every resample; the number of
    positive images may vary, since units differ in how many they have. Only where every unit with a negative has a
    positive too, those with both are a stratum apart from those with positives alone, so that no resample lacks
    negatives; elsewhere that would split few units and make intervals narrower. Findings share one draw as far as
    their strata allow: where a draw holds too many units of a stratum, the surplus is taken out and redrawn from the
    strata that lack some, so that findings stay correlated and the mean over them has an honest interval.

    Args:
        labels (`np.ndarray`): (images, findings), 1, 0, -1 or NaN.
        unit_ids (`Sequence`): (images,), the patient or study of each image.
        num_resamples (`int`, *optional*, defaults to 1000): at least 1.
        seed (`int`, *optional*, defaults to 0): of the draws.

    Returns:
        `np.ndarray`: (findings, resamples, images) uint16, two bytes for each of these numbers; no resamples of fewer
        than `MIN_PATIENTS` units.
    """
    check_num_resamples(num_resamples)
    labels = np.asarray(labels, dtype=np.float64)
    num_units, unit_of_image = number_units(unit_ids)
    num_resamples = num_resamples if num_units >= MIN_PATIENTS else 0
    generator = np.random.default_rng(seed)
    strata = []  # per finding: the units of each stratum, and the generator of their redraws
    for i, column in enumerate(labels.T):
        positive = np.bincount(unit_of_image[column == 1], minlength=num_units) > 0
        negative = np.bincount(unit_of_image[column == 0], minlength=num_units) > 0
        kind = positive + 2 * negative
        if (kind == 2).any():  # these keep the negatives, so that positives need not be split by what else a unit has
            kind[kind == 3] = 1
        strata.append([(np.flatnonzero(kind == k), np.random.default_rng([seed, i, k])) for k in np.unique(kind)])

    draws = np.empty((labels.shape[1], num_resamples, len(labels)), dtype=np.uint16)
    for rows in chunks(num_resamples, num_units):
        drawn = generator.integers(num_units, size=(rows.stop - rows.start, num_units))
        for i, members_and_generators in enumerate(strata):
            counts = np.zeros((len(drawn), num_units), dtype=np.int64)
            for members, redraw in members_and_generators:
                member = np.zeros(num_units, dtype=bool)
                member[members] = True
                inside = member[drawn]
                # the draws of a stratum are independent, so the first of them are as good as any
                kept = inside & (np.cumsum(inside, axis=1) <= len(members))
                np.add.at(counts, (np.nonzero(kept)[0], drawn[kept]), 1)
                lacking = np.repeat(np.arange(len(drawn)), len(members) - kept.sum(axis=1))
                np.add.at(counts, (lacking, members[redraw.integers(len(members), size=len(lacking))]), 1)
            draws[i, rows] = counts[:, unit_of_image]
    return draws


def chunks(num_resamples: int, num_columns: int) -> list[slice]:
    """Parts of the resamples, each small enough for the memory."""
    size = max(1, min(NUMBERS_IN_MEMORY // max(num_columns, 1), RESAMPLES_AT_ONCE))
    # of no resamples one empty part, so that what is made of all parts has its shape
    return [slice(start, min(start + size, num_resamples)) for start in range(0, max(num_resamples, 1), size)]


def bootstrap(
    labels: np.ndarray,
    scores: np.ndarray,
    draws: np.ndarray,
    thresholds: Sequence[float] | Mapping[str, Sequence[float]] | None = None,
) -> dict[str, np.ndarray]:
    """
    The metrics of every finding in every resample.

    The values are those of scikit-learn on `np.repeat`ed labels and scores, to rounding.

    Args:
        labels (`np.ndarray`): (images, findings), 1, 0, -1 or NaN; -1 and NaN are left out.
        scores (`np.ndarray`): (images, findings).
        draws (`np.ndarray`):
            (resamples, images), how often each image was drawn, or (findings, resamples, images) where findings have
            draws of their own; from [`draw_resamples`], [`draw_stratified_resamples`], [`draw_chexzero_resamples`] or
            elsewhere. `np.ones((1, images))` gives the metrics of the data themselves.
        thresholds (`Sequence[float]` or `Mapping[str, Sequence[float]]`, *optional*):
            (findings,), fixed in all resamples: present means score >= threshold. NaN gives NaN. Where F1 has
            thresholds of its own, they are given as `{"mcc": ..., "f1": ...}`, the others being at those of MCC.

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
        `np.ndarray`: (resamples,); NaN where none was drawn.
    """
    known = ~np.isnan(values)
    means = np.empty(len(draws))
    for part in chunks(*draws.shape):
        weights = draws[part][:, known].astype(np.float64)
        means[part] = divide(weights @ values[known], weights.sum(axis=1))
    return means


def defined_values(values: np.ndarray) -> np.ndarray:
    """
    The values (resamples,) that are not NaN; none of them where these are fewer than half of the resamples, which
    would stand for a few lucky draws.
    """
    defined = values[~np.isnan(values)]
    return defined if 2 * len(defined) >= len(values) else defined[:0]


def percentile_interval(values: np.ndarray) -> np.ndarray:
    """The 2.5th and 97.5th percentile of the [`defined_values`]; NaN when there are none."""
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
    labels: np.ndarray, scores: np.ndarray, patient_ids: Sequence, num_resamples: int = 1000, seed: int = 0
) -> BootstrapAUROC:
    """
    95 % percentile intervals of each finding's AUROC and of their mean, resampling patients: [`draw_resamples`] and
    [`bootstrap`] in one.
    """
    resampled = bootstrap(labels, scores, draw_resamples(patient_ids, num_resamples, seed))["auroc"]
    complete = resampled.mean(axis=1) if resampled.shape[1] else np.full(num_resamples, np.nan)
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
