"""Calibration: the share of positives by predicted probability."""

from collections.abc import Mapping
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
from evaluation_tier.output.tables import format_number
from evaluation_tier.scoring.findings import is_scored_by_others
from evaluation_tier.statistics.calibration import calibrate, log_odds, reliability_curve
from evaluation_tier.statistics.subgroups import wilson_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HISTOGRAM = {"images without the finding": "#B8B8B8", "with it": COLOURS[1]}

SCORINGS_OF_PROBABILITIES = ("softmax", "sigmoid")  # calibrated by their log-odds


def plot_calibration(metrics: Mapping, predictions: pd.DataFrame, path: str | Path) -> Path:
    """
    Reliability of the calibrated probabilities: a square per finding, observed share against mean probability on equal
    axes, and below it the histogram of the probabilities, of images with the finding on top of those without it.

    Points are 10 bins of equally many images (5, of fewer than 1,000 images); a bar is the 95 % Wilson interval of the
    share. A finding without a calibration (`scale` undefined) is left out.

    Args:
        metrics: as `evaluate_zero_shot` returns them; so are the `predictions`.
        path: of the PNG file.

    Raises:
        ValueError: when no finding has a calibration.
    """
    matplotlib = import_matplotlib()
    measured = [name for name, result in metrics["findings"].items() if np.isfinite(as_float(result.get("scale")))]
    if not measured:
        raise ValueError("The figure needs a finding with a calibration (scale and bias).")
    findings, note = shown_findings(metrics, measured)
    columns = min(len(findings), COLUMNS)
    rows = -(-len(findings) // columns)
    with matplotlib.rc_context(STYLE | {"axes.titlesize": 10}):
        size = (max(0.6 + 2.45 * columns, 5.0), 1.1 + 3.6 * rows)
        figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
        panels = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[3, 1] * rows)
        for axes in panels.ravel():
            axes.set_axis_off()
        for i, finding in enumerate(findings):
            row, column = divmod(i, columns)
            pair = panels[2 * row : 2 * row + 2, column]
            for axes in pair:
                axes.set_axis_on()
            labels, probabilities = read_probabilities(metrics, predictions, finding)
            top = draw_reliability(pair[0], labels, probabilities)
            ece = format_number(as_float(metrics["findings"][finding].get("ece")), missing="")
            pair[0].set_title(f"{wrapped(finding)}\nECE {ece}" if ece else wrapped(finding))
            draw_histogram(pair[1], labels, probabilities, top)
            label_outside(pair[0], i, 0, "", "Observed share")
            label_outside(pair[1], i, len(findings), "Predicted probability", "Images")
        of_data = f"{describe_dataset(metrics['dataset'])}, {metrics['n_images']:,} images"
        title = ", ".join(part for part in ("Calibration", literal(of_data), note) if part)
        figure.suptitle(title, fontsize=11)
        line, patch = matplotlib.lines.Line2D, matplotlib.patches.Patch
        handles = [
            line([], [], color=COLOURS[0], marker="o", markersize=4, label="observed share, 95 % interval"),
            line([], [], color=GREY, linewidth=1, linestyle=DASHED, label="calibrated"),
            *(patch(color=colour, label=text) for text, colour in HISTOGRAM.items()),
        ]
        figure.legend(
            handles=handles, loc="outside lower center", ncols=len(handles) if columns > 2 else 2, fontsize=9
        )
        return save_png(figure, path)


def read_probabilities(metrics: Mapping, predictions: pd.DataFrame, finding: str) -> tuple[np.ndarray, np.ndarray]:
    """The labels of a finding and its calibrated probabilities, of the images whose label is known."""
    labels, scores = labels_and_scores(predictions, finding)
    of_probabilities = metrics["protocol"]["scoring"] in SCORINGS_OF_PROBABILITIES
    if of_probabilities and not is_scored_by_others(finding, metrics["protocol"]):
        scores = log_odds(scores)
    known = np.isin(labels, (0, 1))
    result = metrics["findings"][finding]
    return labels[known], calibrate(scores[known], result["scale"], result["bias"])


def draw_reliability(axes: "Axes", labels: np.ndarray, probabilities: np.ndarray) -> float:
    """The curve and its intervals in a square with the same range on both axes, whose end is returned."""
    bins = 10 if len(labels) >= 1000 else 5
    curve = reliability_curve(labels, probabilities, bins=bins, binning="equal_mass")
    low, high = wilson_interval(curve.frequency, curve.count)
    top = min(1.0, 1.1 * max(probabilities.max(), high.max()))
    axes.plot([0, top], [0, top], color=GREY, linewidth=1, linestyle=DASHED, zorder=1)
    axes.vlines(curve.mean_probability, low, high, color=COLOURS[0], linewidth=1.2, alpha=0.6)
    axes.plot(curve.mean_probability, curve.frequency, color=COLOURS[0], marker="o", markersize=4)
    axes.set(xlim=(-0.02 * top, 1.02 * top), ylim=(-0.02 * top, 1.02 * top), box_aspect=1)
    axes.locator_params(nbins=5)
    return top


def draw_histogram(axes: "Axes", labels: np.ndarray, probabilities: np.ndarray, top: float) -> None:
    """How many images have each probability, 20 bins from 0 to `top`."""
    parts = [probabilities[labels == label] for label in (0, 1)]
    axes.hist(parts, bins=np.linspace(0, top, 21), stacked=True, color=list(HISTOGRAM.values()))
    axes.set(xlim=(-0.02 * top, 1.02 * top))
    axes.locator_params(axis="x", nbins=5)
    axes.locator_params(axis="y", nbins=3)
