"""Options that are known to be bad are refused before any work; what is best is what the metric says."""

import pytest
from transformers import SchedulerType
from transformers.integrations import INTEGRATION_TO_CALLBACK, integration_utils

from training_tier.options.checks import auroc_names, check_metric
from training_tier.options.data import DataArguments
from training_tier.options.model import ModelArguments
from training_tier.options.task import TaskArguments
from training_tier.options.training import TierTrainingArguments


def make(**options):
    return TierTrainingArguments(output_dir="run", use_cpu=True, **options)


@pytest.mark.parametrize(
    ("given", "name", "greater"),
    [
        ("eval_loss", "eval_loss", False),
        ("loss", "eval_loss", False),
        ("eval_contrastive_loss", "eval_contrastive_loss", False),
        ("token_entropy", "eval_token_entropy", False),
        ("eval_patch_entropy", "eval_patch_entropy", False),
        ("eval_auroc", "eval_auroc", True),
        ("auroc", "eval_auroc", True),
        ("auroc_Edema", "eval_auroc_Edema", True),
        (None, "eval_loss", False),  # as transformers has it with load_best_model_at_end
    ],
)
def test_less_is_better_of_losses_and_entropies_alone(given, name, greater):
    arguments = make(metric_for_best_model=given)
    assert (arguments.metric_for_best_model, arguments.greater_is_better) == (name, greater)
    for told in (True, False):
        assert make(metric_for_best_model=given, greater_is_better=told).greater_is_better is told


@pytest.mark.parametrize(
    "schedule", [kind.value for kind in SchedulerType if kind.value in ("reduce_lr_on_plateau", "greedy")]
)
def test_a_schedule_that_goes_by_the_metric_knows_its_direction(schedule):
    assert make(lr_scheduler_type=schedule).lr_scheduler_kwargs["mode"] == "max"
    assert make(lr_scheduler_type=schedule, metric_for_best_model="loss").lr_scheduler_kwargs["mode"] == "min"
    message = "^lr_scheduler_kwargs has mode='min', but eval_auroc is better when it is higher: leave the mode out.$"
    with pytest.raises(ValueError, match=message):
        make(lr_scheduler_type=schedule, lr_scheduler_kwargs={"mode": "min"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps=0 must be at least 1."),
        ({"num_train_epochs": 0}, "num_train_epochs=0 must be above 0."),
        ({"num_train_epochs": float("nan")}, "num_train_epochs=nan must be above 0."),
        ({"num_train_epochs": float("inf")}, "num_train_epochs=inf must be a finite number."),
        ({"max_steps": 0}, "max_steps=0 must be at least 1; leave it out to train by epochs."),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size=0 must be at least 1."),
        ({"per_device_eval_batch_size": -1}, "per_device_eval_batch_size=-1 must be at least 1."),
        ({"learning_rate": 0.0}, "learning_rate=0.0 must be above 0."),
        ({"learning_rate": float("nan")}, "learning_rate=nan must be above 0."),
        ({"adam_beta2": 1.0}, "adam_beta2=1.0 must be at least 0 and below 1."),
        ({"logging_steps": 0}, "logging_steps=0 must be above 0."),
        ({"eval_steps": -1}, "eval_steps=-1 must be above 0."),
        ({"seed": -1}, "seed=-1 must be at least 0 and at most 4294967295."),
        ({"seed": 2**32}, "seed=4294967296 must be at least 0 and at most 4294967295."),
        ({"eval_accumulation_steps": 0}, "eval_accumulation_steps=0 must be at least 1."),
        (
            {"dataloader_prefetch_factor": 2},
            "dataloader_prefetch_factor=2 has no effect without data-loader workers; add --dataloader_num_workers.",
        ),
        ({"fp16": True}, "fp16=True needs a GPU; leave it out, or use --bf16 true."),
        (
            {"auto_find_batch_size": True},
            "auto_find_batch_size=True would shrink the batch when memory runs out, which leaves fewer negatives. Set "
            "--per_device_train_batch_size, and --contrastive_chunk_size if a batch does not fit into memory.",
        ),
        (
            {"label_smoothing_factor": 0.1},
            "label_smoothing_factor=0.1 is for single-label classification, and neither loss here supports it; for "
            "pairs with equal texts use --soft_targets.",
        ),
        ({"use_liger_kernel": True}, "use_liger_kernel=True has no kernel for these models; leave it out."),
        (
            {"neftune_noise_alpha": 5.0},
            "neftune_noise_alpha=5.0 is for fine-tuning language models; leave it out.",
        ),
        (
            {"batch_eval_metrics": True},
            "batch_eval_metrics=True would compute the AUROC of each batch separately; leave it out.",
        ),
        (
            {"eval_do_concat_batches": False},
            "eval_do_concat_batches=False would keep the batches separate, but the AUROC needs all images together; "
            "leave it out.",
        ),
        (
            {"prediction_loss_only": True},
            "prediction_loss_only=True would leave out the AUROC; use --metric_for_best_model eval_loss instead.",
        ),
        ({"label_names": ["x"]}, "label_names=['x'] has no effect: the findings are the labels; leave it out."),
        (
            {"accelerator_config": {"split_batches": True}},
            "split_batches=True would divide a batch among the processes, which leaves fewer negatives; "
            "leave it out, and set --per_device_train_batch_size.",
        ),
    ],
)
def test_bad_training_options(options, message):
    with pytest.raises(ValueError) as error:
        make(**options)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optim": "adamw_bnb_8bit"}, "^optim='adamw_bnb_8bit' cannot be used: .*bitsandbytes"),
        ({"optim": "galore_adamw", "optim_target_modules": ["x"]}, "^optim='galore_adamw' cannot be used: .*galore"),
        ({"optim": "lomo"}, "^optim='lomo' cannot be used: .*lomo"),
        ({"optim": "adam_w"}, "adam_w is not a valid OptimizerNames"),
        ({"optim": "sgd", "optim_args": "momentum"}, "^optim='sgd' with optim_args='momentum' cannot be used: "),
        (
            {"optim": "sgd", "optim_args": "mass=1"},
            "^optim='sgd' with optim_args='mass=1' cannot be used: 'mass=1' has no effect on this optim",
        ),
        ({"lr_scheduler_type": "cosin"}, "cosin is not a valid SchedulerType"),
        (
            {"lr_scheduler_type": "cosine_with_min_lr"},
            "^lr_scheduler_type='cosine_with_min_lr' cannot be used: .*min_lr",
        ),
        (
            {"lr_scheduler_kwargs": {"cycles": 1}},
            "^lr_scheduler_type='cosine' with lr_scheduler_kwargs={'cycles': 1} cannot be used: .*'cycles'",
        ),
        (
            {"deepspeed": "x.json"},
            "^deepspeed='x.json' cannot be used: the package deepspeed is not installed; install",
        ),
        ({"report_to": "nobody"}, "^report_to='nobody' is not known; choose one of .*tensorboard.*, all, none.$"),
        (
            {"torch_compile_backend": "inductr"},
            "^torch_compile_backend='inductr' is not known; choose one of .*inductor",
        ),
        (
            {"accelerator_config": {"spilt_batches": True}},
            "^A training option cannot be used: .*spilt_batches",
        ),
        (
            {"torch_compile_mode": "fast"},
            "^torch_compile_mode='fast' is not known; choose one of .*reduce-overhead",
        ),
        (
            {"dataloader_multiprocessing_context": "threads"},
            "^dataloader_multiprocessing_context='threads' is not known; choose one of .*spawn",
        ),
        (
            {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"reentrant": True}},
            "^gradient_checkpointing_kwargs={.*'reentrant': True.*} cannot be used: .*reentrant",
        ),
        ({"report_to": ["none", "nobody"]}, "^report_to='nobody' is not known;"),
    ],
)
def test_what_a_library_would_refuse_later_is_refused_now(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


@pytest.mark.parametrize("name", sorted(INTEGRATION_TO_CALLBACK))
def test_each_logger_works_or_is_refused(name):
    package = {"azure_ml": "azureml", "comet_ml": "comet", "flyte": "flytekit"}.get(name, name)
    if getattr(integration_utils, f"is_{package}_available")():
        assert make(report_to=name).report_to == [name]
        return
    with pytest.raises(ValueError) as error:
        make(report_to=name)
    assert str(error.value) == (
        f"report_to={name!r} needs the package {package}, which is not installed; install it, or leave the option out."
    )


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (ModelArguments, {"image_size": 0}, "image_size=0 must be at least 1."),
        (ModelArguments, {"vocab_size": 10}, "vocab_size=10 must be at least 514."),
        (ModelArguments, {"text_warmup_epochs": -1}, "text_warmup_epochs=-1 must be at least 0."),
        (ModelArguments, {"frozen_text_layers": -1, "model": "x"}, "frozen_text_layers=-1 must be at least 0."),
        (ModelArguments, {"token_entropy_weight": float("nan")}, "token_entropy_weight=nan must be at least 0."),
        (ModelArguments, {"entropy_temperature": 0.0}, "entropy_temperature=0.0 must be above 0."),
        (
            ModelArguments,
            {"image_pooling": "mean"},
            "image_pooling='mean' is not known; choose one of cls, patch_mean.",
        ),
        (
            ModelArguments,
            {"entropy_tokens": "x"},
            "entropy_tokens='x' is not known; choose one of words, attended, all.",
        ),
        (DataArguments, {"min_positives": 0}, "min_positives=0 must be at least 1."),
        (DataArguments, {"findings": []}, "findings=[] names nothing; leave it out, or write names."),
        (DataArguments, {"findings": ["A", " "]}, "findings=['A', ' '] names nothing; leave it out, or write names."),
        (DataArguments, {"findings": ["A", "A"]}, "findings=['A', 'A'] names one twice; name each once."),
        (
            TaskArguments,
            {"task": "classification", "label_fraction": float("nan")},
            "label_fraction=nan must be above 0 and at most 1.",
        ),
    ],
)
def test_bad_options_of_model_and_data(kind, options, message):
    with pytest.raises(ValueError) as error:
        kind(**options)
    assert str(error.value) == message


def test_a_metric_that_is_not_measured_is_refused_and_a_typo_is_named():
    measured = ["eval_loss", *auroc_names(["Edema", "Pleural Effusion"])]
    assert measured == ["eval_loss", "eval_auroc", "eval_auroc_Edema", "eval_auroc_Pleural Effusion"]
    for metric in (None, *measured):
        check_metric(metric, measured)
    listed = "eval_loss, eval_auroc, eval_auroc_Edema, eval_auroc_Pleural Effusion."
    with pytest.raises(ValueError) as error:
        check_metric("eval_auroc_Edma", measured)
    assert str(error.value) == (
        "metric_for_best_model='eval_auroc_Edma' is not measured in this training; did you mean 'eval_auroc_Edema'? "
        f"The metrics are {listed}"
    )
    with pytest.raises(ValueError, match=f"^metric_for_best_model='f1' is not measured in this training; .*{listed}$"):
        check_metric("f1", measured)
    assert auroc_names([]) == []
