"""What an image is known by: perceptual hashes, its border, and bright marks such as letters.

The hash is the classic one of the discrete cosine transform (Zauner 2010, "Implementation and Benchmarking of
Perceptual Image Hash Functions", section 3.2.1), with two changes for radiographs. It has 255 bits instead of 64: in
64 bits, the chests of different people are as alike as copies. And it is taken of the ranks of the pixels, so that a
window, a gamma or an equalization, which keep their order, hardly change it. What was measured is in
docs/look_alikes.md.
"""

from typing import NamedTuple

import numpy as np
from PIL import Image

PICTURE = 256  # pixels of the shortest edge that a fingerprint is taken at; smaller images keep their size

EDGE = 64  # of the thumbnail that is transformed

FREQUENCIES = 16  # in each direction, that give a bit

HASH_BYTES = FREQUENCIES**2 // 8

UNIFORM = 0.1  # rows whose grey levels differ by less than this share of the image's range are a border

MIN_BORDER, MIN_INNER = 0.02, 0.5  # shares of a side: narrower borders do not count, and an inner part must be left

MARK_WIDTH = 0.03  # of the shortest edge: strokes of letters and arrows are thinner, anatomy is wider

MARK_CONTRAST = 0.5  # of the image's range, above the neighbourhood

MARK_AREA = 6e-4  # share of the image that its marks cover at least

MARGIN = 0.25  # of each side: marks are looked for in it, since wires and clips lie farther inside


class Fingerprint(NamedTuple):
    """What an image is known by."""

    hashes: np.ndarray  # (1 or 2, HASH_BYTES) uint8: of the whole image, and of the part inside its border
    border: float  # share of the width or height that the widest border takes, 0 to 1
    marked: bool  # whether bright marks lie in the margin


def fingerprint(picture: Image.Image) -> Fingerprint:
    """
    Args:
        picture (`Image.Image`): grey, mode `"L"`.
    """
    pixels = np.asarray(picture)
    low, high = np.percentile(pixels, (1, 99.5))
    left, top, right, bottom = inner = find_inner(pixels, UNIFORM * (high - low))
    width, height = picture.size
    border = max(left / width, top / height, 1 - right / width, 1 - bottom / height)
    hashes = [perceptual_hash(picture)]
    has_inner = right - left >= MIN_INNER * width and bottom - top >= MIN_INNER * height
    if has_inner and border >= MIN_BORDER:
        hashes.append(perceptual_hash(picture.crop(inner)))
    marked = has_marks(pixels[top:bottom, left:right] if has_inner else pixels, MARK_CONTRAST * (high - low))
    return Fingerprint(np.stack(hashes), float(border), marked)


def cosine_transform(size: int, count: int) -> np.ndarray:
    """The first `count` rows of the discrete cosine transform of `size` numbers (type II), (count, size)."""
    return np.cos(np.pi * np.arange(count)[:, None] * (2 * np.arange(size) + 1) / (2 * size))


COSINES = cosine_transform(EDGE, FREQUENCIES)


def perceptual_hash(picture: Image.Image) -> np.ndarray:
    """The signs of the lowest frequencies of the ranks of a thumbnail, (HASH_BYTES,) uint8."""
    thumbnail = np.asarray(picture.resize((EDGE, EDGE), Image.Resampling.BOX), dtype=np.float32)
    _, level, counts = np.unique(thumbnail, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - counts / 2)[level.reshape(-1)].reshape(EDGE, EDGE)  # equal pixels share one
    signs = COSINES @ ranks @ COSINES.T > 1e-3  # what symmetry makes 0 is not up to rounding; most are above 1,000
    signs[0, 0] = False  # the mean rank, the same for all images
    return np.packbits(signs)


def find_inner(pixels: np.ndarray, tolerance: float) -> tuple[int, int, int, int]:
    """The part inside the uniform rows and columns at the edges: left, top, right, bottom; the whole if all are."""
    edges = []
    for axis in (0, 1):  # columns, rows
        varied = np.flatnonzero(pixels.max(axis=axis).astype(np.int16) - pixels.min(axis=axis) > tolerance)
        edges.append((varied[0], varied[-1] + 1) if len(varied) else (0, pixels.shape[1 - axis]))
    (left, right), (top, bottom) = edges
    return int(left), int(top), int(right), int(bottom)


def has_marks(pixels: np.ndarray, contrast: float) -> bool:
    """
    Whether the margin has bright strokes that are thinner than `MARK_WIDTH`, such as letters: burned in, or lead
    markers on the film, which look alike. The strokes are what an opening removes (Serra 1982, "top-hat").
    """
    width = max(3, round(MARK_WIDTH * min(pixels.shape)))
    opened = extremes(extremes(pixels, width, np.minimum), width, np.maximum)
    strokes = pixels.astype(np.int16) - opened > contrast
    rows, columns = (round(MARGIN * size) for size in pixels.shape)
    strokes[rows : pixels.shape[0] - rows, columns : pixels.shape[1] - columns] = False
    return bool(strokes.mean() >= MARK_AREA)


def extremes(pixels: np.ndarray, width: int, extreme: np.ufunc) -> np.ndarray:
    """The lowest (or highest) pixel of the square around each, `width` pixels wide; an even width reaches one less."""
    width -= 1 - width % 2
    pixels = np.pad(pixels, width // 2, mode="edge")
    for _ in range(2):  # rows, then columns
        covered = 1
        while covered < width:  # a window twice as wide from two that overlap or touch
            step = min(covered, width - covered)
            pixels = extreme(pixels[:-step], pixels[step:])
            covered += step
        pixels = pixels.T
    return pixels
