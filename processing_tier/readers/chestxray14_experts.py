"""
Google's expert labels of ChestX-ray14: 4,374 of its radiographs with four findings adjudicated by three radiologists,
810 of these with all 14 findings by majority of three.

Where: https://docs.cloud.google.com/healthcare-api/docs/resources/public-datasets/nih-chest ("Additional Labels", by a
form). Papers: Majkowska et al., Radiology 2020 (four findings); Nabulsi et al., Scientific Reports 2021 (all). Terms:
research and education, cite the paper; the images are the NIH's, see `chestxray14`.

The folder as Google ships it, and the NIH's archive of images in it or at `image_root`:

    four_findings_expert_labels/validation_labels.csv  test_labels.csv
    all_findings_expert_labels/test_labels.csv

Files may also be called `four_findings_expert_labels_test_labels.csv`, as browsers save them from the bucket, in the
folder itself or in theirs. The files `individual_readers.csv` are not read.

Derived fields:

- split: the official ones: `validation` (2,412 images) and `test` (1,962) of the four findings, `test` (810 PA images
  of these) of all. The NIH's own lists are another split of the same patients.
- findings: of `labels="four"` `Fracture`, `Pneumothorax`, `Airspace opacity`, `Nodule or mass`, where `YES` is 1, `NO`
  0 and a blank means that the image was not adjudicated for it; of `labels="all"` the 14, `Other`, and `No Finding`,
  which is 1 where `Abnormal` is 0.
- patient: with leading zeros, as in `chestxray14`.
- view, sex, age: from the table of the four findings; the images of `labels="all"` are PA, their sex and age are
  missing.

Written from the README files of the two folders, which that page repeats, from a copy of all_findings_expert_labels'
individual readers, and from public code that reads the four findings; not checked against a full copy.
"""

import os
from pathlib import Path

import datasets
import pandas as pd

from processing_tier.records.from_table import make_records

from .archive_tables import drop_repeated, find_in_archive, read_columns
from .chestxray14 import FINDINGS, NO_FINDING, SEX_COLUMNS, find_images
from .splits import check_split

SPLITS = ("validation", "test")
NAME = "chestxray14_experts"
SOURCE = "https://docs.cloud.google.com/healthcare-api/docs/resources/public-datasets/nih-chest"
FOUR = ("Fracture", "Pneumothorax", "Airspace opacity", "Nodule or mass")
ALL = (*(finding.replace("_", " ") for finding in FINDINGS), "Other")
LABEL_SETS = {"four": ("Image Index", FOUR, SPLITS), "all": ("Image ID", ALL, ("test",))}
ABNORMAL = "Abnormal"
ANSWERS = {"YES": 1.0, "NO": 0.0, "HEDGE": -1.0, "1": 1.0, "0": 0.0}


def read_chestxray14_experts(
    root: str | os.PathLike, split: str, *, labels: str = "four", image_root: str | os.PathLike | None = None
) -> datasets.Dataset:
    """
    Read one split of the expert labels of ChestX-ray14 into the schema of [`records`] without opening images.

    Args:
        root (`str` or `os.PathLike`): the folder with `four_findings_expert_labels` or `all_findings_expert_labels`.
        split (`str`): `"validation"` (four findings only) or `"test"`.
        labels (`str`, *optional*, defaults to `"four"`): `"four"` findings, or `"all"` 14.
        image_root (`str` or `os.PathLike`, *optional*):
            Folder of the NIH's archive, with `images_001/images` or `images`; by default `root`.

    Returns:
        `datasets.Dataset`: one record per existing image, in the order of the table.

    Raises:
        `ValueError`: see [`make_records`]; also a missing file or column, an unknown set of labels, or an answer other
        than YES, NO and HEDGE.
    """
    if labels not in LABEL_SETS:
        raise ValueError(f"{NAME}: labels are {labels!r}; choose {' or '.join(LABEL_SETS)}.")
    column, findings, splits = LABEL_SETS[labels]
    check_split(split, splits, f"{NAME}, labels {labels}")
    folder, file = f"{labels}_findings_expert_labels", f"{split}_labels.csv"
    names = [f"{folder}/{file}", f"{folder}_{file}", f"{folder}/{folder}_{file}"]
    path = find_in_archive(root, names, NAME, SOURCE)
    needed = (column, "Patient ID", *findings, *(() if labels == "four" else (ABNORMAL,)))
    frame = read_columns(path, needed, ("View Position", "Patient Age", *SEX_COLUMNS))
    frame = drop_repeated(frame, column, f"{NAME}, split {split}").reset_index(drop=True)

    image_root = Path(root if image_root is None else image_root)
    images = find_images(image_root)
    records = pd.DataFrame(
        {
            "image": [images.get(name, f"images/{name}") for name in frame[column]],
            "patient_id": frame["Patient ID"].str.zfill(8),
            "view": frame["View Position"] if "View Position" in frame else "PA",
            **{finding: read_answers(frame[finding], path.name) for finding in findings},
        }
    )
    if labels == "all":
        records[NO_FINDING] = 1 - read_answers(frame[ABNORMAL], path.name)
    if "Patient Age" in frame:
        records["age"] = frame["Patient Age"]
    sex = next((name for name in SEX_COLUMNS if name in frame), None)
    if sex is not None:
        records["sex"] = frame[sex].str.strip()
    columns = {finding: finding for finding in (*findings, *([NO_FINDING] if labels == "all" else ()))}
    return make_records(records, columns, image_root, split, NAME, skip_missing=True)


def read_answers(values: pd.Series, name: str) -> pd.Series:
    """
    The answers of radiologists as labels; blanks are NaN.

    Raises:
        `ValueError`: another answer.
    """
    words = values.str.strip().str.upper()
    wrong = words.notna() & (words != "") & ~words.isin(list(ANSWERS))
    if wrong.any():
        raise ValueError(
            f"{name}: {wrong.sum()} values of {values.name!r} are not YES, NO or HEDGE; is this the file of the "
            "archive, unchanged?"
        )
    return words.map(ANSWERS)
