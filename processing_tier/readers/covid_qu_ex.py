"""
COVID-QU-Ex: 33,920 radiographs of COVID-19, other pneumonia and normal chests with masks of the lungs, and 5,826 that
also have masks of the COVID-19 infection.

Where: https://www.kaggle.com/datasets/anasmohammedtahir/covidqu (Tahir et al., Comput Biol Med 2021).
Terms: the licence on that page; the images come from other public collections, with their own terms.

The folder as Kaggle ships it (each part inside a second folder with the same name):

    Infection Segmentation Data/Infection Segmentation Data/{Train,Val,Test}/{COVID-19,Non-COVID,Normal}/
        images/covid_1.png ...  lung masks/covid_1.png ...  infection masks/covid_1.png ...
    Lung Segmentation Data/Lung Segmentation Data/{Train,Val,Test}/{COVID-19,Non-COVID,Normal}/
        images/...  lung masks/...

Derived fields:

- split: the official one of each part (`Val` is `validation`). The parts were split separately: do not train on one
  and test on the other.
- findings: `COVID-19`, `Non-COVID` (other infections) and `Normal`, one of them 1, by folder.
- masks: `Lung` and, unless the file is black, `COVID-19`, in pixels of the 256 x 256 image; a pixel above 127 is
  inside. Unlike in the other archives, masks are pictures, which take about 1 ms each to read (see the option
  `masks`).
- patient: `sub-S03044` of names such as `sub-S03044_ses-E06150_run-1.png` (of BIMCV-COVID19+). Any other image is its
  own patient. It is not known whether the official splits are by patient; the check for patients in two splits will
  tell.
- view: all images count as frontal. Sex and age are missing.

Written from Kaggle's description and from public code that reads it; not checked against a copy.
"""

import os
import re
from pathlib import Path

import datasets
import numpy as np
import pandas as pd

from processing_tier.progress import progress
from processing_tier.records.from_table import make_records
from processing_tier.records.masks import encode_mask

from ..radiograph_tier import read_source
from .archive_tables import find_in_archive
from .splits import check_split

SPLITS = ("train", "validation", "test")
NAME = "covid_qu_ex"
SOURCE = "https://www.kaggle.com/datasets/anasmohammedtahir/covidqu"
FOLDERS = {"train": "Train", "validation": "Val", "test": "Test"}
PARTS = {"infection": "Infection Segmentation Data", "lung": "Lung Segmentation Data"}
CLASSES = ("COVID-19", "Non-COVID", "Normal")
MASK_FOLDERS = {"Lung": "lung masks", "COVID-19": "infection masks"}
BIMCV_NAME = re.compile(r"(sub-S\d+)_.*")


def read_covid_qu_ex(
    root: str | os.PathLike, split: str, *, part: str = "infection", masks: bool = True
) -> datasets.Dataset:
    """
    Read one split of COVID-QU-Ex into the schema of [`records`]; masks are opened, images are not.

    Args:
        root (`str` or `os.PathLike`): the folder with `Infection Segmentation Data` and `Lung Segmentation Data`.
        split (`str`): `"train"`, `"validation"` or `"test"`.
        part (`str`, *optional*, defaults to `"infection"`): `"infection"` (5,826 images) or `"lung"` (33,920).
        masks (`bool`, *optional*, defaults to `True`): read the masks.

    Returns:
        `datasets.Dataset`: one record per image, in the order of classes and names.

    Raises:
        `ValueError`: see [`make_records`]; also a missing folder, an unknown part, or a mask that cannot be
        decoded.
    """
    check_split(split, SPLITS, NAME)
    if part not in PARTS:
        raise ValueError(f"{NAME}: the part {part!r} is not known; choose {' or '.join(PARTS)}.")
    if masks not in (True, False):
        raise ValueError(f"{NAME}: masks is {masks!r}; give 1 to read them or 0 to leave them out.")
    patterns = [f"{PARTS[part]}/{PARTS[part]}/{FOLDERS[split]}", f"{PARTS[part]}/{FOLDERS[split]}"]
    folder = find_in_archive(root, patterns, NAME, SOURCE)
    rows = []
    for name in CLASSES:
        images = find_in_archive(folder, [f"{name}/images"], f"{NAME}'s {FOLDERS[split]}", SOURCE)
        rows += [(name, path) for path in sorted(images.iterdir()) if path.suffix == ".png"]
    frame = pd.DataFrame(
        {
            "image": [str(path.relative_to(root)) for _, path in rows],
            "image_id": [path.stem for _, path in rows],
            "patient_id": [match[1] if (match := BIMCV_NAME.fullmatch(p.stem)) else p.stem for _, p in rows],
            **{finding: [float(name == finding) for name, _ in rows] for finding in CLASSES},
        }
    )
    if masks:
        bar = progress(rows, "reading masks", "image")
        frame["masks"] = [read_masks(path, Path(root)) for _, path in bar]
    columns = {finding: finding for finding in CLASSES}
    return make_records(frame, columns, root, split, NAME, skip_missing=True)


def read_masks(image: Path, root: Path) -> list[dict]:
    """The masks beside an image, without black ones."""
    masks = []
    for finding, folder in MASK_FOLDERS.items():
        path = image.parent.parent / folder / image.name
        if path.is_file():
            mask = np.asarray(read_source(path.relative_to(root), root)[0]) > 127  # which may be empty
            if mask.any():
                height, width = mask.shape
                masks.append({"finding": finding, "height": height, "width": width, "counts": encode_mask(mask)})
    return masks
