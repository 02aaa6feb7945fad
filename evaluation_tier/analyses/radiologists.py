"""A model against radiologists who read the same studies: CheXpert's test protocol, for any binary reader labels.

CheXzero and TIER report MCC and F1 of the model, at thresholds chosen on the validation set, beside the mean of three
benchmark radiologists on the 500 studies of CheXpert's test set, each on the five competition findings and their mean.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from evaluation_tier.statistics.bootstrap import bootstrap, mean_over_findings, percentile_interval
from evaluation_tier.statistics.metrics import metrics_at_threshold, nanmean
from evaluation_tier.statistics.resampling import PATIENT_BOOTSTRAP, Resampling, find_too_few
from evaluation_tier.statistics.thresholds import f1_threshold

COMPARED = ("mcc", "f1")


def compare_with_radiologists(
    labels: pd.DataFrame,
    scores: pd.DataFrame,
    thresholds: Mapping[str, float],
    readers: pd.DataFrame,
    *,
    f1_thresholds: Mapping[str, float] | None = None,
    resampling: Resampling = PATIENT_BOOTSTRAP,
) -> dict:
    """
    MCC and F1 of the model, of each reader and of the readers' mean, and the model's difference from that mean.

    The mean is over the readers' own MCC (or F1), not of a vote. All are compared on the same resamples of the
    studies, so the interval of the difference is of this set of readers, not of radiologists at large.

    Args:
        labels (`pd.DataFrame`): the truth, index `study_id`, a column per finding; -1 and NaN are left out.
        scores (`pd.DataFrame`): the model's, with those studies, one column per finding to compare.
        thresholds (`Mapping[str, float]`):
            By finding, chosen on a split apart (see [`best_threshold`]): present means score >= threshold.
        f1_thresholds (`Mapping[str, float]`, *optional*):
            Separate thresholds for F1, as in TIER; by default those of MCC, as in CheXzero.
        readers (`pd.DataFrame`): Index `(reader, study_id)`, 0 or 1, see `processing_tier.readers.chexpert`.
        resampling ([`Resampling`], *optional*): of the studies, for the 95 % percentile intervals.

    Returns:
        `dict`: `"n_studies"`, `"readers"` (their names), and for each finding in `"findings"`:
        - `"model"` and each of `"readers"`: `mcc`, `f1`, and the points `(fpr, tpr)` of the ROC plot and
          `(recall, precision)` of the precision-recall plot, the model's points being at the threshold of MCC;
        - `"readers_mean"`: `mcc`, `f1`;
        - `"difference"`, model minus readers' mean: `mcc`, `mcc_ci95`, `f1`, `f1_ci95`.
        `"mean"` has the same `mcc` and `f1` as means over the findings.

    Raises `ValueError` as `check_tables` and `read_decisions` do.
    """
    findings, studies, names = list(scores.columns), labels.index, list(readers.index.unique(level=0))
    check_tables(labels, scores, thresholds, readers)

    truth = labels[findings].to_numpy(dtype=np.float64)
    decisions = read_decisions(readers, studies, findings)
    model = scores.loc[studies, findings].to_numpy(dtype=np.float64)
    used = {"mcc": thresholds, "f1": f1_thresholds or thresholds}
    at = {metric: [given[finding] for finding in findings] for metric, given in used.items()}
    raters: dict[str, tuple[np.ndarray, Any]] = {"model": (model, at)}
    raters |= {f"reader {name}": (values, [0.5] * len(findings)) for name, values in decisions.items()}

    draws, once = resampling.draw(studies, truth), np.ones((1, len(studies)))
    points = {rater: bootstrap(truth, called, once, above) for rater, (called, above) in raters.items()}
    resampled = {rater: bootstrap(truth, called, draws, above) for rater, (called, above) in raters.items()}
    mean: dict = {"model": {}, "readers": {name: {} for name in names}, "readers_mean": {}, "difference": {}}
    results = {}
    for i, finding in enumerate(findings):
        of_model = describe_decisions(truth[:, i], model[:, i], thresholds[finding])
        of_model["f1"] = float(points["model"]["f1"][0, i])
        of_readers = {name: describe_decisions(truth[:, i], values[:, i], 0.5) for name, values in decisions.items()}
        results[finding] = {"model": of_model, "readers": of_readers, "readers_mean": {}, "difference": {}}
    for metric in COMPARED:
        of_metric = {rater: (points[rater][metric][0], resampled[rater][metric]) for rater in raters}
        add_differences(metric, of_metric, results, mean, find_too_few(truth, studies))
    return {"n_studies": len(studies), "readers": names, "findings": results, "mean": mean}


def check_tables(
    labels: pd.DataFrame, scores: pd.DataFrame, thresholds: Mapping[str, float], readers: pd.DataFrame
) -> None:
    """ValueError for studies or findings that one of the tables of `compare_with_radiologists` lacks or has twice."""
    findings, names = list(scores.columns), list(readers.index.unique(level=0))
    if not findings or not names or not len(labels):
        raise ValueError("The comparison needs scores, readers and studies, but one of these is empty.")
    for what, has in (("labels", labels.columns), ("thresholds", thresholds), ("the readers", readers.columns)):
        lacking = [finding for finding in findings if finding not in has]
        if lacking:
            raise ValueError(f"{lacking[0]!r} has scores, but {what} lack it: leave its scores out.")
    tables = {"labels": labels, "scores": scores, **{f"reader {name}": readers.loc[name] for name in names}}
    for what, table in tables.items():
        if not table.index.is_unique:
            raise ValueError(f"The table of {what} has a study more than once: keep one row of each.")
        if what == "scores":
            check_in_table(labels.index, table, what)
    check_readers(labels.index, readers)


def read_decisions(readers: pd.DataFrame, studies: Sequence[str], findings: list[str]) -> dict[str, np.ndarray]:
    """The labels of each reader, (studies, findings). ValueError for labels other than 0 and 1."""
    names = readers.index.unique(level=0)
    decisions = {name: readers.loc[name].loc[studies, findings].to_numpy(dtype=np.float64) for name in names}
    if not all(np.isin(values, (0, 1)).all() for values in decisions.values()):
        raise ValueError("Readers' labels must be 0 or 1, but some are not: recode or leave out those studies.")
    return decisions


def add_differences(
    metric: str,
    raters: Mapping[str, tuple[np.ndarray, np.ndarray]],
    results: dict[str, dict],
    mean: dict[str, dict],
    too_few: np.ndarray,
) -> None:
    """
    Put the readers' mean and the model's difference from it into the results, in place, and the means over findings.

    Args:
        metric: of `COMPARED`.
        raters: `"model"` and `"reader <name>"` to the values (findings,) and those of the resamples
            (resamples, findings).
        results: of `compare_with_radiologists`, by finding; `mean` likewise.
        too_few: (findings,) bool, without an interval.
    """
    point, resampled = raters["model"]
    readers = {name: raters[f"reader {name}"] for name in mean["readers"]}
    readers_point = np.mean([values for values, _ in readers.values()], axis=0)
    readers_resampled = np.mean([values for _, values in readers.values()], axis=0)
    difference, differences = point - readers_point, resampled - readers_resampled
    for i, result in enumerate(results.values()):
        result["readers_mean"][metric] = float(readers_point[i])
        result["difference"][metric] = float(difference[i])
        result["difference"][f"{metric}_ci95"] = (
            percentile_interval(differences[:, i]) if not too_few[i] else np.full(2, np.nan)
        ).tolist()
    compared = ~np.isnan(difference)  # means are of the findings that model and readers have a value for
    mean_difference, mean_differences = mean_over_findings(difference, differences)
    mean["difference"][metric] = mean_difference
    mean["difference"][f"{metric}_ci95"] = percentile_interval(mean_differences).tolist()
    mean["readers_mean"][metric] = nanmean(readers_point[compared])
    mean["model"][metric] = nanmean(point[compared])
    for name, (values, _) in readers.items():
        mean["readers"][name][metric] = nanmean(values[compared])


def check_readers(studies: Sequence[str], readers: pd.DataFrame) -> None:
    """ValueError if a reader did not read all of the studies."""
    for name in readers.index.unique(level=0):
        table = readers.loc[name]
        if not table.index.isin(studies).any():
            raise ValueError(
                f"None of the {len(set(studies))} studies was read by {name}: these radiologists belong to other "
                "data. CheXpert's read its test set: use --benchmark chexpert-5 --split test."
            )
        check_in_table(pd.Index(studies).unique(), table, f"reader {name}")


def check_in_table(studies: pd.Index, table: pd.DataFrame, what: str) -> None:
    lacking = int((~studies.isin(table.index)).sum())
    if lacking:
        raise ValueError(f"{lacking} of the {len(studies)} studies are not in the table of {what}: leave them out.")


def compare_evaluation(
    metrics: Mapping, predictions: pd.DataFrame, study_ids: Sequence[str], readers: pd.DataFrame
) -> dict:
    """
    [`compare_with_radiologists`] for an evaluation, on the findings that the readers judged.

    Args:
        metrics (`Mapping`): as `evaluate_zero_shot` returns them; their thresholds, resamples and seed are used.
        predictions (`pd.DataFrame`): likewise; the score of a study is the mean over its images.
        study_ids (`Sequence[str]`): (images,), of each row of the predictions.
        readers (`pd.DataFrame`): see [`compare_with_radiologists`].

    Raises:
        `ValueError`: readers who judged none of the findings, and as [`compare_with_radiologists`].

    Returns:
        `dict`: as [`compare_with_radiologists`], and in `"thresholds"` the rule that chose them.
    """
    findings = [finding for finding in metrics["findings"] if finding in readers.columns]
    if not findings:
        raise ValueError(
            f"The radiologists did not label any of these findings. They labelled {', '.join(readers.columns)}."
        )
    tables = {
        kind: predictions[[f"{kind}_{finding}" for finding in findings]].set_axis(findings, axis=1)
        for kind in ("label", "score")
    }
    by_study = {kind: table.groupby(np.asarray(study_ids), sort=False) for kind, table in tables.items()}
    found = compare_with_radiologists(
        by_study["label"].first(),
        by_study["score"].mean(),
        {finding: metrics["findings"][finding]["threshold"] for finding in findings},
        readers,
        f1_thresholds={finding: f1_threshold(metrics["findings"][finding]) for finding in findings},
        resampling=Resampling(metrics["protocol"]["n_bootstrap"], metrics["protocol"]["seed"]),
    )
    return {"thresholds": metrics["protocol"]["thresholds"], **found}


def describe_decisions(labels: np.ndarray, scores: np.ndarray, threshold: float) -> dict[str, float]:
    """MCC, F1 and the points on the ROC and precision-recall plots of score >= threshold; NaN where undefined."""
    found = metrics_at_threshold(labels, scores, threshold)
    return {
        "mcc": found["mcc"],
        "f1": found["f1"],
        "fpr": 1 - found["specificity"],
        "tpr": found["sensitivity"],
        "recall": found["sensitivity"],
        "precision": found["ppv"],
    }
