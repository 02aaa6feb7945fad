"""
The options of [`TierTrainingArguments`] that transformers lacks, or for which it has another default. They stand apart
from their class in `training.py`, so that --help need not import torch and transformers.
"""

from dataclasses import dataclass, field

MAX_WORKERS = 16

COMPILED_LENGTHS = 16  # pad_to_multiple_of with torch_compile


@dataclass
class TrainingFields:
    """See the module."""

    learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "Peak learning rate; the default depends on the training. 5e-4 for random weights, 5e-5 for "
            "pretrained weights (a checkpoint or two towers), 1e-4 for a classifier on pretrained weights, 1e-2 for "
            "its head alone (--freeze_image_tower)."
        },
    )
    vision_lr_scale: float = field(
        default=1.0,
        metadata={"help": "Factor on the learning rate of the image tower. Its projection head keeps the full rate."},
    )
    text_lr_scale: float = field(
        default=1.0,
        metadata={"help": "Factor on the learning rate of the text tower. Its projection head keeps the full rate."},
    )
    layer_decay: float = field(
        default=1.0,
        metadata={
            "help": "Factor on the learning rate from each layer of a tower to the layer below. For fine-tuning, for "
            "example 0.75."
        },
    )
    entropy_warmup_steps: float = field(
        default=0,
        metadata={
            "help": "Steps over which both entropy weights grow linearly from 0. A value below 1 is a share of all "
            "steps."
        },
    )
    weight_decay: float = field(default=0.1, metadata={"help": "Weight decay of the matrices only."})
    adam_beta2: float = field(default=0.98, metadata={"help": "Beta2 of AdamW."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule of the learning rate."})
    warmup_steps: float = field(
        default=0.1, metadata={"help": "Warm-up steps of the learning rate. A value below 1 is a share of all steps."}
    )
    num_train_epochs: float = field(default=10, metadata={"help": "Epochs to train."})
    min_train_steps: int = field(
        default=0, metadata={"help": "With few images, train more epochs, until there are at least so many steps."}
    )
    per_device_train_batch_size: int = field(
        default=32,
        metadata={"help": "Pairs per process and step. Each is contrasted with all pairs of all processes."},
    )
    contrastive_chunk_size: int | None = field(
        default=None,
        metadata={
            "help": "Pairs in memory at a time, for batches that do not fit (gradient caching). The gradients equal "
            "those of the whole batch; it costs one more forward pass."
        },
    )
    pad_to_multiple_of: int | None = field(
        default=None,
        metadata={
            "help": "Pad the texts of a batch to a multiple of this many tokens. The limit is the length that the "
            "model reads. Few shapes suit --torch_compile, with which the default is "
            f"{COMPILED_LENGTHS}."
        },
    )
    group_texts: bool | None = field(
        default=None,
        metadata={
            "help": "Let the text tower read several short texts in one row, each for itself. The gradients are the "
            "same with hardly any padding. True by default on a CPU (docs/speed.md). Does not work with "
            "--torch_compile, FSDP or DeepSpeed.",
            **{"nargs": "?", "const": True},  # so that the bare option stays True
        },
    )
    train_sampling_strategy: str = field(
        default="random",
        metadata={
            "help": "Order of the training images: random, sequential or group_by_length. group_by_length puts texts "
            "of about equal length into a batch. It needs less padding, but changes which pairs meet: see "
            "docs/speed.md."
        },
    )
    bf16: bool | None = field(
        default=None, metadata={"help": "Mixed precision in bfloat16. True by default on a GPU that supports it."}
    )
    dataloader_num_workers: int | None = field(
        default=None,
        metadata={
            "help": "Processes that read and decode images, for each training process. By default, the CPU cores "
            f"available to that process minus one, at most {MAX_WORKERS}; 0 on a machine without an accelerator."
        },
    )
    dataloader_drop_last: bool = field(default=True, metadata={"help": "Drop the last, smaller batch of an epoch."})
    output_dir: str = field(default="runs/tier", metadata={"help": "New folder for the model, checkpoints and logs."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: epoch, steps or no."})
    per_device_eval_batch_size: int = field(
        default=32,
        metadata={
            "help": "Pairs per batch in evaluation. Each is contrasted with the others of its batch, for any number "
            "of processes. Use the number of pairs of a training step, or the two losses cannot be compared."
        },
    )
    save_strategy: str = field(
        default="epoch", metadata={"help": "When to save a checkpoint: epoch, steps, best or no."}
    )
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Checkpoints to keep. The best one is always kept."}
    )
    save_top_k: int | None = field(
        default=None,
        metadata={
            "help": "Keep this many best checkpoints by --metric_for_best_model, and the latest. They serve an "
            "ensemble or --average_top_k, and replace --save_total_limit."
        },
    )
    average_top_k: bool = field(
        default=False,
        metadata={
            "help": "End with the mean of the --save_top_k best checkpoints, not with the best one. Weights and "
            "batch-norm statistics are averaged."
        },
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={"help": "Stop after this many evaluations in a row without a better --metric_for_best_model."},
    )
    load_best_model_at_end: bool = field(
        default=True, metadata={"help": "End with the best checkpoint, not with the last."}
    )
    metric_for_best_model: str | None = field(
        default="eval_auroc",
        metadata={
            "help": "Metric that selects the best checkpoint: eval_auroc, eval_auroc_FINDING or eval_loss. "
            "Contrastive training also has eval_contrastive_loss, eval_token_entropy, eval_patch_entropy and, with "
            "--evidence_entropy_weight, eval_evidence_entropy."
        },
    )
    greater_is_better: bool | None = field(
        default=None,
        metadata={"help": "Whether a higher metric is better. By default, lower is better for losses and entropies."},
    )
    logging_steps: float = field(default=10, metadata={"help": "Log every this many steps."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Without effect. A loss that is not finite stops the run."}
    )
    resume_changed: bool = field(
        default=False,
        metadata={
            "help": "Resume even if the data or an option that changes the result differs. Needs "
            "--resume_from_checkpoint."
        },
    )
    remove_unused_columns: bool | None = field(
        default=False, metadata={"help": "Must stay false. The data are raw records."}
    )
    hub_private_repo: bool | None = field(
        default=True,
        metadata={
            "help": "Push to a private repository, and refuse a public one. A model trained on credentialed data "
            "(MIMIC-CXR, CheXpert) must not leak them. Use false only if the terms of the data allow a public "
            "model."
        },
    )
    report_to: None | str | list[str] = field(
        default=None,
        metadata={
            "help": "Trackers: tensorboard, wandb, mlflow, trackio or none. TensorBoard by default, if installed. "
            "See docs/trackers.md."
        },
    )
