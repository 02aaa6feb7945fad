"""
Chest ImaGenome: boxes of 36 anatomical regions on 242,072 frontal radiographs of MIMIC-CXR, 1,000 of them verified.

Where: https://physionet.org/content/chest-imagenome/ (Wu et al., NeurIPS 2021). Terms: PhysioNet Credentialed Health
Data License after training and a signed agreement. The images come from MIMIC-CXR-JPG
(https://physionet.org/content/mimic-cxr-jpg/), or as DICOM from MIMIC-CXR.

The folder as PhysioNet ships it:

    silver_dataset/scene_graph.zip  (or extracted: silver_dataset/scene_graph/<dicom_id>_SceneGraph.json)
    silver_dataset/splits/train.csv  valid.csv  test.csv  images_to_avoid.csv
    gold_dataset/gold_bbox_coordinate_annotations_1000images.csv

Derived fields:

- split: `train`, `validation` (`valid`) and `test` have boxes by a program, without the images of the 500 gold
  patients (images_to_avoid.csv); `gold` has the 1,000 verified images of these. They are not MIMIC-CXR's splits: most
  patients of `test` and `gold` are in MIMIC-CXR's training split. Leave them out of a training that they will
  evaluate.
- boxes: the finding of a box is its region (`right lung`, `cardiac silhouette` ...), as shipped; in pixels of
  MIMIC-CXR's own images (`original_x1` ...). Left and right are the patient's.
- findings: CheXpert's or NegBio's labels of the study, from MIMIC-CXR-JPG's tables at `image_root`, see `labels`.
- text: empty; take the report from `mimic_cxr_jpg` by `study_id`.
- patient, study and view: from the tables of the splits. Sex and age are missing.

A graph is read only for images that exist; some images have none and stay without boxes. Written from PhysioNet's
description and public code that reads the files (RGRG, RadHarmony); not checked against a copy.
"""

import logging
import math
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import datasets
import pandas as pd

from processing_tier.progress import progress
from processing_tier.records.annotations import BOXES, MAX_COORDINATE
from processing_tier.records.boxes import group_boxes
from processing_tier.records.from_table import make_records
from processing_tier.records.more_columns import add_columns

from ..bounded_json import parse_json
from ..radiograph_tier import path_under
from .archive_tables import drop_repeated, find_in_archive, open_zip, read_bounded, read_columns, read_member
from .chexpert import CHEXPERT_FINDINGS
from .mimic_cxr import LABELS, find_table, read_labels
from .ms_cxr import MIMIC_PATH, find_image
from .splits import check_split

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test", "gold")
NAME = "chest_imagenome"
SOURCE = "https://physionet.org/content/chest-imagenome/"
GOLD_BOXES = "gold_dataset/gold_bbox_coordinate_annotations_1000images.csv"
GRAPHS = ("silver_dataset/scene_graph.zip", "silver_dataset/scene_graph/scene_graph", "silver_dataset/scene_graph")
CORNERS = ("original_x1", "original_y1", "original_x2", "original_y2")
ENDING = "_SceneGraph.json"
MAX_GRAPH_BYTES = 2**22  # the average has 42 thousand


def read_chest_imagenome(
    root: str | os.PathLike, split: str, *, labels: str = "chexpert", image_root: str | os.PathLike | None = None
) -> datasets.Dataset:
    """
    Read one split of Chest ImaGenome into the schema of [`records`] without opening images.

    Args:
        root (`str` or `os.PathLike`): the folder with `silver_dataset` and `gold_dataset`.
        split (`str`): `"train"`, `"validation"`, `"test"` or `"gold"`.
        labels (`str`, *optional*, defaults to `"chexpert"`):
            The findings of each study: `"chexpert"` or `"negbio"`, whose table must lie in `image_root`, or `"none"`.
        image_root (`str` or `os.PathLike`, *optional*):
            Folder of MIMIC-CXR-JPG or MIMIC-CXR that holds `files`, by default `root`.

    Returns:
        `datasets.Dataset`: one record per existing image, in the order of the split's table.

    Raises:
        `ValueError`: see [`make_records`]; also a missing file or column, unknown labels, or a scene graph of another
        form.
    """
    check_split(split, SPLITS, NAME)
    choices = [name for name in LABELS if name != "radiologist"]
    if labels not in (*choices, "none"):
        raise ValueError(f"{NAME}: labels are {labels!r}; choose {', '.join(choices)} or none.")
    image_root = Path(root if image_root is None else image_root)
    frame = read_split(root, split)
    boxes = None
    if split == "gold":
        boxes = read_gold_boxes(find_in_archive(root, [GOLD_BOXES], NAME, SOURCE))
        frame = frame[frame["image_id"].isin(boxes.index)]
    else:
        graphs = find_in_archive(root, GRAPHS, NAME, SOURCE)
    columns = {}
    if labels != "none":
        table = read_labels(find_table(image_root, LABELS[labels], NAME), labels, NAME)
        frame = frame.merge(table, how="left", on="study_id", validate="many_to_one")
        columns = {finding: finding for finding in CHEXPERT_FINDINGS}
    frame["image"] = [find_image(image_root, path) for path in frame["image"]]
    records = make_records(frame, columns, image_root, split, NAME, skip_missing=True)
    ids = records["image_id"][:]
    found = read_graphs(graphs, ids) if boxes is None else (boxes.get(image_id, []) for image_id in ids)
    return add_columns(records, {"boxes": BOXES}, ({"boxes": each} for each in found))


def read_split(root: str | os.PathLike, split: str) -> pd.DataFrame:
    """Ids, view and path below `files` of the images of a split, without those of the gold patients."""
    files = {"validation": "valid", "gold": "images_to_avoid"}
    columns = {"dicom_id": "image_id", "subject_id": "patient_id", "study_id": "study_id", "ViewPosition": "view"}
    names = dict.fromkeys([files.get(split, split), "images_to_avoid"])
    tables = [
        read_columns(
            find_in_archive(root, [f"silver_dataset/splits/{name}.csv"], NAME, SOURCE), (*columns, "path")
        ).rename(columns=columns)
        for name in names
    ]
    frame = drop_repeated(tables[0], "image_id", f"{NAME}, split {split}")
    if split != "gold":
        frame = frame[~frame["image_id"].isin(tables[1]["image_id"])]
    paths = [MIMIC_PATH.fullmatch(str(path)) for path in frame["path"]]
    if None in paths:
        raise ValueError(
            f"{next(iter(names))}.csv: a path is not files/p10/p1000.../s5000.../....dcm; is this the table?"
        )
    return frame.drop(columns="path").assign(image=[path[1] for path in paths]).reset_index(drop=True)


def read_gold_boxes(path: Path) -> pd.Series:
    """The boxes of each verified image."""
    frame = read_columns(path, ("image_id", "bbox_name", *CORNERS))
    frame["image_id"] = frame["image_id"].str.removesuffix(".dcm")
    sides = {corner: pd.to_numeric(frame[corner], errors="coerce") for corner in CORNERS}
    frame = frame.rename(columns={"bbox_name": "finding"}).assign(
        x=sides["original_x1"],
        y=sides["original_y1"],
        w=sides["original_x2"] - sides["original_x1"],
        h=sides["original_y2"] - sides["original_y1"],
    )
    return group_boxes(frame[["image_id", "finding", *"xywh"]], path.name)


def read_graphs(source: Path, image_ids: list[str]) -> Iterator[list[dict]]:
    """
    The boxes of each image, in order; none for an image without a scene graph.

    Raises:
        `ValueError`: a graph that cannot be read or has another form.
    """
    without, empty = 0, 0
    archive = None if source.is_dir() else open_zip(source)
    try:
        members = {} if archive is None else {PurePosixPath(name).name: name for name in archive.namelist()}
        for image_id in progress(image_ids, "reading scene graphs", "image"):
            data = read_graph(source, archive, members, f"{image_id}{ENDING}")
            boxes = [] if data is None else parse_graph(data, source.name)
            kept = [box for box in boxes if box["w"] > 0 and box["h"] > 0]
            without, empty = without + (data is None), empty + len(boxes) - len(kept)
            yield kept
    finally:
        if archive is not None:
            archive.close()
    if without or empty:
        logger.warning(
            "%s: %d of %d images have no scene graph and stay without boxes; %d boxes without area are left out.",
            NAME,
            without,
            len(image_ids),
            empty,
        )


def read_graph(source: Path, archive: zipfile.ZipFile | None, members: dict[str, str], name: str) -> bytes | None:
    """The bytes of one scene graph, of the zip file or the folder `source`; `None` if it has none."""
    if archive is not None:
        return read_member(archive, members[name], MAX_GRAPH_BYTES) if name in members else None
    path = path_under(source, name)
    return read_bounded(path, MAX_GRAPH_BYTES) if path.is_file() else None


def parse_graph(data: bytes, name: str) -> list[dict]:
    """The boxes of a scene graph, cut at the left and upper edge of the image."""
    try:
        return [to_box(entry) for entry in parse_json(data.decode("utf-8-sig"))["objects"]]
    except (TypeError, KeyError, ValueError, OverflowError):
        raise ValueError(
            f"{name}: a scene graph is not as shipped (objects with bbox_name and original_x1 to original_y2); "
            "download it again."
        ) from None


def to_box(entry: dict[str, Any]) -> dict:
    left, top, right, bottom = (float(entry[corner]) for corner in CORNERS)
    if not all(math.isfinite(side) and abs(side) <= MAX_COORDINATE for side in (left, top, right, bottom)):
        raise ValueError
    if not isinstance(entry["bbox_name"], str):
        raise TypeError
    x, y = max(left, 0.0), max(top, 0.0)
    return {"finding": entry["bbox_name"], "phrase": "", "x": x, "y": y, "w": right - x, "h": bottom - y}
