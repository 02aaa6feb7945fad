"""
How fast models embed images: the embedding alone, without reading and decoding. It varies from run to run, so it has a
file of its own and is not part of metrics.json.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from evaluation_tier.models.processes import merge_entries


class Speed:
    """
    The time that a model takes to embed images. Embeddings from the cache do not count.

    Args:
        model: of images and texts, a classifier, or one that meets the contract itself.
        batch_size: images embedded at once.
    """

    def __init__(self, model: nn.Module, batch_size: int):
        self.device: torch.device = model.device
        first = next(model.parameters(), None)
        self.dtype = None if first is None else str(first.dtype).removeprefix("torch.")
        self.batch_size = batch_size
        self.batches: list[tuple[int, float]] = []  # images and seconds of each

    @contextmanager
    def timing(self, num_images: int) -> Iterator[None]:
        """Counts the seconds inside for so many images."""
        self.wait()
        start = time.perf_counter()
        yield
        self.wait()
        self.batches.append((num_images, time.perf_counter() - start))

    def wait(self) -> None:
        """Until the device has done all that it was asked to do."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def describe(self) -> dict[str, Any]:
        """
        Of all processes together, which must all call this: `images` and `seconds` that were timed (of the slowest
        process), `images_per_second` (None without an image), `batch_size`, `device` and `dtype` (None if the model
        shows no parameter). The first batch of a process is left out where another follows: it also sets up kernels
        and memory.
        """
        counted = self.batches[1:] or self.batches
        own = sum(images for images, _ in counted), sum(seconds for _, seconds in counted)
        parts = merge_entries({dist.get_rank() if dist.is_initialized() else 0: own}).values()
        images, seconds = sum(part[0] for part in parts), max(part[1] for part in parts)
        return {
            "images": images,
            "seconds": seconds,
            "images_per_second": images / seconds if images and seconds else None,
            "batch_size": self.batch_size,
            "device": describe_device(self.device, len(parts)),
            "dtype": self.dtype,
        }


def describe_device(device: torch.device, num_processes: int = 1) -> str:
    """A device as a reader knows it, such as "CPU, 2 threads" or "2 x NVIDIA H200"."""
    if device.type == "cpu":
        threads = torch.get_num_threads()
        name = f"CPU, {threads} thread{'' if threads == 1 else 's'}"
    else:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return name if num_processes == 1 else f"{num_processes} x {name}"
