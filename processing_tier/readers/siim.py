"""
SIIM-ACR Pneumothorax Segmentation (2019): 12,047 radiographs of ChestX-ray14 with masks of the pneumothorax.

Where: https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation (Filice et al., J Digit Imaging 2020); images of
the first stage come from Google's Healthcare API or from copies on Kaggle. Terms: the challenge's rules: no commercial
use; the images are the NIH's, see `chestxray14`.

The folder as Kaggle ships it:

    train-rle.csv (first stage: "ImageId, EncodedPixels", with a blank in the header)  and/or  stage_2_train.csv
    dicom-images-train/<study>/<series>/<ImageId>.dcm  (or all of them in dicom-images-train/)
    dicom-images-test/<study>/<series>/<ImageId>.dcm  and/or  stage_2_images/<ImageId>.dcm

Derived fields:

- split: `test` is dicom-images-test (1,372 images, first stage) and stage_2_images (3,205); `train` is every other
  image of the table. If both tables are there, stage_2_train.csv is read: it also labels the test images of the first
  stage. Labels of the second stage are not public (NaN).
- finding: `Pneumothorax`, 1 if a row has a mask, 0 if it has `-1`.
- masks: one for each row with a mask (an image may have several); 1024 x 1024, the size of every image.
- patient: the tables do not give patients and the headers are not opened, so each image is its own patient. Images of
  one NIH patient may be in both splits.
- view, sex and age are only in the DICOM headers: all images count as frontal.

Written from Kaggle's description and from public code that reads it; not checked against a copy. The example of a mask
on the challenge's page is a test of [`counts_from_siim`].
"""

import os
from pathlib import Path

import datasets
import pandas as pd

from processing_tier.records.from_table import make_records
from processing_tier.records.masks import counts_from_siim

from .archive_tables import find_in_archive
from .formats import read_frame
from .splits import check_split

SPLITS = ("train", "test")
NAME = "siim"
SOURCE = "https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation"
FINDING = "Pneumothorax"
TRAIN_FOLDERS = ("dicom-images-train",)
TEST_FOLDERS = ("dicom-images-test", "stage_2_images")
SIDE = 1024


def read_siim(root: str | os.PathLike, split: str) -> datasets.Dataset:
    """
    Read one split of SIIM-ACR pneumothorax into the schema of [`records`] without opening images.

    Args:
        root (`str` or `os.PathLike`): the folder with `train-rle.csv` or `stage_2_train.csv`.
        split (`str`): `"train"`, or `"test"`, most of whose findings are not public.

    Returns:
        `datasets.Dataset`: one record per existing image; `train` in the order of the table, `test` in
        the order of the names.

    Raises:
        `ValueError`: see [`make_records`]; also a missing file or column, or a broken mask.
    """
    check_split(split, SPLITS, NAME)
    root = Path(root)
    path = find_in_archive(root, ["stage_2_train.csv", "train-rle.csv"], NAME, SOURCE)
    masks = read_masks(path)
    find_in_archive(root, TRAIN_FOLDERS if split == "train" else TEST_FOLDERS, NAME, SOURCE)
    test_images = find_images(root, TEST_FOLDERS)
    if split == "train":
        images = find_images(root, TRAIN_FOLDERS)
        names = [image for image in masks if image not in test_images]
    else:
        images, names = test_images, sorted(test_images)
    frame = pd.DataFrame(
        {
            "image": [images.get(image, f"{TRAIN_FOLDERS[0]}/{image}.dcm") for image in names],
            "image_id": names,
            "patient_id": names,
            "masks": [masks.get(image, []) for image in names],
            FINDING: [float(bool(masks[image])) if image in masks else float("nan") for image in names],
        }
    )
    return make_records(frame, {FINDING: FINDING}, root, split, NAME, skip_missing=True)


def find_images(root: Path, folders: tuple[str, ...]) -> dict[str, str]:
    """Name of each image to its path below `root`, however deep."""
    paths = (path for folder in folders for path in sorted((root / folder).rglob("*.dcm")))
    return {path.name.removesuffix(".dcm"): str(path.relative_to(root)) for path in paths}


def read_masks(path: Path) -> dict[str, list[dict]]:
    """The masks of each image; an empty list for one without a pneumothorax."""
    frame = read_frame(path)
    frame.columns = frame.columns.str.strip()
    missing = {"ImageId", "EncodedPixels"} - set(frame.columns)
    if missing:
        raise ValueError(
            f"{path.name}: column {min(missing)!r} is missing; is this the file of the archive, unchanged?"
        )
    masks: dict[str, list[dict]] = {}
    frame = frame[["ImageId", "EncodedPixels"]].drop_duplicates()
    for row, image, text in zip(frame.index, frame["ImageId"], frame["EncodedPixels"], strict=True):
        try:
            counts = counts_from_siim("" if pd.isna(text) else text, SIDE, SIDE)
        except ValueError as error:
            raise ValueError(f"{path.name}, line {row + 2}: {error}") from None
        images_masks = masks.setdefault(image, [])
        if len(counts) > 1:
            images_masks.append({"finding": FINDING, "height": SIDE, "width": SIDE, "counts": counts})
    return masks
