"""Boxes of an archive's table, one row per box, grouped by image. The fields of a box are in `annotations`."""

import logging

import numpy as np
import pandas as pd

logger = logging.getLogger(__name__)


def group_boxes(
    frame: pd.DataFrame, name: str, width: float | pd.Series = np.inf, height: float | pd.Series = np.inf
) -> pd.Series:
    """
    The boxes of each image. Boxes are cut at the edge of the image, and those without area are left out, with a
    warning.

    Args:
        frame (`pd.DataFrame`):
            Columns `image_id`, `finding`, perhaps `phrase`, and `x`, `y`, `w`, `h` in pixels, as numbers or text.
            Repeated rows count once.
        name (`str`): the name of the table in errors.
        width, height (`float` or `pd.Series`, *optional*): size in pixels of all images, or of the image of each row.

    Returns:
        `pd.Series`: a list of boxes as the schema has them for each `image_id` that has one.

    Raises:
        `ValueError`: a coordinate that is not a number.
    """
    boxes = frame.assign(width=width, height=height).drop_duplicates()
    for side in ("x", "y", "w", "h", "width", "height"):
        boxes[side] = pd.to_numeric(boxes[side], errors="coerce").astype(float)
    broken = (~np.isfinite(boxes[["x", "y", "w", "h"]])).any(axis=1).sum()
    if broken:
        raise ValueError(f"{name}: {broken} boxes have a coordinate that is not a number; fix or remove their rows.")
    left, top = boxes["x"].clip(lower=0), boxes["y"].clip(lower=0)
    right = (boxes["x"] + boxes["w"]).clip(upper=boxes["width"])
    bottom = (boxes["y"] + boxes["h"]).clip(upper=boxes["height"])
    w, h = right - left, bottom - top
    empty = (w <= 0) | (h <= 0)
    cut = ~empty & ((boxes["w"] - w > 0.5) | (boxes["h"] - h > 0.5))  # less is rounding
    if empty.any() or cut.any():
        logger.warning(
            "%s: %d boxes reach beyond their image and are cut, %d have no area inside it and are left out.",
            name,
            cut.sum(),
            empty.sum(),
        )
    grouped: dict[str, list[dict]] = {}
    phrases = boxes["phrase"] if "phrase" in boxes else [""] * len(boxes)
    rows = zip(boxes["image_id"], boxes["finding"], phrases, left, top, w, h, ~empty, strict=True)
    for image_id, finding, phrase, *corner_and_size, kept in rows:
        if kept:
            box = {"finding": finding, "phrase": phrase, **dict(zip("xywh", corner_and_size, strict=True))}
            grouped.setdefault(image_id, []).append(box)
    return pd.Series(grouped, dtype=object)
