"""AUROC by wording, negation, side and image quality."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from evaluation_tier.figures.style import COLOURS, GREY, STYLE, import_matplotlib
from evaluation_tier.output.metrics_file import as_float, write_beside
from evaluation_tier.output.model_card import describe_dataset


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
