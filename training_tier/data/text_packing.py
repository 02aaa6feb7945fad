"""Several short texts of a batch in one row of the text tower: less padding, the same training."""

import functools
from types import MethodType
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

# Text towers that take a mask of pairs of tokens and the tokens' positions; a test compares each with itself unpacked
PACKABLE = ("bert", "camembert", "clip_text_model", "distilbert", "electra", "mpnet", "roberta", "xlm-roberta")


def can_pack(text_config: PreTrainedConfig) -> bool:
    """Whether [`read_packed`] takes the text tower of this configuration."""
    return text_config.model_type in PACKABLE and text_config._attn_implementation in ("sdpa", "eager")


class Packing(NamedTuple):
    """Where the texts of a batch stand: text `i` in row `rows[i]`, from token `starts[i]` on; each `width` wide."""

    rows: list[int]
    starts: list[int]
    width: int

    @property
    def num_rows(self) -> int:
        return max(self.rows) + 1


def pack(lengths: list[int]) -> Packing:
    """
    Puts texts into as few rows of the longest one's length as first-fit decreasing finds: the longest text first, each
    into the first row that has room.

    Args:
        lengths (`list[int]`): tokens of each text.
    """
    width = max(lengths)
    rows, starts = [0] * len(lengths), [0] * len(lengths)
    filled: list[int] = []
    for text in sorted(range(len(lengths)), key=lambda text: -lengths[text]):
        row = next((row for row, tokens in enumerate(filled) if tokens + lengths[text] <= width), len(filled))
        if row == len(filled):
            filled.append(0)
        rows[text], starts[text] = row, filled[row]
        filled[row] += lengths[text]
    return Packing(rows, starts, width)


def read_packed(text_model: nn.Module) -> None:
    """
    Changes a text tower in place: in training it reads several short texts in one row. A text sees itself alone, and
    its positions are its own. Outputs and gradients are the same except for rounding and the draws of dropout. The
    hidden state of padding is that of the text's last token.

    Args:
        text_model (`nn.Module`):
            of a kind in `PACKABLE`, with PyTorch's or the eager attention. It takes `input_ids` and `attention_mask`
            by name; texts whose padding is not on their right are read one in a row.

    Raises:
        `ValueError`: another tower or another attention.
    """
    config = text_model.config
    if not can_pack(config):
        raise ValueError(
            f"group_texts cannot pack the texts of {config.model_type!r} with the attention "
            f"{config._attn_implementation!r}, only of {', '.join(PACKABLE)} with sdpa or eager; leave it out."
        )
    inner = type(text_model).forward

    @functools.wraps(inner)
    def forward(
        self: nn.Module,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, **kwargs}
        if not self.training or input_ids is None or attention_mask is None or not from_the_left(attention_mask):
            return inner(self, **inputs)
        packing = pack(attention_mask.sum(dim=1).tolist())
        if packing.num_rows == len(input_ids):
            return inner(self, **inputs)
        return forward_packed(self, functools.partial(inner, self), packing, inputs)

    text_model.forward = MethodType(forward, text_model)  # a method: of a copy of the tower, it is the copy's


def from_the_left(attention_mask: torch.Tensor) -> bool:
    """Whether each text of a mask `(texts, tokens)` has at least one token, and all of them before its padding."""
    return bool(attention_mask[:, 0].all() and (attention_mask.diff(dim=1) <= 0).all())


def forward_packed(text_model: nn.Module, inner: Any, packing: Packing, inputs: dict) -> BaseModelOutputWithPooling:
    """What `inner`, the tower's own forward, gives for the `inputs`, which it reads as `packing` says."""
    input_ids, is_token = inputs["input_ids"], inputs["attention_mask"].bool()
    rows, starts = (torch.tensor(numbers, device=input_ids.device) for numbers in (packing.rows, packing.starts))
    tokens = torch.arange(input_ids.shape[1], device=input_ids.device)
    places = (rows * packing.width + starts)[:, None] + tokens  # of each token among those of all rows
    shape = (packing.num_rows, packing.width)

    def repack(values: torch.Tensor, filler: int) -> torch.Tensor:
        packed = values.new_full((packing.num_rows * packing.width,), filler)
        return packed.index_copy(0, places[is_token], values[is_token]).view(shape)

    packed = {
        name: repack(value, 0) if torch.is_tensor(value) and value.shape == input_ids.shape else value
        for name, value in inputs.items()
    }
    # RoBERTa counts positions from behind that of its padding
    first_position = getattr(text_model.embeddings, "padding_idx", -1) + 1
    packed["position_ids"] = repack(tokens.expand_as(input_ids), 0) + first_position
    text_of = repack(torch.arange(len(input_ids), device=input_ids.device)[:, None].expand_as(input_ids), -1)
    packed["attention_mask"] = pair_mask(text_model.config, text_of)
    hidden = inner(**packed).last_hidden_state
    last = places.gather(1, is_token.sum(dim=1, keepdim=True) - 1)
    hidden = hidden.flatten(0, 1)[places.minimum(last)]
    return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pool(text_model, hidden, input_ids))


def pair_mask(config: PreTrainedConfig, text_of: torch.Tensor) -> torch.Tensor:
    """
    Which tokens see which: those of the same text, in CLIP only the earlier ones.

    Args:
        config (`PreTrainedConfig`): of the text tower.
        text_of (`torch.Tensor` of shape `(rows, tokens)`):
            the number of the text that each token belongs to; -1 for a token of no text.

    Returns:
        `torch.Tensor` of shape `(rows, 1, tokens, tokens)`: bool, or what the eager attention adds to its logits.
    """
    sees = text_of[:, None, :, None] == text_of[:, None, None, :]
    if config.model_type == "clip_text_model":
        sees = sees.tril()
    if config._attn_implementation == "sdpa":
        return sees
    return torch.zeros(sees.shape, device=sees.device).masked_fill(~sees, torch.finfo(torch.float16).min)


def pool(text_model: nn.Module, hidden: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor | None:
    """
    The tower's own pooled state of each text, or `None` if it has none. CLIP's is that of the end of the text, see
    `CLIPTextModel.forward` in transformers/models/clip/modeling_clip.py.
    """
    if text_model.config.model_type == "clip_text_model":
        end = text_model.config.eos_token_id
        is_end = input_ids if end == 2 else (input_ids == end).int()
        return hidden[torch.arange(len(hidden), device=hidden.device), is_end.argmax(dim=1)]
    pooler = getattr(text_model, "pooler", None)
    return None if pooler is None else pooler(hidden)
