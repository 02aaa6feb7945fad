"""The time of a training step, tried before the training starts and without a trace in it."""

import time
from collections.abc import Callable
from itertools import cycle, islice

import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, TrainingArguments
from transformers.training_args import ParallelMode

from training_tier.data.collator import count_images
from training_tier.data.streaming import ShardedImages
from training_tier.memory.gradient_caching import backward_in_chunks

READ_IMAGES = 32  # at most, repeated to fill a batch
LONG_PASS = 5.0  # seconds, of which what a first pass prepares is a small share


def time_trial_step(model: PreTrainedModel, loader: DataLoader, args: TrainingArguments) -> float | None:
    """
    Reads the first images and computes their loss and its gradients twice, of which the second counts. Afterwards the
    gradients are gone, and the running statistics of batch norms and the random state are as before.

    Args:
        model ([`PreTrainedModel`]): in the place and the precision in which it trains.
        loader (`DataLoader`): of the training; its data set and its `collate_fn` are used.
        args ([`TrainingArguments`]): of the training.

    Returns:
        `float`: seconds. None with several processes or GPUs, `torch_compile` or streaming, where a trial would take
            long or show less than a step does, and if none of the images decodes.
    """
    dataset, workers = loader.dataset, args.dataloader_num_workers
    if args.parallel_mode != ParallelMode.NOT_PARALLEL or args.torch_compile:
        return None
    if isinstance(getattr(dataset, "images", None), ShardedImages):
        return None
    started = time.perf_counter()
    items = [dataset[i] for i in range(min(READ_IMAGES, args.train_batch_size, len(dataset)))]
    batch = loader.collate_fn(list(islice(cycle(items), args.train_batch_size)))
    reading = (time.perf_counter() - started) * args.train_batch_size / len(items)
    if not count_images(batch):
        return None
    computing = time_passes(lambda: compute_gradients(model, batch, args), model, args.device)
    return args.gradient_accumulation_steps * (max(reading / workers, computing) if workers else reading + computing)


def compute_gradients(model: PreTrainedModel, batch: dict, args: TrainingArguments) -> None:
    """Adds the gradients of the loss of a batch to those of the model."""
    inputs = {
        name: value.to(args.device) if torch.is_tensor(value) else value
        for name, value in batch.items()
        if name not in ("image_ids", "indices", "unreadable")
    }
    chunk_size = getattr(args, "contrastive_chunk_size", None)
    if chunk_size is not None:
        backward_in_chunks(model, inputs, chunk_size)
    else:
        model(**inputs).loss.backward()


def time_passes(compute: Callable[[], None], model: PreTrainedModel, device: torch.device) -> float:
    """Seconds of the second pass, or of the first if it is long; the model and the random state are as before."""
    model.train()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type if devices else "cuda"):
        for _ in range(2):
            started = time.perf_counter()
            compute()
            if devices:
                torch.accelerator.synchronize()
            seconds = time.perf_counter() - started
            model.zero_grad()
            if seconds > LONG_PASS:
                break
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    return seconds
