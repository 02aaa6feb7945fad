"""A CSV or Parquet file of one row per image, with any column names."""

import functools
import logging
import os
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import datasets
import pandas as pd

from ..records import make_records
from ..reports import extract_sections

logger = logging.getLogger(__name__)


def read_frame(path: Path, usecols: Callable[[str], bool] | None = None) -> pd.DataFrame:
    """
    Args:
        path (`Path`): a Parquet file, or a CSV file, plain or compressed.
        usecols (`Callable[[str], bool]`, *optional*): which columns of a CSV file to read.

    Raises:
        `ValueError`: no such file, or not a readable CSV or Parquet table.
    """
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; check the path.")
    try:
        # All text: "00061" stays a patient and does not become the number 61
        if path.suffix.lower() == ".parquet":
            return pd.read_parquet(path)
        return pd.read_csv(path, dtype=str, usecols=usecols)
    except pd.errors.EmptyDataError:
        raise ValueError(f"{path}: the file is empty; give a table with a header line.") from None
    except (ValueError, OSError, EOFError, zlib.error) as error:  # the last two: a gzip file cut short, or damaged
        raise ValueError(f"{path}: the file is not a readable {path.suffix[1:]} table; export it again.") from error


def select_split(frame: pd.DataFrame, split: str | None, column: str, name: str) -> tuple[pd.DataFrame, str]:
    """
    The rows of one split, and its name; a table without the split column is one split, of whatever name. Rows whose
    split is blank are in none, which is said once.
    """
    if column not in frame.columns:
        return frame, split or "train"
    in_a_split = frame[frame[column].notna()]
    if len(in_a_split) < len(frame):
        warn_of_blank_splits(name, len(frame) - len(in_a_split), len(frame))
    there = ", ".join(map(str, in_a_split[column].unique()))
    if split is None:
        raise ValueError(f"{name}: which split? It has {there}; name one.")
    rows = in_a_split[in_a_split[column].astype(str) == split]
    if rows.empty and not frame.empty:
        raise ValueError(f"{name}: there is no split {split!r}; it has {there or 'none'}.")
    return rows, split


@functools.lru_cache  # each split is read by a call of its own
def warn_of_blank_splits(name: str, blank: int, total: int) -> None:
    logger.warning("%s: %d of %d rows have no split: left out.", name, blank, total)


def add_sections(frame: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    """The table with findings and impression by [`extract_sections`], where it has whole reports alone."""
    sources = {name: columns.get(name, name) for name in ("report", "findings", "impression")}
    there = [name for name, column in sources.items() if column in frame.columns]
    if there != ["report"]:
        return frame
    reports = frame[sources["report"]]
    sections = {text: extract_sections(text) for text in reports.dropna().unique() if isinstance(text, str)}
    none = {"findings": "", "impression": ""}
    return frame.assign(**{name: [sections.get(text, none)[name] for text in reports] for name in none})


def read_table(
    path: str | os.PathLike,
    image_root: str | os.PathLike | None = None,
    split: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> datasets.Dataset:
    """
    Read a CSV or Parquet table into the schema of [`records`].

    Args:
        path (`str` or `os.PathLike`): the table.
        image_root (`str` or `os.PathLike`, *optional*): folder of the images; by default that of the table.
        split (`str`, *optional*):
            Rows to take, by the split column. A table without one is wholly that split.
        columns (`Mapping[str, str]`, *optional*):
            Schema name to the table's column, such as `{"image": "path", "impression": "report_text"}`. `image` and
            `patient_id` are needed (each image its own patient: map both to the path). Other names are findings; where
            none is named, every other column of -1, 0, 1 and blank is one. A table without a view is taken as frontal;
            of one with whole reports alone, findings and impression are cut out by [`extract_sections`].

    Returns:
        `datasets.Dataset`: in the order of the table; no image is opened.

    Raises:
        `ValueError`: see [`make_records`]; also a missing file or split.
    """
    path, columns = Path(path), dict(columns or {})
    frame = read_frame(path)
    split_column = columns.pop("split", "split")
    if split_column != "split" and split_column not in frame.columns:
        raise ValueError(
            f"{path}: column {split_column!r} (for 'split') is not there; it has {', '.join(frame.columns)}."
        )
    rows, split = select_split(frame, split, split_column, str(path))
    rows = rows.drop(columns=[column for column in [split_column] if column in rows.columns])
    rows = add_sections(rows, columns)
    return make_records(rows, columns, image_root if image_root is not None else path.parent, split, str(path))
