"""Refuses options early that transformers and torch would refuse late, or accept without effect."""

import copy
import importlib.util
import json
import multiprocessing

import torch
import torch.utils.checkpoint
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations import INTEGRATION_TO_CALLBACK, integration_utils

from training_tier.options.checks import check_choice, check_values
from training_tier.options.compatibility import expected_mode

# Options of [`TrainingArguments`] that have a single useful value here: that value, and the effect of any other.
REFUSED = {
    "auto_find_batch_size": (
        False,
        "would shrink the batch when memory runs out, which leaves fewer negatives. Set "
        "--per_device_train_batch_size, and --contrastive_chunk_size if a batch does not fit into memory.",
    ),
    "label_smoothing_factor": (
        0,
        "is for single-label classification, and neither loss here supports it; for pairs with equal texts use "
        "--soft_targets.",
    ),
    "use_liger_kernel": (False, "has no kernel for these models; leave it out."),
    "neftune_noise_alpha": (None, "is for fine-tuning language models; leave it out."),
    "batch_eval_metrics": (False, "would compute the AUROC of each batch separately; leave it out."),
    "eval_do_concat_batches": (
        True,
        "would keep the batches separate, but the AUROC needs all images together; leave it out.",
    ),
    "prediction_loss_only": (False, "would leave out the AUROC; use --metric_for_best_model eval_loss instead."),
    "label_names": (None, "has no effect: the findings are the labels; leave it out."),
    "enable_jit_checkpoint": (False, "is not needed: SIGTERM saves a checkpoint anyway; leave it out."),
    "remove_unused_columns": (False, "would remove the images; leave it out."),
    "dataloader_persistent_workers": (
        False,
        "would repeat the random draws of the first epoch in every epoch; leave it out.",
    ),
}

LOGGER_PACKAGES = {"azure_ml": "azureml", "comet_ml": "comet", "flyte": "flytekit"}  # where the names differ

LAYERWISE_OPTIMIZERS = ("galore", "apollo")  # these need the whole model

# Errors of libraries for a bad argument
ARGUMENT_ERRORS = (TypeError, ValueError, LookupError, AttributeError, AssertionError, RuntimeError, ImportError)


def check_training_options(arguments: TrainingArguments) -> None:
    """
    Checks that come before those of [`TrainingArguments`].

    Raises:
        `ValueError`: an option is not supported, a number is outside its range, or a package is not installed.
    """
    for name, (allowed, reason) in REFUSED.items():
        value = getattr(arguments, name, allowed)
        if value != allowed and not (allowed in (None, False) and not value):
            raise ValueError(f"{name}={value} {reason}")
    check_values(arguments)
    if arguments.max_steps != -1 and arguments.max_steps < 1:
        raise ValueError(f"max_steps={arguments.max_steps} must be at least 1; leave it out to train by epochs.")
    if arguments.fp16 and (arguments.use_cpu or not torch.accelerator.is_available()):
        raise ValueError("fp16=True needs a GPU; leave it out, or use --bf16 true.")
    if arguments.deepspeed and importlib.util.find_spec("deepspeed") is None:
        raise ValueError(
            f"deepspeed={arguments.deepspeed!r} cannot be used: the package deepspeed is not installed; install it "
            "with pip install deepspeed, or use FSDP (configs/accelerate/fsdp.yaml)."
        )
    for name, choices in (
        ("torch_compile_backend", torch._dynamo.list_backends(None)),
        ("torch_compile_mode", torch._inductor.list_mode_options()),
        ("dataloader_multiprocessing_context", multiprocessing.get_all_start_methods()),
    ):
        check_choice(name, getattr(arguments, name), (None, *choices))
    check_json(arguments)
    check_reporting(arguments.report_to)


def check_json(arguments: TrainingArguments) -> None:
    """ValueError for a mapping on the command line that is not valid JSON."""
    for name in type(arguments).__dataclass_fields__:
        value = getattr(arguments, name)
        if isinstance(value, str) and value.startswith("{"):
            try:
                json.loads(value)
            except ValueError as error:
                raise ValueError(f"{name}={value!r} is not valid JSON ({error}); correct it.") from error


def check_reporting(report_to: str | list[str] | None) -> None:
    """ValueError for a logger that is not known or not installed."""
    for name in [report_to] if isinstance(report_to, str) else report_to or ():
        if name in ("all", "none"):
            continue
        check_choice("report_to", name, (*INTEGRATION_TO_CALLBACK, "all", "none"))
        package = LOGGER_PACKAGES.get(name, name)
        is_available = getattr(integration_utils, f"is_{package}_available", None)
        if is_available is not None and not is_available():
            raise ValueError(
                f"report_to={name!r} needs the package {package}, which is not installed; install it, or leave the "
                "option out."
            )


def check_optimizer(arguments: TrainingArguments) -> None:
    """
    Makes the optimizer and the schedule that the options name, for a single weight.

    Raises:
        `ValueError`: a package is not installed, or an argument is missing or unknown.
    """
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters())
    name = str(getattr(arguments.optim, "value", arguments.optim))
    try:
        optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
        if not any(word in name for word in LAYERWISE_OPTIMIZERS):
            optimizer = optimizer_class(model.parameters(), **options)
            check_optim_args(arguments, model, options)
    except ARGUMENT_ERRORS as error:
        if isinstance(error, ImportError) or not any(word in name for word in LAYERWISE_OPTIMIZERS):
            given = "" if arguments.optim_args is None else f" with optim_args={arguments.optim_args!r}"
            raise ValueError(f"optim={name!r}{given} cannot be used: {' '.join(str(error).split())}") from error
    name = str(getattr(arguments.lr_scheduler_type, "value", arguments.lr_scheduler_type))
    try:
        get_scheduler(name, optimizer, 1, 10, scheduler_specific_kwargs=arguments.lr_scheduler_kwargs)
    except ARGUMENT_ERRORS as error:
        given = f" with lr_scheduler_kwargs={arguments.lr_scheduler_kwargs}" if arguments.lr_scheduler_kwargs else ""
        raise ValueError(
            f"lr_scheduler_type={name!r}{given} cannot be used: {' '.join(str(error).split())}"
        ) from error


def check_checkpointing(arguments: TrainingArguments) -> None:
    """ValueError for an option of gradient checkpointing that torch does not know."""
    newer = getattr(arguments, "activation_checkpointing_kwargs", None)  # its name from transformers 5.23 on
    options = newer or arguments.gradient_checkpointing_kwargs
    if not options:
        return
    options = {"use_reentrant": False, **options}
    try:
        torch.utils.checkpoint.checkpoint(torch.nn.Identity(), torch.ones(1, requires_grad=True), **options)
    except ARGUMENT_ERRORS as error:
        raise ValueError(
            f"gradient_checkpointing_kwargs={options} cannot be used: {' '.join(str(error).split())}"
        ) from error


def check_optim_args(arguments: TrainingArguments, model: torch.nn.Module, options: dict) -> None:
    """ValueError for one of `optim_args` that does not change the options of the optimizer."""
    pairs = [] if arguments.optim_args is None else arguments.optim_args.replace(" ", "").split(",")
    for pair in pairs:
        other = copy.copy(arguments)
        other.optim_args = ",".join(rest for rest in pairs if rest != pair) or None
        if Trainer.get_optimizer_cls_and_kwargs(other, model)[1] == options:
            raise ValueError(f"{pair!r} has no effect on this optimizer; leave it out.")


def complete_metric(arguments: TrainingArguments) -> None:
    """Writes the name of the metric in full, with `eval_`."""
    metric = arguments.metric_for_best_model
    if metric is not None and not metric.startswith("eval_"):
        arguments.metric_for_best_model = f"eval_{metric}"


def complete_schedule(arguments: TrainingArguments) -> None:
    """Tells a schedule that follows the metric whether higher is better; transformers assumes that lower is."""
    if (mode := expected_mode(arguments)) is not None:
        arguments.lr_scheduler_kwargs = {**(arguments.lr_scheduler_kwargs or {}), "mode": mode}
