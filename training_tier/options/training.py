"""The options of transformers' Trainer with this project's defaults, and their values on this machine."""

import logging
import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import TrainingArguments
from transformers.integrations import is_tensorboard_available

from training_tier.loop.checkpoints import more_is_better
from training_tier.options import compatibility
from training_tier.options.library_checks import (
    ARGUMENT_ERRORS,
    check_checkpointing,
    check_optimizer,
    check_training_options,
    complete_metric,
    complete_schedule,
)
from training_tier.options.training_fields import COMPILED_LENGTHS, MAX_WORKERS, TrainingFields

logger = logging.getLogger(__name__)

RANDOM_WEIGHTS_RATE = 5e-4  # peak learning rate


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_workers(use_cpu: bool) -> int:
    """
    Data-loader workers of a process: its share of the CPU cores minus one, at most 16. Without an accelerator 0, since
    the model itself keeps the cores busy.
    """
    if use_cpu or not torch.accelerator.is_available():
        return 0
    return min(max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) - 1), MAX_WORKERS)


def choose_bf16(use_cpu: bool) -> bool:
    """Whether a GPU computes in bfloat16 without emulation (NVIDIA from Ampere on)."""
    return not use_cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


@dataclass
class TierTrainingArguments(TrainingFields, TrainingArguments):
    """
    [`TrainingArguments`] with other defaults: evaluation and a checkpoint at the end of each epoch, the best one by
    zero-shot AUROC (`eval_auroc`) kept and loaded at the end, AdamW with beta2 0.98 (CLIP's, Radford et al. 2021,
    Table 18), a cosine schedule after a linear warm-up, incomplete batches dropped (their contrastive loss is easier),
    a private repository on the Hub, and no `remove_unused_columns`, since the data are raw records.
    """

    def __post_init__(self) -> None:
        if self.report_to is None:
            self.report_to = "tensorboard" if is_tensorboard_available() else "none"
        if self.dataloader_num_workers is None:
            self.dataloader_num_workers = choose_workers(self.use_cpu)
        if self.bf16 is None:
            self.bf16 = not self.fp16 and choose_bf16(self.use_cpu)
        if not torch.accelerator.is_available():
            self.dataloader_pin_memory = False
        self.learning_rate_given = self.learning_rate is not None
        if not self.learning_rate_given:
            self.learning_rate = RANDOM_WEIGHTS_RATE  # replaced by fill_defaults, which knows the task and the model
        if self.greater_is_better is None and self.metric_for_best_model is not None:
            self.greater_is_better = more_is_better(self.metric_for_best_model)
        if not self.output_dir:
            raise ValueError("output_dir is empty; name a new folder.")
        check_training_options(self)
        compatibility.check_training(self)
        try:
            super().__post_init__()
        except ValueError as error:  # some of the library's have several lines
            raise ValueError(" ".join(str(error).split())) from error
        except ARGUMENT_ERRORS as error:
            raise ValueError(f"A training option cannot be used: {' '.join(str(error).split())}") from error
        if self.accelerator_config.split_batches:
            raise ValueError(
                "split_batches=True would divide a batch among the processes, which leaves fewer negatives; leave it "
                "out, and set --per_device_train_batch_size."
            )
        complete_metric(self)
        compatibility.check_choosing(self)
        complete_schedule(self)
        check_optimizer(self)
        check_checkpointing(self)
        if self.pad_to_multiple_of is None and self.torch_compile:
            self.pad_to_multiple_of = COMPILED_LENGTHS
        if self.save_top_k is not None:
            self.save_total_limit = None
        if self.early_stopping_patience is not None:
            self.restore_callback_states_from_checkpoint = True  # else a resumed run counts from 0

    def reach_min_train_steps(self, num_images: int) -> None:
        """
        Raises `num_train_epochs` to the epochs of `num_images` images that have at least `min_train_steps` steps, and
        logs it. A warning says if `max_steps` leaves it without effect.
        """
        if self.max_steps > 0:
            if self.min_train_steps:
                logger.warning("min_train_steps has no effect with max_steps=%d.", self.max_steps)
            return
        batch_size = self.train_batch_size * self.world_size
        batches = num_images // batch_size if self.dataloader_drop_last else math.ceil(num_images / batch_size)
        epochs = math.ceil(self.min_train_steps / math.ceil(batches / self.gradient_accumulation_steps))
        if epochs > self.num_train_epochs:
            logger.info(
                "%d epochs instead of %g: so few images need them for %d steps (min_train_steps).",
                epochs,
                self.num_train_epochs,
                self.min_train_steps,
            )
            self.num_train_epochs = epochs

    def check_output_dir(self) -> None:
        """
        Raises:
            `ValueError`: the folder cannot be written, or it holds a run and this run does not resume it.
        """
        folder = Path(self.output_dir).absolute()
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        try:  # the permissions alone say yes to root on a disk that is read-only, and in /proc
            tempfile.TemporaryFile(dir=existing).close()
        except OSError as error:
            raise ValueError(f"output_dir {self.output_dir!r} cannot be written; choose another.") from error
        if self.resume_from_checkpoint is None and os.path.isdir(self.output_dir):
            content = os.listdir(self.output_dir)
            if "config.json" in content or any(name.startswith("checkpoint-") for name in content):
                raise ValueError(
                    f"output_dir {self.output_dir!r} already holds a run; choose another, or resume that run with "
                    "--resume_from_checkpoint last."
                )
