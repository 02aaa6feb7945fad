"""The imagefolder layout: `<folder>/<split>/metadata.csv` with a `file_name` column, the images beside it."""

import os
from collections.abc import Mapping
from pathlib import Path

import datasets

from ..records import make_records, normalize_view
from .table import add_sections, read_frame, select_split

METADATA = ("metadata.csv", "metadata.parquet")
VIEW_COLUMNS = ("dicom_view", "view_position", "view")  # the first one that says more than OTHER counts


def find_metadata(folder: Path) -> Path | None:
    return next((folder / name for name in METADATA if (folder / name).is_file()), None)


def split_folders(folder: Path) -> list[str]:
    """Names of the folders inside that have metadata of their own."""
    return sorted(child.name for child in folder.iterdir() if child.is_dir() and find_metadata(child))


def read_imagefolder(
    folder: str | os.PathLike, split: str, columns: Mapping[str, str] | None = None
) -> datasets.Dataset:
    """
    Read one split of an image folder into the schema of [`records`].

    The metadata lies in `<folder>/<split>/`, or in `<folder>/` with a `split` column. The whole report may be called
    `text`; where it stands alone, findings and impression are cut out of it by [`extract_sections`]. The view is taken
    from `dicom_view` or `view_position` where they name a projection, otherwise from `view`; a frontal image of
    unknown projection counts as `PA`.

    Args:
        folder (`str` or `os.PathLike`): the data set.
        split (`str`): such as `"train"`.
        columns (`Mapping[str, str]`, *optional*): as for [`read_table`], for metadata of other column names.

    Raises:
        `ValueError`: see [`make_records`]; also a folder, split or metadata file that is not there.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder; check the path of the data.")
    metadata = find_metadata(folder / split) or find_metadata(folder)
    if metadata is None:
        if there := split_folders(folder):
            raise ValueError(f"{folder}: there is no split {split!r}; it has {', '.join(there)}.")
        raise ValueError(f"{folder}: no {METADATA[0]} is in it or in a folder for each split; add one.")

    frame, columns = read_frame(metadata), dict(columns or {})
    split_column = columns.pop("split", "split")
    if metadata.parent == folder:
        frame, split = select_split(frame, split, split_column, str(folder))
    defaults = {"image": "file_name", "report": "text"}
    columns = {**{key: column for key, column in defaults.items() if column in frame.columns}, **columns}
    view_columns = [column for column in VIEW_COLUMNS if column in frame.columns]
    if "view" not in columns and view_columns:
        views = frame[view_columns].map(normalize_view)
        best = views[view_columns[-1]]
        for column in reversed(view_columns):
            best = views[column].where(views[column] != "OTHER", best)
        frame["view"] = best
    frame = frame.drop(columns="split", errors="ignore")
    frame = add_sections(frame, columns)
    return make_records(frame, columns, metadata.parent, split, str(metadata))
