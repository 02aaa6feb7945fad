"""How fast a training runs: images per second, time spent waiting for data, and floating-point operations."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from training_tier.data.collator import count_images
from training_tier.data.text_packing import pack

# Floating-point operations per second of dense 16-bit matrix products, from the data sheets.
PEAK_FLOPS = {
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "V100": 125e12,
}


def peak_flops(device_name: str) -> float | None:
    """Operations per second of a GPU by its name (the longest match); `None` for an unknown one."""
    words = f" {device_name.replace('-', ' ')} "
    names = [name for name in PEAK_FLOPS if f" {name} " in words]
    return PEAK_FLOPS[max(names, key=len)] if names else None


def training_flops(model: torch.nn.Module, inputs: dict) -> float:
    """
    Floating-point operations of one pair in training: by convention three times those of a forward pass, even if parts
    are frozen or computed twice. A multiplication and an addition count as two; causal attention counts as full.

    Args:
        model (`torch.nn.Module`): in any mode. The count draws no random numbers and changes no statistics.
        inputs (`dict`): one pair.
    """
    was_training = model.training
    model.eval()
    # the counter misses fused attention kernels (all of them on CPUs), so attention runs as plain matrix products
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**inputs)
    model.train(was_training)
    return 3.0 * counter.get_total_flops()


def flops_by_length(model: torch.nn.Module, pair: dict) -> np.ndarray:
    """
    [`training_flops`] of a pair whose text has L tokens (with padding), as the coefficients of 1, L and L^2: layers
    grow with L, attention also with L^2. They follow from the counts for three short texts.

    Args:
        model (`torch.nn.Module`): see [`training_flops`].
        pair (`dict`): tensors of one row each. Without `input_ids` the last two coefficients are 0.
    """
    if "input_ids" not in pair:
        return np.array([training_flops(model, pair), 0, 0])
    tokens, lengths = pair["input_ids"].shape[1], (4, 8, 12)
    counts = []
    for length in lengths:
        # the first token repeated, then the last attended one
        inputs = {
            name: value[:, :1].expand(1, length, *value.shape[2:]).clone()
            if value.shape[1:] == (tokens,) or name == "text_hidden_state"
            else value
            for name, value in pair.items()
        }
        end = pair["attention_mask"][0].nonzero().max() if "attention_mask" in pair else -1
        inputs["input_ids"][:, -1] = pair["input_ids"][:, end]
        counts.append(training_flops(model, inputs))
    return np.linalg.solve(np.vander(lengths, increasing=True), counts)


class Throughput(TrainerCallback):
    """
    Measures the speed of training without evaluation and saving: `images_per_second` of all processes, `data_wait`
    (share of the time in which a step waits for its batch), `tflops` (10^12 operations per second and process, of
    texts with their padding) and, in 16 bits on a GPU of `PEAK_FLOPS`, `mfu` (model FLOPs utilization).

    Args:
        group_texts (`bool`, *optional*, defaults to `False`): texts share rows as [`read_packed`] says.
    """

    def __init__(self, group_texts: bool = False):
        self.group_texts = group_texts
        self.example: dict | None = None  # one pair
        self.flops: np.ndarray | None = None  # see flops_by_length
        self.clear()

    def clear(self) -> None:
        self.counted = np.zeros(3)  # images, and the sums over the texts of L and L^2 for texts of L tokens
        self.seconds, self.waited = 0.0, 0.0

    def on_batch_wait(self) -> None:
        self.started = time.perf_counter()

    def on_batches(self, batches: Sequence[dict]) -> None:
        self.waited += time.perf_counter() - self.started
        for batch in batches:
            lengths = np.zeros(0)
            if "input_ids" in batch and self.group_texts:
                packing = pack(batch["attention_mask"].sum(dim=1).tolist())
                lengths = np.full(packing.num_rows, packing.width)
            elif "input_ids" in batch:
                lengths = np.full(*batch["input_ids"].shape)
            self.counted += count_images(batch), lengths.sum(), (lengths**2).sum()
        if self.example is None and batches:
            self.example = {name: value[:1] for name, value in batches[0].items() if torch.is_tensor(value)}

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.seconds += time.perf_counter() - self.started

    def pop(self, model: torch.nn.Module, processes: int, half_precision: bool) -> dict[str, float]:
        """The log entries since the last call."""
        if not self.seconds:
            return {}
        if self.flops is None:
            self.flops = flops_by_length(model, {k: v.to(model.device) for k, v in self.example.items()})
        flops = float(self.flops @ self.counted) / self.seconds
        logs = {
            "images_per_second": float(self.counted[0]) / self.seconds * processes,
            "data_wait": self.waited / self.seconds,
            "tflops": flops / 1e12,
        }
        if half_precision and model.device.type == "cuda":
            peak = peak_flops(torch.cuda.get_device_name(model.device))
            if peak is not None:
                logs["mfu"] = flops / peak
        self.clear()
        return logs
