"""Any file that holds a radiograph to one 8-bit grey image."""

import io
import os
import warnings
from http.client import HTTPException
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np
from PIL import Image, ImageOps

MAX_FILE_BYTES = 256 * 2**20
MAX_PIXELS = 80_000_000  # four times the largest detectors; below PIL's own bomb warning
WINDOW_PERCENTILES = (0.5, 99.5)
NOT_RADIOGRAPHS = ("CT", "MR", "PT", "NM", "US", "MG", "OP", "SM")  # DICOM modalities; radiographs come as CR, DX, OT
IN_MEMORY = "an image in memory"
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
        name = Path(path).name if path else IN_MEMORY
        return decode(data, name) if data is not None else read_radiograph(path, root)
    if isinstance(source, (bytes, bytearray)):
        return decode(bytes(source), IN_MEMORY)
    if isinstance(source, (str, os.PathLike)):
        path = path_under(root, source) if root is not None else Path(source)
        if not path.is_file():
            raise ValueError(f"{path.name}: there is no such image file; check the path and the image folder.")
        with open(path, "rb") as file:
            return decode(file.read(MAX_FILE_BYTES + 1), path.name)
    if hasattr(source, "read"):
        return decode(source.read(MAX_FILE_BYTES + 1), Path(str(getattr(source, "name", "an open file"))).name)
    if isinstance(source, Image.Image):
        return convert(source, Path(getattr(source, "filename", "")).name or IN_MEMORY)
    array = np.asarray(source)
    if array.dtype.kind not in "buif":
        raise ValueError(
            f"an image cannot be read from a {type(source).__name__}; give a path, bytes, an open file, a PIL image "
            "or an array."
        )
    if array.ndim not in (2, 3) or array.ndim == 3 and array.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"an array of shape {array.shape} is not an image; give (height, width) or (height, width, 1 | 3 | 4)."
        )
    check_pixels(array.shape[1], array.shape[0], IN_MEMORY)
    return to_grey(array)


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
    except Image.DecompressionBombError:  # of PIL, above twice its own bound
        raise ValueError(f"{name}: more than {MAX_PIXELS:,} pixels; export it at a smaller size.") from None
    except Exception as error:
        raise ValueError(UNREADABLE.format(name=name)) from error
    return convert(image, name)


def convert(image: Image.Image, name: str) -> Image.Image:
    """Decode the pixels of an opened file."""
    check_pixels(*image.size, name)
    try:
        return to_grey(image)
    except Exception as error:  # what a decoder raises on a damaged file is not documented
        raise ValueError(UNREADABLE.format(name=name)) from error


def fetch_radiograph(url: str, timeout: float | None = 30.0) -> Image.Image:
    """
    Read a radiograph from a web server.

    Args:
        url (`str`): `http://` or `https://`; it is not read from data sets, whose paths never cause a request.
        timeout (`float`, *optional*, defaults to 30.0): Seconds that the server may be silent; `None` waits for ever.

    Raises:
        `ValueError`: the URL cannot be fetched, or what it gives cannot be decoded or is too large. The message names
        the last part of the URL's path.
    """
    name = "an image of a web server"
    try:
        parts = urlsplit(url)
        name = Path(parts.path).name or parts.netloc.rpartition("@")[2]  # without the password
        with urlopen(url, timeout=timeout) as response:
            data = response.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError, HTTPException) as error:
        reason = error if isinstance(error, OSError) else type(error).__name__  # others quote the URL, key and all
        raise ValueError(
            f"{name}: the URL cannot be fetched ({reason}); check it, or download the file and give its path."
        ) from None
    return decode(data, name)


def check_pixels(width: int, height: int, name: str) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(f"{name}: {width}x{height} pixels are more than {MAX_PIXELS:,}; export it at a smaller size.")


def decode_dicom(data: bytes, name: str) -> Image.Image:
    """Decode one single-frame monochrome DICOM file; pydicom's messages, which may quote the header, are kept back."""
    try:  # an import in a `try` is no requirement of a model repository that ships this file
        import pydicom
        from pydicom.pixels import apply_rescale, apply_voi_lut, apply_windowing
    except ImportError:
        raise ValueError(
            f"{name}: pydicom, which reads DICOM, is not installed: pip install pydicom, or export the image as PNG."
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's warnings quote header values
            dataset = pydicom.dcmread(io.BytesIO(data))
            frames, photometric = int(dataset.get("NumberOfFrames") or 1), dataset.PhotometricInterpretation
            width, height, modality = int(dataset.Columns), int(dataset.Rows), dataset.get("Modality")
    except Exception:
        raise ValueError(
            f"{name}: the DICOM header cannot be read or describes no image; replace the file or leave it out."
        ) from None
    if frames > 1:
        raise ValueError(f"{name}: a DICOM file of {frames} frames is not a radiograph; export the frame you need.")
    if modality in NOT_RADIOGRAPHS:
        raise ValueError(f"{name}: a DICOM image of the modality {modality} is not a radiograph; leave it out.")
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
            f"{name}: the DICOM pixels cannot be decoded; install the decoders with pip install pylibjpeg "
            "pylibjpeg-openjpeg pylibjpeg-libjpeg, or export the image as PNG."
        ) from None
    grey = window_to_uint8(array, low, high)
    return Image.fromarray(255 - grey if photometric == "MONOCHROME1" else grey)


def window_to_uint8(array: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map `low`..`high` linearly to 0..255 and clip; all 0 where the window is empty (a constant image)."""
    if not high > low:
        return np.zeros(array.shape, dtype=np.uint8)
    scaled = (array.astype(np.float32) - low) * (255.0 / (high - low))
    return np.rint(scaled).clip(0, 255).astype(np.uint8)


def to_uint8(array: np.ndarray) -> np.ndarray:
    """
    Grey levels of any number type as 0..255.

    Fractions within 0..1 (times 255) and numbers within 0..255 keep their values. Everything else (12- and 16-bit
    files, floats of any other range) is windowed between the 0.5th and 99.5th percentile of the image itself: the
    number of bits in use is seldom recorded, and a burnt-in marker must not set the scale.

    Raises:
        `ValueError`: an empty array, or one with NaN or infinity.
    """
    if array.size == 0:
        raise ValueError(f"an image of shape {array.shape} has no pixels; give one with at least 1x1.")
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError("an image holds NaN or infinite pixels; replace them with numbers.")
    lowest, highest = array.min(), array.max()
    if array.dtype.kind == "f" and lowest >= 0 and highest <= 1:
        return window_to_uint8(array, 0, 1)
    if lowest >= 0 and highest <= 255:
        return np.rint(array).astype(np.uint8)
    return window_to_uint8(array, *np.percentile(array, WINDOW_PERCENTILES))


def to_grey(image: Image.Image | np.ndarray) -> Image.Image:
    """
    A picture of any PIL mode, or a (height, width[, 1 | 3 | 4]) array, as an 8-bit grey image of mode "L".

    EXIF orientation is applied, transparency lies on black, colour becomes ITU-R 601 luma (exact where R = G = B), and
    more than 8 bits go through [`to_uint8`].
    """
    if not isinstance(image, Image.Image):
        array = to_uint8(np.asarray(image))
        return to_grey(Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array))
    image = ImageOps.exif_transpose(image)
    if image.mode in ("L", "1"):
        return image.convert("L")
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(to_uint8(np.asarray(image)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return image.convert("RGB").convert("L")
