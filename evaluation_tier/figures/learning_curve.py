"""AUROC by the number of patients that a classifier learns from."""

from collections.abc import Mapping
from pathlib import Path

from evaluation_tier.figures.style import COLOURS, DASHED, GREY, STYLE, import_matplotlib, literal, save_png
from evaluation_tier.output.analysis_tables import CURVES
from evaluation_tier.output.dataset_names import describe_dataset
from evaluation_tier.output.metrics_file import as_float


def plot_learning_curve(results: Mapping, path: str | Path) -> Path:
    """A line and a band for each method, and a flat line for zero-shot.

    Args:
        results: as `LearningCurve.results` returns them, or read back from JSON.
        path: of the PNG file.
    """
    matplotlib = import_matplotlib()
    with matplotlib.rc_context(STYLE):
        figure = matplotlib.figure.Figure(figsize=(7.5, 4.6), layout="constrained")
        axes = figure.add_subplot()
        zero_shot = results["zero_shot"]
        low, high = map(as_float, zero_shot["auroc_ci95"])
        axes.axhspan(low, high, color=GREY, alpha=0.15, linewidth=0)
        axes.axhline(as_float(zero_shot["auroc"]), color="black", linewidth=1.5, linestyle=DASHED, label="Zero-shot")
        sizes: list[int] = []
        for colour, marker, (name, label) in zip(COLOURS, "os^", CURVES.items(), strict=False):
            points = results["methods"].get(name, ())
            if not points:
                continue
            sizes = [point["n_patients"] for point in points]
            lowest, highest, mean = (
                [as_float(point[key]) for point in points] for key in ("lowest", "highest", "auroc")
            )
            axes.fill_between(sizes, lowest, highest, color=colour, alpha=0.2, linewidth=0)
            axes.plot(sizes, mean, color=colour, marker=marker, markersize=5, label=label)
        axes.axhline(0.5, color=GREY, linewidth=1, zorder=1)
        axes.set_xscale("log")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        title = f"Mean AUROC of {len(results['findings'])} findings, {literal(describe_dataset(results['dataset']))}"
        axes.set(title=title, xlabel="Patients to learn from", ylabel="AUROC")
        axes.legend(loc="lower right", frameon=True, facecolor="white", edgecolor="none", framealpha=0.85)
        return save_png(figure, path)
