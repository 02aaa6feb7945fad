"""Groups of findings by their frequency, as the challenges CXR-LT have them: head, medium and tail."""

from collections.abc import Mapping, Sequence

import numpy as np

from evaluation_tier.statistics.bootstrap import AREAS, bootstrap, mean_over_findings
from evaluation_tier.statistics.resampling import PATIENT_BOOTSTRAP, Resampling, find_too_few
from evaluation_tier.statistics.summary import metric_entry


def group_by_frequency(
    labels: np.ndarray, findings: Sequence[str], bounds: Mapping[str, float]
) -> dict[str, list[str]]:
    """
    The findings of each group, in their order; groups without any are left out.

    Args:
        labels (`np.ndarray`): (images, findings); 1 and 0 count.
        findings (`Sequence[str]`): names, in the order of the columns.
        bounds (`Mapping[str, float]`):
            Name of each group to the share of positives from which on a finding is in it, in falling order.
    """
    known = ((labels == 0) | (labels == 1)).sum(axis=0)
    shares = np.divide((labels == 1).sum(axis=0), known, out=np.full(len(findings), np.nan), where=known > 0)
    groups: dict[str, list[str]] = {name: [] for name in bounds}
    for finding, share in zip(findings, shares, strict=True):
        group = next((name for name, bound in bounds.items() if share >= bound), None)
        if group is not None:
            groups[group].append(finding)
    return {name: members for name, members in groups.items() if members}


def summarize_groups(
    labels: np.ndarray,
    scores: np.ndarray,
    patient_ids: Sequence,
    findings: Sequence[str],
    groups: Mapping[str, Sequence[str]],
    *,
    resampling: Resampling = PATIENT_BOOTSTRAP,
) -> dict[str, dict]:
    """
    The mean AUROC and AUPRC over the findings of each group, on the resamples of [`summarize`].

    Args:
        labels, scores, patient_ids, findings, resampling: as for [`summarize`].
        groups (`Mapping[str, Sequence[str]]`): name to findings.

    Returns:
        `dict[str, dict]`: by group its `findings`, `auroc`, `auprc`, and their intervals, which are undefined if all
        its findings have too few patients.
    """
    if not groups:
        return {}
    draws = resampling.draw(patient_ids, labels)
    too_few = find_too_few(labels, patient_ids) & (resampling.kind != "chexzero")
    point, resampled = bootstrap(labels, scores, np.ones((1, len(labels)))), bootstrap(labels, scores, draws)
    results: dict[str, dict] = {}
    for group, members in groups.items():
        columns = [list(findings).index(member) for member in members]
        kept = slice(0, 0) if too_few[columns].all() else slice(None)
        results[group] = {"findings": list(members)}
        for name in AREAS:
            value, values = mean_over_findings(point[name][0, columns], resampled[name][:, columns])
            results[group] |= metric_entry(name, value, values[kept], resampling)
    return results
