"""
The global batch: the pairs of all processes of `torch.distributed`, and the collectives that losses need.

When several processes share a batch, all of them must call the functions below. DistributedDataParallel averages the
gradients over the processes, so each process returns its share times the number of processes.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn

_share_batches = True  # see `separate_batches`


class Pairs(NamedTuple):
    """Images and their texts: those of image i are the rows from i * texts_per_image on."""

    images: torch.Tensor  # (rows, dim), L2-normalised
    texts: torch.Tensor  # (texts_per_image * rows, dim), L2-normalised
    groups: torch.Tensor | None = None  # (texts_per_image * rows,), int64, equal for texts that say the same
    each_group_once: bool = False  # whether the loss counts each group once; otherwise it counts each text

    @property
    def texts_per_image(self) -> int:
        return len(self.texts) // len(self.images)


def by_image(texts: torch.Tensor, texts_per_image: int) -> torch.Tensor:
    """
    The rows of a batch (all first texts of the images, then all second ones, and so on) in the order of [`Pairs`]. The
    number of images instead of `texts_per_image` reverses this.
    """
    return texts.unflatten(0, (texts_per_image, -1)).transpose(0, 1).flatten(0, 1)


def group_sizes(groups: torch.Tensor) -> torch.Tensor:
    """For each of the groups (int64 of shape `(texts,)`), how often it occurs among them."""
    ordered = groups.sort().values  # unlike torch.unique, of a shape that torch.compile knows
    return torch.searchsorted(ordered, groups, right=True) - torch.searchsorted(ordered, groups)


@contextlib.contextmanager
def separate_batches() -> Iterator[None]:
    """
    Treats the batch of each process as a whole batch: the losses exchange nothing. Evaluation needs this, because its
    loss must not depend on the number of processes.
    """
    global _share_batches
    before, _share_batches = _share_batches, False
    try:
        yield
    finally:
        _share_batches = before


def world_size() -> int:
    """Number of processes that share a batch; 1 outside `torch.distributed` and in [`separate_batches`]."""
    is_shared = _share_batches and dist.is_available() and dist.is_initialized()
    return dist.get_world_size() if is_shared else 1


class GatherWithGradient(torch.autograd.Function):
    """Concatenates the processes' tensors of equal shape; backward sums the gradients of all processes' losses."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, tensor.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad)
        return grad.chunk(dist.get_world_size())[dist.get_rank()]


def concatenate_processes(tensor: torch.Tensor) -> tuple[torch.Tensor, int]:
    """
    Rows of all processes in the order of their ranks, with gradient, and the index of this process's first row.
    The numbers of rows may differ.
    """
    rows = [torch.zeros(1, dtype=torch.long, device=tensor.device) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, torch.tensor([len(tensor)], device=tensor.device))
    rows = torch.cat(rows).tolist()
    padded = nn.functional.pad(tensor, (0, 0, 0, max(rows) - len(tensor)))  # collectives need equal shapes
    chunks = GatherWithGradient.apply(padded).chunk(len(rows))
    gathered = torch.cat([chunk[:n] for chunk, n in zip(chunks, rows, strict=True)])
    return gathered, sum(rows[: dist.get_rank()])


def gather_pairs(own: Pairs) -> tuple[Pairs, int]:
    """The pairs of all processes that share a batch, and the index of this process's first image among them."""
    if world_size() == 1:
        return own, 0
    images, first = concatenate_processes(own.images)
    texts, _ = concatenate_processes(own.texts)
    groups = None if own.groups is None else concatenate_processes(own.groups.unsqueeze(1))[0].squeeze(1)
    return Pairs(images, texts, groups, own.each_group_once), first


def mean_over_processes(sums: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """
    Sums divided by the counts of all processes (by 1 where a count is 0). The mean of the results over the processes
    is the mean of the global batch.
    """
    processes = world_size()
    if processes > 1:
        counts = counts.clone()
        dist.all_reduce(counts)
    # Times the number of processes, because DistributedDataParallel averages the gradients over them.
    return sums * processes / counts.clamp(min=1)


def mean_row(tensor: torch.Tensor) -> torch.Tensor:
    """The mean row (dim,) of a matrix (rows, dim) over the rows of all processes: float32, without gradient."""
    total, rows = tensor.detach().float().sum(0), len(tensor)
    if world_size() > 1:
        both = torch.cat([total, total.new_tensor([rows])])
        dist.all_reduce(both)
        total, rows = both[:-1], both[-1]
    return total / rows
