"""The ranked shares of the similarity of whole texts and patches, models side by side (TIER's relative similarity)."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from evaluation_tier.figures.style import DASHED, GREY, STYLE, import_matplotlib, literal, save_png, series_style
from evaluation_tier.output.dataset_names import describe_dataset


def plot_relative_similarity(results: Mapping, path: str | Path) -> Path:
    """
    Share of each patch of an image in its text's total similarity, from the highest down: mean and one standard
    deviation over the pairs (TIER token_patch_sims.py:89-108). A model that looks at few places has a steep curve; the
    dashed line shows equal patches.

    Args:
        results (`Mapping`): as `evaluate_sparsity` returns them, or read back from JSON.
        path (`str` or `Path`): of the PNG file.

    Raises:
        `ValueError`: results in which no model has a pair to draw.
    """
    matplotlib = import_matplotlib()
    drawn = {name: model["ranked"]["relative"] for name, model in results["models"].items()}
    drawn = {name: relative for name, relative in drawn.items() if relative["n_pairs"]}
    if not drawn:
        raise ValueError("The figure needs a pair of text and image with a positive total similarity.")
    with matplotlib.rc_context(STYLE):
        figure = matplotlib.figure.Figure(figsize=(6.4, 5.0), layout="constrained")
        axes = figure.add_subplot()
        for i, (name, relative) in enumerate(drawn.items()):
            style = series_style(i)
            mean, std = (np.array(relative[part]) for part in ("mean", "std"))
            ranks = np.arange(1, len(mean) + 1)
            axes.fill_between(ranks, mean - std, mean + std, color=style["color"], alpha=0.15, linewidth=0)
            left_out = f", {relative['n_left_out']:,} left out" if relative["n_left_out"] else ""
            axes.plot(ranks, mean, label=f"{literal(name)} ({relative['n_pairs']:,} pairs{left_out})", **style)
        axes.axhline(1 / len(mean), color=GREY, linewidth=1, linestyle=DASHED, zorder=1, label="all alike")
        title = f"Relative similarity of patches, {describe_dataset(results['dataset'])}".removesuffix(", ")
        axes.set(title=title, xlabel="Rank of the patch", ylabel="Share of the text's total similarity")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center")
        return save_png(figure, path)
