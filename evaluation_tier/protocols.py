"""Named ways to score findings, since the same model differs by up to 20 points between them."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from evaluation_tier.metrics import select_known, weighted_auroc
from evaluation_tier.scoring import SCORINGS
from processing_tier.prompts import Prompts

NO_FINDING_WAYS = ("prompts", "others")


@dataclass(frozen=True)
class Protocol:
    """
    How findings are scored.

    Args:
        prompts: name or path of a prompt file, see `processing_tier.prompts`, or the prompts themselves. The sentences
            of a side are embedded, normalised, averaged and normalised again.
        scoring: see `evaluation_tier.scoring.zero_shot_scores`. An ensemble's score is the mean of its members'.
        no_finding: how "No Finding" and "Normal" are scored: by their own `"prompts"`, or by the `"others"`, see
            `evaluation_tier.scoring.no_finding_scores`.
        bootstrap: of `"patients"`, see `evaluation_tier.metrics.bootstrap_auroc`, or of `"images"`, see
            `bootstrap_images`.
        source: where it comes from.
        name: of a named protocol, with what was overridden.
    """

    prompts: str | Path | Mapping[str, Prompts]
    scoring: str
    no_finding: str
    source: str
    bootstrap: str = "patients"
    name: str = ""


PROTOCOLS: dict[str, Protocol] = {
    # Sentences as radiologists write them, of this project
    "report": Protocol("report", "difference", "prompts", "tier-clip"),
    # Tiu et al. 2022, zero_shot.py:119-124,258-261,526 and eval.py:164-229. "No Finding" by its prompts, as there,
    # has an AUROC of 0.07 in the authors' notebook.
    "chexzero": Protocol("chexzero", "softmax", "others", "CheXzero, Tiu et al. 2022", bootstrap="images"),
    # Palepu & Beam 2023, Modeling/CLIP_Embedding.py:221-232 and utils.py:376-381
    "tier": Protocol("tier", "difference", "prompts", "TIER, Palepu & Beam 2023"),
    # The same, CLIP_Embedding.py:216 and utils.py:449-454
    "tier-padchest": Protocol("tier-padchest", "softmax", "others", "TIER on PadChest, Palepu & Beam 2023"),
    # One sentence and no negative, as CARZero asks (CVPR 2024)
    "plain": Protocol("plain", "sigmoid", "others", '"There is {finding}." of CARZero, 2024'),
}


def choose_protocol(
    name: str = "report",
    prompts: str | Path | Mapping[str, Prompts] | None = None,
    scoring: str | None = None,
    no_finding: str | None = None,
) -> Protocol:
    """The named protocol, with what is given in place of its own; its name then says so.

    Raises:
        ValueError: for an unknown protocol, scoring or way of scoring "No Finding".
    """
    if name not in PROTOCOLS:
        close = difflib.get_close_matches(str(name), PROTOCOLS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"There is no protocol {name!r}: {hint}there are {', '.join(PROTOCOLS)}.")
    for given, known, what in ((scoring, SCORINGS, "scoring"), (no_finding, NO_FINDING_WAYS, "way of no_finding")):
        if given is not None and given not in known:
            raise ValueError(f"The {what} must be one of {', '.join(known)}, but is {given!r}.")
    protocol = PROTOCOLS[name]
    given = {"prompts": prompts, "scoring": scoring, "no_finding": no_finding}
    changes = {key: value for key, value in given.items() if value is not None and value != getattr(protocol, key)}
    return replace(protocol, **changes, name=", ".join([name, *(f"own {key}" for key in changes)]))


def prompts_name(prompts: str | Path | Mapping[str, Prompts]) -> str:
    """What results call the prompts: without the folders of this machine."""
    return "given sentences" if isinstance(prompts, Mapping) else Path(prompts).stem


class ImageBootstrap(NamedTuple):
    """CheXzero's bootstrap, one row or entry per finding, and that of the mean over the findings."""

    center: np.ndarray  # (findings,): mean over the resamples
    interval: np.ndarray  # (findings, 2)
    mean_center: float
    mean_interval: np.ndarray  # (2,)
    num_dropped: np.ndarray  # (findings,): resamples in which the finding lacks a class


def bootstrap_images(
    labels: np.ndarray, scores: np.ndarray, num_resamples: int = 1000, seed: int = 0
) -> ImageBootstrap:
    """AUROC intervals as CheXzero makes them (eval.py:164-229): images are drawn, whatever their patients.

    Resample i is drawn by `numpy.random.RandomState(seed + i)`, as `sklearn.utils.resample` does; the centre is the
    mean over the resamples, and the bounds are the sorted values at the positions 24 and 974 (from 0) of 1,000. Unlike
    there, a resample in which a finding lacks a class is dropped for that finding and counted: sorted in as NaN, it
    would shift the bounds of rare findings.

    Args:
        labels: (images, findings), 1, 0, -1 or NaN.
        scores: (images, findings).
        num_resamples: at least 1; CheXzero uses 1,000.
        seed: 0 for CheXzero's own resamples.
    """
    num_images, num_findings = labels.shape
    weights = np.stack(
        [
            np.bincount(np.random.RandomState(seed + i).randint(0, num_images, num_images), minlength=num_images)
            for i in range(num_resamples)
        ]
    ).astype(np.float64)
    resampled = np.empty((num_resamples, num_findings))
    for i in range(num_findings):
        known = (labels[:, i] == 0) | (labels[:, i] == 1)
        resampled[:, i] = weighted_auroc(*select_known(labels[:, i], scores[:, i]), weights[:, known])
    centers, intervals = zip(*map(center_and_interval, resampled.T), strict=True)
    mean_center, mean_interval = center_and_interval(resampled.mean(axis=1))
    return ImageBootstrap(
        np.array(centers), np.stack(intervals), mean_center, mean_interval, np.isnan(resampled).sum(axis=0)
    )


def center_and_interval(values: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean, and the values at CheXzero's positions, of those that are not NaN; NaN when none is left."""
    values = np.sort(values[~np.isnan(values)])
    if not len(values):
        return float("nan"), np.full(2, np.nan)
    positions = [max(round(share * len(values)) - 1, 0) for share in (0.025, 0.975)]
    return float(values.mean()), values[positions]
