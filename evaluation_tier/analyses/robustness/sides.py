"""Left against right: the sides that reports state and that models prefer."""

from collections.abc import Mapping, Sequence

import datasets
import numpy as np

from evaluation_tier.analyses.robustness.intervals import resampled_share, with_interval
from evaluation_tier.analyses.robustness.variants import MIRRORED, ORIGINAL
from evaluation_tier.statistics.resampling import MIN_PATIENTS
from processing_tier.reports.sections import extract_sections
from processing_tier.reports.sides import stated_side

SIDE_PROMPTS = ("Left {}.", "Right {}.")


def report_texts(dataset: datasets.Dataset) -> list[str]:
    """Findings and impression of each report, from its sections or, where both are empty, from the whole text."""
    columns = {
        name: dataset[name][:] if name in dataset.column_names else [""] * len(dataset)
        for name in ("findings", "impression", "report")
    }
    texts = []
    for findings, impression, report in zip(*columns.values(), strict=True):
        if not findings and not impression and report:
            findings, impression = extract_sections(report).values()
        texts.append(f"{findings or ''}\n\n{impression or ''}")
    return texts


def compare_sides(
    dataset: datasets.Dataset,
    findings: Sequence[str],
    labels: np.ndarray,
    scores: Mapping[str, np.ndarray],
    draws: np.ndarray,
) -> dict:
    """
    The `laterality` of [`evaluate_robustness`]; pairs of an image and a finding are pooled over the findings.

    Args:
        dataset: whose reports state the sides.
        findings: those that have a side, see `SIDED`.
        labels: (images, findings).
        scores: of the left sentence against the right one, (images, findings), for original and mirrored images.
        draws: (resamples, images).
    """
    texts = report_texts(dataset)
    pairs = [
        (row, column, side)
        for column, finding in enumerate(findings)
        for row in np.flatnonzero(labels[:, column] == 1).tolist()
        if (side := stated_side(texts[row], finding))
    ]
    if not pairs:
        return {"chance": 0.5, "findings": {}, "all": None}
    rows, columns, sides = (np.array(values) for values in zip(*pairs, strict=True))
    left, mirrored_left = (  # 1 where the left sentence is nearer, 0 where the right one is
        np.sign(scores[name][rows, columns]) / 2 + 0.5 for name in (ORIGINAL, MIRRORED)
    )
    is_left = sides == "left"
    groups = {finding: columns == column for column, finding in enumerate(findings) if column in columns}
    groups["all"] = np.ones(len(rows), dtype=bool)

    def statistic(draws: np.ndarray) -> np.ndarray:
        draws = draws[:, rows]
        values = []
        for group in groups.values():
            on_left, on_right = group & is_left, group & ~is_left
            values += [
                (resampled_share(draws, left, on_left) + resampled_share(draws, 1 - left, on_right)) / 2,
                (resampled_share(draws, 1 - mirrored_left, on_left) + resampled_share(draws, mirrored_left, on_right))
                / 2,
                resampled_share(draws, np.abs(left - mirrored_left), group),
            ]
        return np.stack(values, axis=1)

    values, intervals = with_interval(statistic, draws)
    results = {}
    patients = np.array(dataset["patient_id"]).astype(str)[rows]
    for i, (finding, group) in enumerate(groups.items()):
        results[finding] = {"n_left": (group & is_left).sum(), "n_right": (group & ~is_left).sum()}
        each_side = min(len(np.unique(patients[group & side])) for side in (is_left, ~is_left))
        num_patients = (each_side, each_side, len(np.unique(patients[group])))
        for j, name in enumerate(("accuracy", "mirrored_accuracy", "swapped")):
            interval = intervals[3 * i + j] if num_patients[j] >= MIN_PATIENTS else np.full(2, np.nan)
            results[finding] |= {name: values[3 * i + j], f"{name}_ci95": interval}
    pooled = results.pop("all")
    return {"chance": 0.5, "findings": results, "all": pooled}
