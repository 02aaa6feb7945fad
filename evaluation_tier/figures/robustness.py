"""The probes of robustness: wording, negation, side, empty and degraded images, and reports against changed ones."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evaluation_tier.figures.style import COLOURS, DASHED, GREY, STYLE, import_matplotlib, literal, save_png
from evaluation_tier.output.dataset_names import describe_dataset
from evaluation_tier.output.metrics_file import as_float

if TYPE_CHECKING:
    from matplotlib.axes import Axes


COMPARED = {"over_negated": "its negated form", "over_shortened": "its shortened form", "over_both": "both"}


def plot_robustness(results: Mapping, path: str | Path) -> Path:
    """The five probes of `evaluate_robustness` in one figure, with their intervals and chance; with CXR-Align a sixth.

    Args:
        results: as `evaluate_robustness` returns them, or read back from JSON.
        path: of the PNG file.
    """
    matplotlib = import_matplotlib()
    num_empty = len(results["empty_images"]["findings"])
    height = 5.4 + 0.22 * (len(results["wordings"]["findings"]) + num_empty)
    layout = [["wordings", "negation"], ["wordings", "laterality"], ["empty", "degradations"]]
    heights = [2.2, 1.4, 3 + 0.16 * num_empty]
    aligned = results.get("report_alignment")
    if aligned:
        layout.append(["alignment", "alignment"])
        inches = 1.2 + 0.42 * (1 + len(aligned["findings"]))
        heights.append(sum(heights) * inches / height)
        height += inches
    with matplotlib.rc_context(STYLE):
        figure = matplotlib.figure.Figure(figsize=(11.5, height), layout="constrained")
        panels = figure.subplot_mosaic(layout, height_ratios=heights, width_ratios=[1.25, 1])
        figure.suptitle(
            f"Robustness, {literal(describe_dataset(results['dataset']))}, {results['n_images']:,} images\n"
            "dashed: chance, or no difference"
        )
        draw_wordings(panels["wordings"], results["wordings"])
        draw_negation(panels["negation"], results["negation"]["mean"])
        draw_laterality(panels["laterality"], results["laterality"]["all"])
        draw_degradations(panels["degradations"], results["degradations"])
        draw_empty_images(panels["empty"], results["empty_images"]["findings"])
        if aligned:
            draw_alignment(panels["alignment"], aligned)
        return save_png(figure, path)


def draw_wordings(axes: "Axes", wordings: Mapping) -> None:
    """The AUROC of each finding with each wording, and the range from the lowest to the highest."""
    rows = {**wordings["findings"], **({"mean": wordings["mean"]} if wordings["mean"] else {})}
    for i, row in enumerate(rows.values()):
        axes.plot([as_float(row["min"]), as_float(row["max"])], [i, i], color=GREY, linewidth=1.5, zorder=1)
        for colour, (wording, value) in zip(COLOURS, row["auroc"].items(), strict=False):
            axes.plot(as_float(value), i, "o", color=colour, markersize=6, label=wording if i == 0 else None)
    draw_references(axes, [0.5] * len(rows))
    set_rows(axes, list(rows))
    number = len(next(iter(rows.values()))["auroc"]) if rows else 0
    axes.set(title=f"AUROC with {number} wordings of the same question", xlabel="AUROC")
    if rows:
        axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.14), ncols=3, handletextpad=0.2)


def draw_negation(axes: "Axes", negation: Mapping) -> None:
    rows = [(wording, row["balanced"], row["balanced_ci95"], 0.5) for wording, row in negation.items()]
    draw_intervals(axes, rows)
    axes.set(title='"X" against "no X"', xlabel="Balanced accuracy, mean over findings")
    axes.set_xlim(0, 1)


def draw_laterality(axes: "Axes", laterality: Mapping | None) -> None:
    names = {  # with chance; a model that is blind to sides prefers the same sentence for the mirrored image
        "accuracy": ("side named correctly", 0.5),
        "mirrored_accuracy": ("the same, image mirrored", 0.5),
        "swapped": ("share that mirroring turns", 0.0),
    }
    rows = [
        (text, laterality[name], laterality[f"{name}_ci95"], chance)
        for name, (text, chance) in names.items()
        if laterality
    ]
    draw_intervals(axes, rows)
    pairs = laterality["n_left"] + laterality["n_right"] if laterality else 0
    axes.set(
        title=f"Left against right, {pairs:,} stated sides", xlabel="Balanced accuracy; last row: share of images"
    )
    axes.set_xlim(-0.03, 1.03)


def draw_degradations(axes: "Axes", degradations: Mapping) -> None:
    rows = [
        (name, row["mean"]["drop"], row["mean"]["drop_ci95"], 0.0)
        for name, row in degradations.items()
        if "drop" in row["mean"]
    ]
    draw_intervals(axes, rows)
    axes.set(title="Degraded images", xlabel="Drop of the mean AUROC (above 0: worse)")
    axes.locator_params(axis="x", nbins=5)  # more labels would overlap


def draw_empty_images(axes: "Axes", empty: Mapping) -> None:
    """The quantile of each empty image's score among the real images, by finding."""
    images = list(next(iter(empty.values()))["images"])
    quantiles = np.array([[as_float(row["images"][name]["quantile"]) for name in images] for row in empty.values()])
    axes.imshow(quantiles, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for i, row in enumerate(empty.values()):
        for j, name in enumerate(images):
            mark = "+" if row["images"][name]["positive"] else ""
            colour = "white" if quantiles[i, j] > 0.6 else "black"
            axes.text(j, i, f"{quantiles[i, j]:.2f}{mark}", ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(len(images)), images)
    axes.set_yticks(range(len(empty)), list(empty))
    axes.grid(False)
    axes.tick_params(length=0)
    axes.set_title("Images that show nothing: share of the real images\nthat score lower (+: called present)")


def draw_alignment(axes: "Axes", aligned: Mapping) -> None:
    """How often images prefer their report over its changed forms, of all images and by the changed finding."""
    rows = {"All": aligned["all"], **aligned["findings"]}
    names = [f"{literal(name)} ({row['n_images']:,})" for name, row in rows.items()]
    for colour, marker, shift, (measure, text) in zip(
        COLOURS, "os^", (-0.22, 0, 0.22), COMPARED.items(), strict=False
    ):
        for i, row in enumerate(rows.values()):
            interval = [as_float(bound) for bound in row[f"{measure}_ci95"]]
            axes.plot(interval, [i + shift] * 2, color=colour, linewidth=2)
            label = text if i == 0 else None
            axes.plot(as_float(row[measure]), i + shift, marker, color=colour, markersize=6, label=label)
    draw_references(axes, [aligned["chance"]["over_negated"]] * len(rows))
    axes.axvline(aligned["chance"]["over_both"], color=COLOURS[2], linewidth=1, linestyle=DASHED, zorder=0)
    set_rows(axes, names)
    axes.set(title="CXR-Align: the image lies nearer to its report than to", xlabel="Share of images")
    axes.set_xlim(0, 1)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, handletextpad=0.2, borderaxespad=0.2)


def draw_intervals(axes: "Axes", rows: Sequence[tuple[str, float | None, Sequence | None, float]]) -> None:
    """One row for each name, value, interval, and value of chance or of no difference."""
    for i, (_, value, interval, _) in enumerate(rows):
        if interval is not None:
            axes.plot([as_float(bound) for bound in interval], [i, i], color=COLOURS[0], linewidth=2)
        axes.plot(as_float(value), i, "o", color=COLOURS[0], markersize=6)
    draw_references(axes, [reference for *_, reference in rows])
    set_rows(axes, [name for name, *_ in rows])


def draw_references(axes: "Axes", references: Sequence[float]) -> None:
    """The dashed lines, one for neighbouring rows with the same value."""
    start = 0
    for reference, group in groupby(references):
        end = start + len(list(group))
        ends = [start - 0.5, end - 0.5]
        axes.plot([reference, reference], ends, color=GREY, linewidth=1, linestyle=DASHED, zorder=1)
        start = end


def set_rows(axes: "Axes", names: Sequence[str]) -> None:
    """Name the rows, the first at the top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(max(len(names), 1) - 0.5, -0.5)
