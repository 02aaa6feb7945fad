"""Boxes and masks of a record: their features in the schema, and how values of tables are checked and converted."""

from collections.abc import Mapping
from typing import Any

import datasets
import numpy as np

from processing_tier.bounded_json import parse_json
from processing_tier.records.masks import check_counts

BOXES = [{name: datasets.Value("float32" if name in "xywh" else "string") for name in ("finding", "phrase", *"xywh")}]

MASKS = [
    {
        "finding": datasets.Value("string"),
        "height": datasets.Value("int32"),
        "width": datasets.Value("int32"),
        "counts": [datasets.Value("int32")],
    }
]

ANNOTATIONS = {"boxes": BOXES, "masks": MASKS}

MAX_COORDINATE = 1e6  # pixels


def read_annotations(column: str, value: Any, name: str) -> list[dict]:
    """Boxes or masks of one image, by the name of the column."""
    return read_boxes(value, name) if column == "boxes" else read_masks(value, name)


def read_boxes(value: Any, name: str) -> list[dict]:
    """
    Boxes of one image, as the schema has them.

    Args:
        value: a list of dicts with `finding`, `x`, `y`, `w`, `h` and perhaps `phrase`, or JSON such as
            `[{"label": "Pneumonia", "bbox_xywh": [x, y, width, height]}]`; blank for an image without boxes.
        name (`str`): the name of the table in errors.

    Raises:
        `ValueError`: text that is not such JSON, other keys, or a coordinate that is not a number.
    """
    if is_blank(value):
        return []
    try:
        items = to_list(value)
        are_bare = is_four_numbers(items) or any(map(is_four_numbers, items))
        boxes = [] if are_bare else [read_box(box) for box in items]
    except (KeyError, TypeError, AttributeError, OverflowError, ValueError):
        raise ValueError(
            f"{name}: a value of the boxes column is not a JSON list of label and bbox_xywh; fix or drop the column."
        ) from None
    if are_bare:
        raise ValueError(
            f"{name}: the boxes column has four numbers without a finding; write each box as "
            '{"label": "Pneumonia", "bbox_xywh": [x, y, width, height]}.'
        )
    sides = np.array([[box[side] for side in "xywh"] for box in boxes]).reshape(-1, 4)
    if not np.isfinite(sides).all():
        raise ValueError(f"{name}: a box has a coordinate that is not a number; fix or drop the column.")
    if (np.abs(sides) > MAX_COORDINATE).any():
        raise ValueError(f"{name}: a box lies beyond {MAX_COORDINATE:,.0f} pixels; fix or drop the column.")
    return boxes


def read_box(box: Mapping) -> dict:
    """One box, in the schema's form or as `label` and `bbox_xywh`."""
    if "bbox_xywh" in box:
        box = {
            **dict(zip("xywh", box["bbox_xywh"], strict=True)),
            "finding": box["label"],
            "phrase": box.get("phrase"),
        }
    box = {**{side: float(box[side]) for side in "xywh"}, "finding": box["finding"], "phrase": box.get("phrase") or ""}
    if not isinstance(box["finding"], str) or not isinstance(box["phrase"], str):
        raise TypeError
    return box


def read_masks(value: Any, name: str) -> list[dict]:
    """
    Masks of one image, as the schema has them.

    Args:
        value: a list of dicts with `finding`, `height`, `width` and `counts` (see [`masks`]), or the same as JSON;
            blank for an image without masks.
        name (`str`): the name of the table in errors.

    Raises:
        `ValueError`: anything else, or run lengths that do not fill the mask.
    """
    if is_blank(value):
        return []
    try:
        masks = [(mask["finding"], int(mask["height"]), int(mask["width"]), mask["counts"]) for mask in to_list(value)]
        if not all(isinstance(finding, str) for finding, *_ in masks):
            raise TypeError
    except (KeyError, TypeError, AttributeError, OverflowError, ValueError):
        raise ValueError(
            f"{name}: a value of the masks column is not a list of finding, height, width and counts; fix or drop "
            "the column."
        ) from None
    try:
        return [
            {
                "finding": finding,
                "height": height,
                "width": width,
                "counts": check_counts(counts, height, width).tolist(),
            }
            for finding, height, width, counts in masks
        ]
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def to_list(value: Any) -> list:
    value = parse_json(value) if isinstance(value, str) else value
    if isinstance(value, Mapping) or not isinstance(value, (list, tuple, np.ndarray)):
        raise TypeError
    return list(value)


def is_blank(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or isinstance(value, float) and value != value


def is_four_numbers(value: Any) -> bool:
    return isinstance(value, (list, tuple, np.ndarray)) and len(value) == 4 and all(np.isscalar(n) for n in value)
