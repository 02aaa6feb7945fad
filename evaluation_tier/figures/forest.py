"""Estimates with their intervals: findings, subgroups, differences between models."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from evaluation_tier.figures.style import COLOURS, DASHED, GREY, STYLE, estimate, import_matplotlib, literal, save_png
from evaluation_tier.output.dataset_names import describe_dataset
from evaluation_tier.output.metrics_file import as_float
from evaluation_tier.output.result_tables import has_common_findings, order_groups
from evaluation_tier.output.tables import column_name, format_estimate

MAX_ROWS = 80  # of one figure
TITLE_WIDTH = 60  # characters of a line, which fit the figure


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


def plot_subgroups(metrics: Mapping, path: str | Path) -> Path:
    """The mean AUROC of each subgroup with its 95 % interval: a forest plot, one block per attribute.

    The means are of the findings that every group of an attribute has; their number stands beside its name. So is that
    of all images in the first row of a block, which has no interval.

    Args:
        metrics: with "subgroups", by attribute as `resampling.subgroup_metrics` returns them.
        path: of the PNG file.
    """
    blocks = []
    for attribute, result in metrics["subgroups"].items():
        if has_common_findings(result):
            shared = result["findings_in_mean"]
            heading = f"{column_name(attribute)}, {len(shared)} finding{'' if len(shared) == 1 else 's'}"
            values = [as_float((metrics["findings"].get(finding) or {}).get("auroc")) for finding in shared]
            groups = order_groups(result["groups"]).items()
            mean = {"auroc": float(np.mean(values))}
            rows = [(f"All ({metrics['n_images']:,})", *estimate(mean))]
            rows += [(f"{group} ({numbers['n_images']:,})", *estimate(numbers["mean"])) for group, numbers in groups]
            blocks.append((heading, rows))
    title = f"Mean AUROC by subgroup (images), {describe_dataset(metrics['dataset'])}"
    return plot_forest([("", []), *blocks], path, title=title, xlabel="AUROC")


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


def plot_gains(comparison: Mapping, path: str | Path) -> Path:
    """The AUROC of each model minus that of the baseline, with 95 % intervals: a forest plot, first of the means, then
    a block per finding. With more than `MAX_ROWS` rows, only the means.

    Args:
        comparison: as `compare_with_baseline` returns it.
        path: of the PNG file.
    """
    gains = {name: result["gain"] for name, result in comparison["results"].items() if "gain" in result}
    means = {name: gain["mean"]["auroc"] for name, gain in gains.items()}
    blocks = [("", {f"{name}, mean": entry for name, entry in means.items()})]
    if len(gains) * (1 + len(comparison["findings"])) <= MAX_ROWS:
        for finding, counts in comparison["findings"].items():
            entries = {name: gain["findings"][finding]["auroc"] for name, gain in gains.items()}
            blocks.append((f"{finding} ({counts['n_positive']:,})", entries))
    rows = [
        (heading, [(name, entry["difference"], entry["difference_ci95"]) for name, entry in entries.items()])
        for heading, entries in blocks
    ]
    title = f"AUROC minus that of {comparison['baseline']} (positives), {describe_dataset(comparison['dataset'])}"
    return plot_forest(
        rows, path, reference=0.0, num_summary=len(gains), title=literal(title), xlabel="Difference of the AUROC"
    )


def plot_forest(
    blocks: Sequence[tuple[str, Sequence[tuple[str, float | None, Sequence[float | None]]]]],
    path: str | Path,
    reference: float = 0.5,
    num_summary: int = 1,
    *,
    title: str,
    xlabel: str,
) -> Path:
    """Numbers with their intervals, one below the other.

    Args:
        blocks: heading and rows; a row is a label, a value and its interval. The first block has no heading.
        reference: where a dashed line stands.
        num_summary: number of last rows of the first block that summarize the others.
    """
    matplotlib = import_matplotlib()
    height = sum(len(rows) for _, rows in blocks) + len(blocks) - 1
    with matplotlib.rc_context(STYLE):
        figure = matplotlib.figure.Figure(figsize=(7.5, 1.1 + 0.29 * height), layout="constrained")
        axes = figure.add_subplot()
        ticks, names, bounds, y = [], [], [reference], 0.0
        for i, (heading, rows) in enumerate(blocks):
            if i:  # a block's heading takes a separate row
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
            for j, (label, value, interval) in enumerate(rows):
                value, low, high = as_float(value), *map(as_float, interval)
                summary = not i and j >= len(rows) - num_summary  # a mean, or all images
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
        axes.axvline(reference, color=GREY, linewidth=1, linestyle=DASHED, zorder=1)
        axes.set_yticks(ticks, names)
        axes.set(ylim=(y - 0.4, -0.6), xlim=(min(bounds) - margin, max(bounds) + margin), xlabel=xlabel)
        axes.set_title(textwrap.fill(title, TITLE_WIDTH))
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        return save_png(figure, path)
