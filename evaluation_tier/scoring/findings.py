"""Which findings of a data set are evaluated, their labels, and the groups of their images."""

import difflib
import logging
from collections.abc import Mapping, Sequence

import datasets
import numpy as np

from evaluation_tier.statistics.subgroups import age_bands
from processing_tier.prompts.loader import normalize_finding
from processing_tier.records.schema import finding_columns

logger = logging.getLogger(__name__)

NO_FINDING = ("no finding", "normal")


def name_split(dataset: datasets.Dataset) -> str:
    """The name of a data set in messages: the split of its records."""
    names = dataset.unique("split") if "split" in dataset.column_names else []
    return f"The split {names[0]!r}" if len(names) == 1 else "The split"


def warn_of_missing_classes(findings: Sequence[str], labels: np.ndarray, dataset: datasets.Dataset) -> None:
    """Name the findings without a threshold, because the split that chooses thresholds lacks one of their classes.

    Args:
        labels: (images, findings) of `dataset`, which chooses them.
    """
    for finding, column in zip(findings, labels.T, strict=True):
        lacking = [name for name, label in (("positive", 1), ("negative", 0)) if not (column == label).any()]
        if lacking:
            logger.warning(
                "%s has no %s image of %s, so its threshold, calibration, MCC, F1 and Brier score are left out.",
                name_split(dataset),
                " and no ".join(lacking),
                finding,
            )


def warn_of_no_interval(reasons: Mapping[str, str]) -> None:
    """Say which findings have no interval, by their reason."""
    for reason in dict.fromkeys(reasons.values()):
        names = ", ".join("the mean" if name == "mean" else name for name in reasons if reasons[name] == reason)
        logger.warning("No interval for %s: %s.", names, reason)


def is_scored_by_others(finding: str, protocol: Mapping) -> bool:
    """Whether a finding is scored by the others, under a protocol as `metrics["protocol"]` describes it."""
    return normalize_finding(finding) in NO_FINDING and protocol.get("no_finding") == "others"


def select_findings(
    dataset: datasets.Dataset, asked: Sequence[str] | None = None, min_positives: int = 10
) -> tuple[list[str], dict[str, str]]:
    """The findings to evaluate, and those left out with the reason.

    Args:
        dataset: with one label column per finding.
        asked: names of findings; by default all with at least `min_positives` positives and at least one negative.

    Raises:
        ValueError: for a requested finding that the data set lacks or that lacks a class, or if all are left out.
    """
    available = finding_columns(dataset)
    if not available:
        raise ValueError("The data set has no finding column: add one per finding with 1, 0, -1 or an empty cell.")
    for finding in asked or []:
        if finding not in available:
            close = difflib.get_close_matches(finding.lower(), [name.lower() for name in available], n=1)
            hint = [f"did you mean {name!r}? " for name in available if [name.lower()] == close]
            raise ValueError(
                f"The data set has no finding {finding!r}: {''.join(hint)}It has {', '.join(map(repr, available))}."
            )
    labels = read_labels(dataset, available)
    num_positive = dict(zip(available, (labels == 1).sum(axis=0).tolist(), strict=True))
    num_negative = dict(zip(available, (labels == 0).sum(axis=0).tolist(), strict=True))
    counts = ", ".join(f"{name} {num_positive[name]}" for name in available)
    if asked:
        for finding in asked:
            lacking = "positive" if not num_positive[finding] else "negative" if not num_negative[finding] else None
            if lacking:
                raise ValueError(
                    f"The finding {finding!r} has no {lacking} image among the {len(dataset)}: leave it out or choose "
                    f"another split. Positives per finding: {counts}."
                )
            if num_positive[finding] < min_positives:
                logger.warning("%s has only %d positives: its AUROC says little.", finding, num_positive[finding])
        return list(dict.fromkeys(asked)), {}

    left_out = {}
    for finding in available:
        if num_positive[finding] < min_positives:
            left_out[finding] = f"{num_positive[finding]} positive{'' if num_positive[finding] == 1 else 's'}"
        elif not num_negative[finding]:
            left_out[finding] = "no negatives"
    findings = [finding for finding in available if finding not in left_out]
    if not findings:
        raise ValueError(
            f"No finding has {min_positives} positives and a negative among the {len(dataset)} images: lower "
            f"--min_positives or use more images. Positives per finding: {counts}."
        )
    return findings, left_out


def select_learnt_findings(
    learnt: Mapping[str, Sequence[str]],
    dataset: datasets.Dataset,
    asked: Sequence[str] | None,
    min_positives: int,
) -> tuple[list[str], dict[str, str]]:
    """What `select_findings` gives, of the findings that all classifiers know.

    Args:
        learnt: name of each classifier to the findings that it knows.

    Raises:
        ValueError: as `select_findings`, and for an asked finding that a classifier lacks.
    """
    known = set(finding_columns(dataset))
    for name, labels in learnt.items():
        for finding in asked or []:
            if finding not in labels:
                raise ValueError(
                    f"The classifier {name} was not trained on {finding!r}: it knows {', '.join(labels)}."
                )
        known &= set(labels)
    unknown = [finding for finding in finding_columns(dataset) if finding not in known]
    if not known:
        raise ValueError(f"The classifier does not know the data set's findings, which are {', '.join(unknown)}.")
    findings, left_out = select_findings(dataset.remove_columns(unknown), asked, min_positives)
    return findings, left_out | dict.fromkeys(unknown, "never learnt")


def read_labels(dataset: datasets.Dataset, findings: Sequence[str]) -> np.ndarray:
    """The label columns, (images, findings) float64: 1, 0, -1 (uncertain) or NaN (not stated)."""
    columns = [np.array(dataset.with_format(None)[finding][:], dtype=np.float64) for finding in findings]
    return np.stack(columns, axis=1) if columns else np.empty((len(dataset), 0))


def read_attributes(dataset: datasets.Dataset, rows: np.ndarray) -> dict[str, Sequence]:
    """The groups of the images in these rows: `sex`, `age` (in bands), `view`,
    `source`, as far as it has these columns."""
    columns = {
        name: np.array(dataset.with_format(None)[name][:], dtype=object)[rows]
        for name in ("sex", "age", "view", "source")
        if name in dataset.column_names
    }
    if "age" in columns:
        columns["age"] = age_bands(columns["age"])
    return columns
