"""Shared by the readers of archives: reading tables, JSON and zip members, and dropping repeated rows."""

import itertools
import logging
import os
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..bounded_json import parse_json
from .formats import read_frame

logger = logging.getLogger(__name__)

MAX_ENTRIES = 1000  # that are looked at in a folder that may hold the archive
MAX_JSON_BYTES = 2**28


def find_first(folder: Path, patterns: Iterable[str]) -> Path | None:
    """
    The file or folder that the first matching pattern names: the newest of several versions, and plain rather than
    gzipped. `.csv*` matches only `.csv` and `.csv.gz`, not the leftovers of editors and downloads.
    """
    for pattern in patterns:
        found = sorted(folder.glob(pattern), key=lambda path: (path.name.removesuffix(".gz"), path.suffix != ".gz"))
        if pattern.endswith(".csv*"):
            found = [path for path in found if path.name.endswith((".csv", ".csv.gz"))]
        if found:
            return found[-1]
    return None


def find_in_archive(root: str | os.PathLike, patterns: Sequence[str], name: str, source: str) -> Path:
    """
    A file (or folder) of an archive.

    Args:
        root (`str` or `os.PathLike`): folder of the archive.
        patterns (`Sequence[str]`): its names below `root`, as for `Path.glob`; the first that exists counts.
        name (`str`): the name of the data set in errors.
        source (`str`): where to get the file.

    Raises:
        `ValueError`: the folder does not exist, or the file is not in it. If a folder above or below has the file, the
        message names it.
    """
    root = Path(root)
    if not root.is_dir():
        what = "this is a file" if Path(root).is_file() else "the folder does not exist"
        raise ValueError(f"{root}: {what}; name the folder that holds {name}.")
    found = find_first(root, patterns)
    if found is not None:
        return found
    children = [child for child in itertools.islice(root.iterdir(), MAX_ENTRIES) if child.is_dir()]
    grandchildren = (
        grandchild
        for child in sorted(children)
        for grandchild in itertools.islice(child.iterdir(), MAX_ENTRIES)
        if grandchild.is_dir()
    )
    for folder in itertools.chain([root.resolve().parent], sorted(children), grandchildren):
        if find_first(folder, patterns) is not None:
            raise ValueError(f"{root}: this is not the folder of {name}, but {folder} is; name that one.")
    raise ValueError(f"{root}: {patterns[0]} of {name} is not in this folder; get it from {source}.")


def read_columns(path: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> pd.DataFrame:
    """
    Some columns of a CSV file (plain or gzipped), all as text.

    Raises:
        `ValueError`: a missing file, a file that is not a table, or a missing column.
    """
    wanted = {*columns, *optional}
    frame = read_frame(path, usecols=lambda column: column in wanted)
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise ValueError(
            f"{path.name}: column {', '.join(map(repr, missing))} is missing; is this the file of the archive, "
            "unchanged?"
        )
    return frame


def drop_repeated(frame: pd.DataFrame, column: str, name: str) -> pd.DataFrame:
    """The rows of a table, of rows with the same value in `column` only the first."""
    repeated = frame[column].duplicated()
    if repeated.any():
        logger.warning("%s: %d of %d rows repeat a %r: dropped.", name, repeated.sum(), len(frame), column)
        frame = frame[~repeated]
    return frame


def open_zip(path: Path) -> zipfile.ZipFile:
    """
    Raises:
        `ValueError`: not a zip archive, or a damaged one.
    """
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path.name}: the file is not a readable zip archive; download it again.") from error


def read_member(archive: zipfile.ZipFile, member: str, max_bytes: int) -> bytes:
    """
    The bytes of one member of a zip archive. Does not write to disk.

    Raises:
        `ValueError`: the member is damaged, encrypted, or really larger than `max_bytes`.
    """
    name = Path(archive.filename or "zip").name
    try:
        with archive.open(member) as file:
            data = file.read(max_bytes + 1)
    except (OSError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{name}: a member cannot be read ({type(error).__name__}); download it again.") from error
    if len(data) > max_bytes:
        raise ValueError(f"{name}: a member is larger than {max_bytes:,} bytes; it is not the archive as shipped.")
    return data


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """
    Raises:
        `ValueError`: the file cannot be read, or is larger than `max_bytes`.
    """
    try:
        with open(path, "rb") as file:  # the size comes first: Python allocates as many bytes as may be read
            data = file.read(min(os.fstat(file.fileno()).st_size, max_bytes) + 1)
    except OSError as error:
        raise ValueError(f"{path.name}: the file cannot be read ({error.strerror}); check it.") from error
    if len(data) > max_bytes:
        raise ValueError(f"{path.name}: the file is larger than {max_bytes:,} bytes; it is not the file as shipped.")
    return data


def read_json(path: Path, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """
    Raises:
        `ValueError`: not JSON, or larger than `max_bytes`, by default more than any file of annotations.
    """
    data = read_bounded(path, max_bytes)
    try:
        return parse_json(data.decode("utf-8-sig"))
    except ValueError:
        raise ValueError(f"{path.name}: the file is empty, cut short or not JSON; download it again.") from None
