"""
VinDr-CXR: 18,000 PA radiographs of two hospitals in Hanoi, 28 findings and diagnoses by radiologists, with boxes.

Where: https://physionet.org/content/vindr-cxr/1.0.0/ (Nguyen et al., Scientific Data 2022). Terms: PhysioNet
Credentialed Health Data License 1.5.0 after training and a signed agreement. A part of it, 15,000 images with 14
findings, is the Kaggle challenge "VinBigData Chest X-ray Abnormalities Detection", under the rules of that challenge.

The folders as PhysioNet and Kaggle ship them:

    annotations/annotations_train.csv  annotations_test.csv            train.csv
    annotations/image_labels_train.csv  image_labels_test.csv          train/<image_id>.dicom
    train/<image_id>.dicom  test/<image_id>.dicom

Derived fields:

- split: the official one. Three of 17 radiologists read each training image independently; five read each test image
  in consensus. Kaggle's test images have no public labels and are not read.
- findings: names as shipped, except that `Other disease` of the test table is `Other diseases` as in training. In
  training a finding is present if two of the three radiologists say so, see the option `min_votes`. In Kaggle's table,
  a radiologist states the findings that he or she drew a box of.
- boxes: of the present findings, of every radiologist who drew one, in pixels of the DICOM image. The boxes of two
  radiologists overlap. The tables do not have the sizes of the images, so a box may reach beyond its image.
- patient: no table names patients, so each image is its own patient.
- view: PA, as the owners state for all images. Sex and age are only in the DICOM headers, which are not opened.

Written from PhysioNet's description and from public code that reads it; not checked against a copy.
"""

import os
from pathlib import Path

import datasets
import numpy as np
import pandas as pd

from processing_tier.records.boxes import group_boxes
from processing_tier.records.from_table import make_records
from processing_tier.records.labels import to_numbers

from .archive_tables import find_first, find_in_archive, read_columns
from .chexmask import add_masks
from .formats import read_frame
from .splits import check_split

SPLITS = ("train", "test")
NAME = "vindr_cxr"
SOURCE = "https://physionet.org/content/vindr-cxr/1.0.0/"
NO_FINDING = "No finding"
CORNERS = ["x_min", "y_min", "x_max", "y_max"]


def read_vindr_cxr(
    root: str | os.PathLike, split: str, *, min_votes: int = 2, chexmask: str | os.PathLike | None = None
) -> datasets.Dataset:
    """
    Read one split of VinDr-CXR into the schema of [`records`] without opening images.

    Args:
        root (`str` or `os.PathLike`): the folder with `annotations` and `train` (or Kaggle's `train.csv`).
        split (`str`): `"train"` or `"test"`.
        min_votes (`int`, *optional*, defaults to 2):
            How many of the three radiologists must state a finding for it to be present. It has no effect on the test
            split, which is a consensus.
        chexmask (`str` or `os.PathLike`, *optional*): a table of CheXmask, or its folder, for masks; see [`chexmask`].

    Returns:
        `datasets.Dataset`: one record per existing image, in the order of the tables.

    Raises:
        `ValueError`: see [`make_records`]; also a missing file or column, or a number of votes that three
        radiologists cannot reach.
    """
    check_split(split, SPLITS, NAME)
    if min_votes not in (1, 2, 3):
        raise ValueError(f"{NAME}: min_votes is {min_votes}, but three radiologists read an image; choose 1, 2 or 3.")
    root = Path(root)
    pattern = f"annotations/annotations_{split}.csv"
    kaggle = None if find_first(root, [pattern]) or split != "train" else find_first(root, ["train.csv"])
    table = kaggle or find_in_archive(root, [pattern], NAME, SOURCE)
    needed = ("image_id", "class_name", *CORNERS, *(("rad_id",) if kaggle else ()))
    marks = read_columns(table, needed).drop_duplicates()
    if kaggle:
        drawn = pd.get_dummies(marks["class_name"], dtype=float)
        labels = pd.concat([marks[["image_id", "rad_id"]], drawn], axis=1)
        labels = labels.groupby(["image_id", "rad_id"], sort=False, as_index=False).max()
    else:
        path = find_in_archive(root, [f"annotations/image_labels_{split}.csv"], NAME, SOURCE)
        labels = read_frame(path).drop_duplicates()
        if "image_id" not in labels:
            raise ValueError(f"{path.name}: column 'image_id' is missing; is this the file of the archive, unchanged?")
    labels = labels.rename(columns={"Other disease": "Other diseases"})
    present = count_votes(labels, min_votes, (kaggle or path).name)
    if NO_FINDING in present:  # few votes may be enough for both
        others = present.drop(columns=NO_FINDING).eq(1).any(axis=1)
        present[NO_FINDING] = present[NO_FINDING].mask(others & present[NO_FINDING].notna(), 0.0)

    marks = marks[marks["class_name"] != NO_FINDING]
    agreed = present.stack()
    agreed = agreed.index[agreed == 1]
    marks = marks[pd.MultiIndex.from_frame(marks[["image_id", "class_name"]]).isin(agreed)]
    marks = marks.rename(columns={"class_name": "finding", "x_min": "x", "y_min": "y"})
    for side, start, end in (("w", "x", "x_max"), ("h", "y", "y_max")):
        marks[side] = to_numbers(marks[end]) - to_numbers(marks[start])
    boxes = group_boxes(marks, table.name)

    frame = present.reset_index().assign(view="PA")
    frame["image"] = f"{split}/" + frame["image_id"] + ".dicom"
    frame["patient_id"] = frame["image_id"]
    frame["boxes"] = frame["image_id"].map(boxes)
    columns = {finding: finding for finding in present.columns}
    return add_masks(make_records(frame, columns, root, split, NAME, skip_missing=True), chexmask, NAME)


def count_votes(labels: pd.DataFrame, min_votes: int, name: str) -> pd.DataFrame:
    """
    One row per image: 1 if `min_votes` of its radiologists (or all, if they are fewer) state a finding, 0 if not, NaN
    if no radiologist says anything.
    """
    findings = [column for column in labels.columns if column not in ("image_id", "rad_id")]
    if not findings or labels.empty:
        raise ValueError(f"{name}: it has no findings or no rows; is this the file of the archive, unchanged?")
    votes = labels[findings].apply(to_numbers)
    if not (votes.isin((0, 1)) | labels[findings].isna()).all(axis=None):
        raise ValueError(
            f"{name}: a finding has values other than 0 and 1; is this the file of the archive, unchanged?"
        )
    images = votes.groupby(labels["image_id"], sort=False)
    sums = images.sum(min_count=1)
    needed = np.minimum(images.size(), min_votes)
    return sums.ge(needed, axis=0).astype(float).where(sums.notna())
