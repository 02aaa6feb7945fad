"""
The short --help of `train_tier.py`: one line an option, by subject. It is made of the fields of our dataclasses alone
and imports neither torch nor transformers, so that it answers at once; --help_all has every option and all texts.
"""

import argparse
import types
import typing
from dataclasses import MISSING, Field

from training_tier.options.data import DataArguments
from training_tier.options.model import ModelArguments
from training_tier.options.recipes import list_recipes
from training_tier.options.search import SearchArguments
from training_tier.options.task import TaskArguments
from training_tier.options.training_fields import TrainingFields

HELP, HELP_ALL = ("-h", "--help"), ("--help_all", "--help-all")

GROUPS = {
    "task and model": (
        *("task", "model", "vision_model", "text_model", "image_size", "geometry", "image_pooling", "text_pooling"),
        *("tokenizer", "vocab_size", "text_warmup_epochs", "freeze_image_tower", "freeze_text_tower"),
        *("frozen_vision_layers", "frozen_text_layers", "adapter_layers", "text_lora_rank", "head_from_prompts"),
        "image_head_dropout",
    ),
    "data": (
        *("data", "columns", "image_root", "sheet", "label_values", "train_split", "eval_split", "eval_fraction"),
        *("views", "max_train_images", "label_fraction", "text", "deidentified", "sample_sentences"),
        *(
            "sentences_per_image",
            "rare_sentences",
            "augmentation",
            "image_views",
            "streaming",
            "shuffle_buffer",
            "image_cache",
        ),
        "cache_features",
    ),
    "loss": (
        *("token_entropy_weight", "patch_entropy_weight", "evidence_entropy_weight", "evidence_patches"),
        *("entropy_temperature", "entropy_normalization", "entropy_tokens", "entropy_warmup_steps"),
        *("soft_targets", "avoid_duplicates"),
    ),
    "training": (
        *("num_train_epochs", "min_train_steps", "per_device_train_batch_size", "learning_rate"),
        *(
            "vision_lr_scale",
            "text_lr_scale",
            "layer_decay",
            "lr_scheduler_type",
            "warmup_steps",
            "weight_decay",
            "adam_beta2",
        ),
        *("train_sampling_strategy", "dataloader_drop_last"),
    ),
    "memory and speed": (
        *("contrastive_chunk_size", "bf16", "dataloader_num_workers", "group_texts", "pad_to_multiple_of"),
    ),
    "evaluation and the best checkpoint": (
        *("eval_strategy", "per_device_eval_batch_size", "findings", "prompts", "min_positives"),
        *("metric_for_best_model", "greater_is_better", "load_best_model_at_end", "early_stopping_patience"),
    ),
    "saving, resuming and logging": (
        *("output_dir", "save_strategy", "save_total_limit", "save_top_k", "average_top_k", "resume_changed"),
        *("logging_steps", "report_to"),
    ),
    "the Hub": ("hub_private_repo",),
    "search of the entropy weights, instead of a training": ("search_trials", "search_epochs", "search_max_weight"),
}

UNUSED = ("remove_unused_columns", "logging_nan_inf_filter")  # one value alone is allowed, or none has an effect

# Options of transformers' TrainingArguments that trainings often need: metavar and text
LIBRARY_GROUP = "often used options of transformers' Trainer"
LIBRARY_OPTIONS = {
    "max_steps": ("N", "Train this many steps instead of --num_train_epochs."),
    "seed": ("N", "Seed of weights, order, augmentation and held-out patients [42]."),
    "gradient_accumulation_steps": ("N", "Steps that share one update; they add no negatives [1]."),
    "max_grad_norm": ("X", "Clip the gradient to this norm [1.0]."),
    "optim": ("TEXT", "Optimizer, for example adamw_torch or sgd."),
    "eval_steps": ("N", "With --eval_strategy steps: evaluate every this many steps."),
    "save_steps": ("N", "With --save_strategy steps: save every this many steps [500]."),
    "resume_from_checkpoint": ("TEXT", "Resume from a checkpoint folder, or from the last one (last)."),
    "gradient_checkpointing": (None, "Recompute activations to save memory."),
    "torch_compile": (None, "Compile the model."),
    "use_cpu": (None, "Train on the CPU even if there is a GPU."),
    "run_name": ("TEXT", "Name of the run for the loggers."),
    "push_to_hub": (None, "Push the model to the Hub."),
    "hub_model_id": ("TEXT", "Repository to push to (owner/name)."),
}

KINDS = (TaskArguments, ModelArguments, DataArguments, TrainingFields, SearchArguments)


def own_fields() -> dict[str, Field]:
    return {name: field for kind in KINDS for name, field in kind.__dataclass_fields__.items()}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds one line for each option to a parser, for its help alone: [`parse_arguments`] parses."""
    parser.add_argument(
        "recipe", nargs="?", metavar="RECIPE", help=f"a YAML file with options, or one of {', '.join(list_recipes())}"
    )
    parser.add_argument("--help_all", action="store_true", help="print every option with its whole text, and exit")
    fields = own_fields()
    for title, names in GROUPS.items():
        group = parser.add_argument_group(title)
        for name in names:
            add_option(group, name, choose_metavar(fields[name]), describe(fields[name]))
    group = parser.add_argument_group(LIBRARY_GROUP)
    for name, (metavar, text) in LIBRARY_OPTIONS.items():
        add_option(group, name, metavar, text)


def add_option(group: argparse._ArgumentGroup, name: str, metavar: str | None, text: str) -> None:
    text = text.removesuffix(".").replace(".)", ")").replace("%", "%%")
    if metavar is None:
        group.add_argument(f"--{name}", action="store_true", help=text)
    else:
        group.add_argument(f"--{name}", metavar=metavar, help=text)


def describe(field: Field) -> str:
    """The first sentence of an option's text, and its default."""
    sentence = field.metadata["help"].partition(". ")[0].removesuffix(".")
    default = None if field.default in (MISSING, False) else field.default
    return sentence if default is None else f"{sentence} [{str(default).lower() if default is True else default}]"


def choose_metavar(field: Field) -> str | None:
    """The placeholder of an option's value in the help; None for a flag."""
    union = typing.get_origin(field.type) in (typing.Union, types.UnionType)
    kinds = {typing.get_origin(kind) or kind for kind in (typing.get_args(field.type) if union else (field.type,))}
    if bool in kinds:
        return None if field.default is False else "BOOL"
    if list in kinds:
        return "TEXT ..."
    return "N" if int in kinds else "X" if float in kinds else "TEXT"
