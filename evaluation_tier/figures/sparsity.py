"""Sparsity of words and patches."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from evaluation_tier.figures.style import COLOURS, GREY, STYLE, import_matplotlib, save_png, series_style
from evaluation_tier.output.dataset_names import describe_dataset


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
                style = series_style(i)
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
        return save_png(figure, path)
