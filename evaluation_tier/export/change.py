"""How much an export changes a model: its AUROC, its scores and its maps, on the same images."""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from transformers import PreTrainedModel, ProcessorMixin

from evaluation_tier.export.int8 import choose_images
from evaluation_tier.models.embedding import Embedders, Outputs, direct_embedders, embed_prompts
from evaluation_tier.models.images import Member
from evaluation_tier.models.single_pass import Consumer, ImageRows, evaluate_together
from evaluation_tier.scoring.findings import read_labels
from evaluation_tier.scoring.image_scores import ImageScores
from evaluation_tier.statistics.metrics import auroc, nanmean
from modeling_tier.score_levels_tier import default_level
from processing_tier.prompts.loader import Prompts

MAP_IMAGES = 500  # at most: of these the maps are compared


class Maps:
    """
    The maps of findings on some images, on the grid of patches, as the pipeline shows them: a [`Consumer`].

    Args:
        model, processor: of images and texts.
        num_images: of the data set.
        prompts: of each finding.
        rows: the images.
    """

    patches = True

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        num_images: int,
        prompts: Mapping[str, Prompts],
        rows: np.ndarray,
    ):
        self.rows: np.ndarray | None = rows
        positive, negative = embed_prompts(model, processor, prompts)
        self.directions = torch.from_numpy(positive - negative).to(model.device)  # (findings, dim)
        self.embedders = direct_embedders(model)
        self.maps = ImageRows(num_images)

    def add(self, rows: np.ndarray, outputs: Outputs) -> None:
        patches = outputs.get("direct", outputs["patches"])
        maps = (patches @ self.directions.T).transpose(1, 2)  # (batch, findings, patches)
        if "patch_weights" in outputs:
            maps = maps * outputs["patch_weights"][:, None]
        asked = np.isin(rows, self.rows)
        self.maps.put(rows[asked], maps[torch.from_numpy(asked)])

    def finish(self, own: np.ndarray) -> None:
        pass


class Compared:
    """What is measured of one model: an [`Analysis`] of its scores and its maps."""

    def __init__(self, dataset: datasets.Dataset, prompts: Mapping[str, Prompts]):
        self.dataset, self.prompts = dataset, prompts
        self.parts: list[Consumer] = []

    def start(self, name: str, model: PreTrainedModel, processor: ProcessorMixin) -> Sequence[Consumer]:
        self.level = default_level(model)
        findings, count = list(self.prompts), len(self.dataset)
        self.image_scores = ImageScores(model, processor, self.dataset, findings, self.prompts, "difference")
        self.maps = Maps(model, processor, count, self.prompts, choose_images(self.dataset, MAP_IMAGES))
        return [Both(self.image_scores, self.maps)]

    @property
    def scores(self) -> np.ndarray:
        """(images, findings) float64; NaN for an image that does not decode."""
        return self.image_scores.levels[self.level]


class Both:
    """Two consumers as one, which asks for all images."""

    rows: np.ndarray | None = None
    patches = True

    def __init__(self, *consumers: Consumer):
        self.consumers = consumers
        self.embedders: Embedders = {name: embed for one in consumers for name, embed in one.embedders.items()}

    def add(self, rows: np.ndarray, outputs: Outputs) -> None:
        for consumer in self.consumers:
            consumer.add(rows, outputs)

    def finish(self, own: np.ndarray) -> None:
        for consumer in self.consumers:
            consumer.finish(own)


def measure_change(
    before: Member,
    after: Member,
    dataset: datasets.Dataset,
    prompts: Mapping[str, Prompts],
    labelled: bool,
    batch_size: int,
) -> dict[str, Any]:
    """
    Compare a model with its export. Each image is read once for both.

    Args:
        before, after: model and processor.
        dataset: the images.
        prompts: of each finding.
        labelled: whether the data set has a label column for each of them.
        batch_size: images embedded at once.

    Returns:
        See [`compare`].
    """
    compared = {name: Compared(dataset, prompts) for name in ("before", "after")}
    members = {"before": before, "after": after}
    evaluate_together(members, [dataset], {name: [one] for name, one in compared.items()}, batch_size)
    labels = read_labels(dataset, list(prompts)) if labelled else None
    scores = compared["before"].scores, compared["after"].scores
    maps = compared["before"].maps.maps.values, compared["after"].maps.maps.values
    return {"score_level": compared["before"].level, **compare(list(prompts), labels, scores, maps)}


def compare(
    findings: Sequence[str],
    labels: np.ndarray | None,
    scores: tuple[np.ndarray, np.ndarray],
    maps: tuple[np.ndarray, np.ndarray],
) -> dict[str, Any]:
    """
    The change from scores and maps before to those after.

    Args:
        findings: names.
        labels: (images, findings), 1, 0, -1 or NaN; None without labels.
        scores: two of (images, findings); rows of NaN for images that do not decode.
        maps: two of (images, findings, patches); rows of NaN for images that are not compared.

    Returns:
        `n_images`, `n_maps` (images whose maps are compared), `findings` (by name: `n_positive`, `auroc_before`,
        `auroc_after`, `auroc_change`, `largest_score_change` and `score_sd`, the spread of the scores),
        `mean` (the three AUROCs), and `maps`: `correlation` (mean over the maps, over the patches of each),
        `lowest_correlation`, `largest_change` and `sd` (the spread of the values of all maps).
    """
    before, after = scores
    readable = np.isfinite(before).all(axis=1) & np.isfinite(after).all(axis=1)
    before, after = before[readable], after[readable]
    told: dict[str, Any] = {}
    for i, finding in enumerate(findings):
        told[finding] = {
            "largest_score_change": float(np.abs(after[:, i] - before[:, i]).max()),
            "score_sd": float(before[:, i].std()),
        }
        if labels is not None:
            of_finding = labels[readable, i]
            aurocs = auroc(of_finding, before[:, i]), auroc(of_finding, after[:, i])
            told[finding] = {"n_positive": int((of_finding == 1).sum()), **changed(*aurocs), **told[finding]}
    results: dict[str, Any] = {"n_images": int(readable.sum()), "findings": told}
    if labels is not None:
        means = [nanmean([one[f"auroc_{when}"] for one in told.values()]) for when in ("before", "after")]
        results["mean"] = changed(*means)
    return {**results, **compare_maps(*maps)}


def changed(before: float, after: float) -> dict[str, float]:
    """An AUROC before and after, and the difference."""
    return {"auroc_before": float(before), "auroc_after": float(after), "auroc_change": float(after - before)}


def compare_maps(before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    """The part of [`compare`] on maps."""
    whole = np.isfinite(before).all(axis=(1, 2)) & np.isfinite(after).all(axis=(1, 2))
    before, after = before[whole].astype(np.float64), after[whole].astype(np.float64)
    centred = [values - values.mean(axis=2, keepdims=True) for values in (before, after)]
    lengths = [np.linalg.norm(values, axis=2) for values in centred]
    with np.errstate(divide="ignore", invalid="ignore"):  # a map of one value everywhere does not correlate
        correlations = (centred[0] * centred[1]).sum(axis=2) / (lengths[0] * lengths[1])
    known = correlations[np.isfinite(correlations)]
    return {
        "n_maps": int(whole.sum()),
        "maps": {
            "correlation": float(known.mean()) if len(known) else float("nan"),
            "lowest_correlation": float(known.min()) if len(known) else float("nan"),
            "largest_change": float(np.abs(after - before).max()),
            "sd": float(before.std()),
        },
    }
