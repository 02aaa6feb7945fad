"""Writing a file so that it is complete or as it was before, and whether a folder can be written.

Only light packages are imported, so that the commands answer a mistyped option at once.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def write_beside(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary file beside `path`, then rename it: `path` is complete or as it was before."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def find_existing(folder: Path) -> Path:
    """The folder, or the nearest parent that exists."""
    return next(path for path in [folder.absolute(), *folder.absolute().parents] if path.exists())


def can_write(folder: Path) -> bool:
    """Whether a file can be written into the folder, or into the one in which it would be made."""
    try:  # permissions alone let root write to a read-only disk and to /proc
        tempfile.TemporaryFile(dir=find_existing(folder)).close()
    except OSError:
        return False
    return True


def check_writable(folder: Path, option: str) -> None:
    """ValueError if the folder cannot be written, before any work is done."""
    if not can_write(folder):
        raise ValueError(f"the folder {folder} cannot be written: choose another {option}.")
