"""Scores of images by one model at every level, taken batch by batch from the pass over the images."""

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import torch
from transformers import PreTrainedModel, ProcessorMixin

from evaluation_tier.models.embedding import Embedders, Outputs, embed_prompts
from evaluation_tier.models.families import has_patches, levels_of, scores_itself
from evaluation_tier.models.loading import is_classifier
from evaluation_tier.models.processes import merge_rows
from evaluation_tier.scoring.findings import NO_FINDING
from evaluation_tier.scoring.scores import (
    NEVER_ABNORMAL,
    no_finding_scores,
    prompt_directions,
    scores_from_differences,
)
from modeling_tier.score_levels_tier import LEVELS, level_differences, pool_patches
from processing_tier.prompts.loader import Prompts, normalize_finding

Levels = dict[str, np.ndarray]  # name of a level to scores (images, findings) float64


class ImageScores:
    """
    One model's scores of a data set: a [`Consumer`] of its pass. Of the embeddings nothing is kept.

    Args:
        model: of images and texts, or a classifier.
        processor: the model's.
        dataset: whose images are scored.
        findings: the columns of the scores.
        prompts: of each finding; a classifier needs none.
        scoring: see `zero_shot_scores`.
    """

    rows: np.ndarray | None = None
    embedders: Embedders = {}

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        dataset: datasets.Dataset,
        findings: Sequence[str],
        prompts: Mapping[str, Prompts] | None,
        scoring: str,
    ):
        self.patches = has_patches(model)
        self.scoring = scoring
        shape = len(dataset), len(findings)
        self.levels: Levels = {level: np.full(shape, np.nan) for level in levels_of(model)}
        if is_classifier(model):
            self.columns = [model.config.label2id[finding] for finding in findings]
        else:
            self.differences = Differences(model, processor, prompts, scoring)

    def add(self, rows: np.ndarray, outputs: Outputs) -> None:
        if "logits" in outputs:
            self.levels[LEVELS[0]][rows] = outputs["logits"][:, self.columns].cpu().numpy()
            return
        differences = self.differences.of(outputs)
        for level, scores in self.levels.items():
            scores[rows] = scores_from_differences(differences[level], self.scoring)

    def finish(self, own: np.ndarray) -> None:
        self.levels = {level: merge_rows(values, own) for level, values in self.levels.items()}


class Differences:
    """
    How much nearer images lie to the positive than to the negative sentences of findings.

    Args:
        model: of images and texts.
        processor: the model's.
        prompts: of each finding.
        scoring: see `zero_shot_scores`; `"sigmoid"` does not use the negative sentences.

    Attributes:
        positive: (findings, dim), see `embed_prompts`; so is `negative`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin | None,
        prompts: Mapping[str, Prompts],
        scoring: str = "difference",
    ):
        self.patches = has_patches(model)
        self.positive, self.negative = sides = embed_prompts(model, processor, prompts)
        self.directions = prompt_directions(*sides, scoring)  # (findings, dim)
        self.patch_directions = torch.from_numpy(self.directions).to(model.device, torch.float32)
        self.own_score = OwnScore(model, *sides, scoring) if scores_itself(model) else None

    def of(self, outputs: Outputs) -> dict[str, np.ndarray]:
        """By level, (images, findings) float64, of the `outputs` of `image_embedders`."""
        if self.own_score is not None:
            differences = self.own_score.differences(outputs)
        else:
            differences = outputs["image"].cpu().numpy().astype(np.float64) @ self.directions.T
        pooled = pool_patches(outputs["patches"], self.patch_directions) if self.patches else {}
        of_pools = {pool: values.cpu().numpy().astype(np.float64) for pool, values in pooled.items()}
        return level_differences(differences, of_pools)


class OwnScore:
    """
    Differences by a model's own similarity, in place of those of cosines.

    Args:
        model: see [`scores_itself`].
        positive: of each finding, see `embed_prompts`; so is `negative`, which the scoring `"sigmoid"` does not use.
    """

    def __init__(self, model: Any, positive: np.ndarray, negative: np.ndarray, scoring: str):
        self.score = model.score
        self.positive, self.negative = (torch.from_numpy(side).to(model.device) for side in (positive, negative))
        self.has_negative = negative.any(axis=1) & (scoring != "sigmoid")

    def differences(self, outputs: Outputs) -> np.ndarray:
        """(images, findings) float64: how much more similar the images are to the positive than to the negative."""
        differences = self.score_texts(outputs, self.positive)
        if self.has_negative.any():
            differences[:, self.has_negative] -= self.score_texts(outputs, self.negative[self.has_negative])
        return differences

    def score_texts(self, outputs: Outputs, texts: torch.Tensor) -> np.ndarray:
        """(images, texts) float64."""
        return self.score(outputs["image"], outputs.get("patches"), texts).cpu().numpy().astype(np.float64)


def add_levels(total: Levels, new: Levels, columns: Sequence[int]) -> Levels:
    """The sum of two members' scores at the levels that both have; `columns` are those of `total` that `new` has."""
    return {level: values[:, columns] + new[level] for level, values in total.items() if level in new}


def score_by_others(scores: Sequence[Levels], findings: Sequence[str], columns: Sequence[int]) -> None:
    """Put `no_finding_scores` into these columns of the scores of every level, in place.

    Args:
        scores: of the evaluated images, and of those that choose the thresholds if these differ. The last ones are
            the reference of the standardisation.
    """
    left_out = (*NO_FINDING, *NEVER_ABNORMAL)
    others = [i for i, finding in enumerate(findings) if normalize_finding(finding) not in left_out]
    if not others:
        raise ValueError(
            f"{findings[columns[0]]!r} is scored by the other findings, but no other one is evaluated: add some, or "
            "score it by its prompts (--no_finding prompts)."
        )
    for level, reference in scores[-1].items():
        reference = reference[:, others].copy()
        for levels in scores:
            levels[level][:, columns] = no_finding_scores(levels[level][:, others], reference)[:, None]
