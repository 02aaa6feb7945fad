"""TIER's heat-maps: several models' maps of a finding on the same radiographs, side by side."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel, ProcessorMixin

from evaluation_tier.figures.style import (
    STYLE,
    add_colour_bar,
    import_matplotlib,
    literal,
    map_colour_scale,
    save_png,
    show_radiograph,
)
from evaluation_tier.models.embedding import direct_embedders, embed_pixels, embed_prompts
from evaluation_tier.models.images import read_batches
from evaluation_tier.output.dataset_names import describe_dataset
from evaluation_tier.scoring.findings import NO_FINDING
from modeling_tier.maps_tier import cosine_map
from processing_tier import TierImageProcessor
from processing_tier.prompts.loader import Prompts, normalize_finding
from processing_tier.radiograph_tier import read_radiograph

LOW, HIGH = 1, 99  # percentiles of all patches of the set that become 0 and 1
COLOURS_FROM, COLOURS_TO = -0.3, 0.5  # of the difference, as in TIER's figure
UPSAMPLED = 16  # pixels along a patch before the map is laid over the image, whose resizing is not nearest
MAX_ROWS = 6


class HeatMaps(NamedTuple):
    """Of one model, on its grid of patches."""

    maps: np.ndarray  # (images, findings, rows, columns) float32, in [-1, 1]; NaN where an image does not decode
    findings: list[str]
    kind: str  # in words
    patch_centers: tuple[float, float]  # of the model, see `post_process_similarity_map`


def compute_heat_maps(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    dataset: datasets.Dataset,
    prompts: Mapping[str, Prompts],
    no_finding: Prompts,
    batch_size: int = 32,
) -> HeatMaps:
    """
    For each finding the map of its positive sentences, minus that of those of "No Finding", both scaled. They are maps
    of contributions where the model has them; TIER's are of cosines.

    Scaled means that the 1st and the 99th percentile over all patches of all images become 0 and 1, and what lies
    beyond is clipped, so that a map is high where this set of images seldom is (TIER zero_shot_heatmaps.py:30-66).

    Args:
        model, processor: of a model of sentences with maps, see [`check_gives_maps`].
        dataset: with the column `image`; its images are the set of the percentiles.
        prompts: of the findings.
        no_finding: whose positive sentences are the background.

    Raises:
        ValueError: as [`read_batches`].
    """
    asked = {**prompts, "": Prompts(no_finding.positive, [])}
    directions = torch.from_numpy(embed_prompts(model, processor, asked)[0]).to(model.device)
    kind = "cosine"
    found: np.ndarray | None = None
    for batch in read_batches(model, processor, dataset, batch_size, "mapping images"):
        outputs = embed_pixels(model, batch.pixels, patches=True)
        for embed in direct_embedders(model).values():
            outputs |= embed(batch)
        patches = outputs["patches"]
        if "direct" in outputs:
            kind, patches = "direct contribution", outputs["direct"]
        elif "patch_weights" in outputs:
            kind, patches = "contribution", patches * outputs["patch_weights"][..., None]
        side = math.isqrt(patches.shape[1])
        maps = cosine_map(directions, patches.unflatten(1, (side, side)))
        if found is None:
            found = np.full((len(dataset), *maps.shape[1:]), np.nan, dtype=np.float32)
        found[batch.rows] = maps.cpu().numpy()
    scaled = np.stack([scale(found[:, i]) for i in range(len(asked))], axis=1)
    return HeatMaps(scaled[:, :-1] - scaled[:, -1:], list(prompts), kind, model.patch_centers)


def scale(values: np.ndarray) -> np.ndarray:
    """Scales the 1st and 99th percentile of the values to 0 and 1, and clips the rest; 0 if all are equal."""
    low, high = np.nanpercentile(values, [LOW, HIGH])
    return np.clip((values - low) / max(high - low, 1e-12), 0, 1)


def choose_images(predictions: pd.DataFrame, findings: list[str]) -> dict[str, int]:
    """
    By finding the row of the positive image with the highest score, for up to `MAX_ROWS` findings that have one. The
    others are compared with "No Finding", so its map would be empty.
    """
    best: dict[str, int] = {}
    for finding in (name for name in findings if normalize_finding(name) not in NO_FINDING):
        scores = predictions.loc[predictions[f"label_{finding}"] == 1, f"score_{finding}"]
        if len(scores) and len(best) < MAX_ROWS:
            best[finding] = int(scores.idxmax())
    return best


def plot_heat_maps(
    maps: Mapping[str, HeatMaps],
    processors: Mapping[str, TierImageProcessor],
    dataset: datasets.Dataset,
    images: Mapping[str, int],
    path: str | Path,
    dataset_name: str = "",
) -> Path:
    """
    A row per finding: a radiograph that has it, and the map of each model over it.

    Args:
        maps: by model, of this data set.
        processors: by model, see [`map_processor_of`].
        dataset: the one that was mapped.
        images: by finding the row of its image, see [`choose_images`].
        path: of the PNG file.
        dataset_name: name of the data in the title.

    Raises:
        ValueError: without an image to draw.
    """
    if not images:
        raise ValueError("Heat-maps need an evaluated image with a finding.")
    matplotlib = import_matplotlib()
    dataset = dataset.with_format(None)
    with matplotlib.rc_context(STYLE | {"axes.grid": False, "axes.titlelocation": "center"}):
        size = (3.3 * (1 + len(maps)) + 0.8, 3.5 * len(images) + 0.5)
        figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
        panels = figure.subplots(len(images), 1 + len(maps), squeeze=False)
        for (finding, row), (first, *others) in zip(images.items(), panels, strict=True):
            radiograph = read_radiograph(dataset[row]["image"])
            grey = np.asarray(radiograph)
            show_radiograph(first, grey)
            first.set_title(literal(finding))
            for axes, (name, of_model) in zip(others, maps.items(), strict=True):
                grid = torch.from_numpy(of_model.maps[row, of_model.findings.index(finding)])
                grid = grid.repeat_interleave(UPSAMPLED, 0).repeat_interleave(UPSAMPLED, 1)
                post_process = processors[name].post_process_similarity_map
                first, step = of_model.patch_centers  # each patch is now UPSAMPLED cells about its centre
                centers = (first - step / 2 + step / UPSAMPLED / 2, step / UPSAMPLED)
                heat = post_process(grid[None], [(radiograph.height, radiograph.width)], centers)[0].numpy()
                show_radiograph(axes, grey)
                overlay = axes.imshow(heat, cmap=map_colour_scale(), vmin=COLOURS_FROM, vmax=COLOURS_TO, alpha=0.6)
                axes.set_title(literal(f"{name}\n{of_model.kind}s"))
        label = 'scaled map minus that of "No Finding"'
        add_colour_bar(figure, overlay, panels[:, -1].tolist(), label, fraction=0.03, extend="both")
        title = f"What the models see, {describe_dataset(dataset_name)}".removesuffix(", ")
        figure.suptitle(literal(title), fontsize=12, fontweight="bold")
        return save_png(figure, path)
