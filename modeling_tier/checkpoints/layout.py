"""Renaming tensors between an original layout and ours, and checking that names and shapes match one to one."""

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
    state: dict[str, torch.Tensor] = {}
    for theirs, ours in names.items():
        tensor = tensors[theirs].t() if theirs.endswith(TRANSPOSED) else tensors[theirs]
        state.update(zip(ours, tensor.chunk(len(ours)) if len(ours) > 1 else [tensor], strict=True))
    return state


def check_tensors(
    tensors: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor], unused: re.Pattern
) -> None:
    """
    Compares a checkpoint with the tensors of the model.

    Raises:
        ValueError: A tensor is missing, unknown, not finite, or has another shape or kind of number; the message
            names it.
    """
    extra = [name for name in tensors if name not in expected and not unused.fullmatch(name)]
    for problem, names in (("lacks", [name for name in expected if name not in tensors]), ("has unknown", extra)):
        refuse_tensors(problem, names)
    for name, like in expected.items():
        tensor = tensors[name]
        if tensor.shape != like.shape:
            raise ValueError(
                f"The tensor {name} of the checkpoint has the shape {tuple(tensor.shape)}, but the other tensors "
                f"imply {tuple(like.shape)}."
            )
        if tensor.is_floating_point() != like.is_floating_point():
            raise ValueError(f"The tensor {name} of the checkpoint holds {tensor.dtype}, not {like.dtype}.")
        if not tensor.isfinite().all():
            raise ValueError(
                f"The tensor {name} of the checkpoint holds numbers that are not finite: the training diverged, or "
                "the file is damaged. Use another checkpoint."
            )


def refuse_tensors(problem: str, names: list[str]) -> None:
    """Raises ValueError unless `names` is empty."""
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
    """The number of numbered modules under `prefix`."""
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})


def fill(
    make: Callable[[], PreTrainedModel],
    tensors: Mapping[str, torch.Tensor],
    name_of: Callable[[list[str]], Mapping[str, tuple[str, ...]]],
    unused: re.Pattern,
) -> PreTrainedModel:
    """The model of `make` with the tensors of a checkpoint. Sizes are compared before memory is allocated."""
    with torch.device("meta"):
        state = make().state_dict()
    names = name_of(list(state))
    check_tensors(tensors, to_layout(state, names), unused)
    model = make()
    # BioViL has no logit scale; the initial one stays.
    model.load_state_dict({"logit_scale": model.logit_scale, **from_layout(tensors, names)}, strict=True)
    return model.eval()
