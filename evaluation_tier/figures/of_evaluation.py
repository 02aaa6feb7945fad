"""All figures of an evaluation that need its models, drawn into a folder."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
import pandas as pd

from evaluation_tier.analyses.grounding.maps import check_gives_maps
from evaluation_tier.figures import errors, grounding, learning_curve, robustness, similarity, sparsity, transfer
from evaluation_tier.models.families import map_processor_of
from processing_tier.prompts.loader import Prompts

from .heat_maps import choose_images, compute_heat_maps, plot_heat_maps
from .relative_similarity import plot_relative_similarity

logger = logging.getLogger(__name__)


def draw_figures(
    load: Callable[[str], tuple],
    dataset: datasets.Dataset,
    prompts: Mapping[str, Prompts],
    no_finding: Prompts | None,
    metrics: Mapping,
    predictions: pd.DataFrame,
    folder: Path,
) -> list[Path]:
    """
    The similarity maps of the first model, the worst errors, the heat-maps of several models side by side, and a
    figure of each analysis.

    Args:
        load: gives a model and its processor by its name in `metrics["models"]`.
        dataset: the evaluated one; `predictions` is indexed by its rows.
        prompts: of the findings, also of those that only boxes and masks mark.
        no_finding: sentences of a normal chest, which the heat-maps need; None if the models do not score sentences.
        metrics: with the results of the analyses.

    Returns:
        The files written.
    """
    names, files = metrics["models"], []
    model, processor = load(names[0])
    if is_mapped(names[0], model):
        drawn = {finding: prompts.get(finding, Prompts([], [])) for finding in metrics["findings"]}
        files += similarity.plot_similarity_maps(model, processor, dataset, drawn, metrics, predictions, folder)
    worst = errors.find_worst_errors(metrics, predictions)
    if worst:
        files.append(errors.plot_errors(worst, dataset, metrics, predictions, folder / "errors.png"))
    if "grounding" in metrics:
        path = folder / "grounding.png"
        files.append(grounding.plot_grounding(model, processor, dataset, prompts, metrics["grounding"], path))
    plots = {
        "sparsity": sparsity.plot_sparsity,
        "robustness": robustness.plot_robustness,
        "transfer": transfer.plot_transfer,
        "learning_curve": learning_curve.plot_learning_curve,
    }
    for name, plot in plots.items():
        if name in metrics:
            files.append(plot(metrics[name], folder / f"{name}.png"))
    if any(
        part["ranked"]["relative"]["n_pairs"] for part in metrics.get("sparsity", {"models": {}})["models"].values()
    ):
        files.append(plot_relative_similarity(metrics["sparsity"], folder / "sparsity_relative.png"))
    images = choose_images(predictions, [finding for finding in metrics["findings"] if finding in prompts])
    if len(names) > 1 and no_finding is not None and images:
        maps, processors = {}, {}
        for name in names:  # one model at a time is in memory
            model, processor = load(name)
            if is_mapped(name, model, warn=name != names[0]):
                shown = {finding: prompts[finding] for finding in images}
                maps[name] = compute_heat_maps(model, processor, dataset, shown, no_finding)
                processors[name] = map_processor_of(model, processor)
        if len(maps) > 1:
            path = folder / "similarity_of_models.png"
            files.append(plot_heat_maps(maps, processors, dataset, images, path, metrics["dataset"]))
    return files


def is_mapped(name: str, model: Any, warn: bool = True) -> bool:
    """Whether a model has maps to draw; a warning says why not."""
    try:
        check_gives_maps(model)
    except ValueError as reason:
        if warn:
            logger.warning("No similarity maps of %s. %s", name, reason)
        return False
    return True
