"""
Options that exclude each other, or that have no effect with another. All such rules stand here, by subject (those on
cached features in `feature_rules.py`), and are applied before anything is loaded. The value of a single option is
checked in `checks.py`; checks that need the data, the model or a checkpoint are where these are loaded.

Each rule yields its sentence. The Trainers apply those on the launch, the batch and the order again, for users who
make a Trainer in Python.
"""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from training_tier.options.feature_rules import rules_on_features
from training_tier.start.presets import PRESETS, misfit_of_patches

if TYPE_CHECKING:  # these modules import this one
    from training_tier.data.pairs import PairOptions
    from training_tier.options.data import DataArguments
    from training_tier.options.model import ModelArguments
    from training_tier.options.parsing import Options
    from training_tier.options.search import SearchArguments
    from training_tier.options.task import TaskArguments
    from training_tier.options.training import TierTrainingArguments

# Options of contrastive training that have no effect on a classifier
CONTRASTIVE_OPTIONS = (
    *("text_warmup_epochs", "freeze_text_tower", "frozen_text_layers", "frozen_vision_layers", "text_lr_scale"),
    *("token_entropy_weight", "patch_entropy_weight", "evidence_entropy_weight", "evidence_patches"),
    *("entropy_temperature", "entropy_normalization", "entropy_tokens", "entropy_warmup_steps", "image_head_dropout"),
    *("soft_targets", "avoid_duplicates", "rare_sentences"),
    *("text", "text_pooling", "deidentified", "sample_sentences", "sentences_per_image", "image_views"),
    *("contrastive_chunk_size", "pad_to_multiple_of", "group_texts", "cache_features", "text_lora_rank"),
)

TABLE_OPTIONS = ("columns", "image_root", "sheet", "label_values")

MEASURED_SCHEDULES = ("reduce_lr_on_plateau", "greedy")  # they follow metric_for_best_model


class Launch(NamedTuple):
    """How a training is distributed."""

    processes: int
    fsdp: bool
    deepspeed: bool

    @classmethod
    def of(cls, training: "TierTrainingArguments") -> "Launch":
        """By the options and what `accelerate launch` leaves in the environment."""
        fsdp, deepspeed = (
            os.environ.get(f"ACCELERATE_USE_{name.upper()}", "false").lower() in ("true", "1")
            or bool(getattr(training, name))
            for name in ("fsdp", "deepspeed")
        )
        return cls(training.world_size, fsdp, deepspeed)


def refuse(*rules: Iterator[str]) -> None:
    """ValueError with the first sentence of the first rule that yields one."""
    for rule in rules:
        for sentence in rule:
            raise ValueError(sentence)


def is_given(arguments: Any, name: str) -> bool:
    """Whether an option differs from its default."""
    return getattr(arguments, name) != type(arguments).__dataclass_fields__[name].default


def without_effect(*arguments: Any) -> list[str]:
    """The options in `CONTRASTIVE_OPTIONS` that were given."""
    return [
        name
        for group in arguments
        for name in group.__dataclass_fields__
        if name in CONTRASTIVE_OPTIONS and is_given(group, name)
    ]


# Within one group of options: each group applies its own when it is made.


def check_task(task: "TaskArguments") -> None:
    refuse(rules_on_labels(task))


def check_data(data: "DataArguments") -> None:
    refuse(rules_on_texts(data), rules_on_views(data), rules_on_streaming(data))


def check_model(model: "ModelArguments") -> None:
    refuse(rules_on_towers(model), rules_on_random_weights(model))


def check_training(training: "TierTrainingArguments") -> None:
    refuse(rules_on_resuming(training), rules_on_loading(training), rules_on_best_checkpoint(training))


def check_choosing(training: "TierTrainingArguments") -> None:
    """As `check_training`, once transformers has completed the options."""
    refuse(rules_on_schedule(training), rules_on_kept_checkpoints(training))


def check_search(search: "SearchArguments") -> None:
    refuse(rules_on_search(search))


def rules_on_labels(task: "TaskArguments") -> Iterator[str]:
    for name in ("head_from_prompts", "label_fraction"):
        if task.task != "classification" and is_given(task, name):
            yield f"{name} has no effect on the task {task.task!r}; add --task classification."


def drawing_option(data: "DataArguments | PairOptions") -> str | None:
    """The option that draws other texts in each epoch, if one is given."""
    return next((name for name in ("sample_sentences", "sentences_per_image") if getattr(data, name)), None)


def rules_on_texts(data: "DataArguments") -> Iterator[str]:
    name = drawing_option(data)
    if name and data.deidentified not in ("keep", "remove"):
        yield f"deidentified={data.deidentified!r} has no effect with {name}, which removes the marks; leave it out."
    if data.rare_sentences and not data.sentences_per_image:
        yield f"rare_sentences={data.rare_sentences:g} has no effect without --sentences_per_image; add it."
    if not data.sentences_per_image:
        return
    given = f"sentences_per_image={data.sentences_per_image}"
    if data.sample_sentences:
        yield f"sample_sentences and {given} both draw the text of an image; use one."
    if data.image_views > 1:
        yield f"{given} and image_views={data.image_views} do not work together; leave one of them out."
    if data.soft_targets:
        yield f"soft_targets has no effect with {given}, which never contrasts equal sentences; leave it out."


def rules_on_views(data: "DataArguments") -> Iterator[str]:
    if data.image_views > 1 and data.augmentation == "none":
        yield (
            f"image_views={data.image_views} needs an augmentation, or the views are equal; use 1, or another "
            "--augmentation."
        )


def rules_on_streaming(data: "DataArguments") -> Iterator[str]:
    if not data.streaming:
        if data.shuffle_buffer is not None:
            yield f"shuffle_buffer={data.shuffle_buffer} has no effect without --streaming; leave it out."
        return
    if data.avoid_duplicates:
        yield (
            "avoid_duplicates and streaming both set the order of the images; use one (--soft_targets works with "
            "both)."
        )
    if data.eval_split is None:
        yield "Streaming cannot hold out patients: pass --eval_split."
    if data.image_cache is not None:
        yield "image_cache keeps a copy of the images, which streaming avoids; use one of them."
    for name in TABLE_OPTIONS:
        if getattr(data, name) is not None:
            yield f"{name} has no effect with streaming, which reads prepared data; leave it out."


def rules_on_towers(model: "ModelArguments") -> Iterator[str]:
    if (model.vision_model is None) != (model.text_model is None):
        yield "vision_model and text_model go together; name both, or a --model."
    for name in ("model", "tokenizer", "text_warmup_epochs"):
        if model.vision_model is not None and is_given(model, name):
            yield f"{name} has no effect with vision_model and text_model; leave it out."
    if model.vision_model is None and model.text_pooling is not None:
        yield f"text_pooling={model.text_pooling!r} is for --vision_model and --text_model; leave it out."


def has_random_weights(model: "ModelArguments") -> bool:
    return model.vision_model is None and model.model in PRESETS


def rules_on_random_weights(model: "ModelArguments") -> Iterator[str]:
    if not has_random_weights(model):
        if model.text_warmup_epochs:
            yield (
                f"text_warmup_epochs={model.text_warmup_epochs} is for random weights (--model {', '.join(PRESETS)}); "
                "leave it out."
            )
        if model.vision_model is None and model.tokenizer is not None:
            yield f"tokenizer has no effect on the checkpoint {model.model!r}, which has one; leave it out."
        return
    for name in ("frozen_text_layers", "frozen_vision_layers"):
        yield from rules_on_frozen_random_weights(model, {name: getattr(model, name)})
    if misfit := misfit_of_patches(model.model, model.image_size):
        yield misfit


def rules_on_frozen_random_weights(model: "ModelArguments", options: dict) -> Iterator[str]:
    for name, value in options.items():
        if value and has_random_weights(model):
            yield (
                f"{name}={value} would freeze the random weights of {model.model!r}; it is for pretrained weights. "
                "Name a checkpoint as --model, or leave it out."
            )


def rules_on_resuming(training: "TierTrainingArguments") -> Iterator[str]:
    if training.resume_changed and training.resume_from_checkpoint is None:
        yield "resume_changed has no effect without --resume_from_checkpoint; leave it out."


def rules_on_loading(training: "TierTrainingArguments") -> Iterator[str]:
    if training.dataloader_prefetch_factor is not None and not training.dataloader_num_workers:
        yield (
            f"dataloader_prefetch_factor={training.dataloader_prefetch_factor} has no effect without data-loader "
            "workers; add --dataloader_num_workers."
        )


def rules_on_best_checkpoint(training: "TierTrainingArguments") -> Iterator[str]:
    evaluate, save = (
        str(getattr(strategy, "value", strategy)) for strategy in (training.eval_strategy, training.save_strategy)
    )
    known = {"no", "steps", "epoch"}
    if training.load_best_model_at_end and {evaluate, save} <= known and evaluate != save:
        yield (
            f"eval_strategy={evaluate!r} and save_strategy={save!r} differ, but the best checkpoint is chosen among "
            "evaluated ones; set both to the same, or add --load_best_model_at_end false."
        )


def expected_mode(training: "TierTrainingArguments") -> str | None:
    """The direction that a schedule which follows the metric needs; None for any other schedule."""
    name = str(getattr(training.lr_scheduler_type, "value", training.lr_scheduler_type))
    if training.metric_for_best_model is None or name not in MEASURED_SCHEDULES:
        return None
    return "max" if training.greater_is_better else "min"


def rules_on_schedule(training: "TierTrainingArguments") -> Iterator[str]:
    expected = expected_mode(training)
    mode = (training.lr_scheduler_kwargs or {}).get("mode", expected)
    if expected is not None and mode != expected:
        yield (
            f"lr_scheduler_kwargs has mode={mode!r}, but {training.metric_for_best_model} is better when it is "
            f"{'higher' if expected == 'max' else 'lower'}: leave the mode out."
        )


def rules_on_kept_checkpoints(training: "TierTrainingArguments") -> Iterator[str]:
    for name in ("save_top_k", "early_stopping_patience"):
        if getattr(training, name) is not None and not training.load_best_model_at_end:
            yield f"{name} needs load_best_model_at_end, which has every checkpoint evaluated."
    if training.average_top_k and (training.save_top_k or 0) < 2:
        yield f"average_top_k has no effect with save_top_k={training.save_top_k}; use for example 3."
    if training.save_top_k is not None and training.save_total_limit is not None:
        if is_given(training, "save_total_limit"):
            yield f"save_total_limit={training.save_total_limit} has no effect with save_top_k; leave it out."


def rules_on_search(search: "SearchArguments") -> Iterator[str]:
    for name in ("search_epochs", "search_max_weight"):
        if search.search_trials is None and is_given(search, name):
            yield f"{name} has no effect without --search_trials; add it, or leave {name} out."


# Between groups of options, and with the launch


def check_together(options: "Options") -> None:
    """
    Args:
        options ([`Options`]): of a whole run.

    Raises:
        `ValueError`: two of them cannot go together, or one cannot go with the way in which the run was launched.
    """
    task, model, data, training, search = options
    launch = Launch.of(training)
    refuse(
        rules_on_search_instead_of_training(search, task, training),
        rules_on_pretrained_parts(task, model),
        rules_on_whole_weights(training, launch),
    )
    if task.task == "classification":
        refuse(
            rules_on_order(training.train_sampling_strategy, streaming=data.streaming),
            rules_on_order_of_texts(training),
        )
        return
    refuse(
        rules_on_one_gpu_each(training),
        rules_on_order(
            training.train_sampling_strategy, data.streaming, data.avoid_duplicates, drawn_by=drawing_option(data)
        ),
        rules_on_negatives(training, launch),
        rules_on_chunks(training, launch, data.image_views),
        rules_on_text_groups(training, launch),
        rules_on_features(options, launch),
    )


def rules_on_search_instead_of_training(
    search: "SearchArguments", task: "TaskArguments", training: "TierTrainingArguments"
) -> Iterator[str]:
    if search.search_trials is None:
        return
    if task.task == "classification":
        yield "search_trials searches the weights of the contrastive loss, which a classifier does not have."
    if str(training.metric_for_best_model).removeprefix("eval_") == "loss":
        yield "metric_for_best_model='eval_loss' changes with the weights, so it cannot compare them; use eval_auroc."
    for name in ("resume_from_checkpoint", "push_to_hub", "fsdp", "deepspeed", "group_texts"):
        if getattr(training, name):
            yield f"{name} does not work with --search_trials; pass it to the training that follows the search."


def rules_on_pretrained_parts(task: "TaskArguments", model: "ModelArguments") -> Iterator[str]:
    frozen = {name: getattr(task, name) for name in ("freeze_image_tower", "freeze_text_tower")}
    if task.task != "classification":
        yield from rules_on_frozen_random_weights(model, frozen)
    if task.head_from_prompts:
        yield from rules_on_head_of_random_weights(model)


def rules_on_head_of_random_weights(model: "ModelArguments") -> Iterator[str]:
    if has_random_weights(model):
        yield (
            f"head_from_prompts needs a trained text tower, but the weights of {model.model!r} are random; start from "
            "a trained --model."
        )


def rules_on_whole_weights(training: "TierTrainingArguments", launch: Launch) -> Iterator[str]:
    if training.average_top_k and (launch.fsdp or launch.deepspeed):
        yield "average_top_k needs whole weights, which FSDP and DeepSpeed shard; leave it out."


def rules_on_one_gpu_each(training: "TierTrainingArguments") -> Iterator[str]:
    if training.n_gpu > 1:
        yield (
            f"This process sees {training.n_gpu} GPUs and would divide each batch among them, which leaves fewer "
            "negatives. Start one process per GPU with accelerate launch, or show it one (CUDA_VISIBLE_DEVICES=0)."
        )


def rules_on_order(
    strategy: str, streaming: bool = False, avoid_duplicates: bool = False, drawn_by: str | None = None
) -> Iterator[str]:
    """Of the training images; `strategy` is `train_sampling_strategy`, `drawn_by` see [`drawing_option`]."""
    if strategy != "random" and streaming:
        yield f"train_sampling_strategy={strategy!r} and streaming both set the order of the images; use one."
    if strategy != "random" and avoid_duplicates:
        yield (
            f"train_sampling_strategy={strategy!r} and avoid_duplicates both set the order of the images; use one "
            "(--soft_targets works with both)."
        )
    if strategy == "group_by_length" and drawn_by is not None:
        yield (
            f"train_sampling_strategy={strategy!r} needs the length of each text beforehand, but {drawn_by} draws a "
            "new text in each epoch; use one."
        )


def rules_on_order_of_texts(training: "TierTrainingArguments") -> Iterator[str]:
    """For a classifier."""
    if training.train_sampling_strategy == "group_by_length":
        yield "train_sampling_strategy='group_by_length' needs texts, which a classifier does not read; leave it out."


def rules_on_negatives(training: "TierTrainingArguments", launch: Launch) -> Iterator[str]:
    pairs = training.train_batch_size * launch.processes
    if pairs < 2:
        yield f"A batch of {pairs} pair has no negatives; raise --per_device_train_batch_size to 2 or more."


def rules_on_chunks(training: "TierTrainingArguments", launch: Launch, image_views: int) -> Iterator[str]:
    """Of gradient caching."""
    size, pairs = training.contrastive_chunk_size, training.train_batch_size
    if size is None:
        return
    if size > pairs:
        yield (
            f"contrastive_chunk_size={size} is more than the {pairs} pairs of a batch, which would be one chunk; "
            "lower it, or raise --per_device_train_batch_size."
        )
    if image_views > 1:
        yield "contrastive_chunk_size does not work with image_views; leave one of them out."
    if training.torch_compile and launch.processes > 1:
        yield "contrastive_chunk_size works with torch_compile in a single process only; leave one out."
    if launch.deepspeed:  # which counts each backward pass as a step of gradient accumulation
        yield "contrastive_chunk_size does not work with DeepSpeed; leave it out, or use FSDP."


def rules_on_text_groups(training: "TierTrainingArguments", launch: Launch) -> Iterator[str]:
    if training.group_texts and (training.torch_compile or launch.fsdp or launch.deepspeed):
        reason = "makes batches of many shapes, which differ between processes"
        yield f"group_texts {reason}; torch_compile, FSDP and DeepSpeed do not support this. Leave it out."
