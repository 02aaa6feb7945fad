"""
PadChest: 160 thousand radiographs of 67 thousand patients of Hospital San Juan, Alicante, with Spanish reports.

Where and terms: https://bimcv.cipf.es/bimcv-projects/padchest/, PadChest Dataset Research Use Agreement after
registration: research only, no copies, no attempt to identify anybody; cite Bustos et al. 2020,
doi:10.1016/j.media.2020.101797.

The folder: the table (plain or gzipped) and the 16-bit PNG files of the zip archives `0.zip` to `54.zip`, extracted
either each to its folder or all to one:

    PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv.gz
    0/20536686640136348236148679891455886468_k6ga29.png     (ImageDir/ImageID)
    20536686640136348236148679891455886468_k6ga29.png  or  images/2053...png

Derived fields:

- findings: a column for each label of `Labels` (stripped, lower case) that at least `min_images` rows have, existing
  image or not; 1 if the row lists it, 0 if it lists others, blank if it lists none. Localisations (`loc ...`) are not
  findings. With `method="Physician"`, `min_images=1` gives all labels (KAD names 193); the default gives those of more
  than 50 images. TIER's 57 were chosen by hand, see the benchmark `padchest-57`.
- view: `Projection`; `L` is LATERAL, `AP_horizontal` is AP, `COSTAL` and `UNK` are OTHER. Rows of `EXCLUDE` (not chest
  radiographs) are left out.
- text: `Report` is Spanish, without stop words and headings. It describes findings, and becomes `findings` and
  `report`. There are no impressions.
- age: the year of `StudyDate_DICOM` minus `PatientBirth`, a year.
- split: there is no official one, so everything is `train`. Do not split by `MethodLabel`: the physicians' and the
  network's images may share patients.

Images that torchxrayvision found missing or damaged ([`BROKEN`]) are left out; they would stop a training. Written
from public code that reads the table; not checked against a full copy.
"""

import ast
import logging
import os
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pandas as pd

from processing_tier.records.from_table import make_records

from .archive_tables import drop_repeated, find_in_archive, read_columns
from .chexmask import add_masks
from .splits import check_split

logger = logging.getLogger(__name__)

SPLITS = ("train",)
METHODS = ("all", "Physician", "RNN_model")
SOURCE = "https://bimcv.cipf.es/bimcv-projects/padchest/"
VIEWS = {"L": "LATERAL", "AP_horizontal": "AP", "AP": "AP", "PA": "PA"}
EXCLUDED = "EXCLUDE"
IDENTITY = {"image": "path", "patient_id": "PatientID", "study_id": "StudyID"}
COLUMNS = (
    "ImageID",
    "ImageDir",
    "StudyDate_DICOM",
    "StudyID",
    "PatientID",
    "PatientBirth",
    "PatientSex_DICOM",
    "Projection",
    "Report",
    "MethodLabel",
    "Labels",
)
MAX_LABELS_TEXT = 10_000  # characters of one row's list; real ones have a few hundred
BROKEN = frozenset(
    f"2168401113669640{rest}.png"
    for rest in (
        "12283393834152009033102258826_00-059-087",
        "12339356563862009072111404053_00-043-192",
        "12373310883942009117084022290_00-064-025",
        "12373310883942009152114636712_00-102-045",
        "12373310883942009170084120009_00-097-074",
        "12487858717522009280135853083_00-075-001",
        "12558082906712009327122220177_00-102-064",
        "12819207061112010281134410801_00-129-131",
        "12819207061112010306085429121_04-020-102",
        "12819207061112010307142602253_04-014-084",
        "12819207061112010315104455352_04-024-184",
        "12959786098432011033083840143_00-176-115",
        "12989926673512011074122523403_00-163-058",
        "12989926673512011083134050913_00-168-009",
        "12989926673512011151082430686_00-157-045",
        "13076187734852011291090445391_00-196-188",
        "13590140476722013043111952381_02-065-198",
        "13590140476722013058110301622_02-056-111",
        "13686042548532013208193054515_02-026-007",
        "13829543166512013353113303615_02-092-190",
        "13962490064942014134093945580_01-178-104",
    )
)


def read_padchest(
    root: str | os.PathLike,
    split: str = "train",
    *,
    method: str = "all",
    min_images: int = 51,
    chexmask: str | os.PathLike | None = None,
) -> datasets.Dataset:
    """
    Read PadChest into the schema of [`records`] without opening images.

    Args:
        root (`str` or `os.PathLike`): the folder with the table and the images.
        split (`str`, *optional*, defaults to `"train"`): the only one.
        method (`str`, *optional*, defaults to `"all"`):
            Whose labels: `"Physician"`, `"RNN_model"` (a network's), or `"all"`.
        min_images (`int`, *optional*, defaults to 51): how many rows must have a label to make it a finding column.
        chexmask (`str` or `os.PathLike`, *optional*): a table of CheXmask, or its folder, for masks; see [`chexmask`].

    Returns:
        `datasets.Dataset`: one record per existing image, in the order of the table; findings from the most
        frequent to the rarest.

    Raises:
        `ValueError`: see [`make_records`]; also a missing table or column, labels that are not a list of texts.
    """
    check_split(split, SPLITS, "padchest")
    if not isinstance(min_images, int) or min_images < 1:
        raise ValueError(f"padchest: min_images is {min_images!r}; give a whole number of at least 1.")
    root = Path(root)
    frame, findings = add_findings(read_images(root, method), min_images)
    add_places(frame, root)
    columns = {**IDENTITY, "findings": "Report", "report": "Report", **{finding: finding for finding in findings}}
    return add_masks(make_records(frame, columns, root, split, "padchest", skip_missing=True), chexmask, "padchest")


def read_images(root: Path, method: str = "all") -> pd.DataFrame:
    """
    The rows of the table, without those that are excluded or broken.

    Args:
        root (`Path`): the folder with the table.
        method (`str`, *optional*, defaults to `"all"`): of `METHODS`.

    Raises:
        `ValueError`: an unknown method, a missing table or column.
    """
    if method not in METHODS:
        raise ValueError(f"padchest: the method is {method!r}; choose {', '.join(METHODS)}.")
    frame = read_columns(find_in_archive(root, ["PADCHEST_*.csv*"], "padchest", SOURCE), COLUMNS)
    if method != "all":
        frame = frame[frame["MethodLabel"] == method]
    frame = drop_repeated(frame, "ImageID", "padchest")
    excluded, broken = frame["Projection"] == EXCLUDED, frame["ImageID"].isin(BROKEN)
    if (excluded | broken).any():
        logger.warning(
            "padchest: %d of %d images are excluded by their projection and %d are known to be broken: left out.",
            excluded.sum(),
            len(frame),
            (broken & ~excluded).sum(),
        )
        frame = frame[~excluded & ~broken]
    return frame


def add_places(frame: pd.DataFrame, root: Path) -> None:
    """Add the path and the id of each image, and view, sex and age."""
    base = "images/" if (root / "images").is_dir() else ""
    folders = {name: f"{base}{name}/" for name in frame["ImageDir"].dropna().unique() if is_folder(root / base, name)}
    frame["path"] = frame["ImageDir"].map(lambda folder: folders.get(folder, base)).str.cat(frame["ImageID"])
    frame["image_id"] = frame["ImageID"].str.removesuffix(".png")
    add_details(frame)


def add_findings(frame: pd.DataFrame, min_images: int) -> tuple[pd.DataFrame, list[str]]:
    """
    The table with a column for each label that at least `min_images` rows have; and these labels, the most frequent
    first.
    """
    lists = [parse_labels(text) for text in frame["Labels"]]
    counts = Counter(label for labels in lists if labels is not None for label in labels)
    findings = sorted(
        (label for label in counts if counts[label] >= min_images), key=lambda name: (-counts[name], name)
    )
    stated = pd.Series([labels is not None for labels in lists], index=frame.index)
    columns = pd.DataFrame(
        {label: [label in labels if labels is not None else False for labels in lists] for label in findings},
        index=frame.index,
    )
    return pd.concat([frame, columns.astype("float32").where(stated, float("nan"))], axis=1), findings


def add_details(frame: pd.DataFrame) -> None:
    """Add view, sex and age in the words of the schema."""
    frame["view"] = frame["Projection"].map(VIEWS)
    frame["sex"] = frame["PatientSex_DICOM"].where(frame["PatientSex_DICOM"].isin(["F", "M"]))
    years = pd.to_numeric(frame["StudyDate_DICOM"].str[:4], errors="coerce") - pd.to_numeric(
        frame["PatientBirth"], errors="coerce"
    )
    frame["age"] = years.where(years.between(0, 120))


def is_folder(root: Path, name: str) -> bool:
    """Whether `ImageDir` of the table is a folder of the archive, and not a path to another place."""
    return name.isdecimal() and (root / name).is_dir()


def parse_labels(text: Any) -> set[str] | None:
    """
    The labels of one row, such as `{"normal"}` of `"['normal ', 'loc right']"`; `None` without labels.

    Raises:
        `ValueError`: text that is not a list of texts.
    """
    if pd.isna(text) or not text.strip():
        return None
    try:
        labels = ast.literal_eval(text.strip()) if len(text) <= MAX_LABELS_TEXT else None
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        labels = None
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ValueError(
            "padchest: a value of Labels is not a list of texts; is this the file of the archive, unchanged?"
        )
    names = {" ".join(label.split()).lower() for label in labels}
    return {name for name in names if name and not name.startswith("loc ")} or None
