"""How long, how fast and with what the training runs."""

import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import TrainingArguments
from transformers.integrations import is_tensorboard_available

from training_tier.loop.checkpoints import more_is_better
from training_tier.options.checks import (
    ARGUMENT_ERRORS,
    check_checkpointing,
    check_choice,
    check_optimizer,
    check_training_options,
    complete_metric,
)

ORDERS = ("random", "sequential", "group_by_length")  # of train_sampling_strategy

MAX_WORKERS = 16

RANDOM_WEIGHTS_RATE = 5e-4  # peak learning rate

COMPILED_LENGTHS = 16  # pad_to_multiple_of with torch_compile


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_workers(use_cpu: bool) -> int:
    """
    Data-loader workers of a process: the CPU cores that it may use, shared with the other processes of this machine,
    but for one of its own, and at most 16. None without an accelerator, where the model itself keeps the cores busy.
    """
    if use_cpu or not torch.accelerator.is_available():
        return 0
    return min(max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) - 1), MAX_WORKERS)


def choose_bf16(use_cpu: bool) -> bool:
    """Whether there is a GPU with arithmetic in bfloat16 of its own (NVIDIA from Ampere on)."""
    return not use_cpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


@dataclass
class TierTrainingArguments(TrainingArguments):
    """
    [`TrainingArguments`] with other defaults: evaluation and a checkpoint at the end of each epoch, the best one by
    zero-shot AUROC (`eval_auroc`) kept and loaded at the end, AdamW with beta2 0.98 (CLIP's, Radford et al. 2021,
    Table 18), a cosine schedule after a linear warm-up, incomplete batches dropped (their contrastive loss is easier),
    a private repository on the Hub, and no `remove_unused_columns`, since the data are raw records.
    """

    output_dir: str = field(default="runs/tier", metadata={"help": "New folder for the model, checkpoints and logs."})
    learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Peak learning rate. Where not given: 5e-4 for random weights, 5e-5 for pretrained ones (a "
            "checkpoint or two towers), 1e-4 for a classifier on pretrained weights, and 1e-2 for its head alone "
            "(--freeze_image_tower)."
        },
    )
    vision_lr_scale: float = field(
        default=1.0, metadata={"help": "Factor of the learning rate of the image tower (not of its projection head)."}
    )
    text_lr_scale: float = field(
        default=1.0, metadata={"help": "Factor of the learning rate of the text tower (not of its projection head)."}
    )
    layer_decay: float = field(
        default=1.0,
        metadata={
            "help": "Factor of the learning rate from each layer of a tower to the one below, for fine-tuning; for "
            "example 0.75."
        },
    )
    entropy_warmup_steps: float = field(
        default=0,
        metadata={
            "help": "Let the weights of the two entropies grow linearly from 0 over so many steps, or over a share of "
            "all steps below 1."
        },
    )
    weight_decay: float = field(default=0.1, metadata={"help": "Weight decay of the matrices (nothing else)."})
    adam_beta2: float = field(default=0.98, metadata={"help": "Beta2 of AdamW."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule of the learning rate."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Warm-up: steps, or a share of all steps below 1."})
    num_train_epochs: float = field(default=10, metadata={"help": "Epochs to train."})
    per_device_train_batch_size: int = field(
        default=32, metadata={"help": "Pairs per process and step: each is contrasted with all others of the step."}
    )
    contrastive_chunk_size: int | None = field(
        default=None,
        metadata={
            "help": "Train with batches far beyond memory: the towers see so many pairs at a time, and yet each is "
            "contrasted with all others of the step (gradient caching). The gradients are the same; it costs one more "
            "forward pass."
        },
    )
    pad_to_multiple_of: int | None = field(
        default=None,
        metadata={
            "help": "Pad the texts of a batch to a multiple of so many tokens (but to no more than the model reads), "
            "instead of to the longest: few shapes for --torch_compile, with which it is "
            f"{COMPILED_LENGTHS} where not given."
        },
    )
    group_texts: bool = field(
        default=False,
        metadata={
            "help": "In training, let the text tower read the texts of a batch in groups of about equal length, each "
            "padded to its own: the same gradients with less padding. Not with --torch_compile, FSDP or DeepSpeed."
        },
    )
    train_sampling_strategy: str = field(
        default="random",
        metadata={
            "help": "Order of the training images: random, sequential, or group_by_length, in which the texts of a "
            "batch are about as long. The last makes less padding, and other pairs meet: see docs/speed.md."
        },
    )
    bf16: bool | None = field(
        default=None, metadata={"help": "Mixed precision in bfloat16; true where not given on a GPU that has it."}
    )
    dataloader_num_workers: int | None = field(
        default=None,
        metadata={
            "help": "Processes that read and decode images for one that trains; where not given, the CPU cores of "
            f"that one but one, at most {MAX_WORKERS}, and none on a machine without an accelerator."
        },
    )
    per_device_eval_batch_size: int = field(
        default=32,
        metadata={
            "help": "Pairs of a batch in evaluation, each contrasted with the others of it, whatever the number "
            "of processes; as many as in a step of training, or the two losses do not compare."
        },
    )
    dataloader_drop_last: bool = field(default=True, metadata={"help": "Drop the last, smaller batch of an epoch."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save a checkpoint."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept, the best one always."})
    save_top_k: int | None = field(
        default=None,
        metadata={
            "help": "Keep so many checkpoints, those that are best by --metric_for_best_model, and the latest, "
            "instead of the --save_total_limit latest ones: for an ensemble, or for --average_top_k."
        },
    )
    average_top_k: bool = field(
        default=False,
        metadata={
            "help": "End with the mean of the weights (and of the statistics of batch norms) of the --save_top_k best "
            "checkpoints, not with the best one."
        },
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={"help": "Stop after so many evaluations in a row without a better --metric_for_best_model."},
    )
    load_best_model_at_end: bool = field(
        default=True, metadata={"help": "End with the best checkpoint, not the last."}
    )
    metric_for_best_model: str | None = field(
        default="eval_auroc",
        metadata={
            "help": "What makes a checkpoint the best: eval_auroc, eval_auroc_FINDING of one finding, or eval_loss "
            "(of pairs also eval_contrastive_loss, eval_token_entropy, eval_patch_entropy)."
        },
    )
    greater_is_better: bool | None = field(
        default=None,
        metadata={"help": "Whether more of that metric is better; where not given, of all but losses and entropies."},
    )
    logging_steps: float = field(default=10, metadata={"help": "Log every so many steps."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Without effect: a loss that is not finite ends the run."}
    )
    resume_changed: bool = field(
        default=False,
        metadata={
            "help": "With --resume_from_checkpoint: go on although the data or an option that changes the result is "
            "not what it was."
        },
    )
    remove_unused_columns: bool | None = field(default=False, metadata={"help": "Must stay false: records are raw."})
    hub_private_repo: bool | None = field(
        default=True,
        metadata={
            "help": "With --push_to_hub, push to a private repository, and refuse one that is public already: a model "
            "trained on credentialed data (MIMIC-CXR, CheXpert) must not leak them. False only where the terms of the "
            "data allow a public model."
        },
    )
    report_to: None | str | list[str] = field(
        default=None, metadata={"help": "Loggers; TensorBoard where it is installed, unless another is named."}
    )

    def __post_init__(self):
        if self.report_to is None:
            self.report_to = "tensorboard" if is_tensorboard_available() else "none"
        if self.resume_changed and self.resume_from_checkpoint is None:
            raise ValueError("resume_changed has no effect without --resume_from_checkpoint; leave it out.")
        check_choice("train_sampling_strategy", self.train_sampling_strategy, ORDERS)
        if self.dataloader_num_workers is None:
            self.dataloader_num_workers = choose_workers(self.use_cpu)
        if self.bf16 is None:
            self.bf16 = not self.fp16 and choose_bf16(self.use_cpu)
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.accelerator.is_available()
        self.learning_rate_given = self.learning_rate is not None
        if not self.learning_rate_given:
            self.learning_rate = RANDOM_WEIGHTS_RATE  # until it is known what is trained, see fill_defaults
        if self.greater_is_better is None and self.metric_for_best_model is not None:
            self.greater_is_better = more_is_better(self.metric_for_best_model)
        if not self.output_dir:
            raise ValueError("output_dir is empty; name a new folder.")
        check_training_options(self)
        try:
            super().__post_init__()
        except ValueError:
            raise
        except ARGUMENT_ERRORS as error:
            raise ValueError(f"An option of the training cannot be used: {' '.join(str(error).split())}") from error
        if self.accelerator_config.split_batches:
            raise ValueError(
                "split_batches=True would divide a batch among the processes, and fewer negatives are another "
                "training; leave it out, and choose --per_device_train_batch_size."
            )
        complete_metric(self)
        check_optimizer(self)
        check_checkpointing(self)
        if self.pad_to_multiple_of is None and self.torch_compile:
            self.pad_to_multiple_of = COMPILED_LENGTHS
        self._check_choosing()

    def _check_choosing(self) -> None:
        for name in ("save_top_k", "early_stopping_patience"):
            value = getattr(self, name)
            if value is None:
                continue
            if not self.load_best_model_at_end:
                raise ValueError(f"{name} needs load_best_model_at_end, which has every checkpoint evaluated.")
        if self.average_top_k and (self.save_top_k or 0) < 2:
            raise ValueError(f"average_top_k has no effect with save_top_k={self.save_top_k}; use for example 3.")
        if self.average_top_k and (self.fsdp or self.deepspeed):
            raise ValueError("average_top_k works on whole weights, not on those that FSDP or DeepSpeed part.")
        if self.save_top_k is not None:
            if self.save_total_limit not in (None, type(self).__dataclass_fields__["save_total_limit"].default):
                raise ValueError(
                    f"save_total_limit={self.save_total_limit} has no effect with save_top_k; leave it out."
                )
            self.save_total_limit = None
        if self.early_stopping_patience is not None:
            self.restore_callback_states_from_checkpoint = True  # else a resumed run counts from 0

    def check_output_dir(self) -> None:
        """
        Raises:
            `ValueError`: the folder cannot be written, or holds a model or checkpoints and the run is not a resumed
                one.
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
                    f"output_dir {self.output_dir!r} already holds a run; choose another, or continue that run with "
                    "--resume_from_checkpoint last."
                )
