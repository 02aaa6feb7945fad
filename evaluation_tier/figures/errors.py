"""The worst errors: radiographs with the wrong call whose score is farthest on the wrong side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
import pandas as pd

from evaluation_tier.figures.style import (
    COLUMNS,
    STYLE,
    import_matplotlib,
    labels_and_scores,
    literal,
    outline,
    save_png,
    show_radiograph,
    wrapped,
)
from evaluation_tier.output.dataset_names import describe_dataset
from evaluation_tier.output.metrics_file import as_float
from processing_tier.radiograph_tier import read_radiograph
from processing_tier.records.masks import finding_mask

MAX_OF_KIND = 6  # missed, and false alarms: those of rare findings would take all places
MAX_OF_FINDING = 2  # of a kind, so that one hard finding does not either


class Error(NamedTuple):
    """An image that is on the wrong side of the threshold of a finding."""

    finding: str
    place: int  # of the image in predictions.parquet, from 0
    is_positive: bool  # by its label: a false negative, else a false positive
    share: float  # of the images of the other label that it lies on the wrong side of, 0 to 1; ties count half


def find_worst_errors(metrics: Mapping, predictions: pd.DataFrame) -> list[Error]:
    """
    The worst errors: `MAX_OF_KIND` missed positives, then as many false alarms, at most `MAX_OF_FINDING` of a finding.

    Scores of different findings cannot be compared, their ranks can: an error is worse the more images of the other
    label it lies on the wrong side of. The mean of this share over all images of a finding is 1 - AUROC. Of equal
    shares, the first is the image of each finding that is farthest from the threshold.
    """
    found: dict[bool, list[tuple[float, int, Error]]] = {True: [], False: []}
    for finding, result in metrics["findings"].items():
        threshold = as_float(result.get("threshold"))
        labels, scores = labels_and_scores(predictions, finding)
        for is_positive, of_kind in found.items():
            own, others = labels == is_positive, np.sort(scores[labels == (not is_positive)])
            wrong = np.flatnonzero(own & ((scores < threshold) if is_positive else (scores >= threshold)))
            below = (np.searchsorted(others, scores[wrong]) + np.searchsorted(others, scores[wrong], "right")) / 2
            shares = below / max(len(others), 1)
            shares = 1 - shares if is_positive else shares
            order = np.lexsort([-np.abs(scores[wrong] - threshold), -shares])[:MAX_OF_FINDING]
            of_kind += [
                (-shares[i], rank, Error(finding, int(wrong[i]), is_positive, float(shares[i])))
                for rank, i in enumerate(order)
            ]
    return [error for kind in found.values() for *_, error in sorted(kind, key=lambda one: one[:2])[:MAX_OF_KIND]]


def plot_errors(
    errors: Sequence[Error], dataset: datasets.Dataset, metrics: Mapping, predictions: pd.DataFrame, path: str | Path
) -> Path:
    """
    A sheet of radiographs, each with the wrong call, the score, and the outline of the true region if it has one.

    Args:
        errors: as `find_worst_errors` returns them, at least one.
        dataset: the evaluated one; `predictions` is indexed by its rows.
        path: of the PNG file.
    """
    matplotlib = import_matplotlib()
    dataset = dataset.with_format(None)
    columns = min(len(errors), COLUMNS)
    rows = -(-len(errors) // columns)
    with matplotlib.rc_context(STYLE | {"axes.grid": False, "axes.titlesize": 8.5}):
        size = (max(2.6 * columns, 5.2), 0.6 + 3.3 * rows)
        figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in panels[len(errors) :]:
            axes.set_axis_off()
        for axes, error in zip(panels, errors, strict=False):
            row = int(predictions.index[error.place])
            record = dataset[row]
            show_radiograph(axes, np.asarray(read_radiograph(record["image"])))
            mask = finding_mask(record.get("masks"), error.finding) if error.is_positive else None
            if mask is not None:
                outline(axes, mask, linewidth=1.2)
            axes.set_title(describe_error(error, predictions.at[row, f"score_{error.finding}"]))
        title = f"The worst errors, {describe_dataset(metrics['dataset'])}".removesuffix(", ")
        figure.suptitle(literal(title), fontsize=12, fontweight="bold")
        return save_png(figure, path)


def describe_error(error: Error, score: float) -> str:
    """Three lines; the place in predictions.parquet, where the image is named, but neither image nor patient."""
    kind, side, which = ("missed", "below", "without") if error.is_positive else ("false alarm", "above", "with")
    return (
        f"{wrapped(f'{error.finding}: {kind}', 36)}\nscore {score:.3f}, row {error.place:,}\n"
        f"{side} {int(100 * error.share)} % of the images {which} it"
    )
