"""The one style of all figures."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

# Okabe and Ito's palette, told apart with the common forms of colour blindness; black is kept for text.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#8C6D31")

LINES = ("-", "--", ":", "-.")

GREY = "#8A8A8A"

STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "savefig.dpi": 150,
    "figure.facecolor": "white",
}


def import_matplotlib():
    """The matplotlib module; a ValueError that names the remedy where it is not installed."""
    try:
        import matplotlib
        import matplotlib.figure
    except ImportError as error:
        raise ValueError("Figures need matplotlib: install it with pip install matplotlib.") from error
    return matplotlib


def labels_and_scores(predictions: pd.DataFrame, finding: str) -> tuple[np.ndarray, np.ndarray]:
    """The columns of one finding."""
    return predictions[f"label_{finding}"].to_numpy(), predictions[f"score_{finding}"].to_numpy()


def style_of_findings(metrics: Mapping) -> dict[str, dict]:
    """Colour and line of each finding.

    Its place in the data set, not in the ranking, decides: a finding looks the same from figure to figure.
    """
    return {
        finding: {"color": COLOURS[i % len(COLOURS)], "linestyle": LINES[i // len(COLOURS) % len(LINES)]}
        for i, finding in enumerate(metrics["findings"])
    }


def literal(text: str) -> str:
    """Text that matplotlib draws as it is: a dollar sign begins no formula."""
    return text.replace("$", r"\$")


def estimate(numbers: Mapping) -> tuple[float | None, Sequence[float | None]]:
    """The AUROC and its interval."""
    return numbers.get("auroc"), numbers.get("auroc_ci95") or (None, None)
