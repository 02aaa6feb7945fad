"""The files of `tier-predict`: predictions.json, predictions.csv, and the overlays."""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from PIL.PngImagePlugin import PngInfo

from evaluation_tier.figures.captions import add_caption
from evaluation_tier.output.file_names import file_names, slug
from evaluation_tier.output.writing import write_beside
from evaluation_tier.predict.loading import Pipeline
from modeling_tier import HeatMap
from processing_tier.escaping import spreadsheet_cell
from processing_tier.progress import progress

logger = logging.getLogger(__name__)

NOTE = "Research software, not a medical device: not for clinical use."

OVERLAYS = "overlays"
OVERLAY_EDGE = 1024  # pixels along the longer side


def check_free(folder: Path, overwrite: bool) -> None:
    """ValueError if the folder holds predictions that may not be replaced, before any work is done."""
    if not overwrite and (folder / "predictions.json").exists():
        raise ValueError(f"{folder} holds predictions: choose another --output_dir, or pass --overwrite.")


def write_predictions(
    folder: Path,
    head: Mapping[str, Any],
    images: Sequence[dict[str, Any]],
    pipe: Pipeline,
    limits: Mapping[str, float],
) -> list[Path]:
    """
    Write all files, the overlays first, and return their paths. The `maps` and `size` of the images become `overlay`,
    the path of a picture within the folder.

    Args:
        head: what predictions.json holds above the images.
        images: as `evaluation_tier.predict.run.predict` returns them.
        limits: by finding the value of the strongest colour.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{OVERLAYS}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    shown = file_names(limits)
    try:
        for number, image in enumerate(progress(images, "drawing overlays", "image"), 1):
            if "maps" in image:
                name = f"{number:0{len(str(len(images)))}d}-{slug(Path(image['image']).stem)[:60]}"
                draw_overlays(partial, name, image, pipe, limits, shown)
        shutil.rmtree(folder / OVERLAYS, ignore_errors=True)  # those of the predictions that are replaced
        if partial.is_dir():
            partial.rename(folder / OVERLAYS)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    num_failed = sum("error" in image for image in images)
    content = {**head, "n_images": len(images) - num_failed, "n_failed": num_failed, "images": images}
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    table = predictions_table(images)
    return [
        write_beside(folder / "predictions.json", lambda path: path.write_text(text, encoding="utf-8")),
        write_beside(folder / "predictions.csv", lambda path: table.to_csv(path, index=False)),
        *([folder / OVERLAYS] if (folder / OVERLAYS).is_dir() else []),
    ]


def draw_overlays(
    folder: Path,
    name: str,
    image: dict[str, Any],
    pipe: Pipeline,
    limits: Mapping[str, float],
    shown: Mapping[str, str],
) -> None:
    """Draw the overlay of each finding of one image into `folder`, and note their names in `image`."""
    maps, size = torch.from_numpy(image.pop("maps")), image.pop("size")
    heatmaps = pipe.heat_maps(maps, size, Path(image["image"]))
    folder.mkdir(exist_ok=True)
    for finding, heatmap in zip(image["findings"], heatmaps, strict=True):
        file = f"{name}-{shown[finding['label']]}.png"
        try:
            draw_overlay(folder / file, finding, heatmap, limits[finding["label"]])
        except ValueError as error:  # the file has changed since it was scored
            logger.warning("No overlay. %s", error)
            return
        finding["overlay"] = f"{OVERLAYS}/{file}"


def draw_overlay(path: Path, finding: Mapping[str, Any], heatmap: HeatMap, limit: float) -> None:
    """The overlay of one finding with its score and a colour bar under it."""
    score = f"{'score' if finding['calibrated'] else 'uncalibrated score'} {finding['score']:.3f}"
    if "threshold" in finding:
        score += f", {'present' if finding['present'] else 'absent'} (threshold {finding['threshold']:.3f})"
    lines = [f"{finding['label']}: {score}", NOTE]
    told = PngInfo()
    told.add_itxt("Description", " ".join(lines))
    captioned = add_caption(heatmap.overlay(limit=limit, longest_edge=OVERLAY_EDGE), lines, limit)
    captioned.save(path, "PNG", pnginfo=told, compress_level=1)  # a fifth larger, and four times as fast


def predictions_table(images: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A row for each finding of an image, or for the error of one."""
    columns = ("image", "finding", "score", "calibrated", "threshold", "present", "overlay", "error", "note")
    rows = [
        {
            "image": image["image"],
            "finding": finding.get("label"),
            "error": image.get("error"),
            "note": NOTE,
            **finding,
        }
        for image in images
        for finding in image.get("findings", [{}])
    ]
    table = pd.DataFrame(rows).reindex(columns=columns)
    for column in ("image", "finding", "error"):
        table[column] = [None if pd.isna(text) else spreadsheet_cell(text) for text in table[column]]
    return table
