"""The style of all figures: colours, lines, and the elements that several figures share."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from evaluation_tier.output.writing import write_beside
from modeling_tier.heat_map_tier import COLOURS as COLOURS_OF_MAPS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

# Okabe and Ito's palette, safe for the common forms of colour blindness; black is kept for text.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#8C6D31")

LINES = ("-", "--", ":", "-.")

GREY = "#8A8A8A"

MARKED = "#39FF88"  # outlines of true regions: visible on grey and on the colours of a map

DASHED = (0, (4, 4))  # the line of chance, or of no difference

MAX_PANELS = 24  # findings of one figure; more would be too small to read on a page

COLUMNS = 4  # panels beside each other

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


def import_matplotlib() -> ModuleType:
    """The matplotlib module; a ValueError that says how to install it if it is missing."""
    try:
        import matplotlib
        import matplotlib.colors
        import matplotlib.figure
    except ImportError as error:
        raise ValueError("Figures need matplotlib: install it with pip install matplotlib.") from error
    return matplotlib


def labels_and_scores(predictions: pd.DataFrame, finding: str) -> tuple[np.ndarray, np.ndarray]:
    """The columns of one finding."""
    return predictions[f"label_{finding}"].to_numpy(), predictions[f"score_{finding}"].to_numpy()


def series_style(i: int) -> dict:
    """Colour and line of the i-th finding or model, which no other of the first 32 has."""
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": LINES[i // len(COLOURS) % len(LINES)]}


def shown_findings(metrics: Mapping, measured: Sequence[str]) -> tuple[list[str], str]:
    """
    The findings that have a panel in a figure, in the order of the data set: all that were `measured`, or the
    `MAX_PANELS` with the most positives, and a text that says so (`""` otherwise).
    """
    if len(measured) <= MAX_PANELS:
        return list(measured), ""
    kept = set(sorted(measured, key=lambda name: -metrics["findings"][name]["n_positive"])[:MAX_PANELS])
    note = f"the {MAX_PANELS} of {len(measured)} findings with the most positives"
    return [finding for finding in measured if finding in kept], note


def label_outside(axes: "Axes", i: int, number: int, xlabel: str, ylabel: str) -> None:
    """The labels of the i-th of some panels in `COLUMNS` columns: below the last of each column, left of the first."""
    if i + COLUMNS >= number:
        axes.set_xlabel(xlabel)
    if i % COLUMNS == 0:
        axes.set_ylabel(ylabel)


def map_colour_scale() -> "LinearSegmentedColormap":
    """The colours of maps, the same as those of the pipeline's heat-maps."""
    matplotlib = import_matplotlib()
    return matplotlib.colors.LinearSegmentedColormap.from_list("heat-maps", COLOURS_OF_MAPS / 255)


def show_radiograph(axes: "Axes", grey: np.ndarray) -> None:
    """Draw a radiograph, uint8 (height, width), without axes."""
    axes.imshow(grey, cmap="gray", vmin=0, vmax=255)
    axes.set_axis_off()


def outline(axes: "Axes", mask: np.ndarray, linewidth: float) -> None:
    """Draw the outline of a true region, bool (height, width)."""
    if mask.any() and not mask.all():
        axes.contour(mask, levels=[0.5], colors=[MARKED], linewidths=linewidth)


def add_colour_bar(
    figure: "Figure", overlay: "AxesImage", axes: "Axes | Sequence[Axes]", label: str, **options: Any
) -> None:
    """Add the opaque colour bar of a translucent map."""
    bar = figure.colorbar(overlay, ax=axes, pad=0.02, **options)
    bar.set_label(label)
    bar.outline.set_visible(False)
    bar.solids.set_alpha(1)


def save_png(figure: "Figure", path: str | Path, **options: Any) -> Path:
    """Write a figure as a PNG file."""
    return write_beside(path, lambda partial: figure.savefig(partial, format="png", **options))


def literal(text: str) -> str:
    """Escapes text for matplotlib: a dollar sign does not begin a formula."""
    return text.replace("$", r"\$")


def wrapped(name: str, width: int = 28) -> str:
    """The name of a finding above a panel: up to three lines, as wide as the panel."""
    return literal("\n".join(textwrap.wrap(name, width, max_lines=3, placeholder=" ...")) or name)


def estimate(numbers: Mapping) -> tuple[float | None, Sequence[float | None]]:
    """The AUROC and its interval."""
    return numbers.get("auroc"), numbers.get("auroc_ci95") or (None, None)
