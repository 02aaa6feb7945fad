"""What the tests of readers share: the files of an archive, and messages that all readers have."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from processing_tier.readers.splits import SPLIT_OPTIONS


def write(path: Path, lines: Sequence[str] = ("image",), end: str = "\r\n") -> None:
    """A table, a list, or what stands for an image, in folders that need not exist yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((end.join(lines) + end).encode())


def write_table(path: Path, header: str, rows: Sequence[str], prefix: str = "", newline: str = "\n") -> None:
    """A table of CheXpert, whose rows begin with the paths of the images."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(newline.join([header, *(prefix + row for row in rows)]) + newline, newline="")


def touch(folder: Path, rows: Sequence[str], suffix: str = ".jpg") -> None:
    """The images of such rows, empty."""
    for row in rows:
        path = folder / row.split(",")[0].replace(".jpg", suffix)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def no_split(name: object, split: str, there: str) -> str:
    return f"{name}: the split {split!r} does not exist; it has {there}. Choose one with {SPLIT_OPTIONS}."


def error_of(read: Callable, *arguments, **options) -> str:
    """The message of the ValueError that a call must raise."""
    with pytest.raises(ValueError) as error:
        read(*arguments, **options)
    return str(error.value)
