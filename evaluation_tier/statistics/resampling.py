"""Which images a resample of the bootstrap holds: the draws, their description, and the floor of patients.

A resample is a row of counts: how often each image was drawn. `np.repeat(np.arange(images), row)` gives the indices of
the same resample. Images of one patient (or study) are drawn together. Drawn one by one, they would make intervals too
narrow. Metrics and intervals of the resamples are in `bootstrap.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from evaluation_tier.statistics.chexzero import FEWEST_RESAMPLES, draw_chexzero_resamples

NUMBERS_IN_MEMORY = 4_000_000  # held at once while resampling; bounds the memory, not the result

RESAMPLES_AT_ONCE = 256  # fits a processor's cache for some hundred images: 3 times as fast as 1,000

MIN_PATIENTS = 5  # of each class; 95 % intervals of fewer held the true value in 31 to 86 % of simulated data sets

KINDS = ("patients", "stratified", "chexzero")


def check_num_resamples(num_resamples: int) -> None:
    if num_resamples < 1:
        raise ValueError(f"The number of bootstrap resamples must be at least 1, but is {num_resamples}.")


@dataclass(frozen=True)
class Resampling:
    """
    How the resamples behind the intervals are drawn.

    Args:
        num_resamples (`int`, *optional*, defaults to 1000): at least 1; CheXzero uses 1,000.
        seed (`int`, *optional*, defaults to 0): random seed of the draws.
        kind (`str`, *optional*, defaults to `"patients"`):
            `"patients"` draws whole patients, see [`draw_resamples`]. `"stratified"` does so without losing a class of
            a finding, see [`draw_stratified_resamples`]. `"chexzero"` draws images, not patients, see
            [`draw_chexzero_resamples`]; intervals then follow [`chexzero_interval`].

    Raises:
        `ValueError`: an unknown kind, no resamples, or too few for CheXzero's intervals.
    """

    num_resamples: int = 1000
    seed: int = 0
    kind: str = "patients"

    def __post_init__(self) -> None:
        check_num_resamples(self.num_resamples)
        if self.kind not in KINDS:
            raise ValueError(f"The resampling must be one of {', '.join(KINDS)}, but is {self.kind!r}.")
        if self.kind == "chexzero" and self.num_resamples < FEWEST_RESAMPLES:
            raise ValueError(
                f"CheXzero's intervals need at least {FEWEST_RESAMPLES} resamples, but there are {self.num_resamples}."
            )

    def draw(self, unit_ids: Sequence, labels: np.ndarray | None = None) -> np.ndarray:
        """
        How often each image was drawn, uint16; empty, and so without intervals, for fewer than `MIN_PATIENTS` units.

        Args:
            unit_ids (`Sequence`): (images,), the patient or study of each image.
            labels (`np.ndarray`, *optional*): (images, findings), which `"stratified"` needs.

        Returns:
            `np.ndarray`: (resamples, images); `"stratified"` gives (findings, resamples, images).
        """
        if self.kind == "stratified":
            return draw_stratified_resamples(labels, unit_ids, self.num_resamples, self.seed)
        if self.kind == "chexzero":
            enough = len(set(unit_ids)) >= MIN_PATIENTS  # images are drawn, but a patient's images are similar
            return draw_chexzero_resamples(len(unit_ids), self.num_resamples if enough else 0, self.seed)
        return draw_resamples(unit_ids, self.num_resamples, self.seed)

    def describe(self, unit_ids: Sequence, intervals: str) -> dict:
        """The description of the intervals in the `protocol` of a result; `intervals` is its usual text."""
        return {
            "intervals": describe_intervals(unit_ids, intervals),
            "n_bootstrap": self.num_resamples,
            "seed": self.seed,
            "n_patients": len(set(unit_ids)),
        }


PATIENT_BOOTSTRAP = Resampling()


def number_units(unit_ids: Sequence) -> tuple[int, np.ndarray]:
    """
    The number of different units, and the number of each image's unit, in the order of the ids as text.

    Raises:
        `ValueError`: no images, or one whose id is missing (`None`, NaN or `""`), which would all be one unit.
    """
    missing = sum(bool(pd.isna(unit)) or unit == "" for unit in unit_ids)
    if missing:
        raise ValueError(
            f"{missing} of {len(unit_ids)} images have no patient id and would be resampled as one patient. Give each "
            "its patient, or a unique id if the patient is unknown."
        )
    units, unit_of_image = np.unique(np.asarray(unit_ids).astype(str), return_inverse=True)
    if not len(units):
        raise ValueError("The resampling needs at least one image.")
    return len(units), unit_of_image


def describe_intervals(unit_ids: Sequence, usual: str) -> str:
    """The description of intervals in results: `usual`, or the reason why they are missing."""
    num_units = len(set(unit_ids))
    if num_units >= MIN_PATIENTS:
        return usual
    return f"none: {num_units} patient{'' if num_units == 1 else 's'}, and an interval needs {MIN_PATIENTS}"


def find_too_few(labels: np.ndarray, unit_ids: Sequence) -> np.ndarray:
    """
    Which findings have too few patients with or without them for an interval: (findings,) bool.

    Args:
        labels (`np.ndarray`): (images, findings), 1, 0, -1 or NaN.
        unit_ids (`Sequence`): (images,), the patient or study of each image.
    """
    units = np.asarray(unit_ids).astype(str)
    counts = [[len(np.unique(units[column == label])) for label in (0, 1)] for column in np.asarray(labels).T]
    return np.array([min(pair) < MIN_PATIENTS for pair in counts], dtype=bool)


def count_units(drawn: np.ndarray, num_units: int) -> np.ndarray:
    """How often each unit was drawn, (resamples, units), from the units drawn, (resamples, draws)."""
    places = drawn + np.arange(len(drawn))[:, None] * num_units  # one bincount for all resamples
    return np.bincount(places.ravel(), minlength=len(drawn) * num_units).reshape(len(drawn), num_units)


def draw_resamples(unit_ids: Sequence, num_resamples: int = 1000, seed: int = 0) -> np.ndarray:
    """
    Resamples of whole units with replacement, as many units as there are.

    Args:
        unit_ids (`Sequence`): (images,), the patient or study of each image.
        num_resamples (`int`, *optional*, defaults to 1000): at least 1; CheXzero takes 1,000.
        seed (`int`, *optional*, defaults to 0): random seed of the draws.

    Returns:
        `np.ndarray`: (resamples, images) uint16, how often each image was drawn; empty, and so without intervals,
        for fewer than `MIN_PATIENTS` units.
    """
    check_num_resamples(num_resamples)
    num_units, unit_of_image = number_units(unit_ids)
    num_resamples = num_resamples if num_units >= MIN_PATIENTS else 0
    generator = np.random.default_rng(seed)
    draws = np.empty((num_resamples, len(unit_of_image)), dtype=np.uint16)
    for rows in chunks(num_resamples, num_units):
        drawn = generator.integers(num_units, size=(rows.stop - rows.start, num_units))
        draws[rows] = count_units(drawn, num_units)[:, unit_of_image]
    return draws


def draw_stratified_resamples(
    labels: np.ndarray, unit_ids: Sequence, num_resamples: int = 1000, seed: int = 0
) -> np.ndarray:
    """
    Resamples in which no finding loses a class, however rare: each finding's units are drawn within strata.

    For each finding, a unit (patient or study) belongs to one of three strata: its images hold a positive, negatives
    without a positive, or neither (uncertain or unstated). Each stratum is resampled with replacement to its own size.
    So every resample has as many units with a positive as the data. The number of positive images may vary, since
    units have different numbers of them. If every unit with a negative has a positive too, units with both form a
    separate stratum, so that no resample lacks negatives. Otherwise they do not: that would split few units and make
    intervals narrower.

    Findings share one draw as far as their strata allow. If a draw holds too many units of a stratum, the surplus is
    replaced by units of the strata that lack some. So findings stay correlated, and the mean over them has an honest
    interval.

    Args:
        labels (`np.ndarray`): (images, findings), 1, 0, -1 or NaN.
        unit_ids (`Sequence`): (images,), the patient or study of each image.
        num_resamples (`int`, *optional*, defaults to 1000): at least 1.
        seed (`int`, *optional*, defaults to 0): random seed of the draws.

    Returns:
        `np.ndarray`: (findings, resamples, images) uint16, which takes two bytes per number; empty for fewer than
        `MIN_PATIENTS` units.
    """
    check_num_resamples(num_resamples)
    labels = np.asarray(labels, dtype=np.float64)
    num_units, unit_of_image = number_units(unit_ids)
    num_resamples = num_resamples if num_units >= MIN_PATIENTS else 0
    generator = np.random.default_rng(seed)
    strata = []  # per finding: the units of each stratum, and the generator of their redraws
    for i, column in enumerate(labels.T):
        positive = np.bincount(unit_of_image[column == 1], minlength=num_units) > 0
        negative = np.bincount(unit_of_image[column == 0], minlength=num_units) > 0
        kind = positive + 2 * negative
        if (kind == 2).any():  # these keep the negatives, so that positives need not be split by what else a unit has
            kind[kind == 3] = 1
        strata.append([(np.flatnonzero(kind == k), np.random.default_rng([seed, i, k])) for k in np.unique(kind)])

    draws = np.empty((labels.shape[1], num_resamples, len(labels)), dtype=np.uint16)
    for rows in chunks(num_resamples, num_units):
        drawn = generator.integers(num_units, size=(rows.stop - rows.start, num_units))
        for i, members_and_generators in enumerate(strata):
            counts = np.zeros((len(drawn), num_units), dtype=np.int64)
            for members, redraw in members_and_generators:
                member = np.zeros(num_units, dtype=bool)
                member[members] = True
                inside = member[drawn]
                # the draws of a stratum are independent, so any of them may be kept
                kept = inside & (np.cumsum(inside, axis=1) <= len(members))
                np.add.at(counts, (np.nonzero(kept)[0], drawn[kept]), 1)
                lacking = np.repeat(np.arange(len(drawn)), len(members) - kept.sum(axis=1))
                np.add.at(counts, (lacking, members[redraw.integers(len(members), size=len(lacking))]), 1)
            draws[i, rows] = counts[:, unit_of_image]
    return draws


def chunks(num_resamples: int, num_columns: int) -> list[slice]:
    """Slices of the resamples, each small enough for the memory."""
    size = max(1, min(NUMBERS_IN_MEMORY // max(num_columns, 1), RESAMPLES_AT_ONCE))
    # without resamples one empty slice, so that results have the right shape
    return [slice(start, min(start + size, num_resamples)) for start in range(0, max(num_resamples, 1), size)]
