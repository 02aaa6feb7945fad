"""Groups of findings by their frequency, as the challenges CXR-LT have them: head, medium and tail."""

from collections.abc import Mapping, Sequence

import numpy as np


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
