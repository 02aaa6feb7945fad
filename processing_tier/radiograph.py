"""Any file that holds a radiograph to one 8-bit grey image."""

import io
import os
import warnings
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from .image_processing_tier import WINDOW_PERCENTILES, to_grey, window_to_uint8

MAX_FILE_BYTES = 256 * 2**20
MAX_PIXELS = 80_000_000  # four times the largest detectors; below PIL's own bomb warning
FORMATS = ("PNG", "JPEG", "JPEG2000", "TIFF", "BMP", "WEBP", "PPM")  # never formats that call other programs
UNREADABLE = (
    "{name}: the image cannot be decoded (damaged, cut short, or not PNG, JPEG, TIFF or DICOM); "
    "replace the file or leave it out."
)


def read_radiograph(
    source: str | os.PathLike | bytes | IO[bytes] | Image.Image | np.ndarray | dict,
    root: str | os.PathLike | None = None,
) -> Image.Image:
    """
    Read a radiograph: PNG, JPEG, TIFF and the like in any mode and depth, or DICOM.

    Bones are white on a dark ground as in the file (DICOM MONOCHROME1 is inverted). More than 8 bits are reduced as
    [`to_uint8`] says; DICOM goes through its rescale and its first window or VOI LUT, and through the percentile
    window where it has neither.

    Args:
        source: a path, the bytes of a file, an open binary file, a PIL image, a (height, width[, channels]) array, or
            a dict with "bytes" and "path" (an undecoded image of `datasets`).
        root (`str` or `os.PathLike`, *optional*):
            Folder that paths are relative to and must not leave, symbolic links resolved.

    Returns:
        `PIL.Image.Image`: mode "L", bones white.

    Raises:
        `ValueError`: the image cannot be decoded, is too large, or lies outside `root`. The message names the file
        without its folder, and nothing of its content.
    """
    if isinstance(source, dict):
        data, path = source.get("bytes"), source.get("path")
        if data is None and path is None:
            raise ValueError("an image record has neither bytes nor a path; give one of the two.")
        name = Path(path).name if path else "an image in memory"
        return decode(data, name) if data is not None else read_radiograph(path, root)
    if isinstance(source, (bytes, bytearray)):
        return decode(bytes(source), "an image in memory")
    if isinstance(source, (str, os.PathLike)):
        path = path_under(root, source) if root is not None else Path(source)
        if not path.is_file():
            raise ValueError(f"{path.name}: there is no such image file; check the path and the image folder.")
        with open(path, "rb") as file:
            return decode(file.read(MAX_FILE_BYTES + 1), path.name)
    if hasattr(source, "read"):
        return decode(source.read(MAX_FILE_BYTES + 1), Path(str(getattr(source, "name", "an open file"))).name)
    return to_grey(source)


def path_under(root: str | os.PathLike, path: str | os.PathLike) -> Path:
    """
    `path`, relative to `root` or absolute, with every symbolic link resolved.

    Raises:
        `ValueError`: it does not lie under `root`.
    """
    root = os.path.realpath(root)
    resolved = Path(os.path.realpath(os.path.join(root, path)))
    if not resolved.is_relative_to(root):
        raise ValueError(
            f"{Path(path).name}: the path leaves the image folder; name the folder that holds the images."
        )
    return resolved


def decode(data: bytes, name: str) -> Image.Image:
    """Decode the bytes of one file; `name` stands for it in errors."""
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"{name}: the file is larger than {MAX_FILE_BYTES >> 20} MiB; export it as a smaller PNG.")
    if data[128:132] == b"DICM":
        return decode_dicom(data, name)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)  # reads the header alone
        size = image.size
    except Exception as error:
        raise ValueError(UNREADABLE.format(name=name)) from error
    check_pixels(*size, name)
    try:
        return to_grey(image)
    except Exception as error:  # what a decoder raises on a damaged file is not documented
        raise ValueError(UNREADABLE.format(name=name)) from error


def check_pixels(width: int, height: int, name: str) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(f"{name}: {width}x{height} pixels are more than {MAX_PIXELS:,}; export it at a smaller size.")


def decode_dicom(data: bytes, name: str) -> Image.Image:
    """Decode one single-frame monochrome DICOM file; pydicom's messages, which may quote the header, are kept back."""
    import pydicom
    from pydicom.pixels import apply_rescale, apply_voi_lut, apply_windowing

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's warnings quote header values
            dataset = pydicom.dcmread(io.BytesIO(data))
            frames, photometric = int(dataset.get("NumberOfFrames") or 1), dataset.PhotometricInterpretation
            width, height = int(dataset.Columns), int(dataset.Rows)
    except Exception:
        raise ValueError(
            f"{name}: the DICOM header cannot be read or describes no image; replace the file or leave it out."
        ) from None
    if frames > 1:
        raise ValueError(f"{name}: a DICOM file of {frames} frames is not a radiograph; export the frame you need.")
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise ValueError(f"{name}: the DICOM image is not monochrome; export it as PNG.")
    check_pixels(width, height, name)
    try:
        with warnings.catch_warnings(), np.errstate(over="ignore"):
            warnings.simplefilter("ignore")
            array = apply_rescale(dataset.pixel_array, dataset)
            if dataset.get("VOILUTSequence"):
                low, high = 0, 2 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1
                array = apply_voi_lut(np.rint(array).astype(np.int64), dataset)
            elif dataset.get("WindowWidth") and dataset.get("WindowCenter") is not None:
                low, high = apply_windowing(np.array([-1e12, 1e12]), dataset)  # both ends of the window's output
                array = apply_windowing(array, dataset)
            else:
                low, high = np.percentile(array, WINDOW_PERCENTILES)
    except Exception:
        raise ValueError(
            f"{name}: the DICOM pixels cannot be decoded; install the decoders with pip install 'tier-clip[dicom]', "
            "or export the image as PNG."
        ) from None
    grey = window_to_uint8(array, low, high)
    return Image.fromarray(255 - grey if photometric == "MONOCHROME1" else grey)
