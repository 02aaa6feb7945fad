"""Everything that `metrics.json` says about findings, from labels and scores alone.

[`summarize`] returns a dict of four parts. Undefined numbers are NaN.

- `"findings"`: by name `auroc`, `auprc`, `mcc`, `f1`, `sensitivity`, `specificity`, each with a 95 % interval in
  `<metric>_ci95` (thresholds stay fixed), `threshold`, `f1_threshold`, `thresholds` (by criterion), `scale`, `bias`
  (see [`fit_calibration`]), `ece` and `brier` of the probability sigmoid(scale * score + bias), the latter with an
  interval (scale and bias stay fixed), `n_positive`, `n_negative`, `n_uncertain`, `n_missing`, `n_excluded` (the sum
  of the last two). If the rule has a criterion for it, `accuracy` with its interval, and `accuracy_threshold`.
- `"mean"`: the same metrics and intervals, `brier` and `ece`, over the findings for which each is defined.
- `"resamples_dropped"`: by name, how many resamples lack one of the finding's classes and do not count, and under
  `"mean"`, how many lack one of any finding in the mean AUROC. If more than half are dropped, the interval is omitted.
  (CheXzero's resamples count all the same. If more than 2.5 % lack a class, the upper bound is undefined.)
- `"no_interval"`: the reason, by name of each finding with too few patients, or under `"mean"`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from evaluation_tier.statistics.bootstrap import (
    AREAS,
    AT_THRESHOLD,
    bootstrap,
    bootstrap_mean,
    mean_over_findings,
    percentile_interval,
)
from evaluation_tier.statistics.calibration import measure_calibration
from evaluation_tier.statistics.chexzero import chexzero_interval, fill_one_class_resamples
from evaluation_tier.statistics.metrics import count_labels, nanmean
from evaluation_tier.statistics.resampling import MIN_PATIENTS, PATIENT_BOOTSTRAP, Resampling, find_too_few
from evaluation_tier.statistics.thresholds import ThresholdChoice

TOO_FEW = f"fewer than {MIN_PATIENTS} patients with it, or without it"

TOO_FEW_AT_ALL = f"fewer than {MIN_PATIENTS} patients"


def summarize(
    labels: np.ndarray,
    scores: np.ndarray,
    patient_ids: Sequence,
    findings: Sequence[str],
    *,
    thresholds: ThresholdChoice | None = None,
    probabilities: bool | Sequence[bool] = False,
    resampling: Resampling = PATIENT_BOOTSTRAP,
) -> dict:
    """
    Every metric of every finding, with intervals from resampling patients, and their means.

    Args:
        labels (`np.ndarray`): (images, findings), 1, 0, -1 or NaN; -1 and NaN are left out and counted.
        scores (`np.ndarray`): (images, findings), finite where the label is 1 or 0.
        patient_ids (`Sequence`): (images,); pass study ids to resample studies.
        findings (`Sequence[str]`): names, in the order of the columns.
        thresholds ([`ThresholdChoice`], *optional*):
            Rule and split that choose the thresholds; scale and bias are fitted on the same split. By default the
            highest MCC on the evaluated images themselves, which flatters every metric but AUROC and AUPRC.
        probabilities (`bool` or `Sequence[bool]`, *optional*, defaults to `False`):
            The scores (or those of each finding) are probabilities: `scale` and `bias` are of their log-odds.
        resampling ([`Resampling`], *optional*):
            Of the patients. Kind `"chexzero"` has the bounds of [`chexzero_interval`], where undefined values are the
            highest, and its centre in `<metric>_bootstrap_mean`.

    Returns:
        `dict`: see the docstring of this module.

    Raises:
        `ValueError`: shapes that do not fit; see also [`bootstrap`] and [`best_threshold`].
    """
    labels, scores = np.asarray(labels, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    choice = (thresholds or ThresholdChoice()).on_split(labels, scores)
    check_shapes(labels, scores, patient_ids, findings, choice)
    chosen = choice.choose()
    measured = FindingMetrics(labels, scores, patient_ids, resampling)
    measured.add_areas_and_decisions(
        {name: [at[getattr(choice.rule, name)] for at in chosen] for name in ("mcc", "f1")}
    )
    calibrations = measured.add_brier(choice, np.broadcast_to(probabilities, len(findings)))
    if choice.rule.accuracy:
        measured.add_accuracy([at[choice.rule.accuracy] for at in chosen])
    results = {}
    for i, finding in enumerate(findings):
        entries = measured.describe_finding(i)
        brier = {name: entries.pop(name) for name in list(entries) if name.startswith("brier")}
        at = {"accuracy_threshold": chosen[i][choice.rule.accuracy]} if choice.rule.accuracy else {}
        at |= {"threshold": chosen[i][choice.rule.mcc], "f1_threshold": chosen[i][choice.rule.f1]}
        counts = count_labels(labels[:, i])
        counts["n_excluded"] = counts["n_uncertain"] + counts["n_missing"]
        results[finding] = {**entries, **at, "thresholds": chosen[i], **calibrations[i], **brier, **counts}
    return {
        "findings": results,
        "mean": {**measured.describe_mean(), "ece": nanmean(calibration["ece"] for calibration in calibrations)},
        "resamples_dropped": measured.count_dropped(findings),
        "no_interval": measured.explain_missing_intervals(findings),
    }


def check_shapes(
    labels: np.ndarray, scores: np.ndarray, patient_ids: Sequence, findings: Sequence[str], choice: ThresholdChoice
) -> None:
    """Raise ValueError unless labels and scores are images x findings, on the thresholds' split too."""
    shapes = {labels.shape, scores.shape, (len(patient_ids), len(findings))}
    if len(shapes) > 1 or choice.labels.shape != choice.scores.shape or choice.labels.shape[1:] != (len(findings),):
        raise ValueError(
            f"There are {len(patient_ids)} patient ids and {len(findings)} findings, but labels {labels.shape}, "
            f"scores {scores.shape}, and on the thresholds' split {choice.labels.shape} and {choice.scores.shape}."
        )


class FindingMetrics:
    """
    Metrics of all findings, by name: of the data in `point` (findings,), of each resample in `resampled` (resamples,
    findings).

    Args:
        labels, scores (`np.ndarray`): (images, findings).
        patient_ids (`Sequence`): (images,).
        resampling ([`Resampling`]): of the patients.
    """

    def __init__(self, labels: np.ndarray, scores: np.ndarray, patient_ids: Sequence, resampling: Resampling):
        self.labels, self.scores, self.resampling = labels, scores, resampling
        self.draws = resampling.draw(patient_ids, labels)
        # CheXzero's reference has no floor of patients per finding
        self.too_few = find_too_few(labels, patient_ids) & (resampling.kind != "chexzero")
        self.point: dict[str, np.ndarray] = {}
        self.resampled: dict[str, np.ndarray] = {}

    def add_areas_and_decisions(self, thresholds: dict[str, list[float]]) -> None:
        """Add AUROC, AUPRC, and the metrics at the thresholds of MCC and of F1."""
        point = bootstrap(self.labels, self.scores, np.ones((1, len(self.labels))), thresholds)
        self.resampled |= bootstrap(self.labels, self.scores, self.draws, thresholds)
        self.point |= {name: point[name][0] for name in (*AREAS, *AT_THRESHOLD)}
        if self.resampling.kind == "chexzero":
            decided = {name: self.resampled[name] for name in thresholds}
            fill_one_class_resamples(decided, self.labels, self.scores, self.draws, thresholds)

    def add_brier(self, choice: ThresholdChoice, probabilities: Sequence[bool]) -> list[dict[str, float]]:
        """Add the Brier score; returns the calibration of each finding, fitted on the split of `choice`."""
        splits = ((self.labels, self.scores), (choice.labels, choice.scores))
        calibrations, errors = [], []
        for i, is_probability in enumerate(probabilities):
            evaluated, fitted_on = ((labels[:, i], scores[:, i]) for labels, scores in splits)
            calibration, squared = measure_calibration(*evaluated, *fitted_on, is_probability)
            calibrations.append(calibration)
            errors.append(squared)
        self.add_image_means("brier", [calibration["brier"] for calibration in calibrations], errors)
        return calibrations

    def add_accuracy(self, thresholds: Sequence[float]) -> None:
        right = [right_calls(self.labels[:, i], self.scores[:, i], at) for i, at in enumerate(thresholds)]
        self.add_image_means("accuracy", [nanmean(of_images) for of_images in right], right)

    def add_image_means(self, name: str, point: Sequence[float], values: Sequence[np.ndarray]) -> None:
        """Add a metric that is the mean of a value per image, given (images,) for each finding."""
        self.point[name] = np.array(point)
        self.resampled[name] = np.empty((self.draws.shape[-2], len(values)))
        for i, of_images in enumerate(values):
            draws = self.draws if self.draws.ndim == 2 else self.draws[i]
            self.resampled[name][:, i] = bootstrap_mean(of_images, draws)

    def describe_finding(self, i: int) -> dict:
        """Each metric of finding `i` and its interval, which is undefined for too few patients."""
        kept = slice(0, 0) if self.too_few[i] else slice(None)
        entries: dict[str, Any] = {}
        for name, values in self.point.items():
            entries |= metric_entry(name, float(values[i]), self.resampled[name][kept, i], self.resampling)
        return entries

    def describe_mean(self) -> dict:
        """Each mean over the findings and its interval, which is undefined if all findings have too few patients."""
        kept = slice(0, 0) if self.too_few.all() else slice(None)
        entries: dict[str, Any] = {}
        for name, values in self.point.items():
            value, resampled = mean_over_findings(values, self.resampled[name])
            entries |= metric_entry(name, value, resampled[kept], self.resampling)
        return entries

    def count_dropped(self, findings: Sequence[str]) -> dict[str, int]:
        """How many resamples lack a class, by finding, and a class of any finding in the mean AUROC."""
        dropped = np.isnan(self.resampled["auroc"]).sum(axis=0).tolist()
        _, mean = mean_over_findings(self.point["auroc"], self.resampled["auroc"])
        return {**dict(zip(findings, dropped, strict=True)), "mean": int(np.isnan(mean).sum())}

    def explain_missing_intervals(self, findings: Sequence[str]) -> dict[str, str]:
        """The reasons why findings, or `"mean"`, lack an interval."""
        if not self.draws.shape[-2]:
            return dict.fromkeys((*findings, "mean"), TOO_FEW_AT_ALL)
        reasons = {finding: TOO_FEW for finding, few in zip(findings, self.too_few, strict=True) if few}
        return reasons | ({"mean": TOO_FEW} if self.too_few.all() else {})


def metric_entry(name: str, value: float, resampled: np.ndarray, resampling: Resampling) -> dict:
    """A metric, its interval, and CheXzero's centre if the resampling is CheXzero's."""
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
