"""Options of `train_tier.py`, on the command line or in a YAML file, checked before anything is read."""

import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import TrainingArguments
from transformers.integrations import is_tensorboard_available

from modeling_tier.configuration_tier import ENTROPY_TOKENS, IMAGE_POOLINGS
from processing_tier.columns import read_columns
from processing_tier.image_processing_tier import GEOMETRIES
from processing_tier.labels import parse_label_values
from processing_tier.records import TEXT_SOURCES, VIEW_CHOICES
from processing_tier.reports import DEIDENTIFIED_MODES

from .augmentation import AUGMENTATIONS
from .checkpoints import more_is_better
from .option_checks import (
    ARGUMENT_ERRORS,
    check_checkpointing,
    check_choice,
    check_optimizer,
    check_ranges,
    check_training_options,
    complete_metric,
)
from .presets import PRESETS
from .streaming import SHUFFLE_BUFFER

TASKS = ("contrastive", "classification")
ORDERS = ("random", "sequential", "group_by_length")  # of train_sampling_strategy
MAX_WORKERS = 16
RANDOM_WEIGHTS_RATE = 5e-4  # peak learning rate
COMPILED_LENGTHS = 16  # pad_to_multiple_of with torch_compile

# What says how images are contrasted with texts; of no use to a classifier.
CONTRASTIVE_OPTIONS = (
    "text_warmup_epochs",
    "frozen_text_layers",
    "soft_targets",
    "avoid_duplicates",
    "freeze_text_tower",
    "frozen_vision_layers",
    "text_lr_scale",
    "entropy_warmup_steps",
    "token_entropy_weight",
    "patch_entropy_weight",
    "entropy_temperature",
    "entropy_normalization",
    "entropy_tokens",
    "text",
    "deidentified",
    "sample_sentences",
    "image_views",
    "contrastive_chunk_size",
    "pad_to_multiple_of",
    "group_texts",
)


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
class TaskArguments:
    """Parameters that say what is learnt, and those of `--task classification` alone."""

    task: str = field(
        default="contrastive",
        metadata={
            "help": '"contrastive": which report belongs to which image; "classification": the findings, from their '
            "columns, with the image tower of --model."
        },
    )
    freeze_image_tower: bool = field(
        default=False,
        metadata={
            "help": "Keep the image tower as it is. Classification: train the head alone (a linear probe); "
            "contrastive: the projection heads and the text tower (locked-image tuning)."
        },
    )
    freeze_text_tower: bool = field(
        default=False, metadata={"help": "Keep the text tower as it is, but for its projection head."}
    )
    head_from_prompts: bool = field(
        default=False,
        metadata={
            "help": "Classification: start the head as the zero-shot classifier that --prompts make of --model."
        },
    )
    label_fraction: float = field(
        default=1.0,
        metadata={
            "help": "Classification: share of the training patients whose labels are used, for example 0.01. Drawn by "
            "--seed; a larger share holds the smaller ones."
        },
    )

    def __post_init__(self):
        check_choice("task", self.task, TASKS)
        check_ranges(self)
        if self.task != "classification":
            for name in ("head_from_prompts", "label_fraction"):
                if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                    raise ValueError(f"{name} has no effect on the task {self.task!r}; add --task classification.")


@dataclass
class ModelArguments:
    """
    Parameters that say which model is trained. `None` keeps what a checkpoint has, and for random weights the default
    of [`TierCLIPConfig`].
    """

    model: str = field(
        default="tiny",
        metadata={
            "help": f"Random weights of a preset ({', '.join(PRESETS)}), or a CLIP or TIER checkpoint to start from: "
            "a folder, or a name on the Hub (owner/name, or owner/name@revision)."
        },
    )
    vision_model: str | None = field(
        default=None,
        metadata={
            "help": "Instead of --model: a pretrained image backbone (folder or name, such as microsoft/resnet-50) to "
            "train with --text_model under new projection heads, as the paper does."
        },
    )
    text_model: str | None = field(
        default=None,
        metadata={"help": "The pretrained text encoder that --vision_model is joined to, BERT or the like."},
    )
    frozen_text_layers: int | None = field(
        default=None,
        metadata={
            "help": "Keep the embeddings and so many of the first layers of a pretrained text encoder as they are "
            "(the paper's 8 of 12); 0 for none."
        },
    )
    frozen_vision_layers: int | None = field(
        default=None,
        metadata={"help": "The same of a pretrained image tower; of a convolutional one, so many of its stages."},
    )
    tokenizer: str | None = field(
        default=None,
        metadata={
            "help": "Tokenizer (folder or name) for random weights; else one is trained on the training reports."
        },
    )
    vocab_size: int = field(default=4000, metadata={"help": "Upper bound on the tokens of a tokenizer trained here."})
    text_warmup_epochs: int = field(
        default=0,
        metadata={
            "help": "Passes over the reports in which the text tower learns from text alone; random weights only."
        },
    )
    image_size: int | None = field(
        default=None,
        metadata={
            "help": "Edge in pixels of the square the model sees. That of a checkpoint can be changed: its position "
            "embeddings are interpolated."
        },
    )
    geometry: str | None = field(
        default=None,
        metadata={"help": f"How a picture becomes a square: {', '.join(GEOMETRIES)}; pad for random weights."},
    )
    image_pooling: str | None = field(
        default=None,
        metadata={
            "help": 'Global image embedding: "patch_mean" (TIER\'s; default for random weights) or "cls" (CLIP\'s).'
        },
    )
    token_entropy_weight: float | None = field(
        default=None,
        metadata={
            "help": "Weight (>= 0) of the entropy of each word over the patches. Where not given: 0.2, or that of a "
            "checkpoint one of whose two weights is not 0. Both 0 are plain CLIP."
        },
    )
    patch_entropy_weight: float | None = field(
        default=None,
        metadata={"help": "Weight (>= 0) of the entropy of each patch over the words. Where not given: likewise."},
    )
    entropy_temperature: float | None = field(
        default=None, metadata={"help": "Divides the cosines before the softmax of the entropies; 1 is the paper's."}
    )
    entropy_normalization: bool | None = field(
        default=None, metadata={"help": "Divide each entropy by its maximum, ln K."}
    )
    entropy_tokens: str | None = field(
        default=None, metadata={"help": "Tokens the entropies count: words, attended or all (the authors' code)."}
    )

    def __post_init__(self):
        check_choice("geometry", self.geometry, (None, *GEOMETRIES))
        check_choice("image_pooling", self.image_pooling, (None, *IMAGE_POOLINGS))
        check_choice("entropy_tokens", self.entropy_tokens, (None, *ENTROPY_TOKENS))
        check_ranges(self)
        if (self.vision_model is None) != (self.text_model is None):
            raise ValueError("vision_model and text_model go together; name both, or a --model.")
        if self.vision_model is not None:
            for name in ("model", "tokenizer", "text_warmup_epochs"):
                if getattr(self, name) != type(self).__dataclass_fields__[name].default:
                    raise ValueError(f"{name} has no effect with vision_model and text_model; leave it out.")
        for name in ("frozen_text_layers", "frozen_vision_layers"):
            if getattr(self, name) and self.vision_model is None and self.model in PRESETS:
                raise ValueError(
                    f"{name}={getattr(self, name)} would keep the random weights of {self.model!r} as they are; it is "
                    "for pretrained ones."
                )
        if self.text_warmup_epochs and self.model not in PRESETS:
            raise ValueError(
                f"text_warmup_epochs={self.text_warmup_epochs} is for random weights (--model {', '.join(PRESETS)}); "
                "leave it out."
            )

    def config_overrides(self) -> dict:
        """The fields of the model's configuration that were given."""
        names = (
            "image_pooling",
            "token_entropy_weight",
            "patch_entropy_weight",
            "entropy_temperature",
            "entropy_normalization",
            "entropy_tokens",
            "frozen_text_layers",
        )
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclass
class DataArguments:
    """Parameters that say which radiographs and reports are used, and how."""

    data: str = field(
        default="phantom",
        metadata={
            "help": '"phantom" (synthetic radiographs made on the spot; "phantom:num_images=500,seed=1"), an image '
            "folder with <split>/metadata.csv, a table (.csv, .tsv, .xlsx, .jsonl, .parquet), NAME:FOLDER "
            "for an archive as its owner ships it, what tier-prepare wrote, or a data set on the Hub (owner/name)."
        },
    )
    columns: list[str] | None = field(
        default=None,
        metadata={"help": "A table's own column names, NAME=COLUMN each: image=Path impression=Text."},
    )
    image_root: str | None = field(default=None, metadata={"help": "Folder of the images of a table."})
    sheet: str | None = field(default=None, metadata={"help": "Sheet of an Excel table that has several."})
    label_values: list[str] | None = field(
        default=None,
        metadata={
            "help": "Words that a table has for findings, WORD=LABEL each, with 1 (present), 0 (absent), -1 "
            "(uncertain) or nothing (not stated): yes=1 no=0 unknown=."
        },
    )
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str | None = field(
        default=None,
        metadata={
            "help": "Split whose AUROC (zero-shot, or the classifier's) chooses the checkpoint. Without it, "
            "eval_fraction of the training patients are held out for that, so that no other split is touched."
        },
    )
    eval_fraction: float = field(
        default=0.1, metadata={"help": "Share of the training patients held out where eval_split is not given."}
    )
    text: str = field(
        default="impression",
        metadata={"help": f"Text of a report: {', '.join(TEXT_SOURCES)} (impression, or findings where it is empty)."},
    )
    deidentified: str = field(
        default="keep",
        metadata={
            "help": "Marks of de-identification (___, XXXX, [**...**]) in the text: keep, remove, or replace (___ for "
            "each). --sample_sentences always removes them."
        },
    )
    sample_sentences: bool = field(
        default=False,
        metadata={
            "help": "In training, draw in each epoch the impression, the findings or both, in shuffled sentences, "
            "instead of the text that --text names."
        },
    )
    avoid_duplicates: bool = field(
        default=False,
        metadata={
            "help": "Make the training batches so that no two of their reports say the same, as far as that can be: "
            "they would be negatives of one another. With --sample_sentences the impressions are compared (or the "
            "findings where there is none). Not with --streaming."
        },
    )
    soft_targets: bool = field(
        default=False,
        metadata={
            "help": "Pairs of a batch whose reports say the same (compared as by --avoid_duplicates) are no negatives "
            "of one another: each is to be matched with all of them alike."
        },
    )
    augmentation: str = field(
        default="standard",
        metadata={
            "help": "In training, vary position, size, rotation and exposure of each image: standard, tier (the "
            "paper's, with crops of at least 0.6 of the area), or none (CheXzero's). Never a mirror image."
        },
    )
    image_views: int = field(
        default=1,
        metadata={
            "help": "In training, vary each image so many times. The loss is the mean over all views with the texts "
            "and over the views with one another (TIER's code; its default is 1 too). Each view costs the memory and "
            "time of an image."
        },
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read the training images as they come from the shards of --data (written by tier-prepare; a "
            "folder or a name on the Hub), without a copy in a cache. The records are the same, in another order."
        },
    )
    image_cache: str | None = field(
        default=None,
        metadata={
            "help": "Folder in which the decoded grey training images are kept, for this run and all later ones; the "
            "pixels are the same. Not with --streaming."
        },
    )
    shuffle_buffer: int | None = field(
        default=None,
        metadata={
            "help": f"With --streaming: encoded images that each data-loader worker holds to shuffle "
            f"({SHUFFLE_BUFFER} where not given)."
        },
    )
    views: str = field(default="frontal", metadata={"help": f"Views to use: {', '.join(VIEW_CHOICES)}."})
    max_train_images: int | None = field(default=None, metadata={"help": "Use only this many training images."})
    findings: list[str] | None = field(
        default=None,
        metadata={"help": "Findings to score and to classify; by default all finding columns with enough positives."},
    )
    prompts: str = field(
        default="report", metadata={"help": "Prompts of the zero-shot AUROC (or head): a name or YAML file."}
    )
    min_positives: int = field(
        default=5,
        metadata={
            "help": "Positives a finding needs in the evaluation images to enter the mean AUROC; for a classifier "
            "also the positives and the negatives it needs in training."
        },
    )

    def __post_init__(self):
        check_choice("text", self.text, TEXT_SOURCES)
        check_choice("deidentified", self.deidentified, DEIDENTIFIED_MODES)
        check_choice("augmentation", self.augmentation, AUGMENTATIONS)
        if self.image_views < 1 or self.image_views > 1 and self.augmentation == "none":
            raise ValueError(
                f"image_views={self.image_views} must be at least 1, and several need an augmentation that makes them "
                "differ; use 1, or another --augmentation."
            )
        check_choice("views", self.views, VIEW_CHOICES)
        check_ranges(self)
        if self.findings is not None and (not self.findings or not all(name.strip() for name in self.findings)):
            raise ValueError(f"findings={self.findings} names nothing; leave it out, or write names.")
        if self.findings is not None and len(set(self.findings)) < len(self.findings):
            raise ValueError(f"findings={self.findings} names one twice; name each once.")
        if self.sample_sentences and self.deidentified not in ("keep", "remove"):
            raise ValueError(
                f"deidentified={self.deidentified!r} has no effect with sample_sentences, which removes the marks; "
                "leave it out."
            )
        if self.streaming and self.avoid_duplicates:
            raise ValueError(
                "avoid_duplicates orders the images by their texts, and streaming by where they lie; leave one of "
                "them out (--soft_targets goes with both)."
            )
        if self.streaming and self.eval_split is None:
            raise ValueError("Streaming cannot hold out patients: pass --eval_split.")
        if self.streaming and self.image_cache is not None:
            raise ValueError(
                "image_cache keeps a copy of the images, and streaming is for doing without one; leave one of them "
                "out."
            )
        for name in ("columns", "image_root", "sheet", "label_values"):
            if self.streaming and getattr(self, name) is not None:
                raise ValueError(f"{name} has no effect with streaming, which reads prepared data; leave it out.")
        if self.shuffle_buffer is not None and not self.streaming:
            raise ValueError(f"shuffle_buffer={self.shuffle_buffer} has no effect without --streaming; leave it out.")
        read_columns(self.columns)

        parse_label_values(self.label_values)

    def column_names(self) -> dict[str, str] | None:
        """Schema name to the table's column."""
        return read_columns(self.columns)


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


def without_effect(*arguments) -> list[str]:
    """The options that were given among those in `CONTRASTIVE_OPTIONS`."""
    return [
        name
        for group in arguments
        for name, described in group.__dataclass_fields__.items()
        if name in CONTRASTIVE_OPTIONS and getattr(group, name) != described.default
    ]
