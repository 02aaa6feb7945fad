"""Headers of JPEG, JPEG-LS, JPEG 2000 and RLE data: size and completeness, before a decoder spends memory or time."""

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from .limits_tier import MAX_PARTS, MAX_SCANS, Refusal

MARKER = re.compile(rb"\xff([\xc0-\xcf\xd8-\xfe])")  # in entropy-coded data, ff is followed by none of these
FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # start of frame
LOSSLESS, JPEG_LS = (0xC3, 0xC7, 0xCB, 0xCF), 0xF7
HUFFMAN = (0xC0, 0xC1, 0xC2)
BLOCK = 512  # largest number of pixels in a byte of Huffman code: eight blocks of 8x8
CODE_BLOCK = 4096  # largest number of pixels in a code-block of JPEG 2000
SMALL = 2**20  # a JPEG 2000 of so few pixels is quick to decode at any length


class Codestream(NamedTuple):
    """
    One JPEG, JPEG-LS or JPEG 2000 image. `kind` is the marker of its frame, or 0 for JPEG 2000. `is_whole` tells
    whether its end is there, `is_filled` whether it has all tiles and enough bytes for a picture of its size.
    """

    kind: int
    bits: int
    width: int
    height: int
    components: int
    is_whole: bool
    is_filled: bool


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment of a JPEG or JPEG-LS image, up to the end of the image."""
    at = 2
    for _ in range(MAX_PARTS):
        found = MARKER.search(data, at)
        if found is None:
            return
        marker, start, end = data[found.start() + 1], found.start(), found.end()
        if marker != 0xD8 and marker != 0xD9:
            end += int.from_bytes(data[end : end + 2], "big")
        yield marker, start, end
        if marker == 0xD9:
            return
        at = end
    raise Refusal(f"a JPEG of more than {MAX_PARTS:,} segments would take too long to read; replace the file.")


def read_jpeg(data: bytes) -> Codestream:
    """
    Raises:
        `ValueError`: without a frame.
        `Refusal`: more scans than can be decoded in time.
    """
    frame, scans, is_whole = None, 0, False
    for marker, start, _ in jpeg_segments(data):
        if marker in FRAME and frame is None:
            frame = marker, start + 4
        scans += marker == 0xDA
        is_whole = marker == 0xD9
        if scans > MAX_SCANS:
            raise Refusal(f"a JPEG of more than {MAX_SCANS} scans would take too long to decode; replace the file.")
    if frame is None or len(data) < frame[1] + 6:
        raise ValueError("no frame")
    kind, at = frame
    height, width = np.frombuffer(data, ">u2", 2, at + 1).tolist()
    most = len(data) * (BLOCK if kind in HUFFMAN else 8 if kind in LOSSLESS else width * height)
    return Codestream(kind, data[at], width, height, data[at + 5], is_whole, width * height <= most)


def read_jpeg2000(data: bytes) -> Codestream:
    """
    Raises:
        `ValueError`: without a header.
    """
    at = 0
    if not data.startswith(b"\xff\x4f"):  # in the boxes of a file
        at = data.find(b"jp2c", 0, SMALL) + 4
    if not data.startswith(b"\xff\x4f\xff\x51", at) or len(data) < at + 43:
        raise ValueError("no header")
    right, bottom, left, top, tile_width, tile_height, tile_left, tile_top = np.frombuffer(
        data, ">u4", 8, at + 8
    ).tolist()
    width, height = right - left, bottom - top
    components, bits = int.from_bytes(data[at + 40 : at + 42], "big"), (data[at + 42] & 0x7F) + 1
    if min(width, height, tile_width, tile_height) < 1:
        raise ValueError("no header")
    tiles = -(-(right - tile_left) // tile_width) * -(-(bottom - tile_top) // tile_height)
    start = at
    at += 2
    while data[at : at + 1] == b"\xff" and data[at + 1] != 0x90:  # the main header
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    found: set[bytes] = set()
    is_whole = False
    for _ in range(MAX_PARTS):
        if not data.startswith(b"\xff\x90", at):
            is_whole = len(data) >= at and len(found) > 0
            break
        found.add(data[at + 4 : at + 6])
        length = int.from_bytes(data[at + 6 : at + 10], "big")
        if not length:  # to the end
            is_whole = data.find(b"\xff\xd9", at + 12) >= 0
            break
        at += length
    is_filled = len(found) == tiles and width * height <= max((len(data) - start) * CODE_BLOCK, SMALL)
    return Codestream(0, bits, width, height, components, is_whole, is_filled)


def check_filled(stream: Codestream) -> None:
    """
    Raises:
        `Refusal`: a decoder would invent most of the picture.
    """
    if not stream.is_filled:
        raise Refusal(
            f"the file holds too little for the {stream.width}x{stream.height} pixels that it claims; replace it."
        )


def read_codestream(data: bytes) -> Codestream:
    return read_jpeg(data) if data.startswith(b"\xff\xd8") else read_jpeg2000(data)


# What each head of a run adds to the decoded bytes, and how far away the next head is (DICOM PS3.5 G.3.2)
RUN_BYTES = [head + 1 if head < 128 else 257 - head if head > 128 else 0 for head in range(256)]
RUN_STEP = [head + 2 if head < 128 else 2 if head > 128 else 1 for head in range(256)]


def run_length_size(frame: bytes) -> int:
    """The number of bytes that the segments of an RLE image decode to."""
    count, *offsets = np.frombuffer(frame, "<u4", 16).tolist()
    offsets, size = [*offsets[:count], len(frame)], 0
    for at, end in zip(offsets[:-1], offsets[1:], strict=True):
        end = min(end, len(frame))
        while at < end:
            head = frame[at]
            size += RUN_BYTES[head]
            at += RUN_STEP[head]
    return size
