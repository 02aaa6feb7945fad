"""The sizes of images from their headers, for boxes that an archive does not give in pixels of its images."""

import logging
import os
from collections.abc import Mapping

from PIL import Image

from processing_tier.progress import progress
from processing_tier.records.paths import find_files

logger = logging.getLogger(__name__)

UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def read_sizes(root: str | os.PathLike, paths: Mapping[str, str], name: str) -> dict[str, tuple[int, int]]:
    """
    Width and height of PNG files, of which only the header is read.

    Args:
        root (`str` or `os.PathLike`): folder that the paths start from and must not leave.
        paths (`Mapping[str, str]`): by the id of the image.
        name (`str`): of the data set, for the warning about files that cannot be read.

    Returns:
        `dict[str, tuple[int, int]]`: by id, without images that are missing or cannot be read.

    Raises:
        `ValueError`: a path does not lie under `root`.
    """
    files = find_files(root, paths.values())
    sizes, unreadable = {}, 0
    shown = progress(zip(paths, files, strict=True), "reading sizes", "image", len(files))
    for image_id, (file, is_there) in shown:
        try:
            if is_there:
                with Image.open(file, formats=("PNG",)) as picture:
                    sizes[image_id] = picture.size
        except UNREADABLE:
            unreadable += 1
    if unreadable:
        logger.warning("%s: %d images are not readable PNG files: their boxes are left out.", name, unreadable)
    return sizes
