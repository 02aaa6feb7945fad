"""How well one map matches one region: pure functions, in numpy.

A *map* is a float array (height, width), higher where the model sees a finding more, NaN where it never saw the image
(outside the image processor's crop). A *region* is a bool array (height, width).

An unseen pixel is never predicted, so that a region that was cut off counts as missed; in the pixel AUROC it comes
below every seen one; the contrast-to-noise ratio leaves it out. An undefined value is NaN, never a number that looks
measured.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

FIXED_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)  # BioViL's

CENTRED_THRESHOLDS = tuple((1 + threshold) / 2 for threshold in FIXED_THRESHOLDS)  # the same of a map scaled to -1..1

SCALED_THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))  # candidates for the best one

TOP_PERCENTS = (5, 10, 20)

METRICS = (
    *("pointing", "pixel_auroc", "cnr", "signed_cnr", "miou_cosine", "miou_scaled", "dice_scaled", "miou_centred"),
    *(f"iou_top_{percent}" for percent in TOP_PERCENTS),
)


class SplitPixels(NamedTuple):
    """The values of a map inside and outside of a region, each sorted, lowest first."""

    inside: np.ndarray  # those the model saw
    outside: np.ndarray  # likewise
    num_inside: int  # pixels of the region, seen or not
    num_outside: int


def split_pixels(similarity: np.ndarray, mask: np.ndarray) -> SplitPixels:
    """The values of a map inside and outside of a region.

    Args:
        similarity: float (height, width), NaN where the model never saw the image.
        mask: bool (height, width).

    Raises:
        ValueError: for arrays that are not of one shape (height, width).
    """
    similarity, mask = check_shapes(similarity, mask)
    inside, outside = similarity[mask], similarity[~mask]
    num_inside, num_outside = len(inside), len(outside)
    inside.sort()  # NaN comes last
    outside.sort()
    inside, outside = (values[: len(values) - np.isnan(values).sum()] for values in (inside, outside))
    return SplitPixels(inside, outside, num_inside, num_outside)


def check_shapes(similarity: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    similarity, mask = np.asarray(similarity), np.asarray(mask, dtype=bool)
    if similarity.shape != mask.shape or similarity.ndim != 2:
        raise ValueError(
            f"A map and its region must have one shape (height, width), not {similarity.shape} and {mask.shape}."
        )
    return similarity, mask


def pointing_game(similarity: np.ndarray, mask: np.ndarray, tolerance: int = 0) -> float:
    """Whether the highest pixel of the map hits the region: 1 or 0 (Zhang et al., ECCV 2016, section 4.1).

    If several pixels are highest, the share of them that hits, which is the expectation of a random choice.
    CheXlocalize's hit rate (Saporta et al., Nature Machine Intelligence 2022) is this with `tolerance=0`, but for
    ties, where its code takes the first.

    Args:
        similarity: float (height, width), NaN where the model never saw the image.
        mask: bool (height, width).
        tolerance: a miss by at most this many pixels hits. Zhang et al. allow 15 in photographs; evaluations of chest
            radiographs usually allow none.

    Returns:
        In [0, 1]; NaN for an empty region, or a map without a seen pixel.
    """
    similarity, mask = check_shapes(similarity, mask)
    if not mask.any() or np.isnan(similarity).all():
        return float("nan")
    return float(dilate(mask, tolerance)[similarity == np.nanmax(similarity)].mean())


def dilate(mask: np.ndarray, radius: int) -> np.ndarray:
    """A region and everything at most `radius` pixels from it (between centres)."""
    if radius < 0:
        raise ValueError(f"The tolerance must be at least 0 pixels, but is {radius}.")
    if radius == 0:
        return mask
    height, width = mask.shape
    dilated = np.zeros_like(mask)
    before = np.zeros((height, width + 1), dtype=np.int64)  # pixels of the region left of each column
    np.cumsum(mask, axis=1, out=before[:, 1:])
    for down in range(-min(radius, height - 1), min(radius, height - 1) + 1):
        reach = math.isqrt(radius**2 - down**2)
        ends = np.minimum(np.arange(width) + reach + 1, width)
        starts = np.maximum(np.arange(width) - reach, 0)
        near = before[:, ends] > before[:, starts]
        dilated[max(down, 0) : height + min(down, 0)] |= near[max(-down, 0) : height + min(-down, 0)]
    return dilated


def pixel_auroc(pixels: SplitPixels) -> float:
    """How often a pixel of the region is higher than one outside, ties counting half; unseen pixels are lowest.

    Returns:
        In [0, 1]; NaN for a region without pixels or without an outside, or a map without a seen pixel.
    """
    inside, outside, num_inside, num_outside = pixels
    if not num_inside or not num_outside or not len(inside) + len(outside):
        return float("nan")
    unseen_outside = num_outside - len(outside)
    below = np.searchsorted(outside, inside, side="left").sum(dtype=np.float64)
    not_above = np.searchsorted(outside, inside, side="right").sum(dtype=np.float64)
    wins = (below + not_above) / 2 + len(inside) * unseen_outside + (num_inside - len(inside)) * unseen_outside / 2
    return float(wins / num_inside / num_outside)


def contrast_to_noise(pixels: SplitPixels, signed: bool = False) -> float:
    """|mean inside - mean outside| / sqrt(variance inside + variance outside) (BioViL: Boecking et al., ECCV 2022).

    Args:
        signed: without the absolute value, under which a map that is dark exactly at the finding counts as good.

    Returns:
        NaN where one side has no seen pixel or both variances are 0.
    """
    if not len(pixels.inside) or not len(pixels.outside):
        return float("nan")
    inside, outside = pixels.inside.astype(np.float64), pixels.outside.astype(np.float64)
    variance = inside.var() + outside.var()
    # what rounding leaves of the variance of equal numbers is far below that of any map
    if variance <= 1e-24 * max(np.square(inside).mean(), np.square(outside).mean()):
        return float("nan")
    ratio = float((inside.mean() - outside.mean()) / np.sqrt(variance))
    return ratio if signed else abs(ratio)


def overlap(pixels: SplitPixels, thresholds: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Intersection over union, and Dice coefficient, of the region with the pixels that reach each threshold.

    An empty prediction has 0 for both (CheXlocalize's code leaves such images out by default).

    Args:
        thresholds: of the map's own scale; a pixel is predicted when its value >= threshold.

    Returns:
        IoU and Dice, each (thresholds,) float64; NaN for an empty region.
    """
    thresholds = np.asarray(thresholds, dtype=pixels.inside.dtype)
    hits = len(pixels.inside) - np.searchsorted(pixels.inside, thresholds, side="left")
    false_alarms = len(pixels.outside) - np.searchsorted(pixels.outside, thresholds, side="left")
    return overlap_of_counts(hits, false_alarms, pixels.num_inside)


def overlap_of_counts(hits: np.ndarray, false_alarms: np.ndarray, num_inside: int) -> tuple[np.ndarray, np.ndarray]:
    if not num_inside:
        return (np.full(np.shape(hits), np.nan),) * 2
    return hits / (num_inside + false_alarms), 2 * hits / (num_inside + hits + false_alarms)


def scaled_overlap(pixels: SplitPixels, thresholds: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """What `overlap` gives for the map scaled to 0..1: 0 its lowest seen pixel, 1 its highest.

    A constant map has no such scale; nothing is predicted from it.
    """
    sides = [side for side in (pixels.inside, pixels.outside) if len(side)]
    low, high = min((float(side[0]) for side in sides), default=0.0), max((float(s[-1]) for s in sides), default=0.0)
    if low == high:
        nothing = np.zeros(len(thresholds))
        return overlap_of_counts(nothing, nothing, pixels.num_inside)
    return overlap(pixels, low + (high - low) * np.asarray(thresholds, dtype=np.float64))


def top_percent_overlap(pixels: SplitPixels, percents: Sequence[float] = TOP_PERCENTS) -> np.ndarray:
    """Intersection over union of the region with the highest p % of the image's pixels (rounded up).

    Of pixels that tie for the last places, the same share inside and outside of the region is taken.

    Returns:
        (percents,) float64; NaN for an empty region, or a map without a seen pixel.
    """
    seen = np.concatenate([pixels.inside, pixels.outside])
    if not pixels.num_inside or not len(seen):
        return np.full(len(percents), np.nan)
    total = pixels.num_inside + pixels.num_outside
    taken = np.minimum([math.ceil(percent * total / 100) for percent in percents], len(seen))
    lasts = np.partition(seen, len(seen) - taken)[len(seen) - taken]

    def count(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        not_below = len(values) - np.searchsorted(values, lasts, side="left")
        above = len(values) - np.searchsorted(values, lasts, side="right")
        return above, not_below - above

    (above_inside, tied_inside), (above_outside, tied_outside) = count(pixels.inside), count(pixels.outside)
    open_places = taken - above_inside - above_outside
    hits = above_inside + open_places * tied_inside / (tied_inside + tied_outside)
    return hits / (pixels.num_inside + taken - hits)


def measure_map(
    similarity: np.ndarray, mask: np.ndarray, hit_mask: np.ndarray | None = None, is_cosine: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """All metrics of one map.

    Args:
        similarity: float (height, width).
        mask: bool (height, width).
        hit_mask: where the highest pixel hits, by default `mask`.
        is_cosine: whether thresholds of cosines say something of it.

    Returns:
        (metrics,) in the order of `METRICS`, and (2, thresholds): IoU and Dice at `SCALED_THRESHOLDS`.
    """
    if np.isnan(similarity).all():
        return np.full(len(METRICS), np.nan), np.full((2, len(SCALED_THRESHOLDS)), np.nan)
    pixels = split_pixels(similarity, mask)
    fixed_iou, fixed_dice = scaled_overlap(pixels, FIXED_THRESHOLDS)
    values = [
        pointing_game(similarity, mask if hit_mask is None else hit_mask),
        pixel_auroc(pixels),
        contrast_to_noise(pixels),
        contrast_to_noise(pixels, signed=True),
        overlap(pixels, FIXED_THRESHOLDS)[0].mean() if is_cosine else float("nan"),
        fixed_iou.mean(),
        fixed_dice.mean(),
        scaled_overlap(pixels, CENTRED_THRESHOLDS)[0].mean(),
        *top_percent_overlap(pixels),
    ]
    return np.array(values), np.stack(scaled_overlap(pixels, SCALED_THRESHOLDS))
