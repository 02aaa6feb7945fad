"""
TBX11K: 11,200 radiographs of healthy, sick and tuberculous people, with boxes of active and latent tuberculosis.

Where: https://github.com/yun-liu/Tuberculosis links to the archive (Liu et al., CVPR 2020 and TPAMI 2023). Terms:
CC BY-NC-SA 2.0; no account.

The folder as its authors ship it (`TBX11K`):

    annotations/json/TBX11K_train.json  TBX11K_val.json  all_train.json  all_val.json ...  (COCO's form)
    imgs/health/h0001.png  imgs/sick/s0001.png  imgs/tb/tb0003.png ...
    imgs/extra/mc+shenzhen/{train,val}/CHNCXR_0001_0.png  imgs/extra/da+db/{train,val}/n11.png, px3.jpg ...

Derived fields:

- split: the official train (6,600) and val (1,800, called `validation`). The labels of the test images are not public
  (they are an online challenge), so these images are not read.
- findings: `Tuberculosis` is 1 for images of the folder `tb`, `No Finding` for those of `health`; those of `sick` have
  neither. `Active Tuberculosis` and `Latent Tuberculosis` (the annotations' `ObsoletePulmonaryTuberculosis`) are 1 if
  the image has such a box. An image of `tb` without a box of either kind (`tb1199.png` is one) leaves both blank.
- boxes: of the two kinds, and of `Tuberculosis` where its kind is unknown, in pixels of the 512 x 512 images.
- patient: no table names patients, so each image is its own patient.
- view: all images count as frontal. Sex and age are missing.
- option `extra`: the images of `imgs/extra` too (288 in each split), which are of four other sets: DA, DB, Montgomery
  and Shenzhen. They do not have boxes; `Tuberculosis` is in their names. Those of Montgomery and Shenzhen have the
  patients of `montgomery` and `shenzhen`, so that an evaluation on these finds a model that was trained on them.
  Without the option, no image of the four is read. One patient of Montgomery may be in both splits; training with one
  and evaluating with the other then stops.

Written from the authors' page and from public code that reads the archive (torchxrayvision, and scripts that check the
counts of `all_trainval.json`); not checked against a copy.
"""

import os
import re
from pathlib import PurePosixPath
from typing import Any

import datasets
import pandas as pd

from processing_tier.records.boxes import group_boxes
from processing_tier.records.from_table import make_records

from .archive_tables import drop_repeated, find_in_archive, read_json
from .nlm_tuberculosis import IMAGE_NAME, patient_of
from .splits import check_split

SPLITS = ("train", "validation")
NAME = "tbx11k"
SOURCE = "https://github.com/yun-liu/Tuberculosis"
FILES = {"train": "train", "validation": "val"}
TUBERCULOSIS, ACTIVE, LATENT, NO_FINDING = FINDINGS = (
    "Tuberculosis",
    "Active Tuberculosis",
    "Latent Tuberculosis",
    "No Finding",
)
CATEGORIES = {
    "ActiveTuberculosis": ACTIVE,
    "ObsoletePulmonaryTuberculosis": LATENT,
    "PulmonaryTuberculosis": TUBERCULOSIS,
}
DA_DB_NAME = re.compile(r"([np])x?\d+", re.IGNORECASE)  # n and nx are normal, p and px have tuberculosis


def read_tbx11k(root: str | os.PathLike, split: str, *, extra: bool = False) -> datasets.Dataset:
    """
    Read one split of TBX11K into the schema of [`records`] without opening images.

    Args:
        root (`str` or `os.PathLike`): the folder with `annotations` and `imgs`.
        split (`str`): `"train"` or `"validation"`.
        extra (`bool`, *optional*, defaults to `False`): also the images of other sets in `imgs/extra`.

    Returns:
        `datasets.Dataset`: one record per existing image, in the order of the annotations.

    Raises:
        `ValueError`: see [`make_records`]; also a missing file, annotations of another form, an unknown category, or
        an image whose path does not tell its class.
    """
    check_split(split, SPLITS, NAME)
    if extra not in (True, False):
        raise ValueError(f"{NAME}: extra is {extra!r}; give 1 to read imgs/extra too or 0 to leave it out.")
    name = f"annotations/json/{'all' if extra else 'TBX11K'}_{FILES[split]}.json"
    path = find_in_archive(root, [name], NAME, SOURCE)
    images, marks = read_coco(read_json(path), path.name)
    images = drop_repeated(images, "file_name", f"{NAME}, split {split}").reset_index(drop=True)
    size = [marks["file_name"].map(images.set_index("file_name")[side]) for side in ("width", "height")]
    marks["image_id"] = marks.pop("file_name")
    boxes = group_boxes(marks, path.name, *size)
    records = pd.DataFrame([describe(file_name, boxes.get(file_name, [])) for file_name in images["file_name"]])
    columns = {finding: finding for finding in FINDINGS}
    return make_records(records, columns, root, split, NAME, skip_missing=True)


def read_coco(data: Any, name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """
    The images (`file_name`, `width`, `height`) and the boxes (`file_name`, `finding`, `x`, `y`, `w`, `h`) of COCO's
    form.

    Raises:
        `ValueError`: annotations of another form, or an unknown category.
    """
    try:
        paths = {image["id"]: str(PurePosixPath(image["file_name"])) for image in data["images"]}
        sizes = [(float(image["width"]), float(image["height"])) for image in data["images"]]
        images = [(paths[image["id"]], *size) for image, size in zip(data["images"], sizes, strict=True)]
        categories = {category["id"]: category["name"] for category in data["categories"]}
        marks = [
            (paths[mark["image_id"]], categories[mark["category_id"]], *map(float, mark["bbox"]))
            for mark in data["annotations"]
        ]
        frame = pd.DataFrame(marks, columns=["file_name", "finding", "x", "y", "w", "h"])
        others = set(frame["finding"]) - set(CATEGORIES)
    except (TypeError, KeyError, ValueError, OverflowError):
        raise ValueError(
            f"{name}: images, annotations and categories are not as shipped; download it again."
        ) from None
    if others:
        raise ValueError(
            f"{name}: the category {min(map(str, others))!r} is not one of {', '.join(CATEGORIES)}; is this TBX11K?"
        )
    frame["finding"] = frame["finding"].map(CATEGORIES)
    return pd.DataFrame(images, columns=["file_name", "width", "height"]), frame


def describe(file_name: str, boxes: list[dict]) -> dict:
    """The record of an image: ids and labels come from its path, the kinds of tuberculosis from its boxes."""
    path = PurePosixPath(file_name)
    folder = path.parts[0] if path.parts else ""
    image_id = patient = path.stem
    nlm = IMAGE_NAME.fullmatch(path.stem)
    if folder in ("tb", "health", "sick"):
        sick, healthy = folder == "tb", folder == "health"
    elif folder == "extra" and nlm:
        sick, patient = nlm[2] == "1", patient_of(nlm[1])
        healthy = not sick
    elif folder == "extra" and (match := DA_DB_NAME.fullmatch(path.stem)):
        image_id = patient = str(path.with_suffix(""))  # n11 of train is not n11 of val
        sick = match[1].lower() == "p"
        healthy = not sick
    else:
        raise ValueError(f"{path.name}: the path does not tell the class of the image; is this TBX11K as shipped?")
    found = {box["finding"] for box in boxes}
    kinds = [float(kind in found) for kind in (ACTIVE, LATENT)]
    if sick and not any(kinds):
        kinds = [float("nan")] * 2
    labels = dict(zip(FINDINGS, (float(sick), *kinds, float(healthy)), strict=True))
    return {"image": f"imgs/{file_name}", "image_id": image_id, "patient_id": patient, "boxes": boxes, **labels}
