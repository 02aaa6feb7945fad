"""Two evaluations of the same images, side by side: the gain of the second model over the first, with intervals.

[`compare_evaluations`] returns a dict of JSON's own types. Undefined numbers are `None`.

- `"first"`, `"second"`: `folder` and `models`.
- `"dataset"`, `"n_images"`, `"n_patients"`, `"n_bootstrap"`, `"seed"`.
- `"trained"`, `"training_overlap"`: the treatment of training images, and each evaluation's statement about them.
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
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from evaluation_tier.output.metrics_file import as_float, read_metrics, to_json
from evaluation_tier.output.predictions import read_predictions
from evaluation_tier.output.tables import format_cell
from evaluation_tier.statistics.bootstrap import bootstrap
from evaluation_tier.statistics.metrics import nanmean
from evaluation_tier.statistics.paired import delong, paired_bootstrap
from evaluation_tier.statistics.resampling import PATIENT_BOOTSTRAP, Resampling, find_too_few
from evaluation_tier.statistics.summary import TOO_FEW
from evaluation_tier.statistics.thresholds import f1_threshold

logger = logging.getLogger(__name__)

COMPARED = ("auroc", "auprc", "mcc", "f1")

# Keys of the protocol on intervals and data: a comparison computes these again or checks them itself
NOT_OF_SCORES = (
    "intervals",
    "n_bootstrap",
    "seed",
    "n_patients",
    "min_positives",
    "benchmark_differs",
    "findings_left_out",
    "resamples_dropped",
    "images_skipped",
    "training_overlap",
    "threshold_overlap",
    "n_trained_images",
    "n_trained_patients_images",
    "trained",
)


class SavedEvaluation(NamedTuple):
    """One evaluation, as `eval_zeroshot.py` wrote it into a folder."""

    folder: str
    metrics: dict
    predictions: pd.DataFrame

    def columns(self, kind: str, findings: Sequence[str]) -> np.ndarray:
        """The labels or scores, (images, findings) float64."""
        return self.predictions[[f"{kind}_{finding}" for finding in findings]].to_numpy(dtype=np.float64)

    def thresholds(self, findings: Sequence[str]) -> dict[str, list[float]]:
        """The thresholds of MCC and of F1, NaN without one."""
        results = [self.metrics["findings"][finding] for finding in findings]
        return {
            "mcc": [as_float(result.get("threshold")) for result in results],
            "f1": [as_float(f1_threshold(result)) for result in results],
        }


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
    metrics = [read_metrics(folder) for folder in (first, second)]
    findings = shared_findings(metrics, (first, second))
    pair = [
        SavedEvaluation(str(folder), read, read_predictions(folder, read))
        for folder, read in zip((first, second), metrics, strict=True)
    ]
    one, other = without_trained(pair, trained)
    pair = align(one, other, findings)
    differing = protocol_differences(*metrics)
    if differing:
        described = ", ".join(f"{key} ({format_cell(a)} / {format_cell(b)})" for key, (a, b) in differing.items())
        logger.warning("The protocols of the two results differ in %s: scores may differ for that reason.", described)
    left_out = {finding: f"not in {second}" for finding in metrics[0]["findings"] if finding not in findings}
    left_out |= {finding: f"not in {first}" for finding in metrics[1]["findings"] if finding not in findings}
    return to_json(
        {
            "first": {"folder": str(first), "models": metrics[0].get("models") or []},
            "second": {"folder": str(second), "models": metrics[1].get("models") or []},
            "dataset": metrics[0]["dataset"],
            "n_images": len(pair[0].predictions),
            "n_patients": len(set(pair[0].predictions["patient_id"].tolist())),
            "n_bootstrap": resampling.num_resamples,
            "seed": resampling.seed,
            "trained": trained,
            "training_overlap": [read["protocol"].get("training_overlap") for read in metrics],
            "protocol_differences": differing,
            **compare_scores(*pair, findings, resampling),
            "findings_left_out": left_out,
        }
    )


def shared_findings(metrics: Sequence[Mapping], folders: Sequence[str | Path]) -> list[str]:
    """The findings that both evaluations have; a ValueError without any."""
    findings = [finding for finding in metrics[0]["findings"] if finding in metrics[1]["findings"]]
    if not findings:
        of_first, of_second = (", ".join(map(repr, read["findings"])) or "none" for read in metrics)
        raise ValueError(
            f"The results have no finding in common: {folders[0]} has {of_first}; {folders[1]} has {of_second}. "
            "Evaluate both models on the same findings."
        )
    return findings


def compare_scores(
    first: SavedEvaluation, second: SavedEvaluation, findings: Sequence[str], resampling: Resampling
) -> dict[str, dict]:
    """The `"findings"` and the `"mean"` of [`compare_evaluations`], from two evaluations with the same rows."""
    labels = first.columns("label", findings)
    scores = [evaluation.columns("score", findings) for evaluation in (first, second)]
    thresholds = [evaluation.thresholds(findings) for evaluation in (first, second)]
    patients = first.predictions["patient_id"].tolist()
    draws = resampling.draw(patients, labels)
    too_few = find_too_few(labels, patients)
    for finding in np.array(findings)[too_few]:
        logger.warning("No interval and no p-value for %s: %s.", finding, TOO_FEW)
    paired = paired_bootstrap(labels, scores[0], scores[1], draws, thresholds[0], thresholds[1], patients)
    everyone = np.ones((1, len(labels)))
    values = [bootstrap(labels, of_model, everyone, at) for of_model, at in zip(scores, thresholds, strict=True)]

    results = {}
    for i, finding in enumerate(findings):
        part: dict[str, Any] = {
            "n_positive": int((labels[:, i] == 1).sum()),
            "n_negative": int((labels[:, i] == 0).sum()),
        }
        for name in COMPARED:
            part[name] = {
                "first": values[0][name][0, i],
                "second": values[1][name][0, i],
                "difference": paired[name].difference[i],
                "difference_ci95": paired[name].interval[i],
                "p_bootstrap": paired[name].p_value[i],
            }
        p_delong = delong(labels[:, i], scores[0][:, i], scores[1][:, i]).p_value
        part["auroc"]["p_delong"] = float("nan") if too_few[i] else p_delong
        results[finding] = part
    mean = {}
    for name in COMPARED:
        defined = ~np.isnan(paired[name].difference)  # both means are over the same findings
        mean[name] = {
            "first": nanmean(values[0][name][0, defined]),
            "second": nanmean(values[1][name][0, defined]),
            "difference": paired[name].mean_difference,
            "difference_ci95": paired[name].mean_interval,
            "p_bootstrap": paired[name].mean_p_value,
        }
    return {"findings": results, "mean": mean}


def without_trained(pair: Sequence[SavedEvaluation], choice: str) -> list[SavedEvaluation]:
    """
    Both evaluations without the images that one of the models was trained on, if the choice is to exclude them.

    Raises:
        ValueError: such images exist and the choice is to refuse them, or all images are such images.
    """
    tables = [evaluation.predictions for evaluation in pair]
    seen = [table["trained_on"] if "trained_on" in table else pd.Series(False, table.index) for table in tables]
    for evaluation, is_trained in zip(pair, seen, strict=True):
        if is_trained.any() and choice == "refuse":
            raise ValueError(
                f"{evaluation.folder} counts {is_trained.sum():,} images that its model was trained on, or of its "
                "training patients. Exclude them from both with --exclude_trained, or count them with "
                "--include_trained; the comparison will say so."
            )
    if choice != "exclude":
        return list(pair)
    choices = [evaluation.metrics["protocol"].get("trained") for evaluation in pair]
    if not any(choices):
        logger.warning("--exclude_trained has no effect: neither evaluation contains training images.")
    kept = [set(table["image_id"][~is_trained]) for table, is_trained in zip(tables, seen, strict=True)]
    dropped = set().union(*(set(table["image_id"][mask]) for table, mask in zip(tables, seen, strict=True)))
    if "excluded" in choices:
        dropped |= kept[0] ^ kept[1]  # already left out when one of the models was evaluated
    if not (kept[0] & kept[1]) - dropped:
        raise ValueError("All images would be excluded: evaluate other data.")
    return [
        evaluation._replace(predictions=table[~table["image_id"].isin(dropped)])
        for evaluation, table in zip(pair, tables, strict=True)
    ]


def align(
    first: SavedEvaluation, second: SavedEvaluation, findings: Sequence[str]
) -> tuple[SavedEvaluation, SavedEvaluation]:
    """Both evaluations, with the second's rows in the order of the first's.

    Raises:
        ValueError: an image occurs twice, or images, their patients or their labels differ between the two.
    """
    for folder, _, table in (first, second):
        repeated = int(table["image_id"].duplicated().sum())
        if repeated:
            raise ValueError(f"{repeated} rows of {folder} repeat an image_id: evaluate data with unique ids.")
    ids, other_ids = first.predictions["image_id"], second.predictions["image_id"]
    shared = int(ids.isin(other_ids).sum())
    if shared < len(ids) or shared < len(other_ids):
        raise ValueError(
            f"The results are of different images: {first.folder} has {len(ids):,}, {second.folder} "
            f"{len(other_ids):,}, and {shared:,} are in both. Evaluate both models on the same images. If one "
            "evaluation excluded training images, pass --exclude_trained."
        )
    second = second._replace(predictions=second.predictions.set_index("image_id").loc[ids].reset_index())
    pair = (first, second)
    patients = [evaluation.predictions["patient_id"].astype(str).fillna("").to_numpy() for evaluation in pair]
    moved = int((patients[0] != patients[1]).sum())
    if moved:
        raise ValueError(
            f"{moved:,} of the {len(ids):,} images belong to other patients in {second.folder} than in "
            f"{first.folder}: evaluate both models on the same data."
        )
    labels = [evaluation.columns("label", findings) for evaluation in pair]
    differ = ~((labels[0] == labels[1]) | (np.isnan(labels[0]) & np.isnan(labels[1])))
    if differ.any():
        counts = ", ".join(
            f"{finding} {count:,}" for finding, count in zip(findings, differ.sum(axis=0), strict=True) if count
        )
        raise ValueError(
            f"The labels of the two results differ (of {len(ids):,} images: {counts}): evaluate both models with "
            "the same labels."
        )
    return pair


def protocol_differences(first: Mapping, second: Mapping) -> dict[str, list]:
    """Where two protocols differ: by key the two values, None if a protocol lacks the key."""
    protocols = [{"dataset": read["dataset"], **read["protocol"]} for read in (first, second)]
    keys = dict.fromkeys((*protocols[0], *protocols[1]))
    return {
        key: [protocol.get(key) for protocol in protocols]
        for key in keys
        if key not in NOT_OF_SCORES and protocols[0].get(key) != protocols[1].get(key)
    }
