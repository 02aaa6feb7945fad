"""Means of the metrics over regions, findings and all, with intervals and differences."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evaluation_tier.analyses.grounding.map_metrics import METRICS, SCALED_THRESHOLDS
from evaluation_tier.analyses.grounding.map_names import AVERAGE_OF, COSINES, PLACES
from evaluation_tier.analyses.grounding.measurements import BEST, Measurements
from evaluation_tier.analyses.grounding.regions import Case
from evaluation_tier.statistics.bootstrap import percentile_interval
from evaluation_tier.statistics.metrics import divide
from evaluation_tier.statistics.resampling import MIN_PATIENTS, Resampling, count_units, number_units


def average_regions(
    measured: Measurements,
    names: Sequence[str],
    cases: Sequence[Case],
    chosen: Mapping[str, np.ndarray],
    metric_names: Sequence[str],
    resampling: Resampling,
) -> dict:
    """The numbers of `evaluate_grounding`: of each finding in `names`, of their mean, of all regions, and of each."""
    columns = tabulate(measured, chosen, metric_names)
    values = np.stack(list(columns.values()), axis=1)
    groups = np.array([names.index(case.finding) for case in measured.cases])
    means, intervals = bootstrap_means(values, groups, len(names), measured.patients, resampling)

    def describe(which: int, members: np.ndarray) -> dict:
        return describe_group(measured, members, list(columns), means[which], intervals[which])

    results = {finding: describe(i, groups == i) for i, finding in enumerate(names)}
    in_mean = [finding for finding in names if results[finding]["n_patients"] >= MIN_PATIENTS]
    for i, finding in enumerate(names):
        results[finding] |= describe_curves(measured.names, measured.curves[groups == i], chosen.get(finding))
    undefined = {
        name: {
            metric: int(number)
            for metric, number in zip(METRICS, numbers, strict=True)
            if number and is_defined(name, metric)
        }
        for name, numbers in zip(measured.names, np.isnan(measured.values).sum(axis=0), strict=True)
    }
    return {
        "n_images": len({case.row for case in measured.cases}),
        "n_regions": len(measured.cases),
        "findings": results,
        "mean": {"findings": in_mean, **describe(len(names), np.isin(groups, [names.index(f) for f in in_mean]))},
        "all_regions": describe(len(names) + 1, np.ones(len(groups), dtype=bool)),
        "undefined": {name: numbers for name, numbers in undefined.items() if numbers},
        "regions": list_regions(measured, cases, columns, metric_names),
    }


def describe_group(
    measured: Measurements,
    members: np.ndarray,
    keys: Sequence[tuple[str, ...]],
    means: np.ndarray,
    intervals: np.ndarray,
) -> dict:
    """The counts and the means of some regions; each mean stands where its key says."""
    group: dict[str, Any] = {
        "n_images": len({case.row for case, member in zip(measured.cases, members, strict=True) if member}),
        "n_regions": int(members.sum()),
        "n_patients": len(set(measured.patients[members])),
        "area": measured.areas[members].mean() if members.any() else float("nan"),
    }
    for key, mean, interval in zip(keys, means, intervals, strict=True):
        *path, metric = key
        place = group
        for step in path:
            place = place.setdefault(step, {})
        place[metric] = {"mean": mean, "ci95": interval}
    return group


def describe_curves(names: Sequence[str], curves: np.ndarray, chosen: np.ndarray | None) -> dict:
    """The best `thresholds` of a finding by map and baseline, and the mean `curves` of those with a defined one.

    Args:
        names: of the maps and baselines.
        curves: (cases, maps and baselines, 2, thresholds), of the finding.
        chosen: (maps and baselines, 2), see `best_thresholds`; None if they were chosen without the finding.
    """
    results: dict[str, dict] = {"thresholds": {}}
    for j, name in enumerate(names):
        known = curves[~np.isnan(curves[:, j]).any(axis=(1, 2)), j]
        steps = (-1, -1) if chosen is None else chosen[j]
        thresholds = [SCALED_THRESHOLDS[step] if step >= 0 else None for step in steps]
        results["thresholds"][name] = dict(zip(("iou", "dice"), thresholds, strict=True))
        if len(known):
            means_at = dict(zip(("iou", "dice"), known.mean(axis=0), strict=True))
            results.setdefault("curves", {})[name] = {"thresholds": SCALED_THRESHOLDS, **means_at}
    return results


def list_regions(
    measured: Measurements,
    cases: Sequence[Case],
    columns: Mapping[tuple[str, ...], np.ndarray],
    metric_names: Sequence[str],
) -> list[dict]:
    """The results of each region; `cases` are all cases, `columns` as `tabulate` gives them."""
    place_of = {case: i for i, case in enumerate(cases)}
    return [
        {
            "row": case.row,
            "case": place_of[case],
            "image_id": measured.image_ids[i],
            "finding": case.finding,
            "n_marks": measured.num_marks[i],
            "area": measured.areas[i],
            "maps": {
                name: {metric: columns["maps", name, metric][i] for metric in metric_names if is_defined(name, metric)}
                for name in measured.maps
            },
        }
        for i, case in enumerate(measured.cases)
    ]


def tabulate(
    measured: Measurements, chosen: Mapping[str, np.ndarray], metric_names: Sequence[str]
) -> dict[tuple[str, ...], np.ndarray]:
    """All averaged numbers, (cases,), by their place in the results of `evaluate_grounding`."""
    names = measured.names
    num_cases = len(measured.cases)
    best = np.full((num_cases, len(names), len(BEST)), np.nan)
    for i, case in enumerate(measured.cases):
        for j, k in itertools.product(range(len(names)), range(len(BEST))):
            if case.finding in chosen and chosen[case.finding][j, k] >= 0:
                best[i, j, k] = measured.curves[i, j, k, chosen[case.finding][j, k]]
    values = dict(zip(names, np.concatenate([measured.values, best], axis=2).transpose(1, 2, 0), strict=True))
    columns: dict[tuple[str, ...], np.ndarray] = {
        ("maps" if name in measured.maps else "baselines", name, metric): column
        for name in names
        for metric, column in zip(metric_names, values[name], strict=True)
        if is_defined(name, metric)
    }
    columns["baselines", "random", "pointing"] = measured.chance
    for name in measured.maps:
        rivals = {"average": values[AVERAGE_OF[name]], **{place: values[place] for place in PLACES}}
        for rival, rival_values in rivals.items():
            for metric, difference in zip(metric_names, values[name] - rival_values, strict=True):
                if is_defined(name if rival == "average" else rival, metric):
                    columns["differences", name, rival, metric] = difference
        columns["differences", name, "random", "pointing"] = values[name][0] - measured.chance
    return columns


def is_defined(name: str, metric: str) -> bool:
    """Whether a metric says something of a map or baseline: thresholds of cosines need cosines."""
    return metric != "miou_cosine" or name in COSINES


def bootstrap_means(
    values: np.ndarray, groups: np.ndarray, num_groups: int, patients: np.ndarray, resampling: Resampling
) -> tuple[np.ndarray, np.ndarray]:
    """Means of each group of cases, the mean of those means, the mean of all cases, and 95 % percentile intervals.

    Patients are resampled, so that all cases of one patient stand or fall together; all columns share the resamples. A
    resample that leaves a group without a defined value is dropped for that group, and for the mean over the groups.
    That mean leaves out groups in which fewer than 5 patients have a defined value.

    Args:
        values: (cases, columns); NaN where undefined, which no mean counts.
        groups: (cases,) int, in 0..num_groups - 1.
        patients: (cases,), anything that numpy can compare.

    Returns:
        Means (num_groups + 2, columns) and intervals (num_groups + 2, columns, 2), NaN where nothing is defined, or
        fewer than 5 patients have a defined value.
    """
    num_patients, patient_of_case = number_units(patients)
    num_columns = values.shape[1]
    drawn = np.random.default_rng(resampling.seed).integers(
        num_patients, size=(resampling.num_resamples, num_patients)
    )
    weights = count_units(drawn, num_patients).astype(np.float64)
    weights = np.concatenate([np.ones((1, num_patients)), weights])  # the first row is the data itself

    known = ~np.isnan(values)
    filled = np.where(known, values, 0.0)
    sums, counts = np.zeros((2, num_patients, num_columns))
    sum_of_means, num_means = np.zeros((len(weights), num_columns)), np.zeros(num_columns)
    means, intervals = np.empty((num_groups + 2, num_columns)), np.empty((num_groups + 2, num_columns, 2))

    def keep(place: int, found: np.ndarray, num_known: np.ndarray) -> None:
        means[place] = found[0]
        for column, number in enumerate(num_known):
            enough = number >= MIN_PATIENTS
            intervals[place, column] = percentile_interval(found[1:, column]) if enough else np.nan

    for group in range(num_groups):
        members = groups == group
        group_sums, group_counts = np.zeros((2, num_patients, num_columns))
        np.add.at(group_sums, patient_of_case[members], filled[members])
        np.add.at(group_counts, patient_of_case[members], known[members])
        num_known = (group_counts > 0).sum(axis=0)
        found = divide(weights @ group_sums, weights @ group_counts)
        keep(group, found, num_known)
        sum_of_means[:, num_known >= MIN_PATIENTS] += found[:, num_known >= MIN_PATIENTS]
        num_means += num_known >= MIN_PATIENTS
        sums += group_sums
        counts += group_counts
    num_known = (counts > 0).sum(axis=0)
    keep(num_groups, divide(sum_of_means, np.broadcast_to(num_means, sum_of_means.shape)), num_known)
    keep(num_groups + 1, divide(weights @ sums, weights @ counts), num_known)
    return means, intervals
