"""Reports against their negated and their shortened form: the images and texts of CXR-Align.

CXR-Align (Ko & Park, CVPR 2025, arXiv:2505.22079) is one file, `cxr-align.json`, behind the credentialed access of
https://physionet.org/content/cxr-align/. Under `mimic`, it has for each of its images of MIMIC-CXR, by `dicom_id`, the
`report`, a `negation` that denies one of its findings (`chosen`), the report with this finding `omitted`, and the
finding's `location`, which is not needed. Written from public code that reads the file and finds the images by these
ids (`src/data/io.py` and `scripts/download_images.py` of github.com/armaanchhina/cxr-alignment); not checked against
the file.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evaluation_tier.analyses.robustness.intervals import resampled_share, with_interval
from evaluation_tier.statistics.resampling import MIN_PATIENTS
from processing_tier.readers.archive_tables import read_json

TEXTS = ("report", "negation", "omitted")
CHANCE = {"over_negated": 1 / 2, "over_shortened": 1 / 2, "over_both": 1 / 3}  # of a model that guesses


class Variants(NamedTuple):
    """The report of an image in three forms."""

    report: str
    negation: str
    omitted: str
    finding: str  # that is denied or omitted; "" if the file does not say


def read_cxr_align(path: str | Path) -> dict[str, Variants]:
    """
    The reports of CXR-Align by `image_id`; those that lack one of the three texts are left out.

    Raises:
        ValueError: no file, a file that is not JSON or of another form, an image with two entries, or no report.
    """
    path = Path(path)
    found: dict[str, Variants] = {}
    try:
        for images in read_json(path).values():
            for image_id, entry in images.items():
                report, negation, omitted = texts = [entry[name] for name in TEXTS]
                if not all(isinstance(text, str) for text in texts):
                    raise TypeError
                if image_id in found:
                    raise ValueError(f"{path.name}: the image {image_id!r} is in two groups; download it again.")
                if all(text.strip() for text in texts):
                    found[image_id] = Variants(report, negation, omitted, name_finding(entry.get("chosen")))
    except (AttributeError, TypeError, KeyError):
        raise ValueError(
            f"{path.name}: the entries are not {', '.join(TEXTS)} by image, as in CXR-Align; download it again."
        ) from None
    if not found:
        raise ValueError(f"{path.name}: no image has a report; download it again.")
    return found


def name_finding(chosen: Any) -> str:
    """The finding that a report was changed in, or `""`."""
    return " ".join(chosen.split()) if isinstance(chosen, str) else ""


def compare_reports(
    image_embeds: np.ndarray,
    text_embeds: np.ndarray,
    findings: np.ndarray,
    patient_ids: np.ndarray,
    draws: np.ndarray,
    min_images: int,
) -> dict:
    """
    The `report_alignment` of [`evaluate_robustness`].

    Args:
        image_embeds: (images, dim), L2-normalised.
        text_embeds: (images, 3, dim), those of `TEXTS`, L2-normalised.
        findings: (images,), the one that each report was changed in; `""` if it is not known.
        patient_ids: (images,).
        draws: (resamples, images), of these patients.
        min_images: that a finding needs for numbers of its own.
    """
    cosines = np.einsum("nd,ntd->nt", image_embeds.astype(np.float64), text_embeds.astype(np.float64))
    difference = np.round(cosines[:, :1] - cosines[:, 1:], 7)  # the precision of float32: texts of one embedding tie
    preferred = np.sign(difference) / 2 + 0.5  # (images, 2): 1, 0, or 1/2 for a tie
    values = np.column_stack([preferred, preferred.min(axis=1)])
    names, counts = np.unique(findings[findings != ""], return_counts=True)
    groups = {"all": np.full(len(findings), True)}
    groups |= {name: findings == name for name, count in zip(names, counts, strict=True) if count >= min_images}
    described: dict[str, dict] = {}
    for name, where in groups.items():
        of_group = np.broadcast_to(where[:, None], values.shape)
        point, intervals = with_interval(partial(resampled_share, values=values, where=of_group), draws)
        if len(np.unique(patient_ids[where])) < MIN_PATIENTS:
            intervals = np.full_like(intervals, np.nan)
        described[name] = {"n_images": where.sum(), "n_ties": (difference[where] == 0).any(axis=1).sum()}
        for measure, value, interval in zip(CHANCE, point, intervals, strict=True):
            described[name] |= {measure: value, f"{measure}_ci95": interval}
    return {"chance": CHANCE, "all": described.pop("all"), "findings": described}


def match_images(reports: Mapping[str, Variants], image_ids: Sequence[str]) -> np.ndarray:
    """
    The rows of the images that have reports, ascending.

    Raises:
        ValueError: no image has one.
    """
    rows = np.flatnonzero([image_id in reports for image_id in image_ids])
    if not len(rows):
        raise ValueError(
            f"CXR-Align has reports of {len(reports):,} images of MIMIC-CXR, but of none of the {len(image_ids):,} "
            "evaluated ones: evaluate mimic_cxr_jpg:FOLDER, and the views and the split that hold them."
        )
    return rows
