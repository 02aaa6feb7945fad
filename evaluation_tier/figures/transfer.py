"""Thresholds and calibration of one data set on another, and healthy against sick controls."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation_tier.figures.style import COLOURS, DASHED, GREY, STYLE, import_matplotlib, literal, save_png
from evaluation_tier.output.dataset_names import describe_dataset
from evaluation_tier.output.metrics_file import as_float

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = {"sensitivity": "Sensitivity", "specificity": "Specificity", "ece": "Calibration error (ECE)"}


def plot_transfer(results: Mapping, path: str | Path) -> Path:
    """A row for each finding: sensitivity, specificity and ECE where they were fitted and here, and AUROC by controls.

    Args:
        results: as `measure_transfer` returns them, or read back from JSON.
        path: of the PNG file.
    """
    matplotlib = import_matplotlib()
    findings = results["findings"]
    rows = {**findings, "Mean": results["mean"]}
    has_controls = "auroc_healthy" in results["mean"]
    with matplotlib.rc_context(STYLE):
        width = 11.5 if has_controls else 9.0
        figure = matplotlib.figure.Figure(figsize=(width, 1.9 + 0.32 * len(rows)), layout="constrained")
        panels = figure.subplots(1, 4 if has_controls else 3, sharey=True)
        there, here = (literal(describe_dataset(of["dataset"])) for of in (results["fitted_on"], results))
        figure.suptitle(f"Fitted on {there}, measured on {here}")
        for axes, (key, title) in zip(panels, PANELS.items(), strict=False):
            for i, row in enumerate(rows.values()):
                fitted = as_float((row.get("fitted") or {}).get(key))
                axes.plot(
                    fitted, i, "o", color=GREY, markerfacecolor="none", markersize=7, label=once("fitted there", i)
                )
                draw_estimate(axes, row, key, i, COLOURS[0], label=once("here", i))
            axes.set(title=title)
        panels[0].axvline(results["wanted_sensitivity"], color=GREY, linewidth=1, linestyle=DASHED, zorder=1)
        for axes in panels[:2]:
            axes.set_xlim(-0.03, 1.03)
            axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])  # longer labels would touch those of the next panel
        panels[2].set_xlim(left=0)
        if has_controls:
            for i, row in enumerate(rows.values()):
                for shift, group, colour in ((-0.14, "healthy", COLOURS[2]), (0.14, "sick", COLOURS[1])):
                    draw_estimate(panels[3], row, f"auroc_{group}", i + shift, colour, label=once(group, i))
            panels[3].axvline(0.5, color=GREY, linewidth=1, linestyle=DASHED, zorder=1)
            panels[3].set(title="AUROC by controls")
        for axes in (panels[0], panels[-1]) if has_controls else panels[:1]:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2, handletextpad=0.2)
        names = [
            f"{literal(name)} ({row['n_positive']:,})" if "n_positive" in row else name for name, row in rows.items()
        ]
        panels[0].set_yticks(range(len(rows)), names)
        panels[0].set_ylim(len(rows) - 0.5, -0.5)
        for axes in panels:
            axes.tick_params(axis="y", length=0)
            axes.axhline(len(rows) - 1.5, color=GREY, linewidth=0.8)
        return save_png(figure, path)


def once(label: str, i: int) -> str | None:
    """The label of the first row only, so that the legend names it once."""
    return label if i == 0 else None


def draw_estimate(axes: "Axes", row: Mapping, key: str, y: float, colour: str, **options: Any) -> None:
    """A number and its 95 % interval."""
    low, high = map(as_float, row.get(f"{key}_ci95") or (None, None))
    axes.plot([low, high], [y, y], color=colour, solid_capstyle="butt", linewidth=1.5)
    axes.plot(as_float(row.get(key)), y, "o", color=colour, markersize=5, **options)
