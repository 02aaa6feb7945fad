"""Figures of an evaluation and of a training, as PNG files.

Matplotlib is an extra, `[plots]`. Figures are drawn without pyplot: no display is needed and no global state is left
behind.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
import pandas as pd
import torch
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from evaluation_tier.calibration import calibrate, reliability_curve
from evaluation_tier.file_names import file_names
from evaluation_tier.grounding import MAPS, Case, compute_grids, read_cases, read_region
from evaluation_tier.metrics import precision_recall_curve, roc_curve
from evaluation_tier.report import as_float, describe_dataset, write_beside
from evaluation_tier.resampling import wilson_interval
from evaluation_tier.result_tables import has_common_findings, order_groups
from evaluation_tier.summary import log_odds
from evaluation_tier.tables import column_name, format_estimate, format_number
from evaluation_tier.zeroshot import is_scored_by_others
from processing_tier.masks import finding_mask
from processing_tier.prompts import Prompts
from processing_tier.radiograph_tier import read_radiograph

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
SCORINGS_OF_PROBABILITIES = ("softmax", "sigmoid")  # calibrated by their log-odds
TERMS = {  # key of the Trainer's log: title of its panel
    "loss": "Loss",
    "contrastive_loss": "Contrastive loss",
    "token_entropy": "Token entropy (nats)",
    "patch_entropy": "Patch entropy (nats)",
    "auroc": "AUROC, mean",
}


def import_matplotlib():
    """The matplotlib module; a ValueError that names the remedy where it is not installed."""
    try:
        import matplotlib
        import matplotlib.figure
    except ImportError as error:
        raise ValueError("Figures need matplotlib: install it with pip install matplotlib.") from error
    return matplotlib


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
            axes.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=(0, (4, 4)), zorder=1)
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
        return write_beside(path, lambda partial: figure.savefig(partial, format="png", bbox_inches="tight"))


def literal(text: str) -> str:
    """Text that matplotlib draws as it is: a dollar sign begins no formula."""
    return text.replace("$", r"\$")


def plot_findings(metrics: Mapping, path: str | Path) -> Path:
    """The AUROC of each finding with its 95 % interval, best first, and the mean: a forest plot.

    Args:
        metrics: as `evaluate_zero_shot` returns them.
        path: of the PNG file.
    """
    findings = metrics["findings"]
    ranked = sorted(findings, key=lambda finding: -np.nan_to_num(as_float(findings[finding]["auroc"]), nan=-1.0))
    rows = [(f"{finding} ({findings[finding]['n_positive']:,})", *estimate(findings[finding])) for finding in ranked]
    rows.append((f"Mean of {len(findings)}", *estimate(metrics["mean"])))
    title = f"AUROC with 95 % interval (positives), {describe_dataset(metrics['dataset'])}"
    return plot_forest([("", rows)], path, title=title, xlabel="AUROC")


def estimate(numbers: Mapping) -> tuple[float | None, Sequence[float | None]]:
    """The AUROC and its interval."""
    return numbers.get("auroc"), numbers.get("auroc_ci95") or (None, None)


def plot_subgroups(metrics: Mapping, path: str | Path) -> Path:
    """The mean AUROC of each subgroup with its 95 % interval: a forest plot, one block per attribute.

    The means are of the findings that every group of an attribute has; their number stands beside its name.

    Args:
        metrics: with "subgroups", by attribute as `resampling.subgroup_metrics` returns them.
        path: of the PNG file.
    """
    blocks = [("", [(f"All ({metrics['n_images']:,})", *estimate(metrics["mean"]))])]
    for attribute, result in metrics["subgroups"].items():
        if has_common_findings(result):
            number = len(result["findings_in_mean"])
            heading = f"{column_name(attribute)}, {number} finding{'' if number == 1 else 's'}"
            groups = order_groups(result["groups"]).items()
            rows = [(f"{group} ({numbers['n_images']:,})", *estimate(numbers["mean"])) for group, numbers in groups]
            blocks.append((heading, rows))
    title = f"Mean AUROC by subgroup (images), {describe_dataset(metrics['dataset'])}"
    return plot_forest(blocks, path, title=title, xlabel="AUROC")


def plot_differences(comparison: Mapping, path: str | Path) -> Path:
    """The difference of two models' AUROC per finding and of their means, with 95 % intervals: a forest plot.

    Args:
        comparison: as `compare.compare_results` returns it.
        path: of the PNG file.
    """
    rows = []
    for name, part in (*comparison["findings"].items(), ("Mean", comparison["mean"])):
        count = f" ({part['n_positive']:,})" if "n_positive" in part else ""
        rows.append((f"{name}{count}", part["auroc"]["difference"], part["auroc"]["difference_ci95"]))
    title = f"AUROC of B minus that of A (positives), {describe_dataset(comparison['dataset'])}"
    return plot_forest([("", rows)], path, reference=0.0, title=title, xlabel="Difference of the AUROC")


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
        raise ValueError("No finding has a calibration (scale and bias): there is nothing to draw.")
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
            axes.plot([0, top], [0, top], color=GREY, linewidth=1, linestyle=(0, (4, 4)), zorder=1)
            axes.vlines(curve.mean_probability, low, high, color=COLOURS[0], linewidth=1.2, alpha=0.6)
            axes.plot(curve.mean_probability, curve.frequency, color=COLOURS[0], marker="o", markersize=4)
            ece = format_number(as_float(findings[finding].get("ece")), missing="")
            title = f"{literal(finding)}\nECE {ece}" if ece else literal(finding)
            axes.set(xlim=(-0.02 * top, 1.02 * top), ylim=(-0.02 * top, 1.02 * top), box_aspect=1, title=title)
            axes.locator_params(nbins=5)
        figure.supxlabel("Mean predicted probability", fontsize=10)
        figure.supylabel("Observed share of positives", fontsize=10)
        return write_beside(path, lambda partial: figure.savefig(partial, format="png"))


def plot_forest(
    blocks: Sequence[tuple[str, Sequence[tuple[str, float | None, Sequence[float | None]]]]],
    path: str | Path,
    reference: float = 0.5,
    **labels: str,
) -> Path:
    """Numbers with their intervals, one below the other.

    Args:
        blocks: heading and rows; a row is a label, a value and its interval. The first block has no heading.
        reference: where a dashed line stands.
    """
    matplotlib = import_matplotlib()
    height = sum(len(rows) for _, rows in blocks) + len(blocks) - 1
    with matplotlib.rc_context(STYLE):
        figure = matplotlib.figure.Figure(figsize=(7.5, 1.1 + 0.29 * height), layout="constrained")
        axes = figure.add_subplot()
        ticks, names, bounds, y = [], [], [reference], 0.0
        for i, (heading, rows) in enumerate(blocks):
            if i:  # a block's heading takes a row of its own
                axes.annotate(
                    literal(heading),
                    (0, y),
                    xycoords=("axes fraction", "data"),
                    xytext=(-6, 0),
                    textcoords="offset points",
                    ha="right",
                    va="center",
                    fontweight="bold",
                )
                y += 1
            for label, value, interval in rows:
                value, low, high = as_float(value), *map(as_float, interval)
                summary = not i and label == rows[-1][0]  # the mean, or all images
                colour = "black" if summary else COLOURS[0]
                axes.plot([low, high], [y, y], color=colour, solid_capstyle="butt")
                axes.plot(value, y, "D" if summary else "o", color=colour, markersize=6)
                text = format_estimate(value, (low, high))
                axes.annotate(text, (1.02, y), xycoords=("axes fraction", "data"), va="center", fontsize=9)
                bounds += [number for number in (value, low, high) if np.isfinite(number)]
                ticks.append(y)
                names.append(literal(label))
                y += 1
        margin = 0.04 * (max(bounds) - min(bounds)) or 0.1
        axes.axvline(reference, color=GREY, linewidth=1, linestyle=(0, (4, 4)), zorder=1)
        axes.set_yticks(ticks, names)
        axes.set(ylim=(y - 0.4, -0.6), xlim=(min(bounds) - margin, max(bounds) + margin), **labels)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        return write_beside(path, lambda partial: figure.savefig(partial, format="png"))


def plot_similarity_maps(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    dataset: datasets.Dataset,
    prompts: Mapping[str, Prompts],
    predictions: pd.DataFrame,
    folder: str | Path,
    dataset_name: str = "",
    model_name: str = "",
) -> list[Path]:
    """One figure per finding, `similarity_<finding>.png`: the radiograph, the true mask, the similarity map over it.

    Each shows the positive image with the highest score; the middle panel is left out where it has no mask. The map is
    `above_average` of `compute_grids`, the one that grounding measures: what the sentences always find at a place (the
    heart, the film's edge) goes, what is special to this image stays. On 300 phantoms the AUROC of the map's pixels
    against the true mask, averaged over 8 findings, was 0.85 this way, 0.83 without the average, and 0.58 with the
    positive sentences alone.

    Args:
        dataset: the evaluated one; `predictions` is indexed by its rows.
        prompts: of the findings to draw.

    Raises:
        ValueError: for a model without similarity maps.
        model_name: to be named in the title, where the predictions are not of this model alone.
    """
    matplotlib = import_matplotlib()
    best = {  # the row to draw
        finding: int(scores.idxmax())
        for finding in prompts
        if len(scores := predictions.loc[predictions[f"label_{finding}"] == 1, f"score_{finding}"])
    }
    prompts = {finding: prompts[finding] for finding in best}
    if not prompts:
        return []
    dataset = dataset.with_format(None)
    cases = [Case(row, finding, "") for row, finding in sorted((row, finding) for finding, row in best.items())]
    grids, _ = compute_grids(model, processor, dataset, cases, prompts)
    paths = []
    names = file_names(prompts)
    for finding, row in best.items():
        record = dataset[row]
        radiograph = read_radiograph(record["image"])
        grid = torch.from_numpy(grids[Case(row, finding, "")][MAPS.index("above_average")])[None]
        size = [(radiograph.height, radiograph.width)]
        similarity = processor.image_processor.post_process_similarity_map(grid, size)[0].numpy()
        mask = finding_mask(record.get("masks"), finding)
        with matplotlib.rc_context(STYLE | {"axes.grid": False, "axes.titlelocation": "center"}):
            what = "positive minus negative cosine" if prompts[finding].negative else "cosine"
            figure = draw_similarity(matplotlib, radiograph, mask, similarity, f"{what},\nabove the average image")
            title = f"{finding}, {describe_dataset(dataset_name)}".removesuffix(", ")  # no name of image or patient
            if model_name:
                title += f"\nmap of {model_name} alone"
            figure.suptitle(literal(title), fontsize=12, fontweight="bold")
            path = Path(folder) / f"similarity_{names[finding]}.png"
            paths.append(write_beside(path, lambda partial, figure=figure: figure.savefig(partial, format="png")))
    return paths


def draw_similarity(matplotlib, radiograph: Image.Image, mask: np.ndarray | None, similarity: np.ndarray, label: str):
    """The figure of one image: radiograph, mask if there is one, similarity map with a colour bar."""
    grey, colour = np.asarray(radiograph), "#39FF88"
    titles = ["Radiograph", *(["True mask"] if mask is not None else []), "Similarity to the prompts"]
    figure = matplotlib.figure.Figure(figsize=(3.6 * len(titles) + 0.6, 4.2), layout="constrained")
    panels = figure.subplots(1, len(titles))
    for axes, title in zip(panels, titles, strict=True):
        axes.imshow(grey, cmap="gray", vmin=0, vmax=255)
        axes.set_title(title)
        axes.set_axis_off()
    if mask is not None:
        tint = np.zeros((*mask.shape, 4))
        tint[mask] = matplotlib.colors.to_rgba(colour, 0.35)
        panels[1].imshow(tint)
        for axes in panels[1:]:
            if mask.any() and not mask.all():
                axes.contour(mask, levels=[0.5], colors=[colour], linewidths=1.2)
    low, high = np.nanpercentile(similarity, [1, 99])  # one odd patch must not take all the colours
    strength = np.nan_to_num((similarity - low) / max(high - low, 1e-12)).clip(0, 1)
    overlay = panels[-1].imshow(similarity, cmap="inferno", vmin=low, vmax=high, alpha=0.2 + 0.5 * strength)
    bar = figure.colorbar(overlay, ax=panels[-1], fraction=0.046, pad=0.02)
    bar.set_label(label)
    bar.outline.set_visible(False)
    bar.solids.set_alpha(1)
    return figure


def read_curve(history: Sequence[Mapping], key: str) -> np.ndarray:
    """(points, 2): epoch and value of each entry of a Trainer's history that logs the key."""
    return np.array([(entry["epoch"], entry[key]) for entry in history if key in entry], dtype=float).reshape(-1, 2)


def plot_training_curves(trainer_state: str | Path, path: str | Path) -> Path:
    """The loss, its terms where it has any, and the AUROC over the epochs, from a Trainer's `trainer_state.json`.

    Raises:
        ValueError: when the file is missing, is not JSON, or logs none of these.
    """
    matplotlib = import_matplotlib()
    try:
        history = json.loads(Path(trainer_state).read_text(encoding="utf-8"))["log_history"]
        curves = {term: (read_curve(history, term), read_curve(history, f"eval_{term}")) for term in TERMS}
        last = max((float(entry.get("epoch", 0)) for entry in history), default=1.0) or 1.0
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{trainer_state} is not the trainer_state.json of a training: name that file.") from error
    curves = {term: pair for term, pair in curves.items() if len(pair[0]) or len(pair[1])}
    if not curves:
        raise ValueError(f"{trainer_state} logs no loss: train with logging_steps below the number of steps.")
    columns = min(len(curves), 3)
    rows = -(-len(curves) // columns)
    with matplotlib.rc_context(STYLE):
        figure = matplotlib.figure.Figure(figsize=(3.9 * columns, 2.9 * rows + 0.4), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in panels[len(curves) :]:
            axes.set_axis_off()
        handles = {}
        for axes, (term, (train, evaluation)) in zip(panels, curves.items(), strict=False):
            if len(train):
                handles["training"] = axes.plot(*train.T, color=COLOURS[0])[0]
            if len(evaluation):
                handles["validation"] = axes.plot(*evaluation.T, color=COLOURS[1], marker="o", markersize=3.5)[0]
            axes.set(title=TERMS[term], xlabel="Epoch")
            axes.margins(y=0.08)
            axes.set_xlim(-0.02 * last, 1.02 * last)
        if len(panels) > len(curves):
            panels[-1].legend(handles.values(), handles.keys(), loc="center", fontsize=11)
        else:
            figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2)
        return write_beside(path, lambda partial: figure.savefig(partial, format="png"))


def plot_sparsity(results: Mapping, path: str | Path) -> Path:
    """Rank-ordered patch similarities, and the sparsity of each class of words, of models side by side.

    Above: the similarities of each word, and of each whole text (as in the TIER paper), sorted from the highest
    down, mean and one standard deviation. Below: Gini index and share near zero of each class of words, with 95 %
    intervals.

    Args:
        results: as `evaluate_sparsity` returns them, or read back from JSON.
        path: of the PNG file.
    """
    matplotlib = import_matplotlib()
    models = results["models"]
    classes = [name for name, words in next(iter(models.values()))["words"].items() if words["n_words"]]
    with matplotlib.rc_context(STYLE):
        figure = matplotlib.figure.Figure(figsize=(9.6, 7.4), layout="constrained")
        (word_axes, text_axes), panels = figure.subplots(2, 2)
        for axes, key, title in (
            (word_axes, "all", "Each word and the patches of its image"),
            (text_axes, "text", "Each whole text and the patches"),
        ):
            axes.sharey(word_axes)
            axes.axhline(0, color=GREY, linewidth=1)
            for i, (name, result) in enumerate(models.items()):
                style = {"color": COLOURS[i % len(COLOURS)], "linestyle": LINES[i // len(COLOURS) % len(LINES)]}
                mean, std = (np.array(result["ranked"][key][part]) for part in ("mean", "std"))
                ranks = np.arange(1, len(mean) + 1)
                axes.fill_between(ranks, mean - std, mean + std, color=style["color"], alpha=0.15, linewidth=0)
                axes.plot(ranks, mean, label=name, **style)
            axes.set(title=title, xlabel="Rank of the patch", ylabel="Cosine (mean ± standard deviation)")
        near_zero = f"Share of cosines within ±{results['protocol']['near_zero']:g}"
        for axes, statistic, title in zip(
            panels, ("gini", "near_zero"), ("Gini index of the cosines", near_zero), strict=True
        ):
            for i, result in enumerate(models.values()):
                values = np.array([result["words"][name][statistic] for name in classes])
                bounds = np.array([result["words"][name][f"{statistic}_ci95"] for name in classes], dtype=float).T
                axes.errorbar(
                    values,
                    np.arange(len(classes)) + 0.16 * (i - (len(models) - 1) / 2),
                    xerr=np.abs(bounds - values),
                    fmt="o",
                    markersize=4.5,
                    linewidth=1.4,
                    color=COLOURS[i % len(COLOURS)],
                )
            axes.set_yticks(np.arange(len(classes)), ["all words" if name == "all" else name for name in classes])
            axes.invert_yaxis()
            axes.set_xlim(left=0)
            axes.set(title=title, xlabel="Mean of the words, 95 % interval")
        title = f"{describe_dataset(results['dataset'])}, {results['n_images']:,} images and their reports"
        figure.suptitle(title.removeprefix(", "), fontsize=12, fontweight="bold")
        figure.legend(*word_axes.get_legend_handles_labels(), loc="outside lower center", ncols=min(len(models), 4))
        return write_beside(path, lambda partial: figure.savefig(partial, format="png"))


class Sketch(NamedTuple):
    """One region on the sheet of `plot_grounding`."""

    title: str
    radiograph: np.ndarray  # uint8 (height, width)
    mask: np.ndarray  # bool (height, width)
    similarity: np.ndarray  # float32 (height, width), NaN where unseen
    threshold: float  # of the map scaled to 0..1; what reaches it is outlined; NaN for none
    hit: bool  # whether the highest pixel hits


def plot_grounding(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    dataset: datasets.Dataset,
    prompts: Mapping[str, Prompts],
    results: Mapping,
    path: str | Path,
    map_name: str = "above_average",
    num_per_group: int = 3,
) -> Path:
    """A sheet of the best, the median and the worst regions by IoU at the best threshold.

    Each has the radiograph with the marked region, and the map over it with the region again, the outline of what
    reaches the threshold, and the highest pixel. Ties are broken by the pixel AUROC.

    Args:
        dataset: the evaluated one.
        prompts: of the findings, as they were evaluated.
        results: as `evaluate_grounding` returns them.
        path: of the PNG file.
        map_name: which map is drawn and ranks the regions.
        num_per_group: regions in each of the three rows; fewer where there are not as many.

    Raises:
        ValueError: for an unknown map, or results of other data.
    """
    matplotlib = import_matplotlib()
    if map_name not in MAPS:
        raise ValueError(f"A sheet shows one of the maps {', '.join(MAPS)}, not {map_name!r}.")
    dataset = dataset.with_format(None)
    phrases = results["protocol"]["phrases"]
    cases = [case for case in read_cases(dataset, None, phrases) if case.finding in results["findings"]]
    of_these = all(
        region["case"] < len(cases) and cases[region["case"]][:2] == (region["row"], region["finding"])
        for region in results["regions"]
    )
    if not of_these:
        raise ValueError("The results are not of these data: give the data set that was evaluated.")
    key = next(key for key in results["regions"][0]["maps"][map_name] if key.startswith("iou_best"))

    def rank(region: Mapping) -> tuple[float, float]:
        values = region["maps"][map_name]
        return -(values[key] or 0.0), -(values["pixel_auroc"] or 0.0)

    order = sorted(results["regions"], key=rank)
    size = max(min(num_per_group, len(order) // 3), 1)  # no region in two rows, if there are three or more
    middle = max((len(order) - size) // 2, 0)
    groups = {"Best": order[:size], "Median": order[middle : middle + size], "Worst": order[-size:]}
    shown = {region["case"]: cases[region["case"]] for group in groups.values() for region in group}
    grids, _ = compute_grids(model, processor, dataset, [shown[i] for i in sorted(shown)], prompts)

    def sketch(region: Mapping) -> Sketch:
        case, values = shown[region["case"]], region["maps"][map_name]
        record = dataset[case.row]
        radiograph = np.asarray(read_radiograph(record["image"]))
        grid = torch.from_numpy(grids[case][MAPS.index(map_name)])[None]
        similarity = processor.image_processor.post_process_similarity_map(grid, [radiograph.shape])[0].numpy()
        threshold = as_float(results["findings"][case.finding]["thresholds"][map_name]["iou"])
        title = f"{literal(case.finding)}, IoU {format_number(values[key], 2)}"  # no name of image or patient
        mask = read_region(record, case, *radiograph.shape).mask
        return Sketch(title, radiograph, mask, similarity, threshold, bool(values["pointing"] or 0.0))

    columns = max(len(group) for group in groups.values())
    with matplotlib.rc_context(STYLE | {"axes.grid": False, "axes.titlelocation": "center", "axes.titlesize": 8.5}):
        figure = matplotlib.figure.Figure(figsize=(4.2 * columns + 0.4, 7.6), layout="constrained")
        panels = figure.subplots(3, 2 * columns, squeeze=False)
        for axes in panels.ravel():
            axes.set_axis_off()
        for row, (name, group) in zip(panels, groups.items(), strict=True):
            row[0].text(-0.06, 0.5, name, transform=row[0].transAxes, rotation=90, va="center", ha="right")
            for i, region in enumerate(group):
                draw_grounding(matplotlib, row[2 * i], row[2 * i + 1], sketch(region))
        of_what = map_name.replace("_", " ")
        dataset_name = describe_dataset(results["dataset"]) or "unnamed data"
        figure.suptitle(f"Grounding, {dataset_name}, map: {of_what}", fontsize=12, fontweight="bold")
        handles = [
            matplotlib.lines.Line2D([], [], color="#39FF88", label="marked region"),
            matplotlib.lines.Line2D([], [], color=COLOURS[5], linestyle="--", label="map at the threshold"),
            matplotlib.lines.Line2D([], [], color=COLOURS[1], marker="x", linestyle="", label="highest pixel, misses"),
            matplotlib.lines.Line2D([], [], color="#39FF88", marker="x", linestyle="", label="highest pixel, hits"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=4 if columns > 1 else 2)
        return write_beside(path, lambda partial: figure.savefig(partial, format="png"))


def draw_grounding(matplotlib, left, right, sketch: Sketch) -> None:
    """One region: on the left axes the radiograph and the marks, on the right ones the map over it."""
    green, blue, orange = "#39FF88", COLOURS[5], COLOURS[1]
    for axes in (left, right):
        axes.imshow(sketch.radiograph, cmap="gray", vmin=0, vmax=255)
        if sketch.mask.any() and not sketch.mask.all():
            axes.contour(sketch.mask, levels=[0.5], colors=[green], linewidths=1.3)
    left.set_title(sketch.title)
    low, high = np.nanmin(sketch.similarity), np.nanmax(sketch.similarity)
    strength = np.nan_to_num((sketch.similarity - low) / max(high - low, 1e-12))
    right.imshow(sketch.similarity, cmap="inferno", vmin=low, vmax=high, alpha=0.15 + 0.5 * strength)
    if np.isfinite(sketch.threshold) and high > low:
        level = low + sketch.threshold * (high - low)
        right.contour(sketch.similarity, levels=[level], colors=[blue], linestyles="--", linewidths=1.2)
    rows, columns = np.nonzero(sketch.similarity == high)
    middle = len(rows) // 2  # of several highest pixels, one of them
    colour = green if sketch.hit else orange
    right.plot(columns[middle], rows[middle], "x", color=colour, markersize=7, markeredgewidth=2)
    right.set_title("pointing: hit" if sketch.hit else "pointing: miss")


def plot_robustness(results: Mapping, path: str | Path) -> Path:
    """The five probes of `evaluate_robustness` in one figure, with their intervals and what chance would give.

    Args:
        results: as `evaluate_robustness` returns them, or read back from JSON.
        path: of the PNG file.
    """
    matplotlib = import_matplotlib()
    wordings, negation, laterality = results["wordings"], results["negation"]["mean"], results["laterality"]["all"]
    empty, degradations = results["empty_images"]["findings"], results["degradations"]
    height = 5.4 + 0.22 * (len(wordings["findings"]) + len(empty))
    with matplotlib.rc_context(STYLE):
        figure = matplotlib.figure.Figure(figsize=(11.5, height), layout="constrained")
        panels = figure.subplot_mosaic(
            [["wordings", "negation"], ["wordings", "laterality"], ["empty", "degradations"]],
            height_ratios=[2.2, 1.4, 3 + 0.16 * len(empty)],
            width_ratios=[1.25, 1],
        )
        figure.suptitle(f"Robustness, {describe_dataset(results['dataset'])}, {results['n_images']:,} images")

        def draw_intervals(axes, rows: Sequence[tuple[str, float | None, Sequence | None]], reference: float) -> None:
            for i, (_, value, interval) in enumerate(rows):
                if interval is not None:
                    axes.plot([as_float(bound) for bound in interval], [i, i], color=COLOURS[0], linewidth=2)
                axes.plot(as_float(value), i, "o", color=COLOURS[0], markersize=6)
            axes.axvline(reference, color=GREY, linewidth=1, linestyle=(0, (4, 4)), zorder=0)
            axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
            axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)

        axes = panels["wordings"]
        rows = {**wordings["findings"], **({"mean": wordings["mean"]} if wordings["mean"] else {})}
        for i, row in enumerate(rows.values()):
            axes.plot([as_float(row["min"]), as_float(row["max"])], [i, i], color=GREY, linewidth=1.5, zorder=1)
            for colour, (wording, value) in zip(COLOURS, row["auroc"].items(), strict=False):
                axes.plot(as_float(value), i, "o", color=colour, markersize=6, label=wording if i == 0 else None)
        axes.axvline(0.5, color=GREY, linewidth=1, linestyle=(0, (4, 4)), zorder=0)
        axes.set_yticks(range(len(rows)), list(rows))
        axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
        axes.set(title="AUROC with six wordings", xlabel="AUROC")
        if rows:
            axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.14), ncols=3, handletextpad=0.2)

        rows = [(wording, row["balanced"], row["balanced_ci95"]) for wording, row in negation.items()]
        draw_intervals(panels["negation"], rows, 0.5)
        panels["negation"].set(title="Finding against its negation", xlabel="Balanced accuracy, mean over findings")

        names = {"accuracy": "correct side", "mirrored_accuracy": "mirrored image", "swapped": "turned by mirroring"}
        rows = [(text, laterality[name], laterality[f"{name}_ci95"]) for name, text in names.items() if laterality]
        draw_intervals(panels["laterality"], rows, 0.5)
        pairs = laterality["n_left"] + laterality["n_right"] if laterality else 0
        panels["laterality"].set(title=f"Left against right, {pairs} stated sides", xlabel="Balanced accuracy, share")
        for name in ("negation", "laterality"):
            panels[name].set_xlim(0, 1)

        rows = [
            (name, row["mean"]["drop"], row["mean"]["drop_ci95"])
            for name, row in degradations.items()
            if "drop" in row["mean"]
        ]
        draw_intervals(panels["degradations"], rows, 0)
        panels["degradations"].set(title="Degraded images", xlabel="Drop of the mean AUROC")
        panels["degradations"].locator_params(axis="x", nbins=5)  # more labels run into each other

        axes = panels["empty"]
        images = list(next(iter(empty.values()))["images"])
        quantiles = np.array(
            [[as_float(row["images"][name]["quantile"]) for name in images] for row in empty.values()]
        )
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
        axes.set_title("Images that show nothing: quantile of the score (+: present)")
        return write_beside(path, lambda partial: figure.savefig(partial, format="png"))
