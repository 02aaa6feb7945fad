"""
Score levels: what is compared with the sentences of a finding, the whole image, its patches, or both. Everything is
built on the difference of cosines: how much nearer an embedding lies to the positive sentences than to the negative
ones. The pipeline and the evaluation both score by these functions.
"""

import math
from collections.abc import Mapping
from typing import TypeVar

import numpy as np
import torch
from transformers import PreTrainedModel

from .pooling_tier import ADDS_UP

Differences = TypeVar("Differences", torch.Tensor, np.ndarray)

POOLS = ("max", "topk", "lse")

LEVELS = ("global", *(f"patches-{pool}" for pool in POOLS), *(f"both-{pool}" for pool in POOLS))

TOP_SHARE = 0.1  # of the patches, whose mean is the pool "topk"

LSE_TEMPERATURE = 0.1  # of the pool "lse": near 0 it is the maximum, large it is the mean


def default_level(model: PreTrainedModel) -> str:
    """
    The level that scores a model unless another one is named: `"patches-lse"` where the image embedding is the mean
    of the patches (`image_pooling="patch_mean"`), so that training aligned the patches with the texts; else
    `"global"`.
    """
    is_mean_of_patches = getattr(model.config, "image_pooling", None) in ADDS_UP
    return "patches-lse" if is_mean_of_patches and hasattr(model, "get_patch_features") else "global"


def pool_patches(patch_embeds: torch.Tensor, directions: torch.Tensor) -> dict[str, torch.Tensor]:
    """
    Differences of the patches, pooled over them.

    Args:
        patch_embeds (`torch.Tensor` of shape `(images, patches, dim)`): L2-normalised.
        directions (`torch.Tensor` of shape `(findings, dim)`):
            Mean embedding of the positive sentences minus that of the negative ones; of the same type and on the same
            device as the patches.

    Returns:
        `dict[str, torch.Tensor]`: Each of shape `(images, findings)`. `"max"`: the patch with the highest difference;
        `"topk"`: the mean of the highest 10 %, at least one; `"lse"`: t log(mean(exp(difference / t))) with t = 0.1, a
        soft maximum, which is the difference itself where all patches agree.
    """
    differences = patch_embeds @ directions.T  # (images, patches, findings)
    num_patches = differences.shape[1]
    highest = differences.topk(max(1, round(TOP_SHARE * num_patches)), dim=1).values
    lse = torch.logsumexp(differences / LSE_TEMPERATURE, dim=1) - math.log(num_patches)
    return {"max": highest[:, 0], "topk": highest.mean(dim=1), "lse": LSE_TEMPERATURE * lse}


def level_differences(differences: Differences, pooled: Mapping[str, Differences]) -> dict[str, Differences]:
    """The differences of every available level of `LEVELS`, from those of the image and of its pooled patches."""
    levels = {"global": differences}
    levels |= {f"patches-{pool}": values for pool, values in pooled.items()}
    return levels | {f"both-{pool}": (differences + values) / 2 for pool, values in pooled.items()}
