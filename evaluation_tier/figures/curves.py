"""ROC and precision-recall curves: a panel per finding."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from evaluation_tier.figures.style import (
    COLOURS,
    COLUMNS,
    DASHED,
    GREY,
    STYLE,
    estimate,
    import_matplotlib,
    label_outside,
    labels_and_scores,
    literal,
    save_png,
    shown_findings,
    wrapped,
)
from evaluation_tier.output.dataset_names import describe_dataset
from evaluation_tier.output.metrics_file import as_float
from evaluation_tier.output.tables import format_estimate, format_number
from evaluation_tier.statistics.metrics import metrics_at_threshold, precision_recall_curve, roc_curve
from evaluation_tier.statistics.resampling import draw_resamples
from evaluation_tier.statistics.roc_band import roc_band

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RATES = np.linspace(0, 1, 201)  # false positive rates of a band
RESAMPLES = 500  # of a band; more change its drawn edge little
OPERATING, READER = COLOURS[1], COLOURS[2]


def plot_roc(metrics: Mapping, predictions: pd.DataFrame, path: str | Path) -> Path:
    """
    The ROC curve of each finding, with its 95 % band from resampling patients and the point of its threshold.

    The band is at each false positive rate; a finding whose AUROC has no interval does not have one. Radiologists, if
    `metrics` holds them, are points.

    Args:
        metrics: as `evaluate_zero_shot` returns them; so are the `predictions`.
        path: of the PNG file.
    """
    draws = draw_resamples(predictions["patient_id"].to_numpy(), RESAMPLES, seed=0)

    def draw(axes: "Axes", finding: str) -> None:
        labels, scores = labels_and_scores(predictions, finding)
        result = metrics["findings"][finding]
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=DASHED, zorder=1)
        interval = [as_float(bound) for bound in estimate(result)[1]]
        if np.isfinite(interval).all():
            axes.fill_between(RATES, *roc_band(labels, scores, draws, RATES).T, color=COLOURS[0], alpha=0.2, lw=0)
        axes.plot(*roc_curve(labels, scores), color=COLOURS[0])
        point = point_of_threshold(labels, scores, result)
        axes.plot(1 - point["specificity"], point["sensitivity"], "o", **point_style(OPERATING))
        axes.set_title(f"{wrapped(finding)}\n{format_estimate(as_float(result['auroc']), interval)}")

    kind = "ROC of the classifier" if metrics["protocol"]["scoring"] == "logit" else "Zero-shot ROC"
    labels = ("False positive rate", "True positive rate")
    legend = {"band": "95 % band", "line": "chance"}
    return plot_panels(metrics, path, "auroc", f"{kind} and AUROC", labels, draw, ("fpr", "tpr"), legend)


def plot_precision_recall(metrics: Mapping, predictions: pd.DataFrame, path: str | Path) -> Path:
    """
    The precision-recall curve of each finding, its prevalence, which is the precision of chance, and the point of its
    threshold. The curves are steps, as average precision sums them up. Radiologists are points, as in `plot_roc`.
    """

    def draw(axes: "Axes", finding: str) -> None:
        labels, scores = labels_and_scores(predictions, finding)
        result = metrics["findings"][finding]
        recall, precision = precision_recall_curve(labels, scores)
        gains = np.diff(recall, prepend=0) > 0  # between two of them the precision only falls
        recall, precision = recall[gains], precision[gains]
        prevalence = result["n_positive"] / max(result["n_positive"] + result["n_negative"], 1)
        axes.axhline(prevalence, color=GREY, linewidth=1, linestyle=DASHED, zorder=1)
        steps = np.append(0.0, recall), np.append(precision[:1], precision)
        axes.plot(*steps, color=COLOURS[0], drawstyle="steps-pre")
        point = point_of_threshold(labels, scores, result)
        axes.plot(point["sensitivity"], point["ppv"], "o", **point_style(OPERATING))
        area = format_number(as_float(result["auprc"]))
        axes.set_title(f"{wrapped(finding)}\n{area}, prevalence {prevalence:.3f}")

    labels = ("Recall (sensitivity)", "Precision")
    legend = {"line": "prevalence (chance)"}
    title = "Precision and recall, and AUPRC"
    return plot_panels(metrics, path, "auprc", title, labels, draw, ("recall", "precision"), legend)


def point_of_threshold(labels: np.ndarray, scores: np.ndarray, result: Mapping) -> dict[str, float]:
    """Sensitivity, specificity and precision at the threshold of a finding; NaN without one."""
    return metrics_at_threshold(labels, scores, as_float(result.get("threshold")))


def point_style(colour: str, marker: str = "o") -> dict:
    """Points that stand out from the curve below them."""
    return {"color": colour, "markersize": 6.5, "markeredgecolor": "white", "zorder": 3}


# More than 7 parameters: what the two figures differ in
def plot_panels(
    metrics: Mapping,
    path: str | Path,
    key: str,
    title: str,
    axis_labels: tuple[str, str],
    draw: Callable[["Axes", str], None],
    reader_point: tuple[str, str],
    legend: Mapping[str, str],
) -> Path:
    """
    A unit square for each finding whose `key` is measured, with the radiologists' points; one legend below.

    Args:
        draw: draws a finding and its title.
        reader_point: keys of a radiologist's numbers.
        legend: texts of the "line" and the "band", if there is one.
    """
    matplotlib = import_matplotlib()
    measured = [name for name, result in metrics["findings"].items() if np.isfinite(as_float(result[key]))]
    findings, note = shown_findings(metrics, measured)
    readers_of = (metrics.get("radiologists") or {}).get("findings") or {}
    columns = min(max(len(findings), 1), COLUMNS)
    rows = -(-len(findings) // columns) or 1
    with matplotlib.rc_context(STYLE | {"axes.titlesize": 10}):
        size = (max(0.6 + 2.45 * columns, 5.0), 1.1 + 2.75 * rows)
        figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in panels[len(findings) :]:
            axes.set_axis_off()
        for i, (axes, finding) in enumerate(zip(panels, findings, strict=False)):
            draw(axes, finding)
            for reader in (readers_of.get(finding) or {"readers": {}})["readers"].values():
                axes.plot(*(as_float(reader[name]) for name in reader_point), "D", **point_style(READER))
            axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), box_aspect=1)
            axes.set_xticks([0, 0.5, 1])
            axes.set_yticks([0, 0.5, 1])
            label_outside(axes, i, len(findings), *axis_labels)
        of_data = f"{describe_dataset(metrics['dataset'])}, {metrics['n_images']:,} images"
        figure.suptitle(", ".join(part for part in (title, literal(of_data), note) if part), fontsize=11)
        line = matplotlib.lines.Line2D
        handles = [line([], [], color=GREY, linewidth=1, linestyle=DASHED, label=legend["line"])]
        handles += [line([], [], linestyle="", marker="o", label="at the threshold", **point_style(OPERATING))]
        if "band" in legend:
            handles.append(matplotlib.patches.Patch(color=COLOURS[0], alpha=0.2, linewidth=0, label=legend["band"]))
        if readers_of:
            handles.append(line([], [], linestyle="", marker="D", label="a radiologist", **point_style(READER)))
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=9)
        return save_png(figure, path)
