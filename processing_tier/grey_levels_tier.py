"""
From numbers of any type to 8-bit grey levels, for files without a window. DICOM's windows: `dicom_levels_tier.py`.
"""

import numpy as np

from .limits_tier import Refusal

WINDOW_PERCENTILES = (0.5, 99.5)
GREY_LEVELS = ("window", "stretch", "divide")
STRIP = 2**16  # pixels; their 64-bit copies fit into the cache of a core


def spread(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """`low`..`high` as 0..1, not clipped; all 0 if they are equal."""
    return (values - low) / (high - low) if high > low else np.zeros(len(values))


def count_patterns(array: np.ndarray, number: int) -> np.ndarray:
    """How many pixels have each unsigned value below `number`. In strips, because numpy makes 64-bit copies."""
    return sum(np.bincount(strip.ravel(), minlength=number) for strip in np.array_split(array, 16))


def percentiles(values: np.ndarray, counts: np.ndarray) -> list[float]:
    """`WINDOW_PERCENTILES` of values with these counts, as `np.percentile` computes them; zeros without any value."""
    order = np.argsort(values, kind="stable")
    values, ends = values[order], counts[order].cumsum()
    if not ends[-1]:
        return [0.0, 0.0]
    places = np.array(WINDOW_PERCENTILES) / 100 * (ends[-1] - 1)
    below = values[np.searchsorted(ends, np.floor(places), side="right")]
    above = values[np.searchsorted(ends, np.ceil(places), side="right")]
    return (below + (above - below) * (places % 1)).tolist()


def take_levels(table: np.ndarray, patterns: np.ndarray) -> np.ndarray:
    """`table[patterns]`, three times as fast: numpy makes 64-bit copies of indices, here only of a strip at a time."""
    flat, levels = patterns.ravel(), np.empty(patterns.size, dtype=table.dtype)
    for start in range(0, flat.size, STRIP):
        strip = slice(start, start + STRIP)
        np.take(table, flat[strip], out=levels[strip], mode="clip")  # "raise" would buffer the result
    return levels.reshape(patterns.shape)


def window_to_uint8(array: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map `low`..`high` linearly to 0..255 and clip; all 0 if the window is empty (a constant image)."""
    if not high > low:
        return np.zeros(array.shape, dtype=np.uint8)
    scaled = (array.astype(np.float32) - low) * (255.0 / (high - low))
    return np.rint(scaled).clip(0, 255).astype(np.uint8)


def stretch_to_uint8(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map `low`..`high` to 0..255, rounded down, as BioViL's loader does (hi-ml, image/data/io.py)."""
    return (spread(values.astype(np.float64), low, high).clip(0, 1) * 255).astype(np.uint8)


def to_uint8(array: np.ndarray, grey_levels: str = "window") -> np.ndarray:
    """
    Grey levels of any number type as 0..255.

    Args:
        array (`np.ndarray`): of any shape.
        grey_levels (`str`, *optional*, defaults to `"window"`):
            - `"window"`: fractions within 0..1 (times 255) and numbers within 0..255 keep their values. Everything
              else (12- and 16-bit files, floats of any other range) is windowed between the 0.5th and 99.5th
              percentile of the image itself: files rarely record how many bits are in use, and a burnt-in marker must
              not set the scale.
            - `"stretch"`: the smallest number becomes 0 and the largest 255, also for 8 bits.
            - `"divide"`: whole numbers, if some are above 255, are divided by 255 and rounded down, at most 255;
              everything else as `"window"`.

    Raises:
        `ValueError`: an empty array, or one with NaN or infinity.
    """
    if array.size == 0:
        raise Refusal(f"an image of shape {array.shape} has no pixels; give one with at least 1x1.")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if array.dtype == np.uint8 and grey_levels != "stretch":
        return array
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise Refusal("an image holds NaN or infinite pixels; replace them with numbers.")
    lowest, highest = array.min(), array.max()
    if grey_levels == "stretch":
        if array.dtype.itemsize <= 2 and array.dtype.kind in "iu":  # each of the values once
            values = np.arange(int(lowest), int(highest) + 1)
            return stretch_to_uint8(values, lowest, highest)[array - lowest.astype(np.int32)]
        return np.stack([stretch_to_uint8(row.ravel(), lowest, highest) for row in array]).reshape(array.shape)
    if array.dtype.kind == "f" and lowest >= 0 and highest <= 1:
        return window_to_uint8(array, 0, 1)
    if lowest >= 0 and highest <= 255:
        return np.rint(array).astype(np.uint8)
    if grey_levels == "divide" and array.dtype.kind in "iu":
        return (array // 255).clip(0, 255).astype(np.uint8)
    if array.dtype != np.uint16:
        return window_to_uint8(array, *np.percentile(array, WINDOW_PERCENTILES))
    patterns = np.arange(2**16, dtype=np.uint16)  # twice as fast as np.percentile, in a quarter of the memory
    window = percentiles(patterns.astype(np.float64), count_patterns(array, len(patterns)))
    return take_levels(window_to_uint8(patterns, *window), array)


def luma(colours: np.ndarray) -> np.ndarray:
    """ITU-R 601 luma of (height, width, 3) 16-bit colours, like Pillow's for 8 bits; exact if R = G = B."""
    weights = np.array([19595, 38470, 7471], dtype=np.uint32)  # 65,536 together
    strips = (strip.astype(np.uint32) @ weights for strip in np.array_split(colours, 16))
    return np.concatenate([((strip + 2**15) >> 16).astype(np.uint16) for strip in strips])
