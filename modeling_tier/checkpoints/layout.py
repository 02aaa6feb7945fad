"""Tensors under the original names and ours: the renaming, and the check that none is missing or too many."""

import re
from collections.abc import Callable, Mapping

import torch
from transformers import PreTrainedModel

TRANSPOSED = ("visual.proj", "text_projection")  # plain parameters there, Linear here


def to_layout(state: Mapping[str, torch.Tensor], names: Mapping[str, tuple[str, ...]]) -> dict[str, torch.Tensor]:
    """Our tensors under the original names and in the original shapes."""
    tensors = {}
    for theirs, ours in names.items():
        tensor = torch.cat([state[own] for own in ours]) if len(ours) > 1 else state[ours[0]]
        tensors[theirs] = tensor.t().contiguous() if theirs.endswith(TRANSPOSED) else tensor
    return tensors


def from_layout(tensors: Mapping[str, torch.Tensor], names: Mapping[str, tuple[str, ...]]) -> dict[str, torch.Tensor]:
    """The inverse of [`to_layout`]."""
    state = {}
    for theirs, ours in names.items():
        tensor = tensors[theirs].t() if theirs.endswith(TRANSPOSED) else tensors[theirs]
        state.update(zip(ours, tensor.chunk(len(ours)) if len(ours) > 1 else [tensor], strict=True))
    return state


def check_tensors(
    tensors: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], unused: re.Pattern
) -> None:
    """
    Compare a checkpoint with what the model has.

    Raises:
        ValueError: a tensor is missing, is one too many, or has another shape or kind of number; it is named.
    """
    extra = [name for name in tensors if name not in expected and not unused.fullmatch(name)]
    for problem, names in (("lacks", [name for name in expected if name not in tensors]), ("has unknown", extra)):
        refuse_tensors(problem, names)
    for name, like in expected.items():
        tensor = tensors[name]
        if tensor.shape != like.shape:
            raise ValueError(
                f"The tensor {name} of the checkpoint has the shape {tuple(tensor.shape)}; the others ask for "
                f"{tuple(like.shape)}."
            )
        if tensor.is_floating_point() != like.is_floating_point():
            raise ValueError(f"The tensor {name} of the checkpoint holds {tensor.dtype}, not {like.dtype}.")


def refuse_tensors(problem: str, names: list[str]) -> None:
    """ValueError where there are any `names`."""
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise ValueError(f"The checkpoint {problem} tensors: {', '.join(names[:5])}{more}.")


def shape_of(tensors: Mapping[str, torch.Tensor], name: str, dims: int) -> tuple[int, ...]:
    refuse_tensors("lacks", [] if name in tensors else [name])
    shape = tuple(tensors[name].shape)
    if len(shape) != dims or 0 in shape:
        raise ValueError(f"The tensor {name} of the checkpoint has the shape {shape}, not one of {dims} dimensions.")
    return shape


def count_parts(tensors: Mapping[str, torch.Tensor], prefix: str) -> int:
    """How many numbered modules there are under `prefix`."""
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})


def fill(
    make: Callable[[], PreTrainedModel],
    tensors: Mapping[str, torch.Tensor],
    name_of: Callable[[list[str]], Mapping[str, tuple[str, ...]]],
    unused: re.Pattern,
) -> PreTrainedModel:
    """The model that `make` makes, with the tensors of a checkpoint; sizes are compared before memory is taken."""
    with torch.device("meta"):
        state = make().state_dict()
    names = name_of(list(state))
    check_tensors(tensors, to_layout(state, names), unused)
    model = make()
    # BioViL has no logit scale: there it stays as it was made.
    model.load_state_dict({"logit_scale": model.logit_scale, **from_layout(tensors, names)}, strict=True)
    return model.eval()
