"""The images of a call of the pipeline: one or several, read as the model needs them, or skipped."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.utils import logging

logger = logging.get_logger(__name__)

ON_ERROR = ("raise", "skip")
MIN_SIDE = 16  # pixels; the smallest radiographs in use have 28


def is_one_image(images: Any) -> bool:
    """Whether this is one image rather than several."""
    if isinstance(images, (str, os.PathLike, bytes, bytearray, Mapping, Image.Image, np.ndarray, torch.Tensor)):
        return True
    is_open_file, is_dicom = hasattr(images, "read"), type(images).__module__.split(".")[0] == "pydicom"
    return is_open_file or is_dicom or not isinstance(images, Iterable)


def read_picture(
    image_processor: Any, image: Any, timeout: float | None, on_error: str
) -> tuple[Any, Image.Image, str | None]:
    """
    Reads one image of a call.

    Args:
        image_processor: A `TierImageProcessor`.
        image: An image, a record with the key `"image"`, or either as `{"image": ..., "place": "image 2 of 3"}`.
        timeout (`float` or `None`): Seconds to wait for a server.
        on_error (`str`): One of `ON_ERROR`.

    Returns:
        `tuple`: the image as it was given; the picture, mode "L"; and the reason why it could not be read. Then the
        picture is a stand-in, so that a batch keeps its rows.

    Raises:
        ValueError: The image cannot be read, and `on_error` is `"raise"`.
    """
    place = ""
    if isinstance(image, dict) and "place" in image:
        image, place = image["image"], f"{image['place']}: "
    if isinstance(image, dict) and "image" in image:  # a record of a data set
        image = image["image"]
    try:
        picture = image_processor.read(image, timeout)
        width, height = picture.info["original_size"]
        if min(width, height) < MIN_SIDE:
            raise ValueError(
                f"{width}x{height} pixels are too few for a radiograph; {MIN_SIDE}x{MIN_SIDE} is the minimum."
            )
    except ValueError as reason:
        if on_error == "raise":
            raise ValueError(f"{place}{reason}") from reason
        error = f"{place}{reason}"
        logger.warning(f"Skipped an image. {error}")
        stand_in = Image.linear_gradient("L").resize((MIN_SIDE, MIN_SIDE))
        stand_in.info["original_size"] = stand_in.size
        return image, stand_in, error
    return image, picture, None


def picture_source(image: Any, picture: Image.Image) -> Any:
    """
    What draws the radiograph under a heat-map later: the file where it can be read again, which is small in memory,
    else the picture that was read.
    """
    is_url = isinstance(image, str) and image.startswith(("http://", "https://"))
    is_file = isinstance(image, (str, os.PathLike, bytes, bytearray, Mapping)) and not is_url
    return image if is_file else picture
