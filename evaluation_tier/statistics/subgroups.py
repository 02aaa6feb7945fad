"""AUROC by sex, age band, view and other attributes of the images.

Groups share the resamples, so the interval of a gap allows for patients in several groups (views). A gap is the
highest minus the lowest AUROC. Its interval is that of the difference of these two groups, whichever is higher in a
resample. It does not allow for their choice as the farthest apart: with more than two groups that do not differ, it
excludes 0 too often.

[`subgroup_metrics`] returns a dict.

- `"groups"`: by group `{"n_images", "auroc": {finding: value}, "auroc_ci95": {finding: [low, high]}, "mean": {"auroc",
  "auroc_ci95"}}`, without the findings that have too few cases in the group.
- `"gap"`: by finding of two groups or more `{"gap", "gap_ci95", "highest", "lowest"}`, and under `"mean_gap"` the same
  for the groups' means (`None` with fewer than two groups).
- `"findings_in_mean"`: the findings that every group has; means are over these.
- `"left_out"`: by group without any finding the reason; `"n_unknown"`: images without a group.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from evaluation_tier.statistics.bootstrap import (
    QUANTILE_975,
    bootstrap,
    mean_over_findings,
    percentile_interval,
)
from evaluation_tier.statistics.resampling import PATIENT_BOOTSTRAP, Resampling, draw_resamples, find_too_few


def summarize_subgroups(
    labels: np.ndarray,
    scores: np.ndarray,
    patient_ids: Sequence,
    findings: Sequence[str],
    attributes: Mapping[str, Sequence],
    *,
    resampling: Resampling = PATIENT_BOOTSTRAP,
) -> dict[str, dict]:
    """
    AUROC by sex, age band, view and other known groups of the images, see [`subgroup_metrics`].

    Args:
        labels, scores, patient_ids, findings: as for [`summarize`].
        attributes (`Mapping[str, Sequence]`): name to each image's group; `None`, NaN or `""` where it is not known.
        resampling ([`Resampling`], *optional*): number and seed; whole patients are drawn for every kind.

    Returns:
        `dict[str, dict]`: by attribute that has at least two groups.
    """
    draws = draw_resamples(patient_ids, resampling.num_resamples, resampling.seed)
    options = {"findings": findings, "unit_ids": np.asarray(patient_ids)}
    results = {name: subgroup_metrics(labels, scores, groups, draws, **options) for name, groups in attributes.items()}
    return {name: result for name, result in results.items() if len(result["groups"]) + len(result["left_out"]) > 1}


def wilson_interval(share: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    The 95 % score interval of a binomial share (Wilson 1927): lower and upper bounds, each like `share`.

    Args:
        share (`np.ndarray`): in [0, 1].
        count (`np.ndarray`): of what the share is, above 0.
    """
    z = QUANTILE_975
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return centre - half, centre + half


def age_bands(ages: Sequence[float], edges: Sequence[float] = (18, 40, 60, 80)) -> np.ndarray:
    """
    Each age's band as text, such as `"<18"`, `"18-39"` and `">=80"`; `""` for an age that is NaN or `None`.

    Args:
        ages (`Sequence[float]`): in years.
        edges (`Sequence[float]`, *optional*, defaults to `(18, 40, 60, 80)`):
            Rising whole numbers; a band holds its lower edge and not its upper one.
    """
    ages = np.array([np.nan if age is None else age for age in ages], dtype=np.float64)
    bands = [
        f"<{edges[0]}",
        *(f"{low}-{high - 1}" for low, high in zip(edges, edges[1:], strict=False)),
        f">={edges[-1]}",
    ]
    return np.where(np.isnan(ages), "", np.array(bands)[np.searchsorted(edges, ages, side="right")])


class Group(NamedTuple):
    """The AUROCs of one subgroup."""

    num_images: int
    has_cases: np.ndarray  # (findings,) bool
    point: np.ndarray  # (findings,), NaN without enough cases
    resampled: np.ndarray  # (resamples, findings), NaN without enough cases or patients


def subgroup_metrics(
    labels: np.ndarray,
    scores: np.ndarray,
    groups: Sequence,
    draws: np.ndarray,
    *,
    findings: Sequence[str],
    min_cases: int = 10,
    unit_ids: Sequence | None = None,
) -> dict:
    """
    AUROC of each subgroup of the images (sex, age band, view, source), and the gap between subgroups.

    Args:
        labels, scores (`np.ndarray`): (images, findings), as for [`bootstrap`].
        groups (`Sequence`): (images,), each image's group; `None`, NaN or `""` if it is not known.
        draws (`np.ndarray`): (resamples, images), see [`draw_resamples`]; each group uses its own columns.
        findings (`Sequence[str]`): names, in the order of the columns.
        min_cases (`int`, *optional*, defaults to 10):
            Positives, and negatives, that a group needs for a finding's AUROC.
        unit_ids (`Sequence`, *optional*):
            (images,), the patients that were drawn. A finding that too few patients of a group have gets no interval.

    Returns:
        `dict`: see the docstring of this module.
    """
    labels, scores = np.asarray(labels, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    group_of = np.array(["" if group is None or group != group else str(group) for group in groups])
    if len(group_of) != len(labels):
        raise ValueError(f"There are {len(labels)} images, but {len(group_of)} groups.")
    if np.ndim(draws) != 2:
        raise ValueError("Subgroups share their resamples: give draws of resamples x images.")
    measured, left_out = {}, {}
    for name in np.unique(group_of[group_of != ""]).tolist():
        rows = np.flatnonzero(group_of == name)
        cases = np.minimum((labels[rows] == 1).sum(axis=0), (labels[rows] == 0).sum(axis=0))
        if not (cases >= min_cases).any():
            left_out[name] = f"{len(rows)} images, no finding with {min_cases} positives and negatives"
            continue
        units = None if unit_ids is None else unit_ids[rows]
        measured[name] = measure_group(
            labels[rows], scores[rows], np.asarray(draws)[:, rows], cases >= min_cases, units
        )
    return {
        **describe_groups(measured, findings),
        "left_out": left_out,
        "n_unknown": int((group_of == "").sum()),
    }


def measure_group(
    labels: np.ndarray, scores: np.ndarray, draws: np.ndarray, has_cases: np.ndarray, unit_ids: Sequence | None
) -> Group:
    """The AUROCs of the images of one group, for the findings that have enough cases, (findings,) bool."""
    point = bootstrap(labels, scores, np.ones((1, len(labels))))["auroc"][0]
    resampled = bootstrap(labels, scores, draws)["auroc"]
    few = np.zeros(len(has_cases), dtype=bool) if unit_ids is None else find_too_few(labels, unit_ids)
    return Group(
        len(labels), has_cases, np.where(has_cases, point, np.nan), np.where(has_cases & ~few, resampled, np.nan)
    )


def describe_groups(groups: Mapping[str, Group], findings: Sequence[str]) -> dict:
    """The `"groups"`, `"gap"`, `"mean_gap"` and `"findings_in_mean"` of [`subgroup_metrics`]."""
    # Means of different findings would not compare: only those that every group has enter
    shared = [group.has_cases for group in groups.values()]
    common = np.all(shared, axis=0) if shared else np.zeros(len(findings), dtype=bool)
    described, means, resampled_means = {}, {}, {}
    for name, group in groups.items():
        means[name], resampled_means[name] = mean_over_findings(group.point[common], group.resampled[:, common])
        kept = np.flatnonzero(group.has_cases)
        described[name] = {
            "n_images": group.num_images,
            "auroc": {findings[i]: float(group.point[i]) for i in kept},
            "auroc_ci95": {findings[i]: percentile_interval(group.resampled[:, i]).tolist() for i in kept},
            "mean": {
                "auroc": means[name],
                "auroc_ci95": percentile_interval(resampled_means[name]).tolist(),
            },
        }
    gaps = {
        finding: describe_gap(
            {name: group.point[i] for name, group in groups.items() if group.has_cases[i]},
            {name: group.resampled[:, i] for name, group in groups.items()},
        )
        for i, finding in enumerate(findings)
    }
    return {
        "groups": described,
        "gap": {finding: gap for finding, gap in gaps.items() if gap is not None},
        "mean_gap": describe_gap(means, resampled_means) if common.any() else None,
        "findings_in_mean": [finding for finding, is_common in zip(findings, common, strict=True) if is_common],
    }


def describe_gap(point: Mapping[str, float], resampled: Mapping[str, np.ndarray]) -> dict | None:
    """
    The highest minus the lowest of the groups' values, and the interval of these two groups' difference; `None` with
    fewer than two groups.
    """
    if len(point) < 2:
        return None
    highest, lowest = max(point, key=point.get), min(point, key=point.get)
    return {
        "gap": float(point[highest] - point[lowest]),
        "gap_ci95": percentile_interval(resampled[highest] - resampled[lowest]).tolist(),
        "highest": highest,
        "lowest": lowest,
    }
