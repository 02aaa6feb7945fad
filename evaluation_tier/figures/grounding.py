"""Maps beside the regions that were marked."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
import torch
from transformers import PreTrainedModel, ProcessorMixin

from evaluation_tier.analyses.grounding.maps import MAPS, compute_grids
from evaluation_tier.analyses.grounding.regions import read_cases, read_region
from evaluation_tier.figures.style import COLOURS, STYLE, import_matplotlib, literal
from evaluation_tier.output.metrics_file import as_float, write_beside
from evaluation_tier.output.model_card import describe_dataset
from evaluation_tier.output.tables import format_number
from processing_tier.prompts.loader import Prompts
from processing_tier.radiograph_tier import read_radiograph


class Sketch(NamedTuple):
    """One region on the sheet of `plot_grounding`."""

    title: str
    radiograph: np.ndarray  # uint8 (height, width)
    mask: np.ndarray  # bool (height, width)
    similarity: np.ndarray  # float32 (height, width), NaN where unseen
    threshold: float  # of the map scaled to 0..1; what reaches it is outlined; NaN for none
    hit: bool  # whether the highest pixel hits


def plot_grounding(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    dataset: datasets.Dataset,
    prompts: Mapping[str, Prompts],
    results: Mapping,
    path: str | Path,
    map_name: str = "above_average",
    num_per_group: int = 3,
) -> Path:
    """A sheet of the best, the median and the worst regions by IoU at the best threshold.

    Each has the radiograph with the marked region, and the map over it with the region again, the outline of what
    reaches the threshold, and the highest pixel. Ties are broken by the pixel AUROC.

    Args:
        dataset: the evaluated one.
        prompts: of the findings, as they were evaluated.
        results: as `evaluate_grounding` returns them.
        path: of the PNG file.
        map_name: which map is drawn and ranks the regions.
        num_per_group: regions in each of the three rows; fewer where there are not as many.

    Raises:
        ValueError: for an unknown map, or results of other data.
    """
    matplotlib = import_matplotlib()
    if map_name not in MAPS:
        raise ValueError(f"A sheet shows one of the maps {', '.join(MAPS)}, not {map_name!r}.")
    dataset = dataset.with_format(None)
    phrases = results["protocol"]["phrases"]
    cases = [case for case in read_cases(dataset, None, phrases) if case.finding in results["findings"]]
    of_these = all(
        region["case"] < len(cases) and cases[region["case"]][:2] == (region["row"], region["finding"])
        for region in results["regions"]
    )
    if not of_these:
        raise ValueError("The results are not of these data: give the data set that was evaluated.")
    key = next(key for key in results["regions"][0]["maps"][map_name] if key.startswith("iou_best"))

    def rank(region: Mapping) -> tuple[float, float]:
        values = region["maps"][map_name]
        return -(values[key] or 0.0), -(values["pixel_auroc"] or 0.0)

    order = sorted(results["regions"], key=rank)
    size = max(min(num_per_group, len(order) // 3), 1)  # no region in two rows, if there are three or more
    middle = max((len(order) - size) // 2, 0)
    groups = {"Best": order[:size], "Median": order[middle : middle + size], "Worst": order[-size:]}
    shown = {region["case"]: cases[region["case"]] for group in groups.values() for region in group}
    grids, _ = compute_grids(model, processor, dataset, [shown[i] for i in sorted(shown)], prompts)

    def sketch(region: Mapping) -> Sketch:
        case, values = shown[region["case"]], region["maps"][map_name]
        record = dataset[case.row]
        radiograph = np.asarray(read_radiograph(record["image"]))
        grid = torch.from_numpy(grids[case][MAPS.index(map_name)])[None]
        similarity = processor.image_processor.post_process_similarity_map(grid, [radiograph.shape])[0].numpy()
        threshold = as_float(results["findings"][case.finding]["thresholds"][map_name]["iou"])
        title = f"{literal(case.finding)}, IoU {format_number(values[key], 2)}"  # no name of image or patient
        mask = read_region(record, case, *radiograph.shape).mask
        return Sketch(title, radiograph, mask, similarity, threshold, bool(values["pointing"] or 0.0))

    columns = max(len(group) for group in groups.values())
    with matplotlib.rc_context(STYLE | {"axes.grid": False, "axes.titlelocation": "center", "axes.titlesize": 8.5}):
        figure = matplotlib.figure.Figure(figsize=(4.2 * columns + 0.4, 7.6), layout="constrained")
        panels = figure.subplots(3, 2 * columns, squeeze=False)
        for axes in panels.ravel():
            axes.set_axis_off()
        for row, (name, group) in zip(panels, groups.items(), strict=True):
            row[0].text(-0.06, 0.5, name, transform=row[0].transAxes, rotation=90, va="center", ha="right")
            for i, region in enumerate(group):
                draw_grounding(matplotlib, row[2 * i], row[2 * i + 1], sketch(region))
        of_what = map_name.replace("_", " ")
        dataset_name = describe_dataset(results["dataset"]) or "unnamed data"
        figure.suptitle(f"Grounding, {dataset_name}, map: {of_what}", fontsize=12, fontweight="bold")
        handles = [
            matplotlib.lines.Line2D([], [], color="#39FF88", label="marked region"),
            matplotlib.lines.Line2D([], [], color=COLOURS[5], linestyle="--", label="map at the threshold"),
            matplotlib.lines.Line2D([], [], color=COLOURS[1], marker="x", linestyle="", label="highest pixel, misses"),
            matplotlib.lines.Line2D([], [], color="#39FF88", marker="x", linestyle="", label="highest pixel, hits"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=4 if columns > 1 else 2)
        return write_beside(path, lambda partial: figure.savefig(partial, format="png"))


def draw_grounding(matplotlib, left, right, sketch: Sketch) -> None:
    """One region: on the left axes the radiograph and the marks, on the right ones the map over it."""
    green, blue, orange = "#39FF88", COLOURS[5], COLOURS[1]
    for axes in (left, right):
        axes.imshow(sketch.radiograph, cmap="gray", vmin=0, vmax=255)
        if sketch.mask.any() and not sketch.mask.all():
            axes.contour(sketch.mask, levels=[0.5], colors=[green], linewidths=1.3)
    left.set_title(sketch.title)
    low, high = np.nanmin(sketch.similarity), np.nanmax(sketch.similarity)
    strength = np.nan_to_num((sketch.similarity - low) / max(high - low, 1e-12))
    right.imshow(sketch.similarity, cmap="inferno", vmin=low, vmax=high, alpha=0.15 + 0.5 * strength)
    if np.isfinite(sketch.threshold) and high > low:
        level = low + sketch.threshold * (high - low)
        right.contour(sketch.similarity, levels=[level], colors=[blue], linestyles="--", linewidths=1.2)
    rows, columns = np.nonzero(sketch.similarity == high)
    middle = len(rows) // 2  # of several highest pixels, one of them
    colour = green if sketch.hit else orange
    right.plot(columns[middle], rows[middle], "x", color=colour, markersize=7, markeredgewidth=2)
    right.set_title("pointing: hit" if sketch.hit else "pointing: miss")
