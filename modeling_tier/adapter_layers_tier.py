"""Transformer layers on top of an image tower, which train while the tower is frozen."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init

HEAD_WIDTH = 64  # of a head of attention, as in the ViTs; a narrow tower gets one head
MLP_RATIO = 4


class ZeroLinear(nn.Linear):
    """A linear layer that starts at zero. A class of its own, because a model's `_init_weights` sees single layers."""

    @torch.no_grad()
    def reset_parameters(self) -> None:
        init.zeros_(self.weight)
        init.zeros_(self.bias)


class AdapterLayer(nn.Module):
    """
    A layer of a ViT: norm, attention, norm, MLP, each pair around a shortcut (pre-norm; Dosovitskiy et al. 2021,
    "An image is worth 16x16 words", equations 2 and 3). Both branches end in zeros at the start, so that the layer
    then returns what it gets (Bachlechner et al. 2021, "ReZero", section 3, of whose kind this is).

    Args:
        width (`int`): Channels of a token.
    """

    def __init__(self, width: int):
        super().__init__()
        heads = max(1, width // HEAD_WIDTH)
        self.heads = next(count for count in range(heads, 0, -1) if width % count == 0)
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_output = ZeroLinear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_input = nn.Linear(width, MLP_RATIO * width)
        self.mlp_output = ZeroLinear(MLP_RATIO * width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, width) to the same shape."""
        split = self.query_key_value(self.attention_norm(tokens)).unflatten(-1, (3, self.heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4)  # each (batch, heads, tokens, width / heads)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        tokens = tokens + self.attention_output(attended)
        return tokens + self.mlp_output(F.gelu(self.mlp_input(self.mlp_norm(tokens))))


def make_adapter(width: int, layers: int) -> nn.Sequential | None:
    """The adapter layers of a model; `None` for 0, so that a model without them has no parameter more than before."""
    return nn.Sequential(*(AdapterLayer(width) for _ in range(layers))) if layers else None
