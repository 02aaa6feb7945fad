"""Grounding: how well the similarity maps of a model lie on the regions that radiologists marked.

A *map* is a float array (height, width), higher where the model sees a finding more, NaN where it never saw the image
(what the image processor's crop cuts off). A *region* is a bool array (height, width): the union of all boxes and
masks of one finding, or of one sentence, on one image. Both are in the pixels of the image as it is stored, so no
number depends on the size at which a model reads it.

The metrics of one map are in `map_metrics.py`.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets
import numpy as np
from transformers import PreTrainedModel, ProcessorMixin

from evaluation_tier.analyses.grounding.map_metrics import FIXED_THRESHOLDS, METRICS, SCALED_THRESHOLDS
from evaluation_tier.analyses.grounding.maps import BASELINES, COSINES, MAPS, check_gives_maps
from evaluation_tier.analyses.grounding.measurements import BEST, Measurements, best_thresholds, measure_cases
from evaluation_tier.analyses.grounding.regions import Case, read_cases
from evaluation_tier.output.metrics_file import installed_versions, to_json
from evaluation_tier.scoring.protocols import find_prompts, prompts_name
from evaluation_tier.statistics.bootstrap import percentile_interval
from evaluation_tier.statistics.metrics import divide
from evaluation_tier.statistics.resampling import MIN_PATIENTS, Resampling, count_units, number_units
from processing_tier.prompts.loader import Prompts
from processing_tier.records.schema import check_disjoint_patients


def evaluate_grounding(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    dataset: datasets.Dataset,
    prompts: str | Path | Mapping[str, Prompts] = "report",
    findings: Sequence[str] | None = None,
    phrases: bool = False,
    threshold_dataset: datasets.Dataset | None = None,
    tolerance: int = 0,
    n_bootstrap: int = 1000,
    seed: int = 0,
    batch_size: int = 32,
    dataset_name: str = "",
) -> dict:
    """How well a model's maps lie on the marked regions, beside what needs no model, with intervals.

    Metrics, for each region (one finding, or one sentence, on one image), then averaged: see in `map_metrics`
    `pointing_game`, `pixel_auroc`, `contrast_to_noise` (`cnr` as published, and `signed_cnr`), `overlap` and
    `top_percent_overlap`.
    `miou_cosine` is the mean IoU at the thresholds 0.1 to 0.5 of the map as it is (BioViL: Boecking et al., ECCV
    2022); `miou_scaled` and `dice_scaled` are means at the same of the map scaled to 0..1; `iou_best` and `dice_best`
    are taken at the best of 0.05, 0.10 to 0.95 of the scaled map, one per finding and per map or baseline, as
    CheXlocalize does (Saporta et al. 2022). It is chosen on `threshold_dataset`; without one on the evaluated regions
    themselves, and they are then called `iou_best_optimistic` and `dice_best_optimistic`.

    Maps: see `compute_grids`. Baselines: `average` (and `average_positive`, which goes with the map `positive`), the
    same map for every image; `prior`, the mean region of the finding in the other patients; `centre`, a Gaussian;
    `random`, a random point, for the pointing game.

    Args:
        dataset: with `image`, `image_id`, `patient_id` and `boxes` or `masks`, in the schema of `records.py`.
        prompts: name or path of a prompt file, or the prompts themselves.
        findings: names as in boxes and masks; by default all of them.
        phrases: take the sentences that boxes carry in place of the positive prompts (MS-CXR).
        threshold_dataset: where the best thresholds are chosen; of other patients.
        tolerance: see `pointing_game`, in pixels of the stored image.
        n_bootstrap: resamples of patients for the 95 % intervals; seeded by `seed`. Differences are resampled as
            such, so their intervals are paired. Fewer than 5 patients give none.
        dataset_name: what the results call the data.

    Returns:
        Of JSON's own types, undefined numbers None:

        - `findings` (by name), the `mean` over those of at least 5 patients, and `all_regions` each have `n_images`,
          `n_regions`, `n_patients`, `area` (mean share of the image), `maps` and `baselines` (name to metric to `mean`
          and `ci95`), and `differences` (map to baseline to the same of map minus baseline). A finding also has the
          best `thresholds` of each map and baseline, and `curves`: mean IoU and Dice at every threshold.
        - `regions`: one entry per region with its `row` in `dataset`, its place `case` among `read_cases`, and the
          metrics of the maps.
        - `undefined`: how many regions lack a metric; `protocol`, `dataset`, `n_images`, `n_regions`, `versions`.

    Raises:
        ValueError: for a model without maps, data without boxes and masks, boxes beyond their images (more than 5 %),
            masks of another size than their image, missing prompts, or patients who are in both data sets.
    """
    check_gives_maps(model)
    resampling = Resampling(n_bootstrap, seed)
    cases = read_cases(dataset, findings, phrases)
    names = sorted({case.finding for case in cases})
    described, prompts = prompts_name(prompts), find_prompts(prompts, names)
    if threshold_dataset is not None:
        check_disjoint_patients(evaluated=dataset, thresholds=threshold_dataset)
    measured = measure_cases(model, processor, dataset, prompts, cases, tolerance, batch_size)

    optimistic = threshold_dataset is None
    chosen, metric_names = best_thresholds(measured), (*METRICS, *(f"{name}_optimistic" for name in BEST))
    if not optimistic:
        others = read_cases(threshold_dataset, None, phrases)
        others = [case for case in others if case.finding in names]
        if not others:
            raise ValueError("The data that choose the thresholds have no box or mask of the evaluated findings.")
        apart = measure_cases(model, processor, threshold_dataset, prompts, others, tolerance, batch_size)
        chosen, metric_names = best_thresholds(apart), (*METRICS, *BEST)

    summary = summarize(measured, names, cases, chosen, metric_names, resampling)
    protocol = {
        "prompts": "the sentences of the boxes" if phrases else described,
        "best_thresholds": f"highest mean on {'the evaluated regions' if optimistic else 'a split apart'}",
        "phrases": phrases,
        "tolerance": tolerance,
        "fixed_thresholds": FIXED_THRESHOLDS,
        **resampling.describe(measured.patients, "95 % percentile bootstrap over patients"),
        **measured.left_out,
    }
    return to_json({"dataset": dataset_name, "protocol": protocol, **summary, "versions": installed_versions()})


def summarize(
    measured: Measurements,
    names: Sequence[str],
    cases: Sequence[Case],
    chosen: Mapping[str, np.ndarray],
    metric_names: Sequence[str],
    resampling: Resampling,
) -> dict:
    """The numbers of `evaluate_grounding`: of each finding in `names`, of their mean, of all regions, and of each."""
    keys, values = tabulate(measured, chosen, metric_names)
    groups = np.array([names.index(case.finding) for case in measured.cases])
    means, intervals = bootstrap_means(values, groups, len(names), measured.patients, resampling)
    patients, rows = measured.patients, np.array([case.row for case in measured.cases])

    def describe(which: int, members: np.ndarray) -> dict:
        group = {
            "n_images": len(set(rows[members])),
            "n_regions": int(members.sum()),
            "n_patients": len(set(patients[members])),
            "area": measured.areas[members].mean() if members.any() else float("nan"),
        }
        for key, mean, interval in zip(keys, means[which], intervals[which], strict=True):
            *path, metric = key
            place = group
            for step in path:
                place = place.setdefault(step, {})
            place[metric] = {"mean": mean, "ci95": interval}
        return group

    results = {finding: describe(i, groups == i) for i, finding in enumerate(names)}
    in_mean = [finding for finding in names if results[finding]["n_patients"] >= MIN_PATIENTS]
    for i, finding in enumerate(names):
        curves = measured.curves[groups == i]
        for j, name in enumerate((*MAPS, *BASELINES)):
            known = curves[~np.isnan(curves[:, j]).any(axis=(1, 2)), j]
            steps = chosen[finding][j] if finding in chosen else (-1, -1)
            thresholds = [SCALED_THRESHOLDS[step] if step >= 0 else None for step in steps]
            results[finding].setdefault("thresholds", {})[name] = dict(zip(("iou", "dice"), thresholds, strict=True))
            if len(known):
                means_at = dict(zip(("iou", "dice"), known.mean(axis=0), strict=True))
                results[finding].setdefault("curves", {})[name] = {"thresholds": SCALED_THRESHOLDS, **means_at}
    undefined = {
        name: {
            metric: int(number)
            for metric, number in zip(METRICS, numbers, strict=True)
            if number and (metric != "miou_cosine" or name in COSINES)
        }
        for name, numbers in zip((*MAPS, *BASELINES), np.isnan(measured.values).sum(axis=0), strict=True)
    }
    place_of = {case: i for i, case in enumerate(cases)}
    column = {key: i for i, key in enumerate(keys)}
    regions = [
        {
            "row": case.row,
            "case": place_of[case],
            "image_id": measured.image_ids[i],
            "finding": case.finding,
            "n_marks": measured.num_marks[i],
            "area": measured.areas[i],
            "maps": {
                name: {metric: values[i, column["maps", name, metric]] for metric in metric_names} for name in MAPS
            },
        }
        for i, case in enumerate(measured.cases)
    ]
    return {
        "n_images": len(set(rows)),
        "n_regions": len(rows),
        "findings": results,
        "mean": {"findings": in_mean, **describe(len(names), np.isin(groups, [names.index(f) for f in in_mean]))},
        "all_regions": describe(len(names) + 1, np.ones(len(rows), dtype=bool)),
        "undefined": {name: numbers for name, numbers in undefined.items() if numbers},
        "regions": regions,
    }


def tabulate(
    measured: Measurements, chosen: Mapping[str, np.ndarray], metric_names: Sequence[str]
) -> tuple[list[tuple[str, ...]], np.ndarray]:
    """Everything that is averaged: where it stands in the results of `evaluate_grounding`, and (cases, columns)."""
    names = (*MAPS, *BASELINES)
    num_cases = len(measured.cases)
    best = np.full((num_cases, len(names), len(BEST)), np.nan)
    for i, case in enumerate(measured.cases):
        for j, k in itertools.product(range(len(names)), range(len(BEST))):
            if case.finding in chosen and chosen[case.finding][j, k] >= 0:
                best[i, j, k] = measured.curves[i, j, k, chosen[case.finding][j, k]]
    values = dict(zip(names, np.concatenate([measured.values, best], axis=2).transpose(1, 2, 0), strict=True))
    columns = {
        ("maps" if name in MAPS else "baselines", name, metric): column
        for name in names
        for metric, column in zip(metric_names, values[name], strict=True)
        if metric != "miou_cosine" or name in COSINES
    }
    columns["baselines", "random", "pointing"] = measured.chance
    for name in MAPS:
        rivals = {"average": values["average_positive" if name == "positive" else "average"]}
        rivals |= {rival: values[rival] for rival in ("prior", "centre")}
        for rival, rival_values in rivals.items():
            for metric, difference in zip(metric_names, values[name] - rival_values, strict=True):
                if metric != "miou_cosine" or rival == "average":
                    columns["differences", name, rival, metric] = difference
        columns["differences", name, "random", "pointing"] = values[name][0] - measured.chance
    return list(columns), np.stack(list(columns.values()), axis=1)


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
