"""The folder that a conversion writes, all of it or none."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill. It becomes `folder` once everything is written, and is removed after a failure."""
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        yield partial
        if folder.exists():
            folder.rmdir()  # empty, as the caller has checked
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
