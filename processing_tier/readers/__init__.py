"""Readers: each brings one layout of data into the schema of `processing_tier.records`."""

import os
from collections.abc import Mapping
from pathlib import Path

import datasets

from .imagefolder import read_imagefolder
from .table import read_table

PHANTOM = "phantom"
PHANTOM_OPTIONS = ("num_images", "seed", "image_size")
PHANTOM_IMAGES = {"train": 2000}
PHANTOM_OTHER_IMAGES = 300


def read_records(
    data: str | os.PathLike,
    split: str,
    columns: Mapping[str, str] | None = None,
    image_root: str | os.PathLike | None = None,
) -> datasets.Dataset:
    """
    Read one split of whatever `data` names, in the schema of [`records`].

    Args:
        data (`str` or `os.PathLike`):
            `"phantom"` for the embedded synthetic radiographs (`"phantom:num_images=200,seed=1,image_size=64"`), an
            image folder, or a `.csv` or `.parquet` table.
        split (`str`): such as `"train"`.
        columns (`Mapping[str, str]`, *optional*): schema name to column, see [`read_table`].
        image_root (`str` or `os.PathLike`, *optional*): folder of the images of a table.

    Raises:
        `ValueError`: data of no such kind, an option that has no effect there, or what the reader itself raises.
    """
    data = os.fspath(data)
    if data == PHANTOM or data.startswith(PHANTOM + ":"):
        if columns or image_root:
            raise ValueError(f"columns and image_root have no effect on {data!r}; leave them out.")
        return read_phantom(data, split)
    if Path(data).suffix.lower() in (".csv", ".parquet"):
        return read_table(data, image_root=image_root, split=split, columns=columns)
    if image_root:
        raise ValueError(f"image_root={str(image_root)!r} has no effect on an image folder; leave it out.")
    return read_imagefolder(data, split, columns)


def read_phantom(data: str, split: str) -> datasets.Dataset:
    """The phantom described by `data`, such as `"phantom:num_images=200,seed=1"`."""
    from ..phantom import make_phantom

    options = {"num_images": PHANTOM_IMAGES.get(split, PHANTOM_OTHER_IMAGES)}
    for part in filter(None, data.removeprefix(PHANTOM).removeprefix(":").split(",")):
        name, _, value = part.partition("=")
        if name not in PHANTOM_OPTIONS or not value.isdecimal():
            raise ValueError(
                f"phantom option {part!r} is not known; use {', '.join(PHANTOM_OPTIONS)} with a whole number each."
            )
        options[name] = int(value)
    return make_phantom(**options, split=split)
