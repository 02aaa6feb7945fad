"""What an image tower gives to the projection head: its class token, and its patches in rows and columns."""

import math
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

TIMM = "timm_wrapper"  # the `model_type` of transformers' wrapper of timm's models
CLASS_TOKENS = ("cls_token", "class_embedding")  # names of the parameter


class TowerFeatures(NamedTuple):
    """The last hidden states of an image tower, before anything of ours."""

    tokens: torch.Tensor  # (batch, class token if there is one + patches, hidden); patches row by row
    rows: int
    columns: int

    @property
    def patches(self) -> torch.Tensor:
        """(batch, patches, hidden)"""
        return self.tokens[:, self.tokens.shape[1] - self.rows * self.columns :]


def has_class_token(tower: PreTrainedModel) -> bool:
    """Whether the first token of an image tower is a class token."""
    return any(name.endswith(CLASS_TOKENS) for name, _ in tower.named_parameters())


def read_features(tower: PreTrainedModel, hidden: torch.Tensor, height: int, width: int) -> TowerFeatures:
    """
    The class token and the patches among the last hidden states of any image tower. Registers and other tokens before
    the patches are left out.

    Args:
        tower ([`PreTrainedModel`]): The image tower.
        hidden (`torch.Tensor`): Its `last_hidden_state`: a map (batch, hidden, rows, columns), which a model of timm
            may have as (batch, rows, columns, hidden), or a sequence (batch, tokens, hidden).
        height (`int`), width (`int`): Of the images, in pixels.
    """
    is_timm = tower.config.model_type == TIMM
    if hidden.ndim == 4:
        if is_timm and getattr(tower.timm_model, "output_fmt", "NCHW") == "NHWC":
            return TowerFeatures(hidden.flatten(1, 2), *hidden.shape[1:3])
        return TowerFeatures(hidden.flatten(2).transpose(1, 2), *hidden.shape[2:])
    count = hidden.shape[1]
    if is_timm:  # its configuration does not tell the size of a patch
        patches = count - getattr(tower.timm_model, "num_prefix_tokens", 0)
        rows = round(math.sqrt(patches * height / width))
        columns = patches // rows
    elif not hasattr(tower.config, "patch_size"):  # DINOv3's ConvNeXt, which puts the mean of the patches first
        stride = 4 * 2 ** (len(tower.config.depths) - 1)
        rows, columns = height // stride, width // stride
    else:
        rows, columns = patch_grid(count, height, width, tower.config.patch_size)
    before = count - rows * columns
    if before and has_class_token(tower):
        tokens = hidden if before == 1 else torch.cat([hidden[:, :1], hidden[:, before:]], dim=1)
        return TowerFeatures(tokens, rows, columns)
    return TowerFeatures(hidden[:, before:], rows, columns)


def patch_grid(tokens: int, height: int, width: int, patch_size: int) -> tuple[int, int]:
    """
    Rows and columns of the patches among `tokens`. The tokens before the patches are the class token and registers.

    Args:
        tokens (`int`): Length of the sequence that the backbone returns.
        height (`int`), width (`int`): Of the image, in pixels.
        patch_size (`int`): Edge of the first patches in pixels; hierarchical backbones (Swin) merge them by twos.
    """
    rows, columns = height // patch_size, width // patch_size
    while rows * columns > tokens:
        rows, columns = (rows + 1) // 2, (columns + 1) // 2
    return rows, columns
