"""One training from its options to its files."""

import logging
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
from transformers import EarlyStoppingCallback, set_seed

from processing_tier.progress import library_bars
from processing_tier.records.identities import TrainedOn
from training_tier.data.labels import take_patients
from training_tier.data.splits import check_readable, load_splits
from training_tier.data.training_list import describe_earlier, join_lists, list_training, resume_list
from training_tier.loop.card_facts import training_facts
from training_tier.loop.changed_options import check_model, check_options, run_options
from training_tier.loop.checkpoints import average_weights, choose_checkpoint, list_checkpoints, rank_checkpoints
from training_tier.loop.locking import only_run
from training_tier.loop.make_trainer import make_classification_trainer, make_contrastive_trainer
from training_tier.loop.search import prepare_search, run_search
from training_tier.loop.trainer import RadiographTrainer
from training_tier.options.compatibility import TABLE_OPTIONS, check_together, refuse, without_effect
from training_tier.options.defaults import fill_defaults
from training_tier.options.parsing import Options
from training_tier.start.initialization import check_names
from training_tier.start.text_lora import merge_text_lora, rules_on_text_lora
from training_tier.start.text_warmup import warm_up_text

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingResult:
    """
    What a training has made.

    Attributes:
        output_dir (`Path`): the folder of the model, for `from_pretrained` and [`evaluate`].
        metric (`str`, *optional*): the name of the metric that selects checkpoints, such as `"eval_auroc"`.
        best_metric (`float`, *optional*): its best value; None without an evaluation.
        best_checkpoint (`Path`, *optional*): the checkpoint of this value; None if it was not saved.
        log_history (`list[dict]`): the log of the losses and evaluations, see [`TrainerState`]; empty after a search.
        search (`list[str]`): of a search (`search_trials`), in the main process: the best pair of weights, and the
            command that trains with it.
    """

    output_dir: Path
    metric: str | None
    best_metric: float | None
    best_checkpoint: Path | None
    log_history: list[dict]
    search: list[str]


def run(options: Options, command: Sequence[str]) -> TrainingResult:
    """
    Everything that `tier-train` does: a training, or a search of the entropy weights.

    Args:
        options ([`Options`]): the options of the user; this function fills in those that were not given.
        command (`Sequence[str]`): the words that the user typed, of which messages make other commands.

    Raises:
        `ValueError`: bad options or data.
        `TrainingStopped`: see [`RadiographTrainer.train`].
    """
    with only_run(options.training), library_bars():
        trainer, checkpoint, described = prepare(options)
        found: list[str] = []
        if options.search.search_trials is not None:
            found = run_search(trainer, options.search, described, command)
        else:
            trainer.train(resume_from_checkpoint=checkpoint)
            if options.training.save_top_k is not None:
                use_top_checkpoints(trainer, evaluation_command(command))
            save(trainer)
            tell_next_step(trainer, options, evaluation_command(command))
    state = trainer.state
    return TrainingResult(
        output_dir=Path(options.training.output_dir),
        metric=options.training.metric_for_best_model,
        best_metric=state.best_metric,
        best_checkpoint=None if state.best_model_checkpoint is None else Path(state.best_model_checkpoint),
        log_history=[] if found else state.log_history,
        search=found,
    )


def prepare(options: Options) -> tuple[RadiographTrainer, str | None, dict]:
    """The Trainer, the checkpoint to resume from, and the options that a resumed run must share."""
    checkpoint, filled_in = complete_options(options)
    train_records, eval_records = load_records(options)
    described = run_options(options, train_records, eval_records)
    if checkpoint is not None:
        check_options(checkpoint, described, allow=options.training.resume_changed)

    trained_on = list_trained_on(options, train_records, eval_records, checkpoint)
    facts = training_facts(options, train_records) | {"earlier_data": describe_earlier(trained_on)} | filled_in
    make = make_classification_trainer if is_classification(options) else make_contrastive_trainer
    trainer = make(options, train_records, eval_records, facts)
    trainer.run_options = described
    trainer.trained_on = trained_on
    if checkpoint is not None:
        check_model(checkpoint, trainer.model, trainer.processing_class, allow=options.training.resume_changed)
    check_readable(trainer.train_dataset)

    if checkpoint is None and not is_classification(options):
        warm_up(trainer, options, train_records)
    return trainer, checkpoint, described


def evaluation_command(command: Sequence[str]) -> str:
    """The command that evaluates models, started as the training was."""
    return "python eval_zeroshot.py" if command[0] == "python" else "tier-eval"


def tell_next_step(trainer: RadiographTrainer, options: Options, evaluate: str) -> None:
    """Logs the best checkpoint, its metric, which model is in the folder, and the command that evaluates it."""
    state, arguments, data = trainer.state, options.training, options.data
    if not trainer.is_world_process_zero():
        return
    whose = "of the last step"
    if state.best_model_checkpoint is not None and state.best_metric is not None:
        best, metric = os.path.basename(state.best_model_checkpoint), arguments.metric_for_best_model
        logger.info("Best checkpoint: %s, %s %.4f.", best, metric, state.best_metric)
        whose = f"of {best}" if arguments.load_best_model_at_end else whose
    if arguments.average_top_k:
        whose = "with the mean weights of the best checkpoints"
    words = [arguments.output_dir, "--data", data.data]
    for name in TABLE_OPTIONS:
        value = getattr(data, name)
        if value is not None:
            words += [f"--{name}", *([value] if isinstance(value, str) else value)]
    logger.info("The model %s is in %s. Evaluate it: %s %s", whose, arguments.output_dir, evaluate, shlex.join(words))


def is_classification(options: Options) -> bool:
    return options.task.task == "classification"


def complete_options(options: Options) -> tuple[str | None, dict]:
    """
    Runs the checks that do not need data, and fills in the options that were not given.

    Returns:
        The checkpoint to resume from, if any, and the model card's text about the options that were filled in.
    """
    task, model_arguments, data_arguments, training_arguments, search = options
    check_together(options)
    refuse(rules_on_text_lora(options))
    if search.search_trials is not None:
        prepare_search(search, training_arguments)
    training_arguments.check_output_dir()
    checkpoint = choose_checkpoint(training_arguments.resume_from_checkpoint, training_arguments.output_dir)
    set_seed(training_arguments.seed)
    check_names(model_arguments)
    entropy_weights = fill_defaults(task, model_arguments, training_arguments)
    ignored = without_effect(task, model_arguments, data_arguments, training_arguments)
    if is_classification(options) and ignored:
        logger.warning("These options have no effect on a classifier: %s.", ", ".join(ignored))
    return checkpoint, {} if entropy_weights is None else {"entropy_weights": entropy_weights}


def load_records(options: Options) -> tuple[datasets.Dataset, datasets.Dataset]:
    """The records to train on and those that select the checkpoint; ValueError if they do not fill a batch."""
    task, _, data_arguments, training_arguments, _ = options
    classify = is_classification(options)
    train_records, eval_records = load_splits(data_arguments, training_arguments.seed, with_text=not classify)
    if classify:
        train_records = take_patients(train_records, task.label_fraction, training_arguments.seed)
    batch_size = training_arguments.train_batch_size * training_arguments.world_size
    if len(train_records) < batch_size and training_arguments.dataloader_drop_last:
        raise ValueError(
            f"{len(train_records)} training {'images' if classify else 'pairs'} do not fill one batch of "
            f"{batch_size}; lower --per_device_train_batch_size."
        )
    training_arguments.reach_min_train_steps(len(train_records))
    return train_records, eval_records


def list_trained_on(
    options: Options, train_records: datasets.Dataset, eval_records: datasets.Dataset, checkpoint: str | None
) -> TrainedOn:
    """The list of the training images and patients; a resumed run keeps its list, with new data if they changed."""
    arguments = options.training
    before = resume_list(checkpoint)
    if before is not None and not arguments.resume_changed:
        return before
    process = (arguments.process_index, arguments.world_size)
    listed = list_training(train_records, eval_records, options.model, options.data, process)
    return join_lists(*filter(None, [before]), listed)


def warm_up(trainer: RadiographTrainer, options: Options, train_records: datasets.Dataset) -> None:
    """Trains the text tower on text alone, where `text_warmup_epochs` asks for it."""
    epochs = options.model.text_warmup_epochs
    if not epochs:
        return
    tokenizer = trainer.processing_class.tokenizer
    losses = warm_up_text(trainer.model, tokenizer, train_records, epochs, seed=options.training.seed)
    logger.info("Text warm-up: loss %.3f in the first epoch, %.3f in the last.", losses[0], losses[-1])


def use_top_checkpoints(trainer: RadiographTrainer, evaluate: str) -> None:
    """
    Logs which checkpoints are the best and, with `average_top_k`, makes the model their mean.

    Args:
        trainer ([`RadiographTrainer`]): at the end of its training.
        evaluate (`str`): the command that evaluates models.
    """
    arguments = trainer.args
    checkpoints = list_checkpoints(arguments.output_dir)
    ranked = rank_checkpoints(
        checkpoints,
        trainer.state.log_history,
        arguments.metric_for_best_model,
        arguments.greater_is_better,
    )[: arguments.save_top_k]
    folders = [str(checkpoints[step]) for step, _ in ranked]
    for folder, (_, value) in zip(folders, ranked, strict=True):
        logger.info("%s: %s %.4f", folder, arguments.metric_for_best_model, value)
    logger.info("Their ensemble: %s %s --data ...", evaluate, " ".join(folders))
    if not arguments.average_top_k:
        return
    average_weights(trainer.accelerator.unwrap_model(trainer.model), folders)
    trainer.remove_callback(EarlyStoppingCallback)  # it would look for the metric of a checkpoint
    metric = "average_" + arguments.metric_for_best_model.removeprefix("eval_")
    logger.info("The mean of their weights: %s %.4f", metric, trainer.evaluate(metric_key_prefix="average")[metric])


def save(trainer: RadiographTrainer) -> None:
    """Writes the model, the log and the card, and pushes them to the Hub if asked."""
    merge_text_lora(trainer.accelerator.unwrap_model(trainer.model))
    trainer.save_model()
    trainer.save_state()
    if trainer.is_world_process_zero():
        trainer.write_card()
    if trainer.unreadable:
        image_ids = [image_id for image_id, _ in trainer.unreadable.values()]
        logger.warning("Skipped %d training images that do not decode: %s", len(image_ids), ", ".join(image_ids))
    if trainer.args.push_to_hub:
        trainer.push_to_hub()
    trainer.accelerator.wait_for_everyone()  # a process that ends too early aborts the others
    trainer.accelerator.end_training()
