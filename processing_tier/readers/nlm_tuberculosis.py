"""
Montgomery and Shenzhen: 138 and 662 radiographs of tuberculosis screening, with the radiologists' short readings.

Where: https://data.lhncbc.nlm.nih.gov/public/Tuberculosis-Chest-X-ray-Datasets/ (Jaeger et al., Quant Imaging Med Surg
2014, doi:10.3978/j.issn.2223-4292.2014.11.20). Terms: public domain, no account; the National Library of Medicine asks
to name it as the source and to cite the paper.

The folders as the library ships them (`MontgomerySet`, `ChinaSet_AllFiles`):

    CXR_png/MCUCXR_0001_0.png ...           CXR_png/CHNCXR_0001_0.png ...
    ClinicalReadings/MCUCXR_0001_0.txt      ClinicalReadings/CHNCXR_0001_0.txt
    ManualMask/leftMask/  rightMask/        Annotations/  (masks of the findings)
    montgomery_consensus_roi.csv            shenzhen_consensus_roi.csv

Derived fields:

- split: there is no official one, so everything is `train`. Both sets are usually a test set.
- findings: `Tuberculosis` is 1 where the name of the file ends in `_1`, and `No Finding` where it ends in `_0`.
- text: the reading without its lines of sex and age ("normal", "bilateral PTB"), in `findings` and `report`. A reading
  that says `NO REPORT` is blank. There are no impressions.
- sex and age: from the reading. Ages in months and days are years; an age without a unit is blank.
- patient: the number in the name with its prefix (`MCUCXR_0001`). The readings say that 0117 is the patient of 0113,
  and that 0166 is the one of 0162; 0170 has the age and sex of 0162 and mentions earlier images. Each group shares
  an id.
- view: PA, as the owner states for all images.
- boxes: of `Tuberculosis`, on which two radiologists agree (109 of Montgomery, 250 of Shenzhen), from `..._roi.csv`
  (`patientId`, which is the name of the image, `x_dis`, `y_dis`, `width_dis`, `height_dis`). They are in pixels of
  copies of 1024 x 1024 pixels, and here in pixels of the image, whose header is read for its size.
- masks (option `masks` of Montgomery): `Right Lung` and `Left Lung` of the patient. The folder `leftMask` has the lung
  at the left of the image, which is the right one, as Abdullah-Ejaz0/FYP_Pre-processing_pipelines has seen. Of two
  masks, the one further left is the right lung, whatever its folder.

TBX11K holds images of both sets at 512 x 512 pixels, see `tbx11k`. The outlines of single lesions in Shenzhen's
`Annotations` are not read. Written from the owner's description and from public code that reads both sets (RadHarmony,
the repository above, and tests of parsers that quote real readings); not checked against a copy.
"""

import logging
import os
import re
from pathlib import Path

import datasets
import numpy as np
import pandas as pd

from processing_tier.progress import progress
from processing_tier.records.boxes import group_boxes
from processing_tier.records.from_table import make_records
from processing_tier.records.masks import encode_mask

from ..radiograph_tier import path_under, read_source
from .archive_tables import find_in_archive, read_bounded, read_columns
from .image_sizes import read_sizes
from .splits import check_split

logger = logging.getLogger(__name__)

SPLITS = ("train",)
SOURCE = "https://data.lhncbc.nlm.nih.gov/public/Tuberculosis-Chest-X-ray-Datasets/"
FINDINGS = ("Tuberculosis", "No Finding")
IMAGES, READINGS = "CXR_png", "ClinicalReadings"
IMAGE_NAME = re.compile(r"((?:MCU|CHN)CXR_\d+)_([01])")
SAME_PATIENT = {"MCUCXR_0117": "MCUCXR_0113", "MCUCXR_0166": "MCUCXR_0162", "MCUCXR_0170": "MCUCXR_0162"}
LUNGS = {"Right Lung": "ManualMask/leftMask", "Left Lung": "ManualMask/rightMask"}  # left and right in the image
BOX_COLUMNS = {"patientId": "image_id", "x_dis": "x", "y_dis": "y", "width_dis": "w", "height_dis": "h"}
BOX_SIDE = 1024  # width and height of the copies that the boxes were drawn on
MAX_READING_BYTES = 2**16  # the longest has a few hundred
SEX_LINE = re.compile(r"patient's sex:\s*(\w?).*", re.IGNORECASE)
AGE_LINE = re.compile(r"patient's age:\s*(\w*).*", re.IGNORECASE)
# As found: "male 45yrs", "femal 32yrs", "female24yrs", "male , 29yrs", "male 16month", "female 64days", "male 42"
PERSON_LINE = re.compile(r"(male|femal)e?\W*(?:(\d+)\s*([a-z]?)[a-z]*\W*)?", re.IGNORECASE)


def read_montgomery(root: str | os.PathLike, split: str = "train", *, masks: bool = False) -> datasets.Dataset:
    """
    Read the Montgomery County set into the schema of [`records`]; of images with boxes or masks, the header is read.

    Args:
        root (`str` or `os.PathLike`): the folder with `CXR_png` and `ClinicalReadings`.
        split (`str`, *optional*, defaults to `"train"`): the only one.
        masks (`bool`, *optional*, defaults to `False`): also read the masks of the lungs, in `ManualMask`.

    Returns:
        `datasets.Dataset`: one record per image, in the order of the names.

    Raises:
        `ValueError`: see [`make_records`]; also a missing folder, a table of boxes without its columns, or a mask that
        cannot be decoded or has another size than its image.
    """
    if masks not in (True, False):
        raise ValueError(
            f"montgomery: masks is {masks!r}; give 1 to read the masks of the lungs or 0 to leave them out."
        )
    return read_set(root, split, "montgomery", "MCUCXR", masks)


def read_shenzhen(root: str | os.PathLike, split: str = "train") -> datasets.Dataset:
    """Read the Shenzhen Hospital set; see [`read_montgomery`]."""
    return read_set(root, split, "shenzhen", "CHNCXR")


def read_set(root: str | os.PathLike, split: str, name: str, prefix: str, masks: bool = False) -> datasets.Dataset:
    """One of the two sets, whose names of files begin with `prefix`; the folder may hold both."""
    check_split(split, SPLITS, name)
    find_in_archive(root, [f"{IMAGES}/{prefix}_*.png"], name, SOURCE)
    root = Path(root)
    if not (root / READINGS).is_dir():
        logger.warning("%s: %s is not in this folder: texts, sex and age are blank.", name, READINGS)
    rows = []
    for path in sorted((root / IMAGES).glob(f"{prefix}_*.png")):
        match = IMAGE_NAME.fullmatch(path.stem)
        if match is None:
            raise ValueError(f"{path.name}: the name does not end in _0 or _1, which is the label; is this {name}?")
        rows.append(
            {
                "image": f"{IMAGES}/{path.name}",
                "image_id": path.stem,
                "patient_id": patient_of(match[1]),
                "view": "PA",
                "Tuberculosis": float(match[2] == "1"),
                "No Finding": float(match[2] == "0"),
                **read_reading(root / READINGS, f"{path.stem}.txt"),
            }
        )
    frame = pd.DataFrame(rows).assign(report=lambda frame: frame["findings"])
    images = dict(zip(frame["image_id"], frame["image"], strict=True))
    if (table := root / f"{name}_consensus_roi.csv").is_file():
        boxes = read_boxes(table, root, images, name)
        frame["boxes"] = [boxes.get(image_id, []) for image_id in images]
    if masks:
        find_in_archive(root, list(LUNGS.values()), name, SOURCE)
        sizes = read_sizes(root, images, name)
        bar = progress(images, "reading masks", "image")
        frame["masks"] = [read_lungs(root, f"{image_id}.png", sizes.get(image_id)) for image_id in bar]
    return make_records(frame, {finding: finding for finding in FINDINGS}, root, split, name)


def read_boxes(table: Path, root: Path, images: dict[str, str], name: str) -> pd.Series:
    """
    The boxes of each image, in its pixels.

    Args:
        table (`Path`): of the boxes.
        root (`Path`): the folder that the images lie in.
        images (`dict[str, str]`): paths by `image_id`.
        name (`str`): of the set, in messages.

    Raises:
        `ValueError`: a missing column, or a coordinate that is not a number.
    """
    marks = read_columns(table, list(BOX_COLUMNS)).rename(columns=BOX_COLUMNS)
    marks["image_id"] = marks["image_id"].fillna("").str.strip().str.removesuffix(".png")
    sides = marks[["x", "y", "w", "h"]].apply(pd.to_numeric, errors="coerce")
    beyond = (sides["x"] + sides["w"]).gt(BOX_SIDE + 1) | (sides["y"] + sides["h"]).gt(BOX_SIDE + 1)
    if beyond.any():
        logger.warning(
            "%s: %d of %d boxes reach beyond %d x %d pixels, the copies that they belong to: all boxes are left out.",
            table.name, beyond.sum(), len(marks), BOX_SIDE, BOX_SIDE,
        )  # fmt: skip
        return pd.Series(dtype=object)
    known = {image_id: images[image_id] for image_id in marks["image_id"].unique() if image_id in images}
    sizes = read_sizes(root, known, name)
    marks = marks[marks["image_id"].isin(list(sizes))].assign(finding=FINDINGS[0])
    width, height = (
        marks["image_id"].map({image_id: size[side] for image_id, size in sizes.items()}).astype(float)
        for side in (0, 1)
    )
    for column, of_image in (("x", width), ("w", width), ("y", height), ("h", height)):
        marks[column] = pd.to_numeric(marks[column], errors="coerce") * of_image / BOX_SIDE
    return group_boxes(marks, table.name, width, height)


def read_lungs(root: Path, name: str, size: tuple[int, int] | None) -> list[dict]:
    """
    The masks of an image, without empty ones.

    Args:
        root (`Path`): the folder with `ManualMask`.
        name (`str`): of the file.
        size (`tuple[int, int]`, *optional*): width and height of the image; `None` if it cannot be read.

    Raises:
        `ValueError`: a mask cannot be decoded, or its size is another one.
    """
    found = {}
    for lung, folder in LUNGS.items():
        if not path_under(root, f"{folder}/{name}").is_file():
            continue
        mask = np.asarray(read_source(f"{folder}/{name}", root)[0]) > 127
        if size not in (None, mask.shape[::-1]):
            raise ValueError(
                f"{folder}/{name}: the mask has {mask.shape[1]} x {mask.shape[0]} pixels and its image {size[0]} x "
                f"{size[1]}; download both again."
            )
        if mask.any():
            found[lung] = mask
    if len(found) == len(LUNGS):
        by_place = sorted(found.values(), key=lambda mask: np.flatnonzero(mask.any(axis=0)).mean())
        found = dict(zip(LUNGS, by_place, strict=True))
    return [
        {"finding": lung, "height": mask.shape[0], "width": mask.shape[1], "counts": encode_mask(mask)}
        for lung, mask in found.items()
    ]


def patient_of(number: str) -> str:
    """The patient of an image, such as `MCUCXR_0113` of both `MCUCXR_0113` and `MCUCXR_0117`."""
    return SAME_PATIENT.get(number, number)


def read_reading(folder: Path, name: str) -> dict[str, str]:
    """`findings`, `sex` and `age` of a clinical reading, blank if it does not exist."""
    path = path_under(folder, name)
    data = read_bounded(path, MAX_READING_BYTES) if path.is_file() else b""
    return parse_reading(data.decode("utf-8-sig", errors="replace"))


def parse_reading(text: str) -> dict[str, str]:
    """
    The parts of a reading of either set.

    Returns:
        `dict[str, str]`: `findings`, the text; `sex`, `M`, `F` or as found; `age` in DICOM's form (`045Y`, `16M`).
    """
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    sex = age = ""
    rest = []
    for place, line in enumerate(lines):
        if match := SEX_LINE.fullmatch(line):
            sex = match[1]
        elif match := AGE_LINE.fullmatch(line):
            age = match[1]
        elif place == 0 and (match := PERSON_LINE.fullmatch(line)):
            sex = "M" if match[1].lower() == "male" else "F"
            age = match[2] + match[3] if match[3] else ""
        else:
            rest.append(line)
    findings = " ".join(rest)
    return {"findings": "" if findings.upper().startswith("NO REPORT") else findings, "sex": sex, "age": age}
