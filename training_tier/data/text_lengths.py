"""Texts of one batch read in groups of similar length, each padded to its own: less padding, the same training."""

import functools
from types import MethodType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

MULTIPLE = 16  # tokens; with at most 77 there are five lengths

# Width of the text tower times texts, from which groups save more on a CPU than their many small steps cost: see
# "Measured: groups of texts" in docs/speed.md
ENOUGH_TO_GROUP = 4096


def pays_on_cpu(text_config: PreTrainedConfig, num_texts: int) -> bool:
    """
    Whether [`read_by_length`] is faster on a CPU and, as there is no dropout, changes nothing but rounding.

    Args:
        text_config (`PreTrainedConfig`): of the text tower.
        num_texts (`int`): that it reads at once.
    """
    drops = any(value for name, value in text_config.to_dict().items() if "dropout" in name)
    return not drops and text_config.hidden_size * num_texts >= ENOUGH_TO_GROUP


def padded_lengths(attention_mask: torch.Tensor) -> torch.Tensor:
    """
    Tokens that each text is padded to in its group: the next multiple of 16, but at most those of the batch.

    Args:
        attention_mask (`torch.Tensor` of shape `(texts, tokens)`): 1 for tokens, from the left on, and 0 for padding.

    Returns:
        `torch.Tensor` of shape `(texts,)`, int64.
    """
    groups = -(-attention_mask.sum(dim=1) // MULTIPLE)
    return (groups * MULTIPLE).clamp(max=attention_mask.shape[1])


def read_by_length(text_model: nn.Module) -> None:
    """
    Changes a text tower in place: in training it reads the texts of a batch in groups of similar length. Outputs and
    gradients are the same except for rounding and the draws of dropout. The hidden state of padding is that of the
    last position of the group.

    Args:
        text_model (`nn.Module`): takes `input_ids` and `attention_mask` by name, and returns the hidden states and
            possibly a pooled one.
    """
    inner = type(text_model).forward

    @functools.wraps(inner)
    def forward(
        self: nn.Module,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        whole = functools.partial(inner, self, input_ids=input_ids, attention_mask=attention_mask, **kwargs)
        if not self.training or input_ids is None or attention_mask is None:
            return whole()
        lengths = padded_lengths(attention_mask)
        kinds = lengths.unique().tolist()
        if len(kinds) == 1:
            return whole()
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, **kwargs}
        rows, hidden, pooled = [], [], []
        for length in kinds:
            row = (lengths == length).nonzero().squeeze(1)
            part = {
                name: value[row, :length] if torch.is_tensor(value) and value.shape == input_ids.shape else value
                for name, value in inputs.items()
            }
            outputs = inner(self, **part)
            states = outputs.last_hidden_state
            # not zeros, which cannot be normalised: the results are masked, but have to be finite
            padding = states[:, -1:].expand(-1, input_ids.shape[1] - length, -1)
            rows.append(row)
            hidden.append(torch.cat([states, padding], dim=1))
            pooled.append(outputs.pooler_output)
        order = torch.cat(rows).argsort()
        return BaseModelOutputWithPooling(
            last_hidden_state=torch.cat(hidden)[order],
            pooler_output=None if pooled[0] is None else torch.cat(pooled)[order],
        )

    text_model.forward = MethodType(forward, text_model)  # a method: of a copy of the tower, it is the copy's
