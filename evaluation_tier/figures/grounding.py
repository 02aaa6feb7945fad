"""Maps beside the regions that were marked."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import datasets
import numpy as np
import torch
from transformers import PreTrainedModel, ProcessorMixin

from evaluation_tier.analyses.grounding.map_names import shown_map
from evaluation_tier.analyses.grounding.maps import compute_grids
from evaluation_tier.analyses.grounding.regions import Case, read_cases, read_region
from evaluation_tier.figures.style import (
    COLOURS,
    MARKED,
    STYLE,
    import_matplotlib,
    literal,
    outline,
    save_png,
    show_radiograph,
)
from evaluation_tier.models.families import map_processor_of
from evaluation_tier.output.dataset_names import describe_dataset
from evaluation_tier.output.metrics_file import as_float
from evaluation_tier.output.tables import format_number
from processing_tier.prompts.loader import Prompts
from processing_tier.radiograph_tier import read_radiograph

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REGIONS_PER_ROW = 3  # fewer if there are fewer than nine regions


class Sketch(NamedTuple):
    """One region on the sheet of `plot_grounding`."""

    title: str
    radiograph: np.ndarray  # uint8 (height, width)
    mask: np.ndarray  # bool (height, width)
    similarity: np.ndarray  # float32 (height, width), NaN where the model does not see the image
    threshold: float  # of the map scaled to 0..1, outlined; NaN without one
    hit: bool  # whether the highest pixel hits


def plot_grounding(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    dataset: datasets.Dataset,
    prompts: Mapping[str, Prompts],
    results: Mapping,
    path: str | Path,
    map_name: str | None = None,
) -> Path:
    """A sheet of the best, the median and the worst regions by IoU at the best threshold.

    Each has the radiograph with the marked region, and the map over it with the region again, the outline of what
    reaches the threshold, and the highest pixel. The pixel AUROC breaks ties.

    Args:
        dataset: the evaluated one.
        prompts: of the findings, as they were evaluated; a classifier needs none.
        results: as `evaluate_grounding` returns them.
        path: of the PNG file.
        map_name: the map that is drawn and ranks the regions; by default `shown_map`.

    Raises:
        ValueError: for an unknown map, or results of other data.
    """
    matplotlib = import_matplotlib()
    measured = results["all_regions"]["maps"]
    map_name = shown_map(measured) if map_name is None else map_name
    if map_name not in measured:
        raise ValueError(f"A sheet shows one of the maps {', '.join(measured)}, not {map_name!r}.")
    dataset = dataset.with_format(None)
    cases = read_evaluated_cases(dataset, results)
    groups = group_regions(results["regions"], map_name)
    shown = {region["case"]: cases[region["case"]] for group in groups.values() for region in group}
    grids, _ = compute_grids(model, processor, dataset, [shown[i] for i in sorted(shown)], prompts)
    image_processor = map_processor_of(model, processor)
    to_pixels = partial(image_processor.post_process_similarity_map, patch_centers=model.patch_centers)
    columns = max(len(group) for group in groups.values())
    with matplotlib.rc_context(STYLE | {"axes.grid": False, "axes.titlelocation": "center", "axes.titlesize": 8.5}):
        figure = matplotlib.figure.Figure(figsize=(4.2 * columns + 0.4, 7.6), layout="constrained")
        panels = figure.subplots(3, 2 * columns, squeeze=False)
        for axes in panels.ravel():
            axes.set_axis_off()
        for row, (name, group) in zip(panels, groups.items(), strict=True):
            row[0].text(-0.06, 0.5, name, transform=row[0].transAxes, rotation=90, va="center", ha="right")
            for i, region in enumerate(group):
                case = shown[region["case"]]
                grid = torch.from_numpy(grids[case][map_name])[None]
                sketch = sketch_region(region, case, dataset[case.row], grid, to_pixels, results, map_name)
                draw_grounding(row[2 * i], row[2 * i + 1], sketch)
        dataset_name = describe_dataset(results["dataset"]) or "unnamed data"
        title = f"Grounding, {dataset_name}, map: {map_name.replace('_', ' ')}"
        figure.suptitle(title, fontsize=12, fontweight="bold")
        add_legend(matplotlib, figure, num_columns=4 if columns > 1 else 2)
        return save_png(figure, path)


def read_evaluated_cases(dataset: datasets.Dataset, results: Mapping) -> list[Case]:
    """The cases of a data set whose findings were evaluated; a ValueError if the results are of other data."""
    cases = read_cases(dataset, None, results["protocol"]["phrases"])
    cases = [case for case in cases if case.finding in results["findings"]]
    for region in results["regions"]:
        i = region["case"]
        if i >= len(cases) or cases[i][:2] != (region["row"], region["finding"]):
            raise ValueError("The results belong to other data: pass the evaluated data set.")
    return cases


def find_overlap_key(region: Mapping, map_name: str) -> str:
    """The IoU at the best threshold, `iou_best` or `iou_best_optimistic`."""
    return next(key for key in region["maps"][map_name] if key.startswith("iou_best"))


def group_regions(regions: Sequence[Mapping], map_name: str) -> dict[str, Sequence[Mapping]]:
    """The best, the median and the worst regions."""
    key = find_overlap_key(regions[0], map_name)

    def rank(region: Mapping) -> tuple[float, float]:
        values = region["maps"][map_name]
        return -(values[key] or 0.0), -(values["pixel_auroc"] or 0.0)

    order = sorted(regions, key=rank)
    size = max(min(REGIONS_PER_ROW, len(order) // 3), 1)  # no region in two rows, if there are three or more
    middle = max((len(order) - size) // 2, 0)
    return {"Best": order[:size], "Median": order[middle : middle + size], "Worst": order[-size:]}


def sketch_region(
    region: Mapping,
    case: Case,
    record: Mapping,
    grid: torch.Tensor,
    to_pixels: Callable[..., list[torch.Tensor]],
    results: Mapping,
    map_name: str,
) -> Sketch:
    """The map of one region for the sheet, (1, rows, columns) patches, which `to_pixels` lays over its image."""
    values = region["maps"][map_name]
    radiograph = np.asarray(read_radiograph(record["image"]))
    similarity = to_pixels(grid, [radiograph.shape])[0].numpy()
    threshold = as_float(results["findings"][case.finding]["thresholds"][map_name]["iou"])
    overlap = format_number(values[find_overlap_key(region, map_name)], 2)
    title = f"{literal(case.finding)}, IoU {overlap}"  # names no image or patient
    mask = read_region(record, case, *radiograph.shape).mask
    return Sketch(title, radiograph, mask, similarity, threshold, bool(values["pointing"] or 0.0))


def add_legend(matplotlib: ModuleType, figure: "Figure", num_columns: int) -> None:
    """The legend of the sheet, below it."""
    line = matplotlib.lines.Line2D
    handles = [
        line([], [], color=MARKED, label="marked region"),
        line([], [], color=COLOURS[5], linestyle="--", label="map at the threshold"),
        line([], [], color=COLOURS[1], marker="x", linestyle="", label="highest pixel, misses"),
        line([], [], color=MARKED, marker="x", linestyle="", label="highest pixel, hits"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=num_columns)


def draw_grounding(left: "Axes", right: "Axes", sketch: Sketch) -> None:
    """One region: on the left axes the radiograph and the marks, on the right ones the map over it."""
    blue, orange = COLOURS[5], COLOURS[1]
    for axes in (left, right):
        show_radiograph(axes, sketch.radiograph)
        outline(axes, sketch.mask, linewidth=1.3)
    left.set_title(sketch.title)
    low, high = np.nanmin(sketch.similarity), np.nanmax(sketch.similarity)
    strength = np.nan_to_num((sketch.similarity - low) / max(high - low, 1e-12))
    right.imshow(sketch.similarity, cmap="inferno", vmin=low, vmax=high, alpha=0.65 * strength)
    if np.isfinite(sketch.threshold) and high > low:
        level = low + sketch.threshold * (high - low)
        right.contour(sketch.similarity, levels=[level], colors=[blue], linestyles="--", linewidths=1.2)
    rows, columns = np.nonzero(sketch.similarity == high)
    middle = len(rows) // 2  # several pixels may share the highest value
    colour = MARKED if sketch.hit else orange
    right.plot(columns[middle], rows[middle], "x", color=colour, markersize=7, markeredgewidth=2)
    right.set_title("pointing: hit" if sketch.hit else "pointing: miss")
