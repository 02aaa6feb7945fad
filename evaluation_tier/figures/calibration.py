"""Calibration: the share of positives by predicted probability."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from evaluation_tier.figures.style import (
    COLOURS,
    DASHED,
    GREY,
    STYLE,
    import_matplotlib,
    labels_and_scores,
    literal,
    save_png,
)
from evaluation_tier.output.metrics_file import as_float
from evaluation_tier.output.tables import format_number
from evaluation_tier.scoring.findings import is_scored_by_others
from evaluation_tier.statistics.calibration import calibrate, log_odds, reliability_curve
from evaluation_tier.statistics.subgroups import wilson_interval

SCORINGS_OF_PROBABILITIES = ("softmax", "sigmoid")  # calibrated by their log-odds


def plot_calibration(metrics: Mapping, predictions: pd.DataFrame, path: str | Path) -> Path:
    """Reliability of the calibrated probabilities: a panel per finding, observed share against mean probability.

    Points are 10 bins of equally many images (5, of fewer than 1,000 images); a bar is the 95 % Wilson interval of the
    share. A finding without a calibration (`scale` undefined) is left out.

    Args:
        metrics: as `evaluate_zero_shot` returns them; so are the `predictions`.
        path: of the PNG file.

    Raises:
        ValueError: when no finding has a calibration.
    """
    matplotlib = import_matplotlib()
    findings = metrics["findings"]
    calibrated = [finding for finding in findings if np.isfinite(as_float(findings[finding].get("scale")))]
    if not calibrated:
        raise ValueError("The figure needs a finding with a calibration (scale and bias).")
    columns = min(len(calibrated), 4)
    rows = -(-len(calibrated) // columns)
    with matplotlib.rc_context(STYLE | {"axes.titlesize": 10}):
        figure = matplotlib.figure.Figure(figsize=(0.6 + 2.25 * columns, 0.7 + 2.35 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in panels[len(calibrated) :]:
            axes.set_axis_off()
        for axes, finding in zip(panels, calibrated, strict=False):
            labels, scores = labels_and_scores(predictions, finding)
            of_probabilities = metrics["protocol"]["scoring"] in SCORINGS_OF_PROBABILITIES
            if of_probabilities and not is_scored_by_others(finding, metrics["protocol"]):
                scores = log_odds(scores)
            probabilities = calibrate(scores, findings[finding]["scale"], findings[finding]["bias"])
            curve = reliability_curve(
                labels, probabilities, bins=10 if len(labels) >= 1000 else 5, binning="equal_mass"
            )
            low, high = wilson_interval(curve.frequency, curve.count)
            top = min(1.0, 1.1 * max(curve.mean_probability.max(), high.max()))
            axes.plot([0, top], [0, top], color=GREY, linewidth=1, linestyle=DASHED, zorder=1)
            axes.vlines(curve.mean_probability, low, high, color=COLOURS[0], linewidth=1.2, alpha=0.6)
            axes.plot(curve.mean_probability, curve.frequency, color=COLOURS[0], marker="o", markersize=4)
            ece = format_number(as_float(findings[finding].get("ece")), missing="")
            title = f"{literal(finding)}\nECE {ece}" if ece else literal(finding)
            axes.set(xlim=(-0.02 * top, 1.02 * top), ylim=(-0.02 * top, 1.02 * top), box_aspect=1, title=title)
            axes.locator_params(nbins=5)
        figure.supxlabel("Mean predicted probability", fontsize=10)
        figure.supylabel("Observed share of positives", fontsize=10)
        return save_png(figure, path)
