"""Everything that `metrics.json` says about findings, from labels and scores alone."""

from collections.abc import Sequence

import numpy as np

from evaluation_tier.statistics.bootstrap import (
    AREAS,
    AT_THRESHOLD,
    bootstrap,
    bootstrap_mean,
    mean_over_findings,
    percentile_interval,
)
from evaluation_tier.statistics.calibration import brier, calibrate, ece, fit_calibration
from evaluation_tier.statistics.chexzero import chexzero_interval, fill_one_class_resamples
from evaluation_tier.statistics.metrics import CRITERIA, best_threshold, count_labels, nanmean
from evaluation_tier.statistics.resampling import MIN_PATIENTS, PATIENT_BOOTSTRAP, Resampling, find_too_few
from evaluation_tier.statistics.thresholds import HIGHEST_MCC, ThresholdRule

WITH_INTERVAL = (*AREAS, *AT_THRESHOLD)

TOO_FEW = f"fewer than {MIN_PATIENTS} patients with it, or without it"

TOO_FEW_AT_ALL = f"fewer than {MIN_PATIENTS} patients"


def summarize(
    labels: np.ndarray,
    scores: np.ndarray,
    patient_ids: Sequence,
    findings: Sequence[str],
    *,
    threshold_labels: np.ndarray | None = None,
    threshold_scores: np.ndarray | None = None,
    rule: ThresholdRule = HIGHEST_MCC,
    probabilities: bool | Sequence[bool] = False,
    resampling: Resampling = PATIENT_BOOTSTRAP,
) -> dict:
    """
    Every metric of every finding, with intervals from resampling patients, and their means.

    Args:
        labels (`np.ndarray`): (images, findings), 1, 0, -1 or NaN; -1 and NaN are left out and counted.
        scores (`np.ndarray`): (images, findings), finite where the label is 1 or 0.
        patient_ids (`Sequence`): (images,); of studies, where they are what is resampled.
        findings (`Sequence[str]`): names, in the order of the columns.
        threshold_labels, threshold_scores (`np.ndarray`, *optional*):
            The split on which thresholds and calibration are fitted; by default the evaluated images themselves, which
            flatters every metric but AUROC and AUPRC.
        rule ([`ThresholdRule`], *optional*):
            Of the thresholds that MCC, F1, sensitivity and specificity are reported at; by default the one with the
            highest MCC for all of them.
        probabilities (`bool` or `Sequence[bool]`, *optional*, defaults to `False`):
            The scores (or those of each finding) are probabilities: `scale` and `bias` are of their log-odds.
        resampling ([`Resampling`], *optional*):
            Of the patients. Kind `"chexzero"` has the bounds of [`chexzero_interval`], where undefined values are the
            highest, and its centre in `<metric>_bootstrap_mean`.

    Returns:
        `dict`: three parts, numbers that are undefined being NaN.
        - `"findings"`: by name `auroc`, `auprc`, `mcc`, `f1`, `sensitivity`, `specificity`, each with an interval of
          95 % in `<metric>_ci95` (the thresholds being fixed), `threshold`, `f1_threshold`, `thresholds` (by
          criterion), `scale`, `bias` (see [`fit_calibration`]), `ece` and `brier` of the probability
          sigmoid(scale * score + bias), the latter with an interval (scale and bias being fixed), `n_positive`,
          `n_negative`, `n_uncertain`, `n_missing`, `n_excluded` (the sum of the last two). Where the rule has a
          criterion for it, `accuracy` with its interval, and `accuracy_threshold`.
        - `"mean"`: over the findings for which a metric is defined, the same metrics and intervals, `brier`, `ece`.
        - `"resamples_dropped"`: by name, how many resamples lack one of the finding's classes and do not count, and
          under `"mean"`, how many lack one of any finding in the mean AUROC. Where that is more than half of them,
          there is no interval. (Of `"chexzero"` they count, and there is no upper bound where they are more than
          2.5 %.)
        - `"no_interval"`: by name why a finding has none, or `"mean"`, where patients are too few.

    Raises:
        `ValueError`: shapes that do not fit, one of the two threshold tables without the other; see also
            [`bootstrap`] and [`best_threshold`].
    """
    labels, scores = np.asarray(labels, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if (threshold_labels is None) != (threshold_scores is None):
        raise ValueError("The split that chooses the thresholds needs both labels and scores: give both, or neither.")
    if threshold_labels is None:
        threshold_labels, threshold_scores = labels, scores
    chosen_labels = np.asarray(threshold_labels, dtype=np.float64)
    chosen_scores = np.asarray(threshold_scores, dtype=np.float64)
    shapes = {labels.shape, scores.shape, (len(patient_ids), len(findings))}
    if len(shapes) > 1 or chosen_labels.shape != chosen_scores.shape or chosen_labels.shape[1:] != (len(findings),):
        raise ValueError(
            f"There are {len(patient_ids)} patient ids and {len(findings)} findings, but labels {labels.shape}, "
            f"scores {scores.shape}, and on the thresholds' split {chosen_labels.shape} and {chosen_scores.shape}."
        )

    thresholds = [
        {name: best_threshold(chosen_labels[:, i], chosen_scores[:, i], name) for name in CRITERIA}
        for i in range(len(findings))
    ]
    used = {metric: [of_finding[getattr(rule, metric)] for of_finding in thresholds] for metric in ("mcc", "f1")}
    draws = resampling.draw(patient_ids, labels)
    point = bootstrap(labels, scores, np.ones((1, len(labels))), used)
    resampled = bootstrap(labels, scores, draws, used)
    if resampling.kind == "chexzero":
        fill_one_class_resamples({name: resampled[name] for name in used}, labels, scores, draws, used)
    too_few = find_too_few(labels, patient_ids)
    if resampling.kind == "chexzero":  # as the reference, which knows no floor
        too_few[:] = False
    no_interval = {finding: TOO_FEW for finding, few in zip(findings, too_few, strict=True) if few}
    in_mean = slice(0, 0) if too_few.all() else slice(None)  # the mean of findings that all lack an interval lacks one
    if too_few.all():
        no_interval["mean"] = TOO_FEW
    if not draws.shape[-2]:
        no_interval = dict.fromkeys((*findings, "mean"), TOO_FEW_AT_ALL)

    probabilities = np.broadcast_to(probabilities, len(findings))
    results, resampled_brier = {}, np.empty((draws.shape[-2], len(findings)))
    resampled_accuracy = np.empty((draws.shape[-2], len(findings)))
    for i, finding in enumerate(findings):
        metrics = {}
        for name in WITH_INTERVAL:
            values = resampled[name][:, i] if not too_few[i] else np.empty(0)
            metrics |= metric_entry(name, float(point[name][0, i]), values, resampling)
        fitted_on = chosen_labels[:, i], chosen_scores[:, i]
        calibration = measure_calibration(labels[:, i], scores[:, i], *fitted_on, probabilities[i])
        errors = calibration.pop("squared_errors")
        resampled_brier[:, i] = bootstrap_mean(errors, draws if draws.ndim == 2 else draws[i])
        kept = slice(0, 0) if too_few[i] else slice(None)
        calibration |= metric_entry("brier", calibration["brier"], resampled_brier[kept, i], resampling)
        if rule.accuracy:
            threshold = thresholds[i][rule.accuracy]
            right = right_calls(labels[:, i], scores[:, i], threshold)
            resampled_accuracy[:, i] = bootstrap_mean(right, draws if draws.ndim == 2 else draws[i])
            metrics |= metric_entry("accuracy", nanmean(right), resampled_accuracy[kept, i], resampling)
            metrics["accuracy_threshold"] = threshold
        counts = count_labels(labels[:, i])
        results[finding] = {
            **metrics,
            "threshold": used["mcc"][i],
            "f1_threshold": used["f1"][i],
            "thresholds": thresholds[i],
            **calibration,
            **counts,
            "n_excluded": counts["n_uncertain"] + counts["n_missing"],
        }
    mean = {}
    for name in WITH_INTERVAL:
        value, resampled_mean = mean_over_findings(point[name][0], resampled[name])
        mean |= metric_entry(name, value, resampled_mean[in_mean], resampling)
        if name == "auroc":
            mean_dropped = int(np.isnan(resampled_mean).sum())
    for name, values in (("brier", resampled_brier), *([("accuracy", resampled_accuracy)] if rule.accuracy else [])):
        of_findings = np.array([result[name] for result in results.values()])
        mean |= metric_entry(name, *mean_over_findings(of_findings, values[in_mean]), resampling)
    mean["ece"] = nanmean(result["ece"] for result in results.values())
    dropped = dict(zip(findings, np.isnan(resampled["auroc"]).sum(axis=0).tolist(), strict=True))
    return {
        "findings": results,
        "mean": mean,
        "resamples_dropped": {**dropped, "mean": mean_dropped},
        "no_interval": no_interval,
    }


def metric_entry(name: str, value: float, resampled: np.ndarray, resampling: Resampling) -> dict:
    """A metric, its interval, and CheXzero's centre where that is asked for."""
    if resampling.kind != "chexzero":
        return {name: value, f"{name}_ci95": percentile_interval(resampled).tolist()}
    if len(resampled):
        center, interval = chexzero_interval(resampled)
    else:
        center, interval = float("nan"), np.full(2, np.nan)
    return {name: value, f"{name}_ci95": interval.tolist(), f"{name}_bootstrap_mean": center}


def right_calls(labels: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """
    1 where score >= threshold agrees with the label, else 0, (images,); NaN where the label is not known, and for a
    threshold that is NaN.
    """
    known = ((labels == 0) | (labels == 1)) & ~np.isnan(threshold)
    return np.where(known, (scores >= threshold) == (labels == 1), np.nan)


def measure_calibration(
    labels: np.ndarray, scores: np.ndarray, fit_labels: np.ndarray, fit_scores: np.ndarray, probabilities: bool
) -> dict:
    """
    `scale` and `bias` fitted on one split, `brier` and `ece` of one finding's probabilities on another, and their
    `squared_errors` (images,), NaN where the label is not known.
    """
    if probabilities:
        scores, fit_scores = log_odds(scores), log_odds(fit_scores)
    scale, bias = fit_calibration(fit_labels, fit_scores)
    calibrated = calibrate(scores, scale, bias)
    undefined = np.isnan(scale)
    return {
        "scale": scale,
        "bias": bias,
        "ece": float("nan") if undefined else ece(labels, calibrated),
        "brier": float("nan") if undefined else brier(labels, calibrated),
        "squared_errors": np.where((labels == 0) | (labels == 1), (calibrated - labels) ** 2, np.nan),
    }


def log_odds(probabilities: np.ndarray) -> np.ndarray:
    """log(p / (1 - p)), finite for 0 and 1 too."""
    probabilities = np.clip(probabilities, np.finfo(np.float64).tiny, 1 - np.finfo(np.float64).epsneg)
    return np.log(probabilities) - np.log1p(-probabilities)
