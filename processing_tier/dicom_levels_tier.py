"""From stored values of a DICOM file to grey levels: modality, window or table, polarity, padding (PS3.3 C.11)."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from .grey_levels_tier import count_patterns, percentiles, spread, stretch_to_uint8
from .limits_tier import MAX_SEQUENCE_BYTES, MAX_VALUE_BYTES

WINDOW_OUTSIDE = (
    "the window or lookup table of the DICOM file lies outside all pixel values, so the picture is a single grey; "
    "correct it, or leave the file out."
)


def value(dataset: Any, keyword: str, default: Any = None) -> Any:
    """An element's value. An impossibly large one is refused before pydicom makes objects of it."""
    element = dataset.get_item(keyword)
    limit = MAX_SEQUENCE_BYTES if keyword.endswith("Sequence") else MAX_VALUE_BYTES
    if element is not None and isinstance(element.value, bytes) and len(element.value) > limit:
        raise ValueError("too large")
    found = dataset.get(keyword)
    return default if found is None or isinstance(found, str) and not found else found


def numbers(dataset: Any, keyword: str) -> list[float]:
    """An element's values; an empty list if they are not numbers."""
    try:
        return np.array(value(dataset, keyword, []), dtype=float, ndmin=1).tolist()
    except (ValueError, TypeError, OverflowError):
        return []


def stretch_table(array: np.ndarray, header: SimpleNamespace) -> np.ndarray:
    """The grey level of each bit pattern if the smallest stored value becomes 0 and the largest 255."""
    stored = np.arange(2 ** (8 * array.itemsize), dtype=f"u{array.itemsize}").view(array.dtype)
    grey = stretch_to_uint8(stored, array.min(), array.max())
    return 255 - grey if header.photometric == "MONOCHROME1" else grey


def grey_table(array: np.ndarray, dataset: Any, header: SimpleNamespace) -> tuple[np.ndarray, np.ndarray]:
    """
    The grey level, 0..255, of each possible bit pattern of a pixel, and whether it is padding: modality LUT or
    rescale, then VOI LUT, window or percentiles, then MONOCHROME1, padding black. Computed once for 65,536 patterns,
    not for each pixel.
    """
    patterns = np.arange(2 ** (8 * array.itemsize), dtype=f"u{array.itemsize}")
    stored = patterns.view(array.dtype).astype(np.int64)
    padding = np.zeros(len(stored), dtype=bool)
    ends = numbers(dataset, "PixelPaddingValue")[:1] + numbers(dataset, "PixelPaddingRangeLimit")[:1]
    if ends and "PixelPaddingValue" in dataset:
        ends = np.array(ends, dtype=np.int64).astype(patterns.dtype).view(array.dtype)  # US may stand for SS
        padding = (stored >= ends.min()) & (stored <= ends.max())

    if luts := value(dataset, "ModalityLUTSequence"):
        values, _ = look_up(stored, luts[0], header)
    else:
        slope, intercept = (numbers(dataset, f"Rescale{part}")[:1] for part in ("Slope", "Intercept"))
        values = stored.astype(np.float64)
        if slope and intercept and np.isfinite(slope + intercept).all() and slope[0]:
            values = values * slope[0] + intercept[0]

    if luts := value(dataset, "VOILUTSequence"):
        output, bits = look_up(np.rint(values).astype(np.int64), luts[0], header)
        levels = output / (2**bits - 1)
    else:
        levels = window(values, dataset)
    if levels is None:
        counts = count_patterns(array.view(patterns.dtype), len(patterns))
        levels = spread(values, *percentiles(values, np.where(padding, 0, counts)))
    grey = np.rint(levels.clip(0, 1) * 255).astype(np.uint8)
    if header.photometric == "MONOCHROME1":
        grey = 255 - grey
    grey[padding] = 0
    return grey, padding


def look_up(values: np.ndarray, lut: Any, header: SimpleNamespace) -> tuple[np.ndarray, int]:
    """
    Integers through the lookup table of a DICOM item, and the number of bits of the result (DICOM PS3.3 C.11.1.1,
    C.11.2.1.1): those of the largest entry, at least 8. Descriptors often say 16 for 12, and sometimes too few.
    pydicom's own functions mistake an 8-bit table for one of 256 entries, and wrap values far above a table.
    """
    entries, first, bits = (int(number) for number in value(lut, "LUTDescriptor"))
    entries, bits = entries & 0xFFFF or 2**16, bits & 0xFFFF  # they may be encoded as signed
    if not 8 <= bits <= 16:
        raise ValueError("bits")
    if first >= 2**15 and values.min() < 0:  # implicit VR does not distinguish the two
        first -= 2**16
    element = lut.get_item("LUTData")
    if isinstance(element.value, bytes):
        little_endian = header.transfer_syntax.is_little_endian
        output = np.frombuffer(element.value[: 2 * entries], "<u2" if little_endian else ">u2")
    else:
        output = np.array(element.value, dtype=np.int64, ndmin=1).astype(np.uint16)
    if len(output) < entries and bits == 8:  # two in each word
        output = output.astype("<u2").view(np.uint8)
    if len(output) < entries:
        raise ValueError("entries")
    output = output[:entries].astype(np.int64)
    return output[(values - first).clip(0, entries - 1)], max(int(output.max()).bit_length(), 8)


def window(values: np.ndarray, dataset: Any) -> np.ndarray | None:
    """
    Values through the first window of a DICOM file, as 0..1 (DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3), or `None` without
    a valid window. pydicom's own function gives modality units, which a negative slope reverses.
    """
    centers, widths = numbers(dataset, "WindowCenter"), numbers(dataset, "WindowWidth")
    if not centers or not widths or not np.isfinite([centers[0], widths[0]]).all():
        return None
    center, width, function = centers[0], widths[0], str(value(dataset, "VOILUTFunction", "LINEAR")).upper()
    if function == "LINEAR" and width == 1:
        return (values > center - 0.5).astype(np.float64)
    if function == "LINEAR" and width > 1:
        return spread(values, center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2)
    if function == "LINEAR_EXACT" and width > 0:
        return spread(values, center - width / 2, center + width / 2)
    if function == "SIGMOID" and width > 0:
        return 1 / (1 + np.exp(-4 * (values - center) / width))
    return None
