"""
Masks as run lengths, and the forms that archives ship.

A mask is a boolean array (height, width). Records keep it as `counts`: the lengths of its runs of equal pixels, column
by column, alternately outside and inside. The first run is outside; its length is 0 if the first pixel is inside. This
is the uncompressed run-length form of COCO.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from processing_tier.limits_tier import MAX_PIXELS


def encode_mask(mask: np.ndarray) -> list[int]:
    """
    Run lengths of a mask.

    Args:
        mask (`np.ndarray`): (height, width); every pixel but 0 is inside.

    Returns:
        `list[int]`: at least one; their sum is height * width. An empty mask is one run.

    Raises:
        `ValueError`: not an array of two dimensions, or one without pixels.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise ValueError(f"a mask of shape {mask.shape} is not (height, width); give one channel.")
    check_size(*mask.shape)
    pixels = mask.ravel(order="F") != 0
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    counts = np.diff(changes, prepend=0, append=pixels.size).tolist()
    return [0, *counts] if pixels[0] else counts


def decode_mask(counts: Sequence[int], height: int, width: int) -> np.ndarray:
    """
    The mask of run lengths: the inverse of [`encode_mask`].

    Returns:
        `np.ndarray`: bool (height, width).

    Raises:
        `ValueError`: the run lengths do not fill height x width pixels.
    """
    counts = check_counts(counts, height, width)
    inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(inside, counts).reshape((height, width), order="F")


def finding_mask(masks: Sequence[Mapping] | None, finding: str) -> np.ndarray | None:
    """
    The union of the masks of one finding in a record.

    Args:
        masks (`Sequence[Mapping]`, *optional*): the column `masks` of a record.
        finding (`str`): its name.

    Returns:
        `np.ndarray`, *optional*: bool (height, width); `None` without a mask of this finding.

    Raises:
        `ValueError`: masks of different sizes, or run lengths that do not fill them.
    """
    found = [mask for mask in masks or () if mask["finding"] == finding]
    if len({(mask["height"], mask["width"]) for mask in found}) > 1:
        raise ValueError(f"the masks of {finding!r} have different sizes; fix the record.")
    decoded = [decode_mask(mask["counts"], mask["height"], mask["width"]) for mask in found]
    return np.any(decoded, axis=0) if decoded else None


def counts_from_coco_string(text: str, height: int, width: int) -> list[int]:
    """
    Run lengths of the compressed string that pycocotools writes (and CheXlocalize ships).

    Each run length is written in groups of five bits, the lowest first. A character is 48 plus the group, plus 32 if
    another group follows. The highest bit of the last group is the sign. From the fourth run length on, the difference
    to the one two places before is written (rleToString in cocoapi's maskApi.c).

    Raises:
        `ValueError`: not such a string, or one of another height x width.
    """
    check_size(height, width)
    groups = np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(groups & 32 == 0)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends + 1 - starts
    # Seven groups hold 35 bits, more than any picture needs; a shift by more than 63 would not be defined
    if not groups.size or groups.min() < 0 or groups.max() > 63 or groups[-1] & 32 or lengths.max() > 7:
        raise ValueError("a compressed mask is cut short or is not a string of run lengths; download its file again.")
    shifts = 5 * (np.arange(groups.size) - np.repeat(starts, lengths))
    counts = np.add.reduceat((groups & 31) << shifts, starts)
    counts -= np.where(groups[ends] & 16, 1 << 5 * lengths, 0)
    for first in (1, 2):
        counts[first::2] = np.cumsum(counts[first::2])
    return check_counts(counts, height, width).tolist()


def counts_from_siim(text: str, height: int = 1024, width: int = 1024) -> list[int]:
    """
    Run lengths of a mask as SIIM-ACR ships it: pairs of an offset from the end of the last run and a run's length,
    column by column; `-1` is the empty mask.

    Raises:
        `ValueError`: not such pairs, or more than height x width pixels.
    """
    check_size(height, width)
    words = text.split()
    if words == ["-1"]:
        return [height * width]
    if not words or len(words) % 2 or not all(word.isascii() and word.isdigit() and len(word) < 10 for word in words):
        raise ValueError("a mask is not -1 or pairs of an offset and a length; download its file again.")
    counts = np.array(words, dtype=np.int64)
    rest = height * width - counts.sum()
    counts = check_counts(np.append(counts, rest) if rest else counts, height, width)
    if (counts[1:] == 0).any():  # runs that touch become one
        return encode_mask(decode_mask(counts, height, width))
    return counts.tolist()


def counts_from_row_pairs(text: str, height: int, width: int) -> list[int]:
    """
    Run lengths of a mask as CheXmask ships it: pairs of a first pixel, counted from 1, and a run's length, row by row.

    The mask is not drawn: a run of columns in which a row differs from the one above is a change in each of these
    columns. The cost is that of the outline, some 1 % of the pixels.

    Raises:
        `ValueError`: not such pairs, runs that overlap, or runs that leave the height x width pixels.
    """
    check_size(height, width)
    words = text.split()
    if not words or len(words) % 2 or not all(word.isascii() and word.isdigit() and len(word) < 10 for word in words):
        raise ValueError("a mask is not pairs of a first pixel and a length; download its file again.")
    numbers = np.array(words, dtype=np.int64)
    starts, ends = numbers[::2] - 1, numbers[::2] - 1 + numbers[1::2]
    if starts[0] < 0 or ends[-1] > height * width or (starts[1:] < ends[:-1]).any():
        raise ValueError(
            f"the run lengths of a mask overlap or leave its {height}x{width} pixels (height x width); download its "
            "file again."
        )
    # Runs that go on in the next row are cut at its start
    first = starts // width
    rows = np.maximum(-(-ends // width) - first, 1)
    row = np.repeat(first, rows) + np.arange(rows.sum()) - np.repeat(np.cumsum(rows) - rows, rows)
    left = np.maximum(np.repeat(starts, rows) - row * width, 0)
    right = np.minimum(np.repeat(ends, rows) - row * width, width)
    # Each edge of a run changes its row, and the row below; two changes at one place cancel
    places = np.concatenate(
        [(row + below) * width + edge + (row + below) for below in (0, 1) for edge in (left, right)]
    )
    places, times = np.unique(places, return_counts=True)
    edges = places[times % 2 == 1].reshape(-1, 2)
    lengths = edges[:, 1] - edges[:, 0]
    columns = np.repeat(edges[:, 0] % (width + 1), lengths) + np.arange(lengths.sum())
    columns -= np.repeat(np.cumsum(lengths) - lengths, lengths)
    changes = columns * height + np.repeat(edges[:, 0] // (width + 1), lengths)
    changes, times = np.unique(changes, return_counts=True)
    changes = changes[(times % 2 == 1) & (changes < height * width)]
    return np.diff(changes, prepend=0, append=height * width).tolist()


def check_size(height: int, width: int) -> None:
    if height < 1 or width < 1 or int(height) * int(width) > MAX_PIXELS:
        raise ValueError(f"a mask of {height}x{width} pixels (height x width) is empty or larger than any radiograph.")


def check_counts(counts: Sequence[int] | np.ndarray, height: int, width: int) -> np.ndarray:
    """
    Run lengths that fill a mask, as int64. Each is compared with the number of pixels before they are added, because
    the sum could overflow and still be right.

    Raises:
        `ValueError`: they do not fill height x width pixels, or are not whole numbers.
    """
    check_size(height, width)
    pixels = int(height) * int(width)
    try:
        array = np.asarray(counts)
        is_right = array.ndim == 1 and 0 < array.size <= 2 * pixels + 1 and array.dtype.kind in "iu"
        is_right = (
            is_right and bool(((array >= 0) & (array <= pixels)).all()) and int(array.sum(dtype=np.int64)) == pixels
        )
    except (ValueError, OverflowError, TypeError):  # lists of different lengths, numbers larger than 64 bits
        is_right = False
    if not is_right:
        raise ValueError(
            f"the run lengths of a mask do not fill its {height}x{width} pixels (height x width); download its file "
            "again."
        )
    return array.astype(np.int64)
