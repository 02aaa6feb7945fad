"""A CSV or Parquet file of one row per image, with any column names."""

import functools
import gzip
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

MAX_TABLE_BYTES = 2 * 2**30  # the reports of CheXpert Plus are the largest
MAX_SPLITS = 20


class TableTooLarge(ValueError):
    """A reason of its own, which is not that the file cannot be read."""


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
        check_size(path)
        frame = pd.read_csv(path, dtype=str, usecols=usecols)
    except TableTooLarge:
        raise
    except pd.errors.EmptyDataError:
        raise ValueError(f"{path}: the file is empty; give a table with a header line.") from None
    except (ValueError, OSError, EOFError, zlib.error) as error:  # the last two: a gzip file cut short, or damaged
        raise ValueError(f"{path}: the file is not a readable {path.suffix[1:]} table; export it again.") from error
    if not isinstance(frame.index, pd.RangeIndex):  # pandas moves all columns by one, under another's name
        raise ValueError(f"{path}: the rows have more fields than the header; remove the comma at their ends.")
    return frame


def check_size(path: Path) -> None:
    """
    Raises:
        `ValueError`: a CSV file, with what is gzipped in it inflated, is larger than any table of radiographs.
    """
    size = path.stat().st_size
    if path.suffix.lower() == ".gz":
        with gzip.open(path) as file:
            size = file.seek(MAX_TABLE_BYTES + 1)  # or where it ends
    if size > MAX_TABLE_BYTES:
        raise TableTooLarge(f"{path}: the table is larger than {MAX_TABLE_BYTES:,} bytes; is it the right file?")


def select_split(frame: pd.DataFrame, split: str | None, column: str, name: str) -> tuple[pd.DataFrame, str]:
    """
    The rows of one split without its column, and its name; a table without a column called split is one split, of
    whatever name. Rows whose split is blank are in none, which is said once.
    """
    if column not in frame.columns:
        if column != "split":
            there = ", ".join(frame.columns)
            raise ValueError(f"{name}: column {column!r} (for 'split') is not there; it has {there}.")
        return frame, split or "train"
    splits = frame[column]
    blank = splits.isna()
    if blank.any():
        warn_of_blank_splits(name, blank.sum(), len(frame))
    there = list(map(str, splits.dropna().unique()))
    if len(there) > MAX_SPLITS:  # patients, perhaps
        raise ValueError(f"{name}: column {column!r} has {len(there)} values; is it the one of the split?")
    if split is None:
        raise ValueError(f"{name}: which split? It has {', '.join(there)}; name one.")
    chosen = ~blank & (splits.astype(str) == split)
    if not chosen.any() and not frame.empty:
        raise ValueError(f"{name}: there is no split {split!r}; it has {', '.join(there) or 'none'}.")
    frame = frame.drop(columns=column)
    return frame if chosen.all() else frame[chosen], split  # a large table is copied no more often than it must


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
    rows, split = select_split(read_frame(path), split, columns.pop("split", "split"), str(path))
    rows = add_sections(rows, columns)
    return make_records(rows, columns, image_root if image_root is not None else path.parent, split, str(path))
