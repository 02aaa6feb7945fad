"""
RSNA Pneumonia Detection Challenge (2018): 26,684 labelled radiographs of ChestX-ray14 with boxes by radiologists.

Where: https://www.kaggle.com/c/rsna-pneumonia-detection-challenge (Shih et al., Radiology: AI 2019). Terms: the
challenge's rules, non-commercial and academic use; the images are the NIH's, see `chestxray14`.

The folder as Kaggle ships it:

    stage_2_train_labels.csv  (patientId,x,y,width,height,Target; a row for each box)
    stage_2_detailed_class_info.csv  (patientId,class)
    stage_2_train_images/<patientId>.dcm  stage_2_test_images/<patientId>.dcm

Derived fields:

- split: `train` has labels; those of the 3,000 images of `test` are not public (all findings NaN). The labelled images
  have no official split: papers make their own.
- findings: `Pneumonia` is the challenge's target, an opacity that radiologists consider pneumonia; `Normal` is 1 for
  the class `Normal`, 0 for `Lung Opacity` and `No Lung Opacity / Not Normal`.
- boxes: of `Pneumonia`, in pixels of the 1024 x 1024 DICOM image.
- patient: `patientId` is one image, not one patient. Put the RSNA's pneumonia-challenge-dataset-mappings_2018.json
  (https://www.rsna.org/artificial-intelligence/ai-image-challenge/rsna-pneumonia-detection-challenge-2018) beside the
  tables to get the NIH's patients, as in `chestxray14`. Without it, images of one patient may be in two splits.
- view, sex and age are only in the DICOM headers, which are not opened: all images count as frontal.

Written from Kaggle's description and from public code that reads it; not checked against a copy.
"""

import os
from pathlib import Path

import datasets
import numpy as np
import pandas as pd

from processing_tier.records.boxes import group_boxes
from processing_tier.records.from_table import make_records
from processing_tier.records.labels import to_numbers

from .archive_tables import find_first, find_in_archive, read_columns, read_json
from .splits import check_split

SPLITS = ("train", "test")
NAME = "rsna"
SOURCE = "https://www.kaggle.com/c/rsna-pneumonia-detection-challenge"
MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"
FINDINGS = ("Pneumonia", "Normal")
CLASSES = ("Lung Opacity", "No Lung Opacity / Not Normal", "Normal")
SIDE = 1024


def read_rsna(root: str | os.PathLike, split: str) -> datasets.Dataset:
    """
    Read one split of the RSNA pneumonia challenge into the schema of [`records`] without opening images.

    Args:
        root (`str` or `os.PathLike`): the folder with `stage_2_train_labels.csv`.
        split (`str`): `"train"`, or `"test"`, whose findings are not public.

    Returns:
        `datasets.Dataset`: one record per existing image; `test` in the order of the names.

    Raises:
        `ValueError`: see [`make_records`]; also a missing file or column, or other values.
    """
    check_split(split, SPLITS, NAME)
    root = Path(root)
    folder = f"stage_2_{split}_images"
    images = find_in_archive(root, [folder], NAME, SOURCE)
    if split == "train":
        frame = read_labels(root)
    else:
        frame = pd.DataFrame({"image_id": sorted(path.stem for path in images.glob("*.dcm"))}, dtype=str)
        frame[list(FINDINGS)] = np.nan
        frame["boxes"] = [[] for _ in range(len(frame))]
    frame["image"] = f"{folder}/" + frame["image_id"] + ".dcm"
    patients = read_patients(root)
    frame["patient_id"] = [patients.get(image, image) for image in frame["image_id"]]
    columns = {finding: finding for finding in FINDINGS}
    return make_records(frame, columns, root, split, NAME, skip_missing=True)


def read_labels(root: Path) -> pd.DataFrame:
    """One row per labelled image: its findings and boxes."""
    path = find_in_archive(root, ["stage_2_train_labels.csv"], NAME, SOURCE)
    rows = read_columns(path, ("patientId", "x", "y", "width", "height", "Target")).drop_duplicates()
    target = to_numbers(rows["Target"])
    if not target.isin((0, 1)).all():
        raise ValueError(f"{path.name}: a Target is neither 0 nor 1; is this the file of the archive, unchanged?")
    boxes = rows[target == 1].rename(columns={"patientId": "image_id", "width": "w", "height": "h"})
    boxes = group_boxes(boxes.assign(finding="Pneumonia"), path.name, SIDE, SIDE)
    frame = (
        target.groupby(rows["patientId"], sort=False).max().rename("Pneumonia").rename_axis("image_id").reset_index()
    )
    frame["boxes"] = frame["image_id"].map(boxes)

    path = find_in_archive(root, ["stage_2_detailed_class_info.csv"], NAME, SOURCE)
    classes = read_columns(path, ("patientId", "class")).drop_duplicates("patientId").set_index("patientId")["class"]
    if not classes.isin(CLASSES).all():
        raise ValueError(f"{path.name}: a class is not one of {', '.join(CLASSES)}; is this the file of the archive?")
    frame["Normal"] = frame["image_id"].map((classes == "Normal").astype(float))
    return frame


def read_patients(root: Path) -> dict[str, str]:
    """Image to patient of ChestX-ray14, by the RSNA's mapping; empty without it."""
    path = find_first(root, [MAPPING])
    if path is None:
        return {}
    try:
        pairs = {entry["subset_img_id"]: entry["img_id"][:8] for entry in read_json(path)}
        if not all(isinstance(text, str) for pair in pairs.items() for text in pair):
            raise TypeError
        return pairs
    except (TypeError, KeyError):
        raise ValueError(
            f"{path.name}: this is not the mapping of the RSNA; download it again or remove it."
        ) from None
