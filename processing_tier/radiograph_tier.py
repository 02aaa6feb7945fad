"""Any file that holds a radiograph to one 8-bit grey image."""

import io
import os
import sys
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np
from PIL import Image, ImageOps

from .dicom_tier import decode_dicom
from .grey_levels_tier import to_uint8
from .limits_tier import (
    CUT_SHORT,
    MAX_FILE_BYTES,
    MAX_PIXELS,
    Refusal,
    check_bytes,
    check_pixels,
    check_scans,
    has_end,
)

OVERSAMPLING = (
    1.5  # how many times larger than asked for a picture decoded at reduced size is, see docs/radiographs.md
)
IN_MEMORY = "an image in memory"
FORMATS = ("PNG", "JPEG", "JPEG2000", "TIFF", "BMP", "WEBP", "PPM")  # never formats that call other programs

DAMAGED = "{name}: the image cannot be decoded: the file is damaged; replace the file or leave it out."
UNKNOWN = (
    "{name}: the image cannot be decoded: it is not PNG, JPEG, JPEG 2000, TIFF, BMP, WebP, PPM or DICOM; convert it "
    "or leave it out."
)
OTHER_FILES = {  # how files begin that are mistaken for images
    b"version https://git-lfs": "is a Git LFS pointer; run git lfs pull",
    b"%PDF": "is a PDF document, not an image; export its image as PNG",
    b"PK\x03\x04": "is a ZIP archive, not an image; unpack it",
    b"\x1f\x8b": "is a gzip archive, not an image; unpack it",
    b"\x93NUMPY": "is a NumPy array, not an image file; load it and pass the array",
    b"\x89HDF": "is an HDF5 file, not an image; pass the array that it holds",
}
TEXT = bytes([*b"\t\n\f\r", *range(32, 127), *range(128, 256)])


def read_radiograph(
    source: str | os.PathLike | bytes | IO[bytes] | Image.Image | np.ndarray | dict,
    root: str | os.PathLike | None = None,
    least_size: Mapping[str, int] | None = None,
) -> Image.Image:
    """
    Read a radiograph: DICOM, or PNG, JPEG, JPEG 2000, TIFF and the like in any mode and depth.

    Bones are white on a dark ground as in the file (DICOM MONOCHROME1 is inverted). More than 8 bits are reduced as
    [`to_uint8`] says; DICOM goes through its rescale or modality LUT and its VOI LUT or first window (DICOM PS3.3
    C.11), and through the percentile window where it has neither or where they are no numbers. What a file holds
    decides, not what it is called.

    Args:
        source: a path, the bytes of a file, an open binary file, a `pydicom.Dataset`, a PIL image, a (height,
            width[, channels]) array, or a dict with "bytes" and "path" (an undecoded image of `datasets`).
        root (`str` or `os.PathLike`, *optional*):
            Folder that paths are relative to and must not leave, symbolic links resolved.
        least_size (`Mapping[str, int]`, *optional*):
            `{"shortest_edge": pixels}` or `{"longest_edge": pixels}` that the picture will be resized to. A JPEG is
            then decoded at a half, a quarter or an eighth of its size, as long as that edge keeps 1.5 times as many
            pixels. Anything else, and by default everything, is decoded in full.

    Returns:
        `PIL.Image.Image`: mode "L", bones white, upright. Its `info` holds `"original_size"`, (width, height) of the
        picture in the file; `"reduction"`, 1, 2, 4 or 8; and, where a DICOM file states it, `"pixel_spacing"`, mm in
        the file from row to row and from column to column, at the detector where it is not given at the patient.
        Nothing else of the file's header is in it.

    Raises:
        `ValueError`: the image cannot be decoded, is no radiograph, is too large, or lies outside `root`. The message
        names the file without its folder, and nothing of its content.
    """
    if isinstance(source, dict):
        data, path = source.get("bytes"), source.get("path")
        if data is None and path is None:
            raise ValueError("an image record has neither bytes nor a path; give one of the two.")
        name = Path(path).name if path else IN_MEMORY
        return decode(data, name, least_size) if data is not None else read_radiograph(path, root, least_size)
    if isinstance(source, (bytes, bytearray)):
        return decode(bytes(source), IN_MEMORY, least_size)
    if isinstance(source, (str, os.PathLike)):
        path = path_under(root, source) if root is not None else Path(source)
        return decode(read_file(path), path.name, least_size)
    if "pydicom" in sys.modules and isinstance(source, sys.modules["pydicom"].Dataset):
        return read_dicom(source, Path(str(getattr(source, "filename", None) or IN_MEMORY)).name)
    if hasattr(source, "read"):
        name = Path(str(getattr(source, "name", "an open file"))).name
        data = source.read(MAX_FILE_BYTES + 1)
        if not isinstance(data, bytes):
            raise ValueError(f"{name}: the file is open as text; open it in binary mode.")
        return decode(data, name, least_size)
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
    return with_info(to_grey(array))


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


def read_file(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise ValueError(f"{path.name}: there is no such image file; check the path and the image folder.")
        with open(path, "rb") as file:
            check_bytes(os.fstat(file.fileno()).st_size, path.name)
            return file.read(MAX_FILE_BYTES + 1)  # it may be growing
    except OSError as error:
        raise ValueError(f"{path.name}: the file cannot be read ({error.strerror}); check its permissions.") from error


def fetch_radiograph(
    url: str, timeout: float | None = 30.0, least_size: Mapping[str, int] | None = None
) -> Image.Image:
    """
    Read a radiograph from a web server.

    Args:
        url (`str`): `http://` or `https://`; it is not read from data sets, whose paths never cause a request.
        timeout (`float`, *optional*, defaults to 30.0): Seconds that the server may be silent; `None` waits for ever.
        least_size (`Mapping[str, int]`, *optional*): See [`read_radiograph`].

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
    return decode(data, name, least_size)


def decode(data: bytes, name: str, least_size: Mapping[str, int] | None = None) -> Image.Image:
    """Decode the bytes of one file; `name` stands for it in errors."""
    check_bytes(len(data), name)
    if data[128:132] == b"DICM" or data[:2] in (b"\x02\0", b"\x08\0", b"\0\x08"):  # or its first tag, with no preamble
        return read_dicom(data, name)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)  # reads the header alone
    except Image.DecompressionBombError:  # of PIL, above twice its own bound
        raise ValueError(f"{name}: more than {MAX_PIXELS:,} pixels; export it at a smaller size.") from None
    except Exception as error:
        raise ValueError(reason(data, name, error)) from error
    check_pixels(*image.size, name)
    size, reduction = image.size, reduce_decoding(image, least_size)
    try:
        if image.format == "PNG":
            Image.open(io.BytesIO(data), formats=FORMATS).verify()  # the checksums, which load() does not look at
        elif image.format in ("JPEG", "MPO"):
            check_scans(data, name)
        image.load()
    except Refusal:
        raise
    except Exception as error:  # what a decoder raises on a damaged file is not documented
        raise ValueError(reason(data, name, error)) from error
    return convert(image, name, size if reduction > 1 else None, reduction)


def read_dicom(source: bytes | Any, name: str) -> Image.Image:
    levels, pixel_spacing = decode_dicom(source, name)
    return with_info(to_grey(levels), pixel_spacing=pixel_spacing)


def convert(
    image: Image.Image, name: str, original_size: tuple[int, int] | None = None, reduction: int = 1
) -> Image.Image:
    """The grey picture of an opened file, which stands for one of `original_size`."""
    check_pixels(*image.size, name)
    try:
        image.load()
    except Exception as error:
        raise ValueError(DAMAGED.format(name=name)) from error
    try:
        grey = to_grey(image)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if original_size is None and is_reduced(image):  # one that was read before
        original_size, reduction = image.info["original_size"], image.info["reduction"]
    return with_info(grey, original_size, reduction, image.info.get("pixel_spacing"))


def with_info(
    grey: Image.Image, original_size: tuple[int, int] | None = None, reduction: int = 1, pixel_spacing=None
) -> Image.Image:
    """Nothing of a file's header but this stays with the picture: comments may hold the patient's name."""
    grey.info = {"original_size": original_size or grey.size, "reduction": reduction}
    if isinstance(pixel_spacing, tuple):  # a text of a PNG file may be called so
        grey.info["pixel_spacing"] = pixel_spacing
    return grey


def is_reduced(image: Image.Image) -> bool:
    """Whether the picture is all of a larger one, decoded at reduced size; what was cut out of it is none."""
    size, reduction = image.info.get("original_size"), image.info.get("reduction")
    if not isinstance(size, tuple) or not isinstance(reduction, int) or reduction == 1:
        return False
    return image.size == (-(-size[0] // reduction), -(-size[1] // reduction))


def original_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of the picture in the file that [`read_radiograph`] made this one of."""
    return image.info["original_size"] if is_reduced(image) else image.size


def resize(image: Image.Image, size: tuple[int, int], resample: int) -> Image.Image:
    """Resize (width, height) as if from the original: of a reduced picture, the last pixels may stand for a part."""
    width, height = original_size(image)
    reduction = image.info["reduction"] if is_reduced(image) else 1
    return image.resize(size, resample, box=(0, 0, width / reduction, height / reduction))


def reduce_decoding(image: Image.Image, least_size: Mapping[str, int] | None) -> int:
    """Have an opened JPEG decode straight to grey and at reduced size; by which factor."""
    reduction = 1
    if image.format not in ("JPEG", "MPO"):
        return reduction
    if least_size and orientation(image) == 1:
        ((edge, pixels),) = least_size.items()
        if edge not in ("shortest_edge", "longest_edge"):
            raise ValueError(f"least_size={dict(least_size)} has no shortest_edge or longest_edge; give one of them.")
        present = {"shortest_edge": min, "longest_edge": max}[edge](image.size)
        reduction = next((factor for factor in (8, 4, 2) if present >= factor * OVERSAMPLING * pixels), 1)
    image.draft("L", (max(image.width // reduction, 1), max(image.height // reduction, 1)))
    return reduction


def orientation(image: Image.Image) -> int:
    """EXIF's, of which 1 is upright."""
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # a damaged block of camera data says nothing of the pixels
        return 1


def reason(data: bytes, name: str, error: Exception) -> str:
    """Why a file that PIL does not decode is none."""
    head = data[:1024].removeprefix(b"\xef\xbb\xbf").lstrip()
    if not data:
        return f"{name}: the file is empty; copy or download it again."
    for start, what in OTHER_FILES.items():
        if head.startswith(start):
            return f"{name}: the file {what}."
    if any(tag in head.lower() for tag in (b"<!doctype html", b"<html", b"<head", b"<body")):
        return f"{name}: the file is a web page, not an image; download it again, logged in."
    if head[:3] == b"\xff\xd8\xff" or b"\xff\x4f\xff\x51" in head:  # JPEG, JPEG 2000
        short = not has_end(data)
    elif head[:4] == b"\x89PNG":
        short = b"IEND" not in data[-1024:]
    elif head[:4] == b"RIFF":
        short = len(data) < 8 + int.from_bytes(data[4:8], "little")
    elif head[:2] == b"BM":
        short = len(data) < int.from_bytes(data[2:6], "little")
    elif head[:4] in (b"II*\0", b"MM\0*"):  # TIFF, whose directory usually comes last
        order = "little" if head[:2] == b"II" else "big"
        short = "truncated" in str(error) or len(data) < int.from_bytes(data[4:8], order) + 2
    elif not head.translate(None, TEXT) and not (head[:1] == b"P" and head[1:2].isdigit()):
        return f"{name}: the file is text, not an image; name the image file."
    elif isinstance(error, Image.UnidentifiedImageError):
        return UNKNOWN.format(name=name)
    else:
        short = "truncated" in str(error)
    return (CUT_SHORT if short else DAMAGED).format(name=name)


def to_grey(image: Image.Image | np.ndarray) -> Image.Image:
    """
    A picture of any PIL mode, or a (height, width[, 1 | 3 | 4]) array, as an 8-bit grey image of mode "L".

    EXIF orientation is applied, transparency lies on black, colour becomes ITU-R 601 luma (exact where R = G = B), and
    more than 8 bits go through [`to_uint8`].
    """
    if not isinstance(image, Image.Image):
        array = to_uint8(np.asarray(image))
        return to_grey(Image.fromarray(array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array))
    if orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode in ("L", "1"):
        return image.convert("L")
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(to_uint8(np.asarray(image)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.composite(image.convert("L"), Image.new("L", image.size), image.getchannel("A"))
    return image.convert("RGB").convert("L")
