"""Two evaluations of the same images, side by side: the gain of the second model over the first, with intervals.

[`compare_evaluations`] returns a dict of JSON's own types. Undefined numbers are `None`.

- `"first"`, `"second"`: `folder`, `models`, and `images_per_second` and `devices` of [`combined_speed`].
- `"dataset"`, `"n_images"`, `"n_patients"`, `"n_bootstrap"`, `"seed"`.
- `"trained"`, `"training_overlap"`: the treatment of training images, and each evaluation's statement about them;
  `"exposure"`: its statement about published training data.
- `"protocol_differences"`: by key the two values; a warning names them too.
- `"findings"`: by name `n_positive`, `n_negative`, and for each of `auroc`, `auprc`, `mcc`, `f1` its `first`,
  `second`, `difference`, `difference_ci95` and `p_bootstrap`. AUROC also has `p_delong`, by DeLong's test (1988).
  That test takes images as independent: with several images per patient it finds differences that do not exist. MCC
  and F1 are at the thresholds that each evaluation chose.
- `"mean"`: the same over the findings, without `p_delong`.
- `"findings_left_out"`: by name the evaluation that lacks it.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evaluation_tier.output.metrics_file import to_json
from evaluation_tier.output.speed_file import combined_speed
from evaluation_tier.statistics.bootstrap import mean_over_findings
from evaluation_tier.statistics.comparable import (
    SavedEvaluation,
    protocol_differences,
    read_comparable,
    warn_of_protocols,
)
from evaluation_tier.statistics.metrics import nanmean
from evaluation_tier.statistics.paired import delong, paired_differences, resample
from evaluation_tier.statistics.resampling import PATIENT_BOOTSTRAP, Resampling, find_too_few
from evaluation_tier.statistics.summary import TOO_FEW, metric_entry

logger = logging.getLogger(__name__)

COMPARED = ("auroc", "auprc", "mcc", "f1")


def compare_evaluations(
    first: str | Path,
    second: str | Path,
    resampling: Resampling = PATIENT_BOOTSTRAP,
    trained: str = "refuse",
) -> dict:
    """
    The second evaluation's metrics minus the first's, on the same images, with paired 95 % intervals.

    Both models are measured on the same resamples of the patients, so an image that is hard for both cancels out: two
    models may differ for certain although their own intervals overlap.

    Args:
        first (`str` or `Path`): folder that `eval_zeroshot.py` wrote, with `metrics.json` and `predictions.parquet`.
        second (`str` or `Path`): likewise.
        resampling ([`Resampling`], *optional*): of the patients.
        trained (`str`, *optional*, defaults to `"refuse"`):
            What to do with images that one of the models was trained on: `"refuse"`, `"exclude"` (from both) or
            `"include"`.

    Returns:
        `dict`: see the docstring of this module.

    Raises:
        `ValueError`: for a folder without a complete evaluation, and if images, patients or labels of the two differ,
            with the number of those that do.
    """
    compared = read_comparable((first, second), trained)
    evaluations, metrics = compared.evaluations, [evaluation.metrics for evaluation in compared.evaluations]
    differing = protocol_differences(*metrics)
    warn_of_protocols("the two results", differing)
    return to_json(
        {
            "first": {"folder": str(first), "models": metrics[0].get("models") or [], **combined_speed(first)},
            "second": {"folder": str(second), "models": metrics[1].get("models") or [], **combined_speed(second)},
            "dataset": metrics[0]["dataset"],
            **compared.describe(),
            "n_bootstrap": resampling.num_resamples,
            "seed": resampling.seed,
            "trained": trained,
            "training_overlap": [read["protocol"].get("training_overlap") for read in metrics],
            "exposure": [read["protocol"].get("exposure") for read in metrics],
            "protocol_differences": differing,
            **ResampledEvaluations(evaluations, compared.findings, resampling).compare(0, 1),
            "findings_left_out": compared.left_out,
        }
    )


class ResampledEvaluations:
    """
    The metrics of evaluations with the same rows, all on the same resamples of the patients.

    Args:
        evaluations: of [`read_comparable`].
        findings: that all of them have.
        resampling: of the patients.
    """

    def __init__(self, evaluations: Sequence[SavedEvaluation], findings: Sequence[str], resampling: Resampling):
        self.findings, self.resampling = findings, resampling
        self.labels = evaluations[0].columns("label", findings)
        self.scores = [evaluation.columns("score", findings) for evaluation in evaluations]
        patients = evaluations[0].predictions["patient_id"].tolist()
        draws = resampling.draw(patients, self.labels)
        self.too_few = find_too_few(self.labels, patients)
        for finding in np.array(findings)[self.too_few]:
            logger.warning("No interval and no p-value for %s: %s.", finding, TOO_FEW)
        self.metrics = [
            resample(self.labels, scores, draws, evaluation.thresholds(findings))
            for scores, evaluation in zip(self.scores, evaluations, strict=True)
        ]

    def counts(self, i: int) -> dict[str, int]:
        """How many images are positive and negative for finding `i`."""
        return {f"n_{name}": int((self.labels[:, i] == of).sum()) for name, of in (("positive", 1), ("negative", 0))}

    def own(self, index: int) -> dict[str, dict]:
        """The AUROC of one evaluation with its own interval, by finding and of their mean."""
        point, resampled = self.metrics[index].point["auroc"], self.metrics[index].resampled["auroc"]
        mean, resampled_mean = mean_over_findings(point, resampled)
        kept = [slice(0, 0) if few else slice(None) for few in (*self.too_few, self.too_few.all())]
        findings = {
            finding: metric_entry("auroc", point[i], resampled[kept[i], i], self.resampling)
            for i, finding in enumerate(self.findings)
        }
        return {"findings": findings, "mean": metric_entry("auroc", mean, resampled_mean[kept[-1]], self.resampling)}

    def compare(self, first: int, second: int) -> dict[str, dict]:
        """The `"findings"` and the `"mean"` of [`compare_evaluations`], of two of the evaluations."""
        values = [self.metrics[index].point for index in (first, second)]
        paired = paired_differences(self.metrics[first], self.metrics[second], self.too_few)
        results = {}
        for i, finding in enumerate(self.findings):
            part: dict[str, Any] = self.counts(i)
            for name in COMPARED:
                part[name] = {
                    "first": values[0][name][i],
                    "second": values[1][name][i],
                    "difference": paired[name].difference[i],
                    "difference_ci95": paired[name].interval[i],
                    "p_bootstrap": paired[name].p_value[i],
                }
            p_delong = delong(self.labels[:, i], self.scores[first][:, i], self.scores[second][:, i]).p_value
            part["auroc"]["p_delong"] = float("nan") if self.too_few[i] else p_delong
            results[finding] = part
        mean = {}
        for name in COMPARED:
            defined = ~np.isnan(paired[name].difference)  # both means are over the same findings
            mean[name] = {
                "first": nanmean(values[0][name][defined]),
                "second": nanmean(values[1][name][defined]),
                "difference": paired[name].mean_difference,
                "difference_ci95": paired[name].mean_interval,
                "p_bootstrap": paired[name].mean_p_value,
            }
        return {"findings": results, "mean": mean}


def choose_p(entry: Mapping, independent: bool) -> float | None:
    """
    The p-value to show of an entry of [`compare_evaluations`]: DeLong's if it has one and the images are independent,
    as his test assumes, else that of the resamples.
    """
    return entry["p_delong"] if independent and "p_delong" in entry else entry["p_bootstrap"]
