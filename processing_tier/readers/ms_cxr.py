"""
MS-CXR: 1,162 sentences of reports of MIMIC-CXR with the boxes that they describe, eight findings.

Where: https://physionet.org/content/ms-cxr/ (Boecking et al., ECCV 2022), versions 0.1 and 1.1.0. Terms: PhysioNet
Credentialed Health Data License 1.5.0 after training and a signed agreement. The images come from MIMIC-CXR-JPG
(https://physionet.org/content/mimic-cxr-jpg/), or as DICOM from MIMIC-CXR.

The folder as PhysioNet ships it:

    MS_CXR_Local_Alignment_v1.1.0.csv  (dicom_id,category_name,label_text,path,x,y,w,h,image_width,image_height,split)
    MS_CXR_Local_Alignment_v1.1.0.json  (the same in COCO's form; read without the table)

Version 0.1 calls them v1.0.0, and has no `split`.

Derived fields:

- one record for each image; boxes carry their sentence in `phrase`, and are in pixels of MIMIC's own images.
- split: that of version 1.1.0 (`val` is called `validation`). All of version 0.1 is `test`. MIMIC-CXR's own splits
  differ: its training split may hold these images. Leave them out of a training that they will evaluate.
- findings: 1 for the categories of the image's boxes, otherwise NaN, because the others were not annotated.
- text: empty, since a sentence of a report is not the report. Take the report from `mimic_cxr` by `study_id`.
- patient and study: from the path, as in `mimic_cxr`. All images count as frontal.

Written from PhysioNet's description, its script that turns one form into the other, and public code; not checked
against a copy.
"""

import os
import re
from pathlib import Path

import datasets
import pandas as pd

from processing_tier.records.boxes import group_boxes
from processing_tier.records.from_table import make_records

from .archive_tables import find_in_archive, read_columns, read_json
from .splits import check_split

SPLITS = ("train", "validation", "test")
NAME = "ms_cxr"
SOURCE = "https://physionet.org/content/ms-cxr/"
TABLES = ("MS_CXR_Local_Alignment_v*.csv", "MS_CXR_Local_Alignment_v*.json")
COLUMNS = ("dicom_id", "category_name", "label_text", "path", "x", "y", "w", "h", "image_width", "image_height")
FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Lung Opacity",
    "Pleural Effusion",
    "Pneumonia",
    "Pneumothorax",
)
MIMIC_PATH = re.compile(r"(?:.*/)?(p\d\d/p(\d+)/s(\d+)/[^/]+)\.(?:jpg|dcm)")


def read_ms_cxr(
    root: str | os.PathLike, split: str, *, image_root: str | os.PathLike | None = None
) -> datasets.Dataset:
    """
    Read one split of MS-CXR into the schema of [`records`] without opening images.

    Args:
        root (`str` or `os.PathLike`): the folder with `MS_CXR_Local_Alignment_v1.1.0.csv`.
        split (`str`): `"train"`, `"validation"` or `"test"`.
        image_root (`str` or `os.PathLike`, *optional*):
            Folder of MIMIC-CXR-JPG or MIMIC-CXR that holds `files`, by default `root`.

    Returns:
        `datasets.Dataset`: one record per existing image, in the order of the table.

    Raises:
        `ValueError`: see [`make_records`]; also a missing file or column, a version without that split, or
        an unknown finding.
    """
    check_split(split, SPLITS, NAME)
    table = find_in_archive(root, TABLES, NAME, SOURCE)
    frame = read_columns(table, COLUMNS, ("split",)) if table.suffix == ".csv" else read_coco(table)
    if "split" in frame:
        frame = frame[frame["split"].replace({"val": "validation", "validate": "validation"}) == split]
    elif split != "test":
        raise ValueError(
            f"{table.name}: this version has no splits; read 'test', which holds all images, or get 1.1.0."
        )
    others = set(frame["category_name"]) - set(FINDINGS)
    if others:
        raise ValueError(f"{table.name}: a finding is not one of {', '.join(FINDINGS)}; is this the table?")
    frame = frame.rename(columns={"dicom_id": "image_id", "category_name": "finding", "label_text": "phrase"})
    frame["phrase"] = frame["phrase"].fillna("").astype(str).str.strip()
    boxes = group_boxes(
        frame[["image_id", "finding", "phrase", *"xywh"]], table.name, frame["image_width"], frame["image_height"]
    )
    present = pd.crosstab(frame["image_id"], frame["finding"]) > 0
    frame = frame.drop_duplicates("image_id")

    image_root = Path(root if image_root is None else image_root)
    paths = [MIMIC_PATH.fullmatch(str(path)) for path in frame["path"]]
    if None in paths:
        raise ValueError(
            f"{table.name}: a path is not files/p10/p1000.../s5000.../....jpg; is this the table as shipped?"
        )
    records = pd.DataFrame(
        {
            "image": [find_image(image_root, path[1]) for path in paths],
            "image_id": list(frame["image_id"]),
            "patient_id": [path[2] for path in paths],
            "study_id": [path[3] for path in paths],
            "boxes": list(frame["image_id"].map(boxes)),
        }
    )
    for finding in FINDINGS:
        found = records["image_id"].map(present[finding]) if finding in present else pd.Series(False, records.index)
        records[finding] = found.astype(float).where(found)
    columns = {finding: finding for finding in FINDINGS}
    return make_records(records, columns, image_root, split, NAME, skip_missing=True)


def find_image(image_root: Path, path: str) -> str:
    """The path of an image below `image_root` (which holds `files`, or is it), as JPEG or else as DICOM."""
    candidates = [f"{folder}{path}{suffix}" for folder in ("files/", "") for suffix in (".jpg", ".dcm")]
    return next((name for name in candidates if (image_root / name).is_file()), candidates[0])


def read_coco(path: Path) -> pd.DataFrame:
    """COCO's form, as a table with the same columns."""
    data = read_json(path)
    try:
        images = {image["id"]: image for image in data["images"]}
        categories = {category["id"]: category["name"] for category in data["categories"]}
        rows = [
            {
                "dicom_id": Path(image["file_name"]).stem,
                "category_name": categories[annotation["category_id"]],
                "label_text": annotation["label_text"],
                "path": image["path"],
                **dict(zip("xywh", map(float, annotation["bbox"]), strict=True)),
                "image_width": float(image["width"]),
                "image_height": float(image["height"]),
                **({"split": str(image["split"])} if "split" in image else {}),
            }
            for annotation in data["annotations"]
            for image in [images[annotation["image_id"]]]
        ]
        if not all(isinstance(row[key], str) for row in rows for key in ("category_name", "label_text", "path")):
            raise TypeError
    except (TypeError, KeyError, ValueError, OverflowError):
        raise ValueError(
            f"{path.name}: images, annotations and categories are not as shipped; download it again."
        ) from None
    if not rows:
        raise ValueError(f"{path.name}: it has no annotations; download it again.")
    return pd.DataFrame(rows)
