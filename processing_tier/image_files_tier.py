"""Opens PNG, JPEG, JPEG 2000, TIFF, BMP, WebP and PPM with all their bits, within the limits of `limits_tier.py`."""

import io
import re
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from .codestreams_tier import JPEG_LS, LOSSLESS, check_filled, jpeg_segments, read_jpeg, read_jpeg2000
from .grey_levels_tier import luma
from .limits_tier import (
    CUT_SHORT,
    DAMAGED,
    MAX_PARTS,
    MAX_PIXELS,
    MAX_SLOW_BYTES,
    MAX_VALUE_BYTES,
    Refusal,
    check_pixels,
)
from .tiff_tier import (
    EXIF,
    TIFF,
    XMP,
    clean_tiff,
    exif_orientation,
    first_numbers,
    orientation,
    tiff_is_short,
    unreadable_tiff,
)

FORMATS = ("PNG", "JPEG", "JPEG2000", "TIFF", "BMP", "WEBP", "PPM")  # no format that calls another program
UNKNOWN = (
    "the image cannot be decoded: it is not PNG, JPEG, JPEG 2000, TIFF, BMP, WebP, PPM or DICOM; convert it or leave "
    "it out."
)
OTHER_FILES = {  # beginnings of files that users mistake for images
    b"version https://git-lfs": "is a Git LFS pointer; run git lfs pull",
    b"%PDF": "is a PDF document, not an image; export its image as PNG",
    b"PK\x03\x04": "is a ZIP archive, not an image; unpack it",
    b"\x1f\x8b": "is a gzip archive, not an image; unpack it",
    b"\x93NUMPY": "is a NumPy array, not an image file; load it and pass the array",
    b"\x89HDF": "is an HDF5 file, not an image; pass the array that it holds",
}
TEXT = bytes([*b"\t\n\f\r", *range(32, 127), *range(128, 256)])

PNG = b"\x89PNG\r\n\x1a\n"
PNG_CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"eXIf")
# Where each pass of an interlaced PNG begins, x and y, and its steps
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
ORIENTED_TEXTS = (b"XML:com.adobe.xmp\0", b"Raw profile type exif\0")  # texts that may hold the orientation
FLOAT_MAP = re.compile(rb"Pf\s\d{1,9}\s\d{1,9}\s[-+.\deE]{1,20}\s")  # as programs write it, without comments
# Raw modes of PIL that keep the high byte of 16 bits, and the modes that keep the low one
LOW_BYTES = {"16B": "16L", "16L": "16B", "16N": "16B"}
NATIVE = {"I;16BS": "I;16NS", "I;32BS": "I;32NS", "F;32BF": "F;32NF"}


def open_image(data: bytes) -> tuple[Image.Image | np.ndarray, int, bool]:
    """
    Open a file and check it, before anything is decoded.

    Returns:
        `tuple[Image.Image | np.ndarray, int, bool]`: a picture that is not loaded yet, or the 16-bit grey levels of
        one that PIL would cut to 8 bits; EXIF's orientation (1 is upright); whether white is 0.

    Raises:
        `Refusal`: the file exceeds a limit, or its format is not supported. Errors of PIL pass through.
    """
    turn, is_inverted = None, False
    if data.startswith(PNG):
        data = clean_png(data)
    elif data.startswith(b"\xff\xd8"):
        data, turn = clean_jpeg(data)
    elif data[:4] in TIFF:
        data, turn, is_inverted = clean_tiff(data)
    elif re.match(rb"P[1-6][\s#]", data):
        deep = read_ppm(data)
        if deep is not None:
            return deep, 1, False
    elif data.startswith((b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n")):
        check_jpeg2000(data)
    elif data[:1] == b"P" and data[1:2] in (b"0", b"f", b"y") and not FLOAT_MAP.match(data):
        raise Refusal(UNKNOWN)
    elif data.startswith(b"RIFF"):
        check_webp(data)
    elif data.startswith(b"BM") and data[30:34] in (b"\1\0\0\0", b"\2\0\0\0"):  # run lengths
        check_slow(data)
    image = open_file(data)
    if image.format == "TIFF" and image.tile and image.tile[0].codec_name == "libtiff":
        set_raw_mode(image, lambda mode: NATIVE.get(mode, mode))  # libtiff swaps the bytes, and PIL does not know it
    turn = turn or orientation(image)
    if any(";16" in mode for mode in raw_modes(image)) and image.mode in ("RGB", "RGBA", "CMYK", "RGBa"):
        return read_deep(image, data), turn, is_inverted
    check_pixels(*image.size)
    return image, turn, is_inverted


def open_file(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)  # reads only the header
    except Image.DecompressionBombError:  # above twice PIL's own limit
        raise Refusal(f"more than {MAX_PIXELS:,} pixels; export it at a smaller size.") from None


def check_slow(data: bytes) -> None:
    if len(data) > MAX_SLOW_BYTES:
        raise Refusal(
            f"more than {MAX_SLOW_BYTES >> 20} MiB of text or run lengths would take too long to decode; export it as "
            "PNG."
        )


def clean_png(data: bytes) -> bytes:
    """
    A PNG without unnecessary chunks: texts may be too large or too many for PIL.

    Raises:
        `Refusal`: the file is cut short, is damaged, or has too many chunks.
    """
    if data[12:16] == b"IHDR" and len(data) >= 24:
        check_pixels(int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big"))
    kept: list[bytes | memoryview] = [PNG]
    at, seen = len(PNG), set()
    for _ in range(MAX_PARTS):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        end = at + 12 + length
        if end > len(data):
            raise Refusal(DAMAGED if b"IEND" in data[-1024:] else CUT_SHORT)
        is_text = length < MAX_VALUE_BYTES and data.startswith(ORIENTED_TEXTS, at + 8)
        if kind in PNG_CHUNKS or is_text:
            chunk = memoryview(data)[at:end]
            if zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
                raise Refusal(DAMAGED)
            if kind in (b"IDAT", b"IEND") or kind not in seen:
                kept.append(chunk)
            seen.add(kind)
        if kind == b"IEND":
            return b"".join(kept)
        at = end
    raise Refusal(f"a PNG of more than {MAX_PARTS:,} chunks would take too long to read; save it again.")


def check_rows(image: Image.Image, data: bytes) -> None:
    """Refuse a PNG whose compressed data end early: PIL would leave the rest of the picture black."""
    last = image.crop((0, image.height - 1, *image.size))
    if not image.info.get("interlace") and last.getbbox(alpha_only=False) is not None:
        return
    bits = data[24] * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[data[25]]
    passes = ADAM7 if image.info.get("interlace") else ((0, 0, 1, 1),)
    sizes = [(-(-(image.width - x) // dx), -(-(image.height - y) // dy)) for x, y, dx, dy in passes]
    wanted = sum((1 + -(-width * bits // 8)) * height for width, height in sizes if width > 0 and height > 0)
    inflater, size, at = zlib.decompressobj(), 0, len(PNG)
    while at < len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] == b"IDAT":
            rest = data[at + 8 : at + 8 + length]
            while rest and not inflater.eof and size < wanted:
                size += len(inflater.decompress(rest, 2**20))
                rest = inflater.unconsumed_tail
        at += 12 + length
    if size < wanted:
        raise Refusal(
            f"the file holds too little for the {image.width}x{image.height} pixels that it claims; replace it."
        )


def clean_jpeg(data: bytes) -> tuple[bytes, int]:
    """
    A JPEG without its camera data, comments and previews; its orientation.

    Raises:
        `Refusal`: the kind of JPEG is not supported, or it exceeds a limit.
    """
    exif, xmp, dropped, kept, at = b"", b"", 0, [], 0
    for marker, start, end in jpeg_segments(data):
        if marker == 0xDA:
            break
        if marker == 0xFE or 0xE1 <= marker <= 0xEF and marker != 0xEE:  # 0xEE describes the colours
            content = data[start + 4 : end]
            if marker == 0xE1 and content.startswith(EXIF):
                exif = exif or content
            elif marker == 0xE1 and content.startswith(XMP):
                xmp = xmp or content
            kept.append(data[at:start])
            at, dropped = end, dropped + 1
    data = b"".join([*kept, data[at:]])
    stream = read_jpeg(data)
    check_pixels(stream.width, stream.height)
    if stream.kind == JPEG_LS or stream.kind in LOSSLESS or stream.bits != 8:
        kind = "JPEG-LS" if stream.kind == JPEG_LS else "lossless JPEG" if stream.kind in LOSSLESS else "JPEG"
        raise Refusal(
            f"a {kind} file of {stream.bits} bits cannot be read outside DICOM; export it as PNG or as DICOM."
        )
    if stream.is_whole:
        check_filled(stream)
    return data, exif_orientation(exif, xmp)


def check_webp(data: bytes) -> None:
    """Check the size before PIL opens the file, because PIL then allocates the pixels."""
    if data[12:16] == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    elif data[12:16] == b"VP8L":
        size = int.from_bytes(data[21:25], "little")
        width, height = (size & 0x3FFF) + 1, (size >> 14 & 0x3FFF) + 1
    else:
        width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (26, 28))
    if len(data) >= 30:
        check_pixels(width, height)


def check_jpeg2000(data: bytes) -> None:
    stream = read_jpeg2000(data)
    check_pixels(stream.width, stream.height)
    if stream.components > 1 and stream.bits > 8:
        raise Refusal(f"a JPEG 2000 file of {stream.bits}-bit colours cannot be read whole; export it as PNG.")
    if not stream.is_whole:
        raise Refusal(DAMAGED if data.rstrip(b"\0").endswith(b"\xff\xd9") else CUT_SHORT)
    check_filled(stream)


def read_ppm(data: bytes) -> np.ndarray | None:
    """
    The grey levels of a PGM or PPM of more than 8 bits, which PIL would scale one by one; `None` for 8 bits or 1.

    Raises:
        `Refusal`: the header or text is too long, or pixels are missing.
    """
    kind, at = data[1] - ord("0"), 2
    numbers: list[int] = []
    while len(numbers) < (2 if kind in (1, 4) else 3):
        found = re.compile(rb"\s+|#[^\r\n]*|(\d{1,10})(?=[\s#])").match(data, at, MAX_VALUE_BYTES)
        if found is None:
            raise Refusal(CUT_SHORT if len(data) < 20 else DAMAGED)
        numbers += [int(found[1])] if found[1] else []
        at = found.end()
    width, height, most = (*numbers, 1)[:3]
    check_pixels(width, height)
    if kind < 4:
        check_slow(data)
    if most < 256:
        return None
    samples, at = 3 if kind in (3, 6) else 1, at + 1
    check_pixels(width, height, samples)
    count = width * height * samples
    if kind < 4:
        array = np.fromstring(re.sub(rb"#[^\r\n]*", b"", data[at:]), dtype=np.int64, sep=" ")[:count]
        if len(array) and not 0 <= array.min() <= array.max() <= most:
            raise Refusal(DAMAGED)
        array = array.astype(np.uint16)
    else:
        array = np.frombuffer(data[at : at + 2 * count], ">u2")
    if len(array) < count:
        raise Refusal(CUT_SHORT)
    return array.reshape(height, width) if samples == 1 else luma(array.reshape(height, width, 3))


# --- Colours of 16 bits, whose low byte PIL drops


def raw_modes(image: Image.Image) -> list[str]:
    args = [tile.args for tile in image.tile]
    return [mode for mode in (arg if isinstance(arg, str) else arg[0] for arg in args if arg) if isinstance(mode, str)]


def set_raw_mode(image: Image.Image, change: Callable[[str], str]) -> None:
    image.tile = [
        tile._replace(args=change(tile.args) if isinstance(tile.args, str) else (change(tile.args[0]), *tile.args[1:]))
        for tile in image.tile
    ]


def read_deep(image: Image.Image, data: bytes) -> np.ndarray:
    """(height, width) 16-bit luma of a PNG or TIFF with 16-bit colours or 16-bit transparency, on black."""
    modes = set(raw_modes(image))
    (mode,) = modes if len(modes) == 1 else ("",)
    name, _, depth = mode.partition(";")
    if name not in ("RGB", "RGBX", "RGBA", "LA") or depth not in LOW_BYTES:
        raise Refusal(f"{image.mode} colours of 16 bits cannot be read; export the image as 16-bit grey PNG.")
    check_pixels(image.width, image.height, 4 if name in ("RGBA", "LA") else 3)
    transparent = image.info.get("transparency")
    if name == "LA":  # four bytes: two of the grey level, two of the opacity
        set_raw_mode(image, lambda mode: "RGBA")
        pixels = load(image, data).view(">u2")  # (height, width, 2)
        grey, opacity = pixels[..., 0].astype(np.uint16), pixels[..., 1]
    else:
        low = open_file(data)
        set_raw_mode(low, lambda mode: f"{name};{LOW_BYTES[depth]}")
        pixels = load(image, data).astype(np.uint16) << 8
        pixels |= load(low, data)
        grey, opacity = luma(pixels[..., :3]), pixels[..., 3] if name == "RGBA" else None
        if isinstance(transparent, tuple):
            grey[(pixels == np.array(transparent, dtype=np.uint16)).all(-1)] = 0
    if opacity is None or (opacity == 65535).all():
        return grey
    return ((grey.astype(np.uint32) * opacity + 32767) // 65535).astype(np.uint16)


def load(image: Image.Image, data: bytes) -> np.ndarray:
    image.load()
    if image.format == "PNG":
        check_rows(image, data)
    return np.array(image)


def reason(data: bytes, error: Exception) -> str:
    """The reason why PIL does not decode a file."""
    head = data[:1024].removeprefix(b"\xef\xbb\xbf").lstrip()
    if not data:
        return "the file is empty; copy or download it again."
    for start, what in OTHER_FILES.items():
        if head.startswith(start):
            return f"the file {what}."
    if any(tag in head.lower() for tag in (b"<!doctype html", b"<html", b"<head", b"<body")):
        return "the file is a web page, not an image; download it again, logged in."
    if head[:3] == b"\xff\xd8\xff":
        short = all(marker != 0xD9 for marker, _, _ in jpeg_segments(data))
    elif data[:4] == b"RIFF":
        short = len(data) < 8 + int.from_bytes(data[4:8], "little")
    elif data[:2] == b"BM":
        short = len(data) < int.from_bytes(data[2:6], "little")
    elif data[:4] in TIFF:
        short = "truncated" in str(error) or tiff_is_short(data)
        if not short and isinstance(error, Image.UnidentifiedImageError):
            return unreadable_tiff(first_numbers(data))
    elif not head.translate(None, TEXT) and not (head[:1] == b"P" and head[1:2].isdigit()):
        return "the file is text, not an image; name the image file."
    elif isinstance(error, Image.UnidentifiedImageError):
        return UNKNOWN
    else:
        short = "truncated" in str(error)
    return CUT_SHORT if short else DAMAGED
