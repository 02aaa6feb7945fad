"""One evaluation on several processes: `torchrun` or `accelerate launch` starts them, each does its share.

In a single process, the functions here change nothing.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from accelerate import PartialState

from evaluation_tier.models.loading import choose_device

Key = TypeVar("Key")
Value = TypeVar("Value")


@contextmanager
def joined_processes(device: str | None = None) -> Iterator[torch.device]:
    """Join the processes that a launcher started, and leave them; only the main one warns.

    Yields:
        The device of this process, by default a separate GPU if there are GPUs.

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

    Whole batches are dealt out in turn, so that every batch has the same rows as in a single process. A matrix product
    may round differently in a batch of another size.
    """
    rows = np.arange(num_rows)
    if not dist.is_initialized():
        return rows
    return rows[rows // batch_size % dist.get_world_size() == dist.get_rank()]


def merge_rows(values: np.ndarray, own: np.ndarray) -> np.ndarray:
    """
    `values` with the rows of every process.

    Args:
        values: (rows, ...) floats; those of this process's rows are used.
        own: the rows of this process, see `own_rows`.
    """
    if not dist.is_initialized():
        return values
    filled = np.full_like(values, -0.0)  # x + -0.0 is x to the bit, also for x = -0.0
    filled[own] = values[own]
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    total = torch.from_numpy(filled).to(device)
    dist.all_reduce(total)
    return total.cpu().numpy()


def merge_entries(entries: dict[Key, Value]) -> dict[Key, Value]:
    """The entries of every process, in the order of their keys; no two processes have the same key."""
    if dist.is_initialized():
        parts: list[dict] = [{}] * dist.get_world_size()
        dist.all_gather_object(parts, entries)
        entries = {key: value for part in parts for key, value in part.items()}
    return dict(sorted(entries.items()))


@contextmanager
def fail_together() -> Iterator[None]:
    """Raises an error of one process in all processes, so that the others do not wait forever.

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
