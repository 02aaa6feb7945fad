"""ROC and precision-recall curves."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from evaluation_tier.figures.style import (
    DASHED,
    GREY,
    STYLE,
    import_matplotlib,
    labels_and_scores,
    literal,
    save_png,
    style_of_findings,
)
from evaluation_tier.output.dataset_names import describe_dataset
from evaluation_tier.output.metrics_file import as_float
from evaluation_tier.output.tables import format_number
from evaluation_tier.statistics.metrics import precision_recall_curve, roc_curve


def plot_roc(metrics: Mapping, predictions: pd.DataFrame, path: str | Path) -> Path:
    """ROC curves of all findings in one square, best first in the legend, with the AUROC of `metrics`.

    Where `metrics` holds radiologists, each of them is a point in the colour of the finding.

    Args:
        metrics: as `evaluate_zero_shot` returns them; so are the `predictions`.
        path: of the PNG file.
    """
    kind = "ROC of the classifier" if metrics["protocol"]["scoring"] == "logit" else "Zero-shot ROC"
    return plot_curves(
        metrics,
        path,
        "auroc",
        lambda finding: roc_curve(*labels_and_scores(predictions, finding)),
        ("fpr", "tpr"),
        diagonal=True,
        xlabel="False positive rate (1 - specificity)",
        ylabel="True positive rate (sensitivity)",
        title=f"{kind}, {describe_dataset(metrics['dataset'])}, {metrics['n_images']:,} images",
    )


def plot_precision_recall(metrics: Mapping, predictions: pd.DataFrame, path: str | Path) -> Path:
    """Precision-recall curves of all findings, best first in the legend, with the AUPRC of `metrics`.

    The curves are steps, as average precision sums them up. Radiologists are points, as in `plot_roc`.
    """

    def curve(finding: str) -> tuple[np.ndarray, np.ndarray]:
        recall, precision = precision_recall_curve(*labels_and_scores(predictions, finding))
        gains = np.diff(recall, prepend=0) > 0  # between two of them the precision only falls
        recall, precision = recall[gains], precision[gains]
        return np.append(0.0, recall), np.append(precision[:1], precision)

    return plot_curves(
        metrics,
        path,
        "auprc",
        curve,
        ("recall", "precision"),
        drawstyle="steps-pre",
        xlabel="Recall (sensitivity)",
        ylabel="Precision",
        title=f"Precision and recall, {describe_dataset(metrics['dataset'])}, {metrics['n_images']:,} images",
    )


def plot_curves(
    metrics: Mapping,
    path: str | Path,
    key: str,
    curve: Callable[[str], tuple[np.ndarray, np.ndarray]],
    reader_point: tuple[str, str],
    diagonal: bool = False,
    drawstyle: str = "default",
    **labels: str,
) -> Path:
    """One curve per finding whose `key` is measured, in a unit square with a legend beside it."""
    matplotlib = import_matplotlib()
    style_of = style_of_findings(metrics)
    areas = {finding: result[key] for finding, result in metrics["findings"].items()}
    measured = sorted((finding for finding in areas if np.isfinite(as_float(areas[finding]))), key=areas.get)
    columns = 1 + len(measured) // 25
    with matplotlib.rc_context(STYLE):
        figure = matplotlib.figure.Figure(figsize=(5.0 + 2.5 * columns, 5.2), layout="constrained")
        axes = figure.add_subplot()
        if diagonal:
            axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=DASHED, zorder=1)
        radiologists = (metrics.get("radiologists") or {}).get("findings") or {}
        for finding in reversed(measured):
            label = f"{format_number(areas[finding])}  {literal(finding)}"
            axes.plot(*curve(finding), label=label, drawstyle=drawstyle, **style_of[finding])
            for reader in (radiologists.get(finding) or {"readers": {}})["readers"].values():
                point = [as_float(reader[name]) for name in reader_point]
                axes.plot(
                    *point, "D", color=style_of[finding]["color"], markersize=6, markeredgecolor="white", zorder=3
                )
        handles, names = axes.get_legend_handles_labels()
        if radiologists:
            handles.append(matplotlib.lines.Line2D([], [], linestyle="", marker="D", color=GREY, markersize=6))
            names.append("a radiologist")
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), box_aspect=1, **labels)
        legend = figure.legend(
            handles,
            names,
            loc="outside right center",
            title=f"{key.upper()} (mean {format_number(metrics['mean'][key])})",
            ncols=columns,
        )
        legend.get_title().set_fontweight("bold")
        return save_png(figure, path, bbox_inches="tight")
