"""Maps that do not depend on the image: the average place of findings, and the centre."""

from collections.abc import Sequence

import numpy as np

PRIOR_SIDE = 32  # places of the position prior along each side of an image


def centre_map(height: int, width: int) -> np.ndarray:
    """A Gaussian in the middle of the image whose standard deviations are a quarter of its height and width."""
    rows, columns = (np.square(((np.arange(side) + 0.5) / side - 0.5) / 0.25) for side in (height, width))
    return np.exp(-0.5 * (rows[:, None] + columns)).astype(np.float32)


def position_priors(coverage: np.ndarray, findings: Sequence[str], patients: Sequence[str]) -> np.ndarray:
    """For each case, the average place of the finding in the other patients.

    Args:
        coverage: (cases, side, side): share of each place of the image that the region covers.
        findings, patients: (cases,).

    Returns:
        (cases, side, side); NaN where no other patient has the finding.
    """
    priors = np.full_like(coverage, np.nan)
    findings, patients = np.asarray(findings), np.asarray(patients)
    for i, (finding, patient) in enumerate(zip(findings, patients, strict=True)):
        others = (findings == finding) & (patients != patient)
        if others.any():
            priors[i] = coverage[others].mean(axis=0)
    return priors
