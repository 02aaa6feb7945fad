"""The regions that boxes and masks mark, image by image."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import datasets
import numpy as np

from processing_tier.records.masks import finding_mask


class Case(NamedTuple):
    """One question about an image: a finding, or a sentence about it."""

    row: int  # of the data set
    finding: str
    phrase: str  # "" where the finding's own sentences are asked


class Region(NamedTuple):
    """The region that answers a case."""

    mask: np.ndarray | None  # bool (height, width); None where only the counts are kept
    num_marks: int  # boxes and masks that it consists of
    num_outside: int  # boxes that reach beyond the image


def boxes_to_mask(boxes: Sequence[Mapping], height: int, width: int) -> np.ndarray:
    """The union of boxes: a pixel is inside where its centre is.

    Args:
        boxes: dicts with `x`, `y` (top left corner), `w` and `h`, in pixels.

    Returns:
        bool (height, width).
    """
    mask = np.zeros((height, width), dtype=bool)
    for box in boxes:
        top, bottom = (min(max(math.ceil(edge - 0.5), 0), height) for edge in (box["y"], box["y"] + box["h"]))
        left, right = (min(max(math.ceil(edge - 0.5), 0), width) for edge in (box["x"], box["x"] + box["w"]))
        mask[top:bottom, left:right] = True
    return mask


def is_outside(box: Mapping, height: int, width: int) -> bool:
    """Whether a box reaches beyond its image by more than a pixel, or has no area."""
    right, bottom = box["x"] + box["w"], box["y"] + box["h"]
    return box["w"] <= 0 or box["h"] <= 0 or min(box["x"], box["y"], width - right, height - bottom) < -1


def read_cases(dataset: datasets.Dataset, findings: Sequence[str] | None = None, phrases: bool = False) -> list[Case]:
    """The cases that the boxes and masks of a data set support, image by image, in their order.

    Args:
        dataset: with the column `boxes` or `masks`.
        findings: names as in those columns; by default all of them.
        phrases: make one case per sentence of the boxes (MS-CXR); boxes without a sentence are left out.

    Raises:
        ValueError: for a data set without boxes and masks, an unknown finding, or boxes without sentences.
    """
    columns = [column for column in ("boxes", "masks") if column in dataset.column_names]
    if not columns:
        raise ValueError(
            "The data set has neither boxes nor masks. Grounding needs one that does, such as ms_cxr, "
            "chexlocalize, rsna or the phantom."
        )
    cases: dict[Case, None] = {}
    for row, record in enumerate(dataset.with_format(None).select_columns(columns)):
        for column in columns:
            for mark in record[column] or ():
                phrase = (mark.get("phrase") or "") if phrases else ""
                if phrase or not phrases:
                    cases[Case(row, mark["finding"], phrase)] = None
    there = sorted({case.finding for case in cases})
    if not there:
        raise ValueError(
            f"None of the {len(dataset)} images has a box{' with a sentence' if phrases else ' or a mask'}: "
            "use another split or data set."
        )
    for finding in findings or ():
        if finding not in there:
            raise ValueError(f"No box or mask is of {finding!r}: there are some of {', '.join(map(repr, there))}.")
    return [case for case in cases if findings is None or case.finding in findings]


def read_region(record: Mapping, case: Case, height: int, width: int) -> Region:
    """The union of the boxes and masks of one case in a record.

    Raises:
        ValueError: for a mask of another size than the image.
    """
    masks = [] if case.phrase else [m for m in record.get("masks") or () if m["finding"] == case.finding]
    boxes = [
        box
        for box in record.get("boxes") or ()
        if box["finding"] == case.finding and (not case.phrase or box["phrase"] == case.phrase)
    ]
    for mask in masks:
        if (mask["height"], mask["width"]) != (height, width):
            raise ValueError(
                f"Image {case.row} of the data set (counted from 0) has {height}x{width} pixels (height x width), but "
                f"its mask has {mask['height']}x{mask['width']}: resize both alike, as tier-prepare does."
            )
    region = boxes_to_mask(boxes, height, width)
    drawn = finding_mask(masks, case.finding)
    if drawn is not None:
        region |= drawn
    return Region(region, len(boxes) + len(masks), sum(is_outside(box, height, width) for box in boxes))
