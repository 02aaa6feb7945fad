"""Reads an image folder: `<folder>/<split>/metadata.csv` with a `file_name` column, and the images beside it."""

import os
from collections.abc import Mapping
from pathlib import Path

import datasets
import pandas as pd

from processing_tier.records.from_table import make_records
from processing_tier.records.identifiers import check_unique_ids, ids_from_paths
from processing_tier.records.table_options import STANDARD_TABLE, TableOptions
from processing_tier.records.views import normalize_view

from .formats import read_frame
from .splits import check_split, select_split
from .table import add_sections, drop_others, name_findings

METADATA = ("metadata.csv", "metadata.parquet", "metadata.jsonl", "metadata.tsv", "metadata.xlsx")
VIEW_COLUMNS = ("dicom_view", "view_position", "view")  # the first one that is not OTHER counts
DEFAULTS = {"image": "file_name", "report": "text"}


def find_metadata(folder: Path) -> Path | None:
    return next((folder / name for name in METADATA if (folder / name).is_file()), None)


def split_folders(folder: Path) -> list[str]:
    """Names of the folders inside that have their own metadata."""
    return sorted(child.name for child in folder.iterdir() if child.is_dir() and find_metadata(child))


def read_imagefolder(folder: str | os.PathLike, split: str, table: TableOptions = STANDARD_TABLE) -> datasets.Dataset:
    """
    Read one split of an image folder into the schema of [`records`].

    The metadata (`metadata.csv`, `.parquet` or `.jsonl`) lies in `<folder>/<split>/`, or in `<folder>/` with a `split`
    column. The whole report may be called `text`; without other texts, [`extract_sections`] takes findings and
    impression from it. The view comes from `dicom_view` or `view_position` if they name a projection, otherwise from
    `view`. A frontal image of unknown projection counts as `PA`.

    Args:
        folder (`str` or `os.PathLike`): the data set. Images may be links to other places inside it.
        split (`str`): such as `"train"`.
        table ([`TableOptions`], *optional*): of the metadata, as for [`read_table`], except `image_root`.

    Raises:
        `ValueError`: see [`make_records`]; also a missing folder, split or metadata file.
    """
    folder = Path(folder)
    if folder.is_file():
        raise ValueError(
            f"{folder}: files of this kind are not supported; save the table as .csv, .tsv, .xlsx, .jsonl or .parquet."
        )
    if not folder.is_dir():
        raise ValueError(f"{folder}: the folder does not exist; check the path of the data.")
    metadata = find_metadata(folder / split) or find_metadata(folder)
    if metadata is None:
        if there := split_folders(folder):
            check_split(split, there, str(folder))
        raise ValueError(f"{folder}: no {METADATA[0]} is in it or in a folder for each split; add one.")

    columns = dict(table.columns or {})
    columns.pop("split", None)
    frames = read_frames(folder, metadata, columns.get("image", DEFAULTS["image"]), table.sheet)
    chosen = slice(None)
    if metadata.parent == folder:
        frames[metadata], chosen, split = select_split(frames[metadata], split, table.split_column, str(folder))
    frame = frames[metadata]
    columns = {**{key: name for key, name in DEFAULTS.items() if name in frame.columns}, **columns}
    if image_id_is_missing(frame, columns):
        frame, columns["image_id"] = (
            frame.assign(image_id=find_ids(frames, metadata, columns["image"], folder)),
            "image_id",
        )
    others = [other.drop(columns=table.split_column, errors="ignore") for other in frames.values()]
    named = name_findings(others, columns, str(metadata), table.label_values)
    columns |= {key: column for key, column in named.items() if column in frame.columns}
    if metadata.parent == folder:
        frame = frame[chosen]
    if "view" not in columns:
        frame = add_view(frame)
    frame = drop_others(frame.drop(columns="split", errors="ignore"), columns)
    frame = add_sections(frame, columns)
    return make_records(frame, columns, folder, split, str(metadata), label_values=table.label_values)


def read_frames(folder: Path, metadata: Path, image: str, sheet: str | None) -> dict[Path, pd.DataFrame]:
    """
    The table of this split, and those of the other splits, which also decide what is a finding and which names of
    images are in use. Paths of images start from `folder`.
    """
    files = [metadata]
    if metadata.parent != folder:
        files += [find_metadata(folder / name) for name in split_folders(folder) if folder / name != metadata.parent]
    frames = {}
    for file in files:
        frame = read_frame(file, sheet=sheet)
        if image in frame.columns and file.parent != folder:
            paths = [path if pd.isna(path) else os.path.join(file.parent.name, str(path)) for path in frame[image]]
            frame = frame.assign(**{image: pd.Series(paths, frame.index, dtype=object)})
        frames[file] = frame
    return frames


def image_id_is_missing(frame: pd.DataFrame, columns: Mapping[str, str]) -> bool:
    return columns.get("image_id", "image_id") not in frame.columns and columns.get("image") in frame.columns


def find_ids(frames: Mapping[Path, pd.DataFrame], metadata: Path, image: str, folder: Path) -> pd.Series:
    """An `image_id` for each row of one split, unique among all splits."""
    paths = {path: frame[image].dropna().astype(str) for path, frame in frames.items() if image in frame.columns}
    ids = iter(ids_from_paths([path for values in paths.values() for path in values], folder))
    found = {
        path: pd.Series([next(ids) for _ in values], values.index, dtype=object) for path, values in paths.items()
    }
    check_unique_ids(found[metadata].tolist(), str(metadata))
    return found[metadata]


def add_view(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with `view` from the first of [`VIEW_COLUMNS`] that is not `OTHER`."""
    columns = [column for column in VIEW_COLUMNS if column in frame.columns]
    if not columns:
        return frame
    views = frame[columns].map(normalize_view)
    best = views[columns[-1]]
    for column in reversed(columns):
        best = views[column].where(views[column] != "OTHER", best)
    return frame.assign(view=best)
