"""Scores of findings from the embeddings of images, patches and prompts.

Everything is built on the difference of cosines: how much nearer an embedding lies to the positive sentences of a
finding than to its negative ones. A scoring turns the differences into scores, without changing their order. A level
selects the embeddings of the difference: the whole image, its patches (pooled into one number), or the mean of both.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch

SCORINGS = ("difference", "softmax", "sigmoid")

POOLS = ("max", "topk", "lse")

LEVELS = ("global", *(f"patches-{pool}" for pool in POOLS), *(f"both-{pool}" for pool in POOLS))

TOP_SHARE = 0.1  # of the patches, whose mean is the pool "topk"

DECIMALS = 7  # of differences: embeddings are float32, and the same image differs by less in a batch of another size

LSE_TEMPERATURE = 0.1  # of the pool "lse": near 0 it is the maximum, large it is the mean

NEVER_ABNORMAL = ("support devices",)  # may be there in a chest without a finding


def check_level(level: str) -> None:
    """ValueError for an unknown level."""
    if level not in LEVELS:
        raise ValueError(f"The score level must be one of {', '.join(LEVELS)}, but is {level!r}.")


def prompt_directions(positive: np.ndarray, negative: np.ndarray, scoring: str) -> np.ndarray:
    """The directions whose product with an embedding gives the differences, (findings, dim) float64.

    float64, since in float32 the sigmoid would merge scores that the difference still tells apart.

    Args:
        positive: (findings, dim), L2-normalised.
        negative: likewise, or zero where a finding has no negative sentences; not used by `"sigmoid"`.

    Raises:
        ValueError: for an unknown scoring.
    """
    if scoring not in SCORINGS:
        raise ValueError(f"The scoring must be one of {', '.join(SCORINGS)}, but is {scoring!r}.")
    positive, negative = positive.astype(np.float64), negative.astype(np.float64)
    return positive if scoring == "sigmoid" else positive - negative


def scores_from_differences(differences: np.ndarray, scoring: str) -> np.ndarray:
    """Scores of the same shape: the differences, rounded to `DECIMALS` so that rounding errors rank nothing, or their
    sigmoid."""
    differences = np.round(differences, DECIMALS)
    return differences if scoring == "difference" else 1 / (1 + np.exp(-differences))


def zero_shot_scores(
    image_embeds: np.ndarray, positive: np.ndarray, negative: np.ndarray, scoring: str = "difference"
) -> np.ndarray:
    """Scores, (images, findings) float64; higher means that the finding is more likely.

    Args:
        image_embeds: (images, dim), L2-normalised.
        positive: (findings, dim), L2-normalised.
        negative: likewise; zero where a finding has no negative sentences.
        scoring: `"difference"`: cosine to the positive minus cosine to the negative prompt, in [-2, 2] (TIER,
            utils.py:376-381); `"softmax"`: e^positive / (e^positive + e^negative) of the raw cosines, without
            logit scale, in [0.12, 0.88] (CheXzero, zero_shot.py:258-261); `"sigmoid"`: of the cosine to the positive
            prompt alone, in [0.27, 0.73]. The first two give one model the same ranking; averaged over an ensemble,
            they differ.
    """
    directions = prompt_directions(positive, negative, scoring)
    return scores_from_differences(image_embeds.astype(np.float64) @ directions.T, scoring)


def pool_patches(patch_embeds: torch.Tensor, directions: torch.Tensor) -> dict[str, torch.Tensor]:
    """Differences of the patches, pooled over them: pool to (images, findings).

    Args:
        patch_embeds: (images, patches, dim), L2-normalised.
        directions: (findings, dim), see `prompt_directions`, of the same type and on the same device.

    Returns:
        `"max"`: the patch with the highest difference; `"topk"`: the mean of the highest 10 %, at least one;
        `"lse"`: t log(mean(exp(difference / t))) with t = 0.1, a soft maximum, which is the difference itself where
        all patches agree.
    """
    differences = patch_embeds @ directions.T  # (images, patches, findings)
    num_patches = differences.shape[1]
    highest = differences.topk(max(1, round(TOP_SHARE * num_patches)), dim=1).values
    lse = torch.logsumexp(differences / LSE_TEMPERATURE, dim=1) - math.log(num_patches)
    return {"max": highest[:, 0], "topk": highest.mean(dim=1), "lse": LSE_TEMPERATURE * lse}


def level_differences(differences: np.ndarray, pooled: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The differences of every available level of `LEVELS`, from those of the image and of its pooled patches."""
    levels = {"global": differences}
    levels |= {f"patches-{pool}": values for pool, values in pooled.items()}
    return levels | {f"both-{pool}": (differences + values) / 2 for pool, values in pooled.items()}


def no_finding_scores(scores: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """A score of "no finding" from those of the findings: minus the largest of them, in standard deviations.

    A normal chest is one in which the other findings are absent. A sentence such as "no No Finding" does not say so
    (CheXzero's AUROC of "No Finding" is 0.07). Findings whose scores spread more do not outvote the others, since each
    is standardised by its mean and its spread over the reference images, whose labels are not used. A finding whose
    score is the same in all of these says nothing and is left out.

    Args:
        scores: (images, findings), of the other findings.
        reference: (reference images, findings), likewise.

    Returns:
        (images,); 0 without other findings.
    """
    varies = np.ptp(reference, axis=0) > 1e-12 * np.abs(reference).max(axis=0)  # rounding does not count as spread
    if not varies.any():
        return np.zeros(len(scores))
    scores, reference = scores[:, varies], reference[:, varies]
    return -((scores - reference.mean(axis=0)) / reference.std(axis=0)).max(axis=1)
