"""
ReXGradient-160K: 273,004 radiographs of 160,000 studies of 109,487 patients of 79 sites in the US, with reports.

Where: https://huggingface.co/datasets/rajpurkarlab/ReXGradient-160K (Zhang et al. 2025, arXiv:2505.00228). Terms:
ReXGradient-160K Non-Commercial Data Access and Use Agreement, accepted with an account of the Hub (a gated data set):
research only, no clinical use.

The folder as the Hub ships it, and the images that `cat deid_png.part* | tar --zstd -xf -` extracts into it:

    metadata/train_metadata_view_position.json  valid_metadata_view_position.json  test_metadata_view_position.json
    deid_png.part00 ... deid_png.part09
    deid_png/<PatientID>/<AccessionNumber>/studies/<study>/series/<series>/instances/<SopInstanceUid>.png

Each file maps the id of a study to its `PatientID`, `PatientSex`, `PatientAge`, `Indication`, `Comparison`,
`Findings`, `Impression`, and to lists of `ImagePath` (`../deid_png/...`, from `metadata`) and `ImageViewPosition`.

Derived fields:

- split: the official one by patient; `valid` is called `validation`. The owner's private test set is not public.
- findings: none, since the archive has no labels.
- text: `Findings` and `Impression`; `report` has all four sections, each after its name. `None` and NaN are blank.
- study: the id in the file. Every image of a study has its report.
- view: `ImageViewPosition`; `POSTERO_ANTERIOR` is PA, `LL` is LATERAL, `LAO`, `RAO`, `UNKNOWN`, `N/A` and blanks are
  OTHER.
- sex, and age in years from DICOM's form (`007Y`, `002D`).

The images have a quarter of the original width and height. The boxes of interstitial patterns (about 400,
`metadata/interstitial_pattern_bbox.json`) are not read: no public text or code says how the file is built, or whether
its pixels are those of the original images. Written from the owner's page and from public code that reads
the archive (RadHarmony and others); not checked against a copy.
"""

import os
from pathlib import Path
from typing import Any

import datasets
import pandas as pd

from processing_tier.records.from_table import make_records

from .archive_tables import find_in_archive, read_json
from .splits import check_split

SPLITS = ("train", "validation", "test")
NAME = "rexgradient"
SOURCE = "https://huggingface.co/datasets/rajpurkarlab/ReXGradient-160K"
FILES = {"train": "train", "validation": "valid", "test": "test"}
SECTIONS = ("Indication", "Comparison", "Findings", "Impression")
BLANKS = ("", "none", "nan")
MAX_BYTES = 2**30  # of the file of 140,000 studies: some 280 million, by the usual lengths of its fields


def read_rexgradient(
    root: str | os.PathLike, split: str, *, image_root: str | os.PathLike | None = None
) -> datasets.Dataset:
    """
    Read one split of ReXGradient-160K into the schema of [`records`] without opening images.

    Args:
        root (`str` or `os.PathLike`): the folder with `metadata`.
        split (`str`): `"train"`, `"validation"` or `"test"`.
        image_root (`str` or `os.PathLike`, *optional*): the folder with `deid_png`, by default `root`.

    Returns:
        `datasets.Dataset`: one record per existing image, in the order of the studies and of their images.

    Raises:
        `ValueError`: see [`make_records`]; also a missing file, or metadata of another form.
    """
    check_split(split, SPLITS, NAME)
    path = find_in_archive(root, [f"metadata/{FILES[split]}_metadata_view_position.json"], NAME, SOURCE)
    rows = read_studies(read_json(path, MAX_BYTES), path.name)
    frame = pd.DataFrame(rows, columns=list(rows[0]) if rows else ["image", "patient_id"])
    return make_records(frame, {}, Path(root if image_root is None else image_root), split, NAME, skip_missing=True)


def read_studies(data: Any, name: str) -> list[dict]:
    """
    One row for each image of the studies. Paths start from the folder that holds `metadata`.

    Raises:
        `ValueError`: anything but studies by their ids, or lists of images and views that differ in length.
    """
    rows = []
    try:
        for study_id, study in data.items():
            sections = {section: text_of(study[section]) for section in SECTIONS}
            common = {
                "study_id": study_id,
                "patient_id": text_of(study["PatientID"]),
                "sex": text_of(study["PatientSex"]),
                "age": text_of(study["PatientAge"]),
                "findings": sections["Findings"],
                "impression": sections["Impression"],
                "report": "\n".join(f"{key}: {text}" for key, text in sections.items() if text),
            }
            for image, view in zip(study["ImagePath"] or (), study["ImageViewPosition"] or (), strict=True):
                rows.append({"image": str.removeprefix(image, "../"), "view": text_of(view), **common})
    except (AttributeError, KeyError, TypeError, ValueError):
        raise ValueError(
            f"{name}: the studies do not have PatientID, ImagePath, ImageViewPosition and the sections of a report as "
            "shipped; download it again."
        ) from None
    return rows


def text_of(value: Any) -> str:
    """
    A field as text; `""` for None, NaN and the word `None`.

    Raises:
        `TypeError`: a list or a mapping.
    """
    if isinstance(value, (list, dict)):
        raise TypeError
    text = "" if value is None else str(value).strip()
    return "" if text.lower() in BLANKS else text
