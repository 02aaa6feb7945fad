"""Predictions that this package did not make, against the radiologists of CheXpert's test set."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from evaluation_tier.analyses.radiologists import compare_evaluation
from evaluation_tier.scoring.protocols import Protocol
from evaluation_tier.statistics.resampling import Resampling
from evaluation_tier.statistics.summary import summarize
from evaluation_tier.statistics.thresholds import ThresholdChoice
from processing_tier.prompts.loader import normalize_finding
from processing_tier.readers.archive_tables import find_first
from processing_tier.readers.chexpert import CHEXPERT_FINDINGS, read_radiologists, read_study_table
from processing_tier.readers.table import read_frame

STUDY_COLUMNS = ("study_id", "Study", "Path", "image_id", "image")
ALIASES = {"effusion": "Pleural Effusion", "airspace opacity": "Lung Opacity"}


class Predictions(NamedTuple):
    """A table of predictions, one row per image or study."""

    study_ids: list[str] | None
    scores: pd.DataFrame  # one column per finding
    labels: pd.DataFrame | None  # the same columns; 1, 0, -1 or NaN


def read_outside_predictions(path: str | os.PathLike, with_studies: bool = True) -> Predictions:
    """
    Read a table of scores, by any program.

    Args:
        path (`str` or `os.PathLike`):
            A CSV or Parquet file. Scores are in the columns `score_<finding>`, or `<finding>` where there are none of
            these; labels, if there are any, in `label_<finding>`. Findings are those of CheXpert; upper and lower case
            are equal.
        with_studies (`bool`, *optional*, defaults to `True`):
            Find each row's study, such as `patient64741/study1`, in one of `STUDY_COLUMNS`.

    Raises:
        `ValueError`: a table that cannot be read, without scores of CheXpert's findings or without studies, or a score
            that is not a finite number.
    """
    path = Path(path)
    frame = read_frame(path)
    known = {normalize_finding(finding): finding for finding in CHEXPERT_FINDINGS} | ALIASES
    columns: dict[str, dict[str, str]] = {"score_": {}, "label_": {}, "": {}}
    for column in frame.columns:
        prefix = next(prefix for prefix in columns if str(column).startswith(prefix))
        finding = known.get(normalize_finding(str(column).removeprefix(prefix)))
        if finding in columns[prefix]:
            raise ValueError(f"{path.name}: two columns are scores of {finding!r}: keep one of them.")
        if finding:
            columns[prefix][finding] = column
    of_scores = columns["score_"] or columns[""]
    if not of_scores:
        raise ValueError(f"{path.name} has no scores of CheXpert's findings: name the columns score_Edema and so on.")

    def numbers(chosen: dict[str, str]) -> pd.DataFrame:
        return pd.DataFrame({name: pd.to_numeric(frame[column], errors="coerce") for name, column in chosen.items()})

    scores = numbers(of_scores)
    wrong = ~np.isfinite(scores.to_numpy(dtype=np.float64))
    if wrong.any():
        column = of_scores[scores.columns[np.flatnonzero(wrong.any(axis=0))[0]]]
        raise ValueError(f"{path.name}: {wrong.sum()} scores are not finite numbers, for example in {column!r}.")
    labels = numbers(columns["label_"]) if columns["label_"] else None
    return Predictions(find_studies(frame, path) if with_studies else None, scores, labels)


def find_studies(frame: pd.DataFrame, path: Path) -> list[str]:
    """`patient64741_study1` of each row, from a study or a path of CheXpert."""
    column = next((name for name in STUDY_COLUMNS if name in frame), None)
    if column is None:
        raise ValueError(f"{path.name} does not name the studies: add a column study_id, such as patient64741/study1.")
    ids = frame[column].astype(str).str.extract(r"(patient\d+)[/_\\](study\d+)")
    if ids.isna().any(axis=None):
        row = int(np.flatnonzero(ids.isna().any(axis=1))[0])
        raise ValueError(
            f"{path.name}: {frame[column].iloc[row]!r} in {column!r} is not a study of CheXpert, such as "
            "patient64741/study1."
        )
    return (ids[0] + "_" + ids[1]).tolist()


def compare_predictions(
    path: str | os.PathLike,
    radiologists: str | os.PathLike,
    protocol: Protocol,
    threshold_table: str | os.PathLike | None = None,
    *,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict:
    """
    Compares a table of predictions on CheXpert's test set with its three radiologists.

    Args:
        path (`str` or `os.PathLike`): see [`read_outside_predictions`]; a study scores the mean of its rows.
        radiologists (`str` or `os.PathLike`):
            The folder of the labels of CheXpert's test set. Its `groundtruth.csv` replaces missing labels.
        protocol ([`Protocol`]): its rule chooses the thresholds, its resampling makes the intervals.
        threshold_table (`str` or `os.PathLike`, *optional*):
            Predictions with labels of another split, where thresholds are chosen; by default they are chosen on the
            test set itself, which flatters, and the result says so.
        num_resamples, seed (`int`, *optional*, default to 1000 and 0): of the bootstrap of the studies.

    Returns:
        `dict`: as `metrics.json`, with `"radiologists"` (see [`compare_with_radiologists`]).

    Raises:
        `ValueError`: see [`read_outside_predictions`]; also studies without radiologists or labels,
            and findings without labels.
    """
    readers, given = read_radiologists(radiologists), read_outside_predictions(path)
    findings = list(given.scores.columns)
    scores = given.scores.groupby(np.asarray(given.study_ids), sort=False).mean()
    if given.labels is not None:
        labels = given.labels.groupby(np.asarray(given.study_ids), sort=False).first()
    else:
        labels = read_truth(radiologists, Path(path).name).reindex(scores.index)
    where, other = f"the table {Path(path).name} itself (optimistic)", ()
    if threshold_table is not None:
        where, other = f"the table {Path(threshold_table).name}", read_threshold_table(threshold_table, findings)
    check_labels(labels, findings, Path(path).name)
    summary = summarize(
        labels[findings].to_numpy(),
        scores.to_numpy(),
        list(scores.index),
        findings,
        thresholds=ThresholdChoice(protocol.rule, *other),
        resampling=Resampling(num_resamples, seed, protocol.resampling),
    )
    how = {"name": f"{protocol.name} (thresholds and intervals)", "thresholds": protocol.rule.describe(where)}
    metrics = {
        "dataset": Path(path).name,
        "protocol": how | {"n_bootstrap": num_resamples, "seed": seed, "n_patients": len(scores)},
        "n_images": len(scores),
        "models": [Path(path).name],
        **summary,
    }
    table = pd.DataFrame({"image_id": scores.index}, index=scores.index)
    table = pd.concat([table, scores.add_prefix("score_"), labels[findings].add_prefix("label_")], axis=1)
    metrics["radiologists"] = compare_evaluation(metrics, table, list(scores.index), readers)
    return metrics


def read_truth(radiologists: str | os.PathLike, name: str) -> pd.DataFrame:
    """The labels of CheXpert's test set by study, for the table `name`, which has none."""
    truth = find_first(Path(radiologists), ["groundtruth.csv", "*/groundtruth.csv"])
    if truth is None:
        raise ValueError(f"{name} has no labels, and {radiologists} has no groundtruth.csv: add one of them.")
    return read_study_table(truth)


def read_threshold_table(path: str | os.PathLike, findings: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Labels and scores (studies, findings) of these findings on another split."""
    validation = read_outside_predictions(path, with_studies=False)
    if validation.labels is None:
        raise ValueError(f"{Path(path).name} has no labels: add the columns label_Edema and so on.")
    for finding in findings:
        for kind, frame in (("score", validation.scores), ("label", validation.labels)):
            if finding not in frame:
                raise ValueError(
                    f"{Path(path).name} has no column {kind}_{finding}, but the predictions have it: add the column."
                )
    return validation.labels[list(findings)].to_numpy(), validation.scores[list(findings)].to_numpy()


def check_labels(labels: pd.DataFrame, findings: Sequence[str], name: str) -> None:
    """ValueError where a finding or a study has no label."""
    missing = [finding for finding in findings if finding not in labels]
    if missing:
        raise ValueError(f"{name} has no column label_{missing[0]}, but labels of other findings: add it.")
    unlabelled = int(labels[list(findings)].isna().all(axis=1).sum())
    if unlabelled:
        raise ValueError(f"{unlabelled} of the {len(labels)} studies of {name} have no label: leave them out.")
