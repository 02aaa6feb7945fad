"""TIFF directories, including those in EXIF: how a picture is turned, and which TIFF files PIL reads correctly."""

import re
import struct
from collections.abc import Mapping
from typing import Literal

from PIL import Image

from .limits_tier import CUT_SHORT, DAMAGED, MAX_PARTS, MAX_VALUE_BYTES, Refusal, check_pixels

EXIF, XMP = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0"
TIFF = {b"II*\0": "<", b"MM\0*": ">", b"II+\0": "<", b"MM\0+": ">"}  # the last two: BigTIFF
TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
TIFF_NUMBERS = {1: "B", 3: "H", 4: "I", 16: "Q"}
WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC, ORIENTATION, SAMPLES = 256, 257, 258, 259, 262, 274, 277
PLANAR, TILE_WIDTH, TILE_LENGTH, SAMPLE_FORMAT = 284, 322, 323, 339
# Long values that a picture needs: offsets and lengths of its strips and tiles, its palette, JPEG tables
TIFF_LONG = (273, 279, 320, 324, 325, 347)
KINDS = {1: "unsigned", 2: "signed", 3: "floating-point"}
# How to make a picture upright, for EXIF's orientations 2 to 8
TURNS = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90".split()
TURNS = {turn: Image.Transpose[name] for turn, name in enumerate(TURNS, start=2)}


def turn_upright(grey: Image.Image, turn: int) -> Image.Image:
    return grey.transpose(TURNS[turn]) if turn in TURNS else grey


def orientation(image: Image.Image) -> int:
    """
    The orientation of an opened file or picture from EXIF, or else from XMP, or else 1. Other tags are not read,
    because tags may hold anything.
    """
    info = image.info
    exif = info.get("exif")
    if not isinstance(exif, bytes) and isinstance(info.get("Raw profile type exif"), str):
        try:
            exif = bytes.fromhex("".join(info["Raw profile type exif"].split("\n")[3:]))
        except ValueError:
            exif = None
    if image.format == "TIFF":  # PIL itself turns it
        return 1
    xmp = info.get("xmp") or info.get("XML:com.adobe.xmp") or b""
    return exif_orientation(exif or b"", xmp.encode() if isinstance(xmp, str) else xmp)


def exif_orientation(exif: bytes, xmp: bytes = b"") -> int:
    exif = exif.removeprefix(EXIF)
    try:
        turn = next((value for tag, value in first_numbers(exif).items() if tag == ORIENTATION), None)
    except (ValueError, struct.error):  # damaged camera data do not mean damaged pixels
        turn = None
    if turn is None:
        found = re.search(rb'tiff:Orientation(?:="|>)([0-9])', xmp[:MAX_VALUE_BYTES])
        turn = int(found[1]) if found else 1
    return turn if turn in TURNS else 1


def tiff_entries(data: bytes) -> list[tuple[int, int, int, int, int]]:
    """
    The entries of the first directory: tag, type, count, position of the value or of its offset, and how many bytes
    fit there.

    Raises:
        `ValueError`, `struct.error`: the directory is missing or ends early.
    """
    order = TIFF.get(data[:4])
    if order is None:
        raise ValueError("no directory")
    big = data[2:4] in (b"+\0", b"\0+")
    head, entry, room = ("Q", "HHQ", 8) if big else ("H", "HHI", 4)
    (at,) = struct.unpack_from(f"{order}{'Q' if big else 'I'}", data, 8 if big else 4)
    (count,) = struct.unpack_from(order + head, data, at)
    at += struct.calcsize(order + head)
    step = struct.calcsize(order + entry) + room
    return [
        (*struct.unpack_from(order + entry, data, at + i * step), at + (i + 1) * step - room, room)
        for i in range(min(count, MAX_PARTS))
    ]


def first_numbers(data: bytes) -> dict[int, int]:
    """The first whole number of each tag in the first directory."""
    order = TIFF.get(data[:4], "<")
    numbers: dict[int, int] = {}
    for tag, kind, count, at, room in tiff_entries(data):
        if kind in TIFF_NUMBERS and count:
            if count * TIFF_SIZES[kind] > room:
                (at,) = struct.unpack_from(order + ("Q" if room == 8 else "I"), data, at)
            if at + TIFF_SIZES[kind] <= len(data):
                numbers.setdefault(tag, struct.unpack_from(order + TIFF_NUMBERS[kind], data, at)[0])
    return numbers


def clean_tiff(data: bytes) -> tuple[bytes, int, bool]:
    """
    A TIFF that says that it is upright and that white is not 0; its true orientation; whether white was 0. PIL would
    invert only some kinds, and copy all tags to turn the picture.

    Raises:
        `Refusal`: tiles or tables out of proportion, or pixels of a kind that is not read.
    """
    try:
        numbers = first_numbers(data)
        width, height = numbers[WIDTH], numbers[LENGTH]
    except (ValueError, struct.error, KeyError):
        raise Refusal(CUT_SHORT if tiff_is_short(data) else DAMAGED) from None
    check_pixels(width, height)
    tile = numbers.get(TILE_WIDTH, 1) * numbers.get(TILE_LENGTH, 1)
    if tile > max(width * height, 2**24):
        raise Refusal(f"tiles of {tile:,} pixels are larger than the image; replace the file.")
    samples, bits = numbers.get(SAMPLES, 1), numbers.get(BITS, 1)
    check_kind(numbers, samples, bits)
    order, cleaned, long = TIFF[data[:4]], bytearray(data), 0
    is_inverted = samples == 1 and numbers.get(PHOTOMETRIC) == 0
    for tag, kind, count, at, room in tiff_entries(data):
        size = count * TIFF_SIZES.get(kind, 1)
        if tag in TIFF_LONG:
            long += size
        elif size > MAX_VALUE_BYTES or tag in (34665, 34853, 40965):  # not needed, or a directory of EXIF
            struct.pack_into(order + ("Q" if room == 8 else "I"), cleaned, at - room, 0)
        elif tag == ORIENTATION or tag == PHOTOMETRIC and is_inverted:
            if kind in TIFF_NUMBERS and size <= room:
                struct.pack_into(order + TIFF_NUMBERS[kind], cleaned, at, 1)
    if long > 64 * MAX_VALUE_BYTES:
        raise Refusal(f"tables of {long:,} bytes are out of proportion; replace the file.")
    turn = numbers.get(ORIENTATION, 1)
    return bytes(cleaned), turn if turn in TURNS else 1, is_inverted


def check_kind(numbers: Mapping[int, int], samples: int, bits: int) -> None:
    """
    Raises:
        `Refusal`: PIL does not read these pixels, or reads them wrongly.
    """
    kind = numbers.get(SAMPLE_FORMAT, 1)
    if samples == 1:
        known = bits in ((1, 2, 4, 8, 12, 16, 32) if kind == 1 else (8, 16, 32) if kind == 2 else (32,))
    else:
        known = bits == 8 or bits == 16 and kind == 1 and samples in (3, 4) and numbers.get(PLANAR, 1) == 1
    if not known:
        raise Refusal(unreadable_tiff(numbers))


def unreadable_tiff(numbers: Mapping[int, int]) -> str:
    samples, bits = numbers.get(SAMPLES, 1), numbers.get(BITS, 1)
    kind = KINDS.get(numbers.get(SAMPLE_FORMAT, 1), "unknown")
    apart = ", each stored apart" if numbers.get(PLANAR, 1) == 2 and samples > 1 else ""
    return (
        f"a TIFF of {samples} {kind} sample{'s' if samples > 1 else ''} of {bits} bits{apart} (photometric "
        f"interpretation {numbers.get(PHOTOMETRIC, 0)}, compression {numbers.get(COMPRESSION, 1)}) cannot be read; "
        "export it as PNG."
    )


def tiff_is_short(data: bytes) -> bool:
    """Whether the directory, which usually comes last, is beyond the end of the file."""
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"
    at, size = (slice(8, 16), 8) if data[2:4] in (b"+\0", b"\0+") else (slice(4, 8), 2)
    start = int.from_bytes(data[at], order)
    count = int.from_bytes(data[start : start + size], order)
    return len(data) < start + size + count * (20 if size == 8 else 12)
