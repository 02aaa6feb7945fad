"""The value of one option: its range and its choices. Pairs of options are in `compatibility.py`."""

import difflib
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from modeling_tier.configuration_tier import ENTROPY_TOKENS
from modeling_tier.pooling_tier import IMAGE_POOLINGS, TEXT_POOLINGS
from processing_tier.image_processing_tier import GEOMETRIES
from processing_tier.records.schema import TEXT_SOURCES, VIEW_CHOICES
from processing_tier.reports.deidentification import DEIDENTIFIED_MODES
from training_tier.data.augmentation import AUGMENTATIONS


@dataclass(frozen=True)
class Range:
    """The numbers that an option takes."""

    low: float
    low_allowed: bool = True
    high: float = math.inf
    high_allowed: bool = False

    def takes(self, value: float) -> bool:
        above = self.low <= value if self.low_allowed else self.low < value
        return above and (value <= self.high if self.high_allowed else value < self.high)

    def __str__(self) -> str:
        above = f"{'at least' if self.low_allowed else 'above'} {self.low}"
        if self.high == math.inf:
            return above
        return f"{above} and {'at most' if self.high_allowed else 'below'} {self.high}"


NOT_NEGATIVE, POSITIVE, COUNT = Range(0), Range(0, low_allowed=False), Range(1)

RANGES = {
    **dict.fromkeys(
        (
            *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
            *("contrastive_chunk_size", "pad_to_multiple_of", "shuffle_buffer", "dataloader_prefetch_factor"),
            *("eval_accumulation_steps", "ddp_timeout", "ddp_bucket_cap_mb", "image_size", "image_views"),
            *("save_top_k", "early_stopping_patience", "min_positives", "search_trials", "evidence_patches"),
            "text_lora_rank",
        ),
        COUNT,
    ),
    **dict.fromkeys(
        (
            *("weight_decay", "max_grad_norm", "adam_epsilon", "warmup_steps", "entropy_warmup_steps"),
            *("token_entropy_weight", "patch_entropy_weight", "evidence_entropy_weight", "text_warmup_epochs"),
            *("frozen_text_layers", "frozen_vision_layers", "adapter_layers", "eval_delay", "dataloader_num_workers"),
            *("sentences_per_image", "rare_sentences", "min_train_steps"),
        ),
        NOT_NEGATIVE,
    ),
    **dict.fromkeys(
        (
            *("learning_rate", "vision_lr_scale", "text_lr_scale", "num_train_epochs", "entropy_temperature"),
            *("logging_steps", "eval_steps", "save_steps", "search_epochs", "search_max_weight"),
        ),
        POSITIVE,
    ),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "image_head_dropout"), Range(0, high=1)),
    **dict.fromkeys(("layer_decay", "label_fraction"), Range(0, low_allowed=False, high=1, high_allowed=True)),
    "eval_fraction": Range(0, low_allowed=False, high=1),
    **dict.fromkeys(("seed", "data_seed"), Range(0, high=2**32 - 1, high_allowed=True)),
    "max_train_images": Range(2),
    "vocab_size": Range(514),
}

CHOICES = {
    "task": ("contrastive", "classification"),
    "geometry": (None, *GEOMETRIES),
    "image_pooling": (None, *IMAGE_POOLINGS),
    "text_pooling": (None, *TEXT_POOLINGS),
    "entropy_tokens": (None, *ENTROPY_TOKENS),
    "text": TEXT_SOURCES,
    "deidentified": DEIDENTIFIED_MODES,
    "augmentation": AUGMENTATIONS,
    "views": VIEW_CHOICES,
    "train_sampling_strategy": ("random", "sequential", "group_by_length"),
}

REMEDIES = {
    **dict.fromkeys(("vision_lr_scale", "text_lr_scale"), " To keep a tower unchanged, freeze it."),
    "search_trials": " For example 30.",
}

CONTRASTIVE_METRICS = ("eval_loss", "eval_contrastive_loss", "eval_token_entropy", "eval_patch_entropy")


def check_choice(name: str, value: Any, choices: Iterable[str | None]) -> None:
    """ValueError for a value that is not among the choices."""
    if value not in choices:
        names = ", ".join(choice for choice in choices if choice is not None)
        raise ValueError(f"{name}={value!r} is not known; choose one of {names}.")


def check_values(arguments: Any) -> None:
    """
    Args:
        arguments: a dataclass of options; `None` means that an option was not given.

    Raises:
        `ValueError`: a number is outside its range, or a word is not among its choices.
    """
    for name in type(arguments).__dataclass_fields__:
        value = getattr(arguments, name)
        if name in CHOICES:
            check_choice(name, value, CHOICES[name])
        if name not in RANGES or value is None:
            continue
        if value == math.inf:
            raise ValueError(f"{name}={value} must be a finite number.")
        if not RANGES[name].takes(value):
            raise ValueError(f"{name}={value} must be {RANGES[name]}.{REMEDIES.get(name, '')}")


def check_finding_names(findings: list[str] | None) -> None:
    """ValueError for a list of findings that is empty, or that has an empty name or one name twice."""
    if findings is None:
        return
    if not findings or not all(name.strip() for name in findings):
        raise ValueError(f"findings={findings} names nothing; leave it out, or write names.")
    if len(set(findings)) < len(findings):
        raise ValueError(f"findings={findings} names one twice; name each once.")


def check_metric(metric: str | None, measured: Collection[str]) -> None:
    """
    Args:
        metric (`str`, *optional*): `metric_for_best_model`, with `eval_`.
        measured (`Collection[str]`): the metrics of each evaluation of this training.

    Raises:
        `ValueError`: the metric is not one of them.
    """
    if metric is not None and metric not in measured:
        near = difflib.get_close_matches(metric, measured, n=1)
        hint = f"did you mean {near[0]!r}? The metrics are" if near else "choose one of"
        raise ValueError(
            f"metric_for_best_model={metric!r} is not measured in this training; {hint} {', '.join(measured)}."
        )


def auroc_names(findings: Collection[str]) -> list[str]:
    """Names of the AUROC of findings in an evaluation, the mean first; empty without findings."""
    return ["eval_auroc", *(f"eval_auroc_{finding}" for finding in findings)] if findings else []
