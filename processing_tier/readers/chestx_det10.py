"""
ChestX-Det10: 3,543 radiographs of ChestX-ray14 with boxes of ten findings by three radiologists.

Where: https://github.com/Deepwise-AILab/ChestX-Det10-Dataset (Liu et al., arXiv 2006.10550) has the annotations and
links to train_data.zip and test_data.zip. Terms: no licence is stated; the images are the NIH's, see `chestxray14`.

The folder after unpacking:

    train.json  test.json  ([{"file_name": "00000042_006.png", "syms": ["Fibrosis"], "boxes": [[632, 721, 909, 969]]}])
    train_data/00000042_006.png ...  test_data/...

Derived fields:

- split: the official one (3,001 and 542 images).
- findings: 1 if `syms` has it, otherwise 0: the radiologists looked for all ten.
- boxes: `[x1, y1, x2, y2]` as corner and size, in pixels of the 1024 x 1024 image.
- patient: the first part of the name of the file, as in `chestxray14`; an image with another name is its own patient.
- view: all images count as frontal. Sex and age are in `chestxray14`, by `image_id`.

Written from the authors' README and test.json, and from public code for the images; not checked against a copy.
"""

import os
import re
from pathlib import Path

import datasets
import pandas as pd

from processing_tier.records.boxes import group_boxes
from processing_tier.records.from_table import make_records

from .archive_tables import drop_repeated, find_in_archive, read_json
from .splits import check_split

SPLITS = ("train", "test")
NAME = "chestx_det10"
SOURCE = "https://github.com/Deepwise-AILab/ChestX-Det10-Dataset"
SIDE = 1024
NIH_NAME = re.compile(r"(\d{8})_\d{3}")
FINDINGS = (
    "Atelectasis",
    "Calcification",
    "Consolidation",
    "Effusion",
    "Emphysema",
    "Fibrosis",
    "Fracture",
    "Mass",
    "Nodule",
    "Pneumothorax",
)


def read_chestx_det10(root: str | os.PathLike, split: str) -> datasets.Dataset:
    """
    Read one split of ChestX-Det10 into the schema of [`records`] without opening images.

    Args:
        root (`str` or `os.PathLike`): the folder with `train.json` and `train_data`.
        split (`str`): `"train"` or `"test"`.

    Returns:
        `datasets.Dataset`: one record per existing image, in the order of the annotations.

    Raises:
        `ValueError`: see [`make_records`]; also a missing file, or annotations of another form.
    """
    check_split(split, SPLITS, NAME)
    path = find_in_archive(root, [f"{split}.json"], NAME, SOURCE)
    find_in_archive(root, [f"{split}_data"], NAME, SOURCE)
    data = read_json(path)
    try:
        frame = pd.DataFrame([(entry["file_name"], entry["syms"]) for entry in data], columns=["file_name", "syms"])
        corners = [
            (Path(entry["file_name"]).stem, finding, *map(float, box))
            for entry in data
            for finding, box in zip(entry["syms"], entry["boxes"], strict=True)
        ]
        boxes = pd.DataFrame(corners, columns=["image_id", "finding", "x", "y", "x2", "y2"])
        boxes["w"], boxes["h"] = boxes["x2"] - boxes["x"], boxes["y2"] - boxes["y"]
        others = set(boxes["finding"]) - set(FINDINGS)
        if not all(isinstance(name, str) for name in frame["file_name"]):
            raise TypeError
    except (TypeError, KeyError, ValueError, OverflowError):
        raise ValueError(
            f"{path.name}: the annotations are not file_name, syms and boxes; download it again."
        ) from None
    if others:
        raise ValueError(f"{path.name}: {min(map(str, others))!r} is not one of the ten; is this ChestX-Det10?")
    frame = drop_repeated(frame, "file_name", f"{NAME}, split {split}")
    frame["image"] = f"{split}_data/" + frame["file_name"]
    stems = [Path(name).stem for name in frame["file_name"]]
    frame["image_id"] = stems
    frame["patient_id"] = [match[1] if (match := NIH_NAME.fullmatch(stem)) else stem for stem in stems]
    frame["boxes"] = frame["image_id"].map(group_boxes(boxes, path.name, SIDE, SIDE))
    for finding in FINDINGS:
        frame[finding] = [float(finding in present) for present in frame["syms"]]
    columns = {finding: finding for finding in FINDINGS}
    return make_records(frame, columns, root, split, NAME, skip_missing=True)
