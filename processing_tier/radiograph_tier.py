"""
Reads any file that holds a radiograph as one 8-bit grey image. DICOM is decoded in `dicom_tier.py`, other formats in
`image_files_tier.py`; the image processor makes tensors of the result.
"""

import os
import sys
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any, TypeAlias
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np
from PIL import Image
from transformers.utils import logging

from .dicom_tier import decode_dicom
from .grey_levels_tier import to_uint8
from .image_files_tier import check_rows, open_image, raw_modes, reason
from .limits_tier import DAMAGED, MAX_FILE_BYTES, Refusal, check_bytes, check_pixels
from .tiff_tier import orientation, turn_upright

logger = logging.get_logger(__name__)

# A picture decoded at reduced size is at least so many times larger than asked for, see docs/radiographs.md
OVERSAMPLING = 1.5
IN_MEMORY = "an image in memory"
BLANK = "all pixels of the image are equal; replace the file or leave it out."

Source: TypeAlias = str | os.PathLike | bytes | IO[bytes] | Image.Image | np.ndarray | dict


def read_radiograph(
    source: Source,
    root: str | os.PathLike | None = None,
    least_size: Mapping[str, int] | None = None,
    grey_levels: str = "window",
) -> Image.Image:
    """
    Read a radiograph: DICOM, or PNG, JPEG, JPEG 2000, TIFF and the like in any mode and depth.

    Bones are white on a dark ground as in the file (DICOM MONOCHROME1 and TIFF WhiteIsZero are inverted). More than 8
    bits are reduced as [`to_uint8`] says. DICOM goes through its rescale or modality LUT, and through its VOI LUT or
    first window (DICOM PS3.3 C.11); without a valid one, through the percentile window. The content of a file decides
    its format, not its name. For a picture of equal pixels, a warning is logged.

    Args:
        source: a path, the bytes of a file, an open binary file, a `pydicom.Dataset`, a PIL image, a (height,
            width[, channels]) array, or a dict with "bytes" and "path" (an undecoded image of `datasets`).
        root (`str` or `os.PathLike`, *optional*):
            Folder that paths are relative to and must not leave, symbolic links resolved.
        least_size (`Mapping[str, int]`, *optional*):
            `{"shortest_edge": pixels}` or `{"longest_edge": pixels}` that the picture will be resized to. A JPEG is
            then decoded at a half, a quarter or an eighth of its size, if that edge keeps 1.5 times as many pixels.
            Other files are decoded in full, and so is everything by default.
        grey_levels (`str`, *optional*, defaults to `"window"`):
            See [`to_uint8`]. `"stretch"` ignores DICOM's windows, tables and padding, and decodes everything in full;
            `"divide"` does not change DICOM.

    Returns:
        `PIL.Image.Image`: mode "L", bones white, upright. Its `info` holds `"original_size"`, (width, height) of the
        picture in the file; `"reduction"`, 1, 2, 4 or 8; if a DICOM file states it, `"pixel_spacing"`, mm in the file
        from row to row and from column to column, at the patient or else at the detector; and `"blank"`, the reason
        why all pixels are equal, if they are. It does not hold other parts of the file's header.

    Raises:
        `ValueError`: the image cannot be decoded, is not a radiograph, is too large, or lies outside `root`. The
        message names the file without its folder and without its content. A file cannot cause any other error.
    """
    image, name = read_source(source, root, least_size, grey_levels)
    if "blank" in image.info:
        logger.warning_once(f"{name}: {image.info['blank']}")
    return image


def read_source(
    source: Source,
    root: str | os.PathLike | None = None,
    least_size: Mapping[str, int] | None = None,
    grey_levels: str = "window",
) -> tuple[Image.Image, str]:
    """The result of [`read_radiograph`], without its warning, and the name of the source."""
    if isinstance(source, dict):
        data, path = source.get("bytes"), source.get("path")
        if data is None and path is None:
            raise ValueError("an image record has neither bytes nor a path; give one of the two.")
        if data is None:
            return read_source(path, root, least_size, grey_levels)
        source, name = data, Path(path).name if path else IN_MEMORY
    elif isinstance(source, (bytes, bytearray)):
        source, name = bytes(source), IN_MEMORY
    elif isinstance(source, (str, os.PathLike)):
        path = path_under(root, source) if root is not None else Path(source)
        source, name = read_file(path), path.name
    elif hasattr(source, "read"):
        name = Path(str(getattr(source, "name", "an open file"))).name
        source = source.read(MAX_FILE_BYTES + 1)
        if not isinstance(source, bytes):
            raise ValueError(f"{name}: the file is open as text; open it in binary mode.")
    elif is_dataset(source) or isinstance(source, Image.Image):
        name = Path(str(getattr(source, "filename", None) or "")).name or IN_MEMORY
    else:
        return from_array(source, grey_levels), IN_MEMORY
    return decode(source, name, least_size, grey_levels), name


def is_dataset(source: Any) -> bool:
    return isinstance(source, getattr(sys.modules.get("pydicom"), "Dataset", ()))


def from_array(source: Any, grey_levels: str) -> Image.Image:
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
    if array.size:
        try:
            check_pixels(array.shape[1], array.shape[0])
        except Refusal as refusal:
            raise ValueError(f"{IN_MEMORY}: {refusal}") from None
    return with_info(to_grey(array, grey_levels))


def path_under(root: str | os.PathLike, path: str | os.PathLike) -> Path:
    """
    `path`, relative to `root` or absolute, with every symbolic link resolved.

    Raises:
        `ValueError`: it is not under `root`, or cannot be a path.
    """
    if "\0" in os.fspath(path):
        raise ValueError(f"{os.fspath(path)!r} is not a path, since it has a NUL character; fix the record.")
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
            raise ValueError(f"{path.name}: the image file does not exist; check the path and the image folder.")
        with open(path, "rb") as file:  # Python allocates as many bytes as may be read
            return file.read(min(os.fstat(file.fileno()).st_size, MAX_FILE_BYTES) + 1)
    except OSError as error:
        raise ValueError(f"{path.name}: the file cannot be read ({error.strerror}); check its permissions.") from error


def fetch_radiograph(
    url: str,
    timeout: float | None = 30.0,
    least_size: Mapping[str, int] | None = None,
    grey_levels: str = "window",
) -> Image.Image:
    """
    Read a radiograph from a web server.

    Args:
        url (`str`): `http://` or `https://`. Paths in data sets are never fetched.
        timeout (`float`, *optional*, defaults to 30.0): seconds that the server may be silent; `None` waits forever.
        least_size (`Mapping[str, int]`, *optional*), grey_levels (`str`, *optional*, defaults to `"window"`):
            See [`read_radiograph`].

    Raises:
        `ValueError`: the URL cannot be fetched, or the file cannot be decoded or is too large. The message names the
        last part of the URL's path.
    """
    name = "an image of a web server"
    try:
        parts = urlsplit(url)
        name = Path(parts.path).name or parts.netloc.rpartition("@")[2]  # without the password
        with urlopen(url, timeout=timeout) as response:
            data = response.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError, HTTPException) as error:
        reason = (
            error if isinstance(error, OSError) else type(error).__name__
        )  # other errors quote the URL with its key
        raise ValueError(
            f"{name}: the URL cannot be fetched ({reason}); check it, or download the file and give its path."
        ) from None
    return read_radiograph({"bytes": data, "path": name}, None, least_size, grey_levels)


def decode(
    source: bytes | Image.Image | Any, name: str, least_size: Mapping[str, int] | None, grey_levels: str
) -> Image.Image:
    """
    The grey picture of the bytes of a file, of a PIL image or of a `pydicom.Dataset`. Every error of a decoder becomes
    the documented error; the decoder's message is dropped, because it may quote the patient's data.
    """
    try:
        if isinstance(source, Image.Image):
            return convert(source, grey_levels)
        if is_dataset(source):
            return read_dicom(source, grey_levels)
        check_bytes(len(source))
        # DICOM's mark, or its first tag in a file without a preamble
        if source[128:132] == b"DICM" or source[:2] in (b"\x02\0", b"\x08\0", b"\0\x08"):
            return read_dicom(source, grey_levels)
        return read_image(source, least_size, grey_levels)
    except Refusal as refusal:
        problem = str(refusal)
    except MemoryError:
        problem = "there is not enough memory to decode the image; export it at a smaller size."
    except Exception as error:
        problem = explain(source, error)
    raise ValueError(f"{name}: {problem}")


def explain(source: bytes | Any, error: Exception) -> str:
    try:
        return reason(source, error) if isinstance(source, bytes) else DAMAGED
    except Refusal as refusal:
        return str(refusal)
    except Exception:  # not even the beginning of the file can be read
        return DAMAGED


def read_dicom(source: bytes | Any, grey_levels: str) -> Image.Image:
    levels, pixel_spacing, blank = decode_dicom(source, grey_levels)
    grey = with_info(to_grey(levels), pixel_spacing=pixel_spacing)
    if blank:
        grey.info["blank"] = blank
    return grey


def read_image(data: bytes, least_size: Mapping[str, int] | None, grey_levels: str) -> Image.Image:
    image, turn, is_inverted = open_image(data)
    if isinstance(image, np.ndarray):
        size, reduction = image.shape[::-1], 1
    else:
        size, reduction = image.size, 1
        if grey_levels != "stretch":  # it needs all pixels, and the colours separately
            reduction = reduce_decoding(image, least_size, turn)
        image.load()
        if image.format == "PNG":
            check_rows(image, data)
    grey = to_grey(image, grey_levels)
    if is_inverted:
        grey = grey.point(range(255, -1, -1))
    return with_info(turn_upright(grey, turn), size if reduction > 1 else None, reduction)


def convert(image: Image.Image, grey_levels: str) -> Image.Image:
    """The grey picture of an opened file or of a picture, perhaps one that was read here before."""
    check_pixels(*image.size)
    is_first = getattr(image, "fp", None) is not None and not image.tell()
    if is_first and (image.format == "TIFF" or any(";16" in mode for mode in raw_modes(image))):
        at = image.fp.tell()  # not loaded yet: PIL would drop bits, or invert only some kinds
        image.fp.seek(0)
        data = image.fp.read(MAX_FILE_BYTES + 1)
        image.fp.seek(at)
        return read_image(data, None, grey_levels)
    image.load()
    if isinstance(image.info.get("reduction"), int):  # it was read here before, and `grey_levels` were applied
        size, reduction = (image.info["original_size"], image.info["reduction"]) if is_reduced(image) else (None, 1)
        return with_info(to_grey(image), size, reduction, image.info.get("pixel_spacing"))
    return with_info(turn_upright(to_grey(image, grey_levels), orientation(image)))


def with_info(
    grey: Image.Image, original_size: tuple[int, int] | None = None, reduction: int = 1, pixel_spacing: Any = None
) -> Image.Image:
    """The picture with only this information from the file's header: comments may hold the patient's name."""
    lowest, highest = grey.getextrema()
    grey.info = {"original_size": original_size or grey.size, "reduction": reduction}
    if lowest == highest:
        grey.info["blank"] = BLANK
    if isinstance(pixel_spacing, tuple):  # not a text of a PNG file with that name
        grey.info["pixel_spacing"] = pixel_spacing
    return grey


def is_reduced(image: Image.Image) -> bool:
    """Whether the picture is a whole file decoded at reduced size, and not a part cut out of one."""
    size, reduction = image.info.get("original_size"), image.info.get("reduction")
    if not isinstance(size, tuple) or not isinstance(reduction, int) or reduction == 1:
        return False
    return image.size == (-(-size[0] // reduction), -(-size[1] // reduction))


def original_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of the picture in the file that [`read_radiograph`] read."""
    return image.info["original_size"] if is_reduced(image) else image.size


def resize(image: Image.Image, size: tuple[int, int], resample: int) -> Image.Image:
    """Resize to (width, height) as if from the original: the last pixels of a reduced picture may be partial."""
    width, height = original_size(image)
    reduction = image.info["reduction"] if is_reduced(image) else 1
    return image.resize(size, resample, box=(0, 0, width / reduction, height / reduction))


def reduce_decoding(image: Image.Image, least_size: Mapping[str, int] | None, turn: int) -> int:
    """Make an opened JPEG decode straight to grey and at reduced size; the factor of the reduction."""
    reduction = 1
    if least_size and next(iter(least_size)) not in ("shortest_edge", "longest_edge"):
        raise Refusal(f"least_size={dict(least_size)} has no shortest_edge or longest_edge; give one of them.")
    if image.format != "JPEG":
        return reduction
    if least_size and turn == 1:
        ((edge, pixels),) = least_size.items()
        present = {"shortest_edge": min, "longest_edge": max}[edge](image.size)
        reduction = next((factor for factor in (8, 4, 2) if present >= factor * OVERSAMPLING * pixels), 1)
    image.draft("L", (max(image.width // reduction, 1), max(image.height // reduction, 1)))
    return reduction


def to_grey(image: Image.Image | np.ndarray, grey_levels: str = "window") -> Image.Image:
    """
    A picture of any PIL mode, or a (height, width[, 1 | 3 | 4]) array, as an 8-bit grey image of mode "L".

    Transparency becomes black, colour becomes ITU-R 601 luma (exact if R = G = B), and more than 8 bits go through
    [`to_uint8`]. With `grey_levels="stretch"`, 8 bits do so too, and colours are stretched before they become luma.
    """
    if not isinstance(image, Image.Image):
        array = np.asarray(image)
        array = to_uint8(array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array, grey_levels)
        return Image.fromarray(array) if array.ndim == 2 else to_grey(Image.fromarray(array))
    if image.mode == "F" or image.mode.startswith("I"):
        array, transparent = np.asarray(image), image.info.get("transparency")
        grey = to_uint8(array, grey_levels)
        if isinstance(transparent, int):
            grey = np.where(array == transparent, np.uint8(0), grey)
        return Image.fromarray(grey)
    if image.mode != "L" and image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.composite(image.convert("L"), Image.new("L", image.size), image.getchannel("A"))
    elif image.mode not in ("L", "1", "RGB"):
        image = image.convert("RGB")
    if grey_levels != "stretch":
        return image.convert("L")
    if image.mode == "1":
        image = image.convert("L")
    extrema = image.getextrema() if image.mode == "RGB" else [image.getextrema()]
    table = to_uint8(np.arange(256, dtype=np.uint8).clip(min(extrema)[0], max(high for _, high in extrema)), "stretch")
    return image.point(table.tolist() * len(extrema)).convert("L")
