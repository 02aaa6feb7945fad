"""One evaluation on several processes: `torchrun` or `accelerate launch` starts them, each does its part.

Where only one process runs, every function here does nothing.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as dist
from accelerate import PartialState

from evaluation_tier.models.loading import choose_device


@contextmanager
def joined_processes(device: str | None = None) -> Iterator[torch.device]:
    """Join the processes that a launcher started, and leave them; only the main one warns.

    Yields:
        The device of this process, by default a GPU of its own where there are GPUs.

    Raises:
        ValueError: for a device that cannot be used here.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield choose_device(device)
        return
    state = PartialState(cpu=device == "cpu")
    disabled = logging.root.manager.disable
    if not state.is_main_process:
        logging.disable(logging.WARNING)
    try:
        yield state.device if device is None else choose_device(device)
    finally:
        logging.disable(disabled)
        state.destroy_process_group()


def is_main_process() -> bool:
    """Whether this process is the one that writes and prints."""
    return not dist.is_initialized() or dist.get_rank() == 0


def own_rows(num_rows: int, batch_size: int) -> np.ndarray:
    """The rows that this process works on, ascending.

    Whole batches are dealt out in turn, so that every batch holds the rows that it holds in a single process: a
    matrix product may round differently in a batch of another size.
    """
    rows = np.arange(num_rows)
    if not dist.is_initialized():
        return rows
    return rows[rows // batch_size % dist.get_world_size() == dist.get_rank()]


def gather_rows(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """`values` with the rows of every process.

    Args:
        values: (..., num_rows, columns) float64; those of this process's `rows` are used.
        rows: see `own_rows`.
    """
    if not dist.is_initialized():
        return values
    own = np.full_like(values, -0.0)  # x + -0.0 is x to the bit, also for x = -0.0
    own[..., rows, :] = values[..., rows, :]
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    total = torch.from_numpy(own).to(device)
    dist.all_reduce(total)
    return total.cpu().numpy()


@contextmanager
def fail_together() -> Iterator[None]:
    """Around what every process does for itself: an error of one is raised in all, which none then waits for.

    A ValueError or an OSError counts; the others raise a ValueError with its message.
    """
    message = None
    try:
        yield
    except (ValueError, OSError) as error:
        if not dist.is_initialized():
            raise
        message = str(error)
    if dist.is_initialized():
        messages: list[str | None] = [None] * dist.get_world_size()
        dist.all_gather_object(messages, message)
        for message in messages:
            if message is not None:
                raise ValueError(message)
