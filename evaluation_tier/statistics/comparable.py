"""Evaluations read from their folders, checked to be of the same images, and brought into the same order."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from evaluation_tier.output.metrics_file import as_float, read_metrics
from evaluation_tier.output.predictions import read_predictions
from evaluation_tier.output.tables import format_cell
from evaluation_tier.statistics.thresholds import f1_threshold

logger = logging.getLogger(__name__)

# Keys of the protocol on intervals and data: a comparison computes these again or checks them itself
NOT_OF_SCORES = (
    "intervals",
    "n_bootstrap",
    "seed",
    "n_patients",
    "min_positives",
    "benchmark_differs",
    "findings_left_out",
    "no_interval",
    "resamples_dropped",
    "images_skipped",
    "training_overlap",
    "exposure",
    "exposure_overlap",
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


class Comparable(NamedTuple):
    """Evaluations of the same images, with their rows in the same order."""

    evaluations: list[SavedEvaluation]
    findings: list[str]  # that all of them have
    left_out: dict[str, str]  # by finding, the evaluations that lack it

    def describe(self) -> dict[str, int]:
        """How many images and patients there are."""
        table = self.evaluations[0].predictions
        return {"n_images": len(table), "n_patients": len(set(table["patient_id"].tolist()))}


def read_comparable(folders: Sequence[str | Path], trained: str = "refuse") -> Comparable:
    """
    Read evaluations of the same images.

    Args:
        folders: that `eval_zeroshot.py` wrote; the first one gives the order of the rows.
        trained: see [`compare_evaluations`].

    Raises:
        ValueError: see [`compare_evaluations`].
    """
    metrics = [read_metrics(folder) for folder in folders]
    findings = shared_findings(metrics, folders)
    evaluations = [
        SavedEvaluation(str(folder), read, read_predictions(folder, read))
        for folder, read in zip(folders, metrics, strict=True)
    ]
    first, *others = without_trained(evaluations, trained)
    aligned = [align(first, other, findings)[1] for other in others]
    left_out = {}
    for finding in dict.fromkeys(finding for read in metrics for finding in read["findings"]):
        lacking = [str(of) for of, read in zip(folders, metrics, strict=True) if finding not in read["findings"]]
        if lacking:
            left_out[finding] = f"not in {', '.join(lacking)}"
    return Comparable([first, *aligned], findings, left_out)


def shared_findings(metrics: Sequence[Mapping], folders: Sequence[str | Path]) -> list[str]:
    """The findings that all evaluations have, in the order of the first; a ValueError without any."""
    findings = [finding for finding in metrics[0]["findings"] if all(finding in read["findings"] for read in metrics)]
    if not findings:
        there = "; ".join(
            f"{folder} has {', '.join(map(repr, read['findings'])) or 'none'}"
            for folder, read in zip(folders, metrics, strict=True)
        )
        raise ValueError(f"The results have no finding in common: {there}. Evaluate the models on the same findings.")
    return findings


def without_trained(evaluations: Sequence[SavedEvaluation], choice: str) -> list[SavedEvaluation]:
    """
    All evaluations without the images that one of the models was trained on, if the choice is to exclude them.

    Raises:
        ValueError: such images exist and the choice is to refuse them, or all images are such images.
    """
    tables = [evaluation.predictions for evaluation in evaluations]
    seen = [table["trained_on"] if "trained_on" in table else pd.Series(False, table.index) for table in tables]
    for evaluation, is_trained in zip(evaluations, seen, strict=True):
        if is_trained.any() and choice == "refuse":
            raise ValueError(
                f"{evaluation.folder} counts {is_trained.sum():,} images that its model was trained on, or of its "
                "training patients. Exclude them from all results with --exclude_trained, or count them with "
                "--include_trained; the comparison will say so."
            )
    if choice != "exclude":
        return list(evaluations)
    choices = [evaluation.metrics["protocol"].get("trained") for evaluation in evaluations]
    if not any(choices):
        logger.warning("--exclude_trained has no effect: no evaluation contains training images.")
    kept = [set(table["image_id"][~is_trained]) for table, is_trained in zip(tables, seen, strict=True)]
    common = set.intersection(*kept)
    dropped = set().union(*(set(table["image_id"][mask]) for table, mask in zip(tables, seen, strict=True)))
    if "excluded" in choices:
        dropped |= set().union(*kept) - common  # already left out when one of the models was evaluated
    if not common - dropped:
        raise ValueError("All images would be excluded: evaluate other data.")
    return [
        evaluation._replace(predictions=table[~table["image_id"].isin(dropped)])
        for evaluation, table in zip(evaluations, tables, strict=True)
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


def warn_of_protocols(what: str, differing: Mapping[str, Sequence]) -> None:
    """Warn of [`protocol_differences`], if there are any, between what `what` names, such as "the two results"."""
    if differing:
        told = ", ".join(f"{key} ({format_cell(a)} / {format_cell(b)})" for key, (a, b) in differing.items())
        logger.warning("The protocols of %s differ in %s: scores may differ for that reason.", what, told)
