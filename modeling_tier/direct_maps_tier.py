"""What each patch adds to the class token of CLIP's image tower: maps of a model that scores with the class token."""

import torch
from torch import nn
from torch.nn import functional as F


def direct_contributions(vision_model: nn.Module, hidden_states: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """
    What each patch adds to the class token directly, before the last norm: the part of the attention's output that
    comes from the patch, in the class token's row, summed over the layers.

    Not in it: what patches add through other patches or through the MLPs, and what the class token adds itself.
    (Gandelsman, Efros & Steinhardt, "Interpreting CLIP's image representation via text-based decomposition", ICLR
    2024, arXiv:2310.05916.)

    Args:
        vision_model (`nn.Module`): CLIP's.
        hidden_states (`tuple(torch.Tensor)`): (images, 1 + patches, hidden) each, first the input of the first layer.

    Returns:
        `torch.Tensor` of shape `(images, patches, hidden)`
    """
    parts = [
        attended_values(layer.self_attn, layer.layer_norm1(states))[:, 1:]
        for layer, states in zip(vision_model.encoder.layers, hidden_states, strict=False)  # the last is the output
    ]
    return torch.stack(parts).sum(dim=0)


def attended_values(attention: nn.Module, states: torch.Tensor) -> torch.Tensor:
    """
    The summands of an attention's output for the first token, one per token, without the bias of `out_proj`.

    Args:
        attention (`nn.Module`): CLIP's.
        states (`torch.Tensor` of shape `(images, tokens, hidden)`): Its input.

    Returns:
        `torch.Tensor` of shape `(images, tokens, hidden)`
    """

    def heads(projected: torch.Tensor) -> torch.Tensor:
        return projected.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)  # (images, heads, tokens, features)

    query, key = heads(attention.q_proj(states[:, :1])), heads(attention.k_proj(states))
    weights = (query @ key.transpose(-1, -2) * attention.scale).float().softmax(dim=-1).to(states.dtype)
    values = weights.transpose(-1, -2) * heads(attention.v_proj(states))
    return F.linear(values.transpose(1, 2).flatten(2), attention.out_proj.weight)


def through_norm(norm: nn.LayerNorm, parts: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """
    The summands of a layer norm's output, without its bias, that parts of its input stand for: the norm is linear once
    its variance is that of the whole.

    Args:
        parts (`torch.Tensor` of shape `(images, parts, hidden)`): Summands of `whole`, not necessarily all.
        whole (`torch.Tensor` of shape `(images, hidden)`): Input of the norm.
    """
    variance = whole.var(dim=-1, unbiased=False)[:, None, None]
    return (parts - parts.mean(dim=-1, keepdim=True)) / (variance + norm.eps).sqrt() * norm.weight
