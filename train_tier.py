"""
Trains a CLIP model with text-image entropy regularization (TIER) on chest radiographs and their reports, or a
classifier of findings on the image tower of one.

    python train_tier.py                                        # the embedded synthetic data
    python train_tier.py configs/indiana.yaml --data FOLDER     # a recipe; options override the file
    python train_tier.py configs/linear-probe.yaml --data FOLDER --model runs/indiana --label_fraction 0.1
    python train_tier.py --data PREPARED --eval_split validation --streaming    # what tier-prepare wrote, in place
    accelerate launch train_tier.py --data FOLDER               # on all GPUs
    python train_tier.py --data FOLDER --search_trials 30       # which entropy weights? One short training each
    torchrun --nproc_per_node 2 train_tier.py --data FOLDER     # on CPUs, where accelerate launch starts one process
    python train_tier.py --vision_model microsoft/resnet-50 --text_model NAME --frozen_text_layers 8   # as the paper

Ends with the best checkpoint, its processor and the log (trainer_state.json) in --output_dir.
"""

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import datasets
from transformers import EarlyStoppingCallback, set_seed
from transformers.utils.logging import disable_progress_bar

from command_line import one_sentence_errors
from evaluation_tier.scoring.findings import select_findings
from processing_tier.readers import dataset_name
from training_tier.data.collator import PairCollator
from training_tier.data.identities import describe_earlier, join_lists, list_training, resume_list
from training_tier.data.pairs import PairDataset, PairOptions
from training_tier.data.splits import check_readable, load_splits, make_images
from training_tier.loop.changes import check_model, check_options, run_options
from training_tier.loop.checkpoints import average_weights, choose_checkpoint, list_checkpoints, rank_checkpoints
from training_tier.loop.classification import make_classification_trainer, take_patients
from training_tier.loop.contrastive import TierTrainer
from training_tier.loop.locking import only_run
from training_tier.loop.search import prepare_search, run_search
from training_tier.loop.stopping import TrainingStopped
from training_tier.loop.trainer import RadiographTrainer
from training_tier.options.checks import CONTRASTIVE_METRICS, auroc_names, check_metric
from training_tier.options.compatibility import check_together, without_effect
from training_tier.options.data import DataArguments
from training_tier.options.defaults import fill_defaults
from training_tier.options.model import ModelArguments
from training_tier.options.recipes import parse_arguments
from training_tier.options.search import SearchArguments
from training_tier.options.task import TaskArguments
from training_tier.options.training import TierTrainingArguments
from training_tier.start.freezing import freeze_towers
from training_tier.start.initialization import check_names, make_model
from training_tier.start.presets import PRESETS
from training_tier.start.text_warmup import warm_up_text

logger = logging.getLogger("train_tier")


def training_facts(
    records: datasets.Dataset,
    task: TaskArguments,
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    arguments: TierTrainingArguments,
) -> dict:
    """What the model card says about the training; see `evaluation_tier.output.model_card.TRAINING_FACTS`."""
    model, towers = model_arguments.model, (model_arguments.vision_model, model_arguments.text_model)
    # folders by their last name, names on the Hub whole
    names = [Path(name).resolve().name if name and os.path.isdir(name) else name for name in (model, *towers)]
    if towers[0] is not None:
        initialized_from = f"{names[1]} and {names[2]}"
    else:
        initialized_from = f"random ({model})" if model in PRESETS else names[0]
    if task.task == "classification":
        learnt_from = {
            "label_fraction": task.label_fraction,
            "trained_part": "head" if task.freeze_image_tower else "image tower and head",
        }
    else:
        sentences = "sentences of impression and findings"
        learnt_from = {"text": sentences if data_arguments.sample_sentences else data_arguments.text}
    return {
        "dataset": dataset_name(data_arguments.data),
        "n_images": len(records),
        "n_patients": len(set(records["patient_id"][:])),
        **learnt_from,
        "initialized_from": initialized_from,
        "epochs": f"{arguments.max_steps:,} steps" if arguments.max_steps > 0 else arguments.num_train_epochs,
        "batch_size": arguments.train_batch_size * arguments.world_size,
        "learning_rate": arguments.learning_rate,
        "seed": arguments.seed,
    }


def make_contrastive_trainer(
    train_records: datasets.Dataset,
    eval_records: datasets.Dataset,
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    training_arguments: TierTrainingArguments,
    facts: dict,
) -> TierTrainer:
    """The model with its processor, the pairs, and the Trainer over both."""
    findings = []
    metric = training_arguments.metric_for_best_model
    if str(metric).startswith("eval_auroc") or data_arguments.findings:
        findings, left_out = select_findings(eval_records, data_arguments.findings, data_arguments.min_positives)
        reasons = "; ".join(f"{finding}: {reason}" for finding, reason in left_out.items())
        logger.info("Zero-shot AUROC of %s%s.", ", ".join(findings), f" (left out: {reasons})" if reasons else "")
    check_metric(metric, [*CONTRASTIVE_METRICS, *auroc_names(findings)])

    with training_arguments.main_process_first(desc="making the model"):
        sections = train_records.select_columns(["impression", "findings"])
        texts = (f"{record['impression']} {record['findings']}" for record in sections)
        model, processor = make_model(model_arguments, texts)

    as_read = PairOptions(
        text=data_arguments.text, deidentified=data_arguments.deidentified, seed=training_arguments.seed
    )
    as_trained = replace(
        as_read,
        sample_sentences=data_arguments.sample_sentences,
        soft_targets=data_arguments.soft_targets,
        augmentation=data_arguments.augmentation,
        image_views=data_arguments.image_views,
    )
    return TierTrainer(
        model=model,
        args=training_arguments,
        train_dataset=PairDataset(
            train_records,
            processor.image_processor,
            as_trained,
            images=make_images(train_records, processor.image_processor, data_arguments, training_arguments),
        ),
        eval_dataset=PairDataset(eval_records, processor.image_processor, as_read),
        data_collator=PairCollator(processor.tokenizer, training_arguments.pad_to_multiple_of),
        processing_class=processor,
        findings=findings,
        prompts=data_arguments.prompts,
        avoid_duplicates=data_arguments.avoid_duplicates,
        training_facts=facts,
    )


def use_top_checkpoints(trainer: RadiographTrainer) -> None:
    """Tells which checkpoints are the best and, where `average_top_k` asks for it, makes the model their mean."""
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
    logger.info("Their ensemble: python eval_zeroshot.py %s --data ...", " ".join(folders))
    if not arguments.average_top_k:
        return
    average_weights(trainer.accelerator.unwrap_model(trainer.model), folders)
    trainer.remove_callback(EarlyStoppingCallback)  # which would look for the metric of a checkpoint
    metric = "average_" + arguments.metric_for_best_model.removeprefix("eval_")
    logger.info("The mean of their weights: %s %.4f", metric, trainer.evaluate(metric_key_prefix="average")[metric])


def train(
    task: TaskArguments,
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    training_arguments: TierTrainingArguments,
    search: SearchArguments | None = None,
    argv: Sequence[str] = (),
) -> None:
    """Everything that the command does; see the functions above and `training_tier`."""
    search = search or SearchArguments()
    check_together((task, model_arguments, data_arguments, training_arguments, search))
    if search.search_trials is not None:
        prepare_search(search, training_arguments)
    training_arguments.check_output_dir()
    checkpoint = choose_checkpoint(training_arguments.resume_from_checkpoint, training_arguments.output_dir)
    set_seed(training_arguments.seed)
    classify = task.task == "classification"
    check_names(model_arguments)
    entropy_weights = fill_defaults(task, model_arguments, training_arguments)
    if classify and (ignored := without_effect(task, model_arguments, data_arguments, training_arguments)):
        logger.warning("Without effect on a classifier: %s.", ", ".join(ignored))

    # 1. Data
    train_records, eval_records = load_splits(data_arguments, training_arguments.seed, with_text=not classify)
    if classify:
        train_records = take_patients(train_records, task.label_fraction, training_arguments.seed)
    batch_size = training_arguments.train_batch_size * training_arguments.world_size
    if len(train_records) < batch_size and training_arguments.dataloader_drop_last:
        raise ValueError(
            f"{len(train_records)} training {'images' if classify else 'pairs'} do not fill one batch of "
            f"{batch_size}; lower --per_device_train_batch_size."
        )
    all_arguments = (task, model_arguments, data_arguments, training_arguments)
    options = run_options(*all_arguments, train_records, eval_records)
    if checkpoint is not None:
        check_options(checkpoint, options, allow=training_arguments.resume_changed)

    # 2. Model, pairs and trainer
    process = (training_arguments.process_index, training_arguments.world_size)
    trained_on = resume_list(checkpoint)
    if trained_on is None or training_arguments.resume_changed:
        listed = list_training(train_records, eval_records, model_arguments, data_arguments, process)
        trained_on = join_lists(*filter(None, [trained_on]), listed)
    facts = training_facts(train_records, *all_arguments) | {"earlier_data": describe_earlier(trained_on)}
    if entropy_weights is not None:
        facts["entropy_weights"] = entropy_weights
    records_and_arguments = (train_records, eval_records, model_arguments, data_arguments, training_arguments, facts)
    if classify:
        trainer = make_classification_trainer(task, *records_and_arguments)
    else:
        trainer = make_contrastive_trainer(*records_and_arguments)
        freeze_towers(trainer.model, task, model_arguments)
    trainer.run_options = options
    trainer.trained_on = trained_on
    if checkpoint is not None:
        check_model(checkpoint, trainer.model, trainer.processing_class, allow=training_arguments.resume_changed)
    check_readable(trainer.train_dataset)

    # 3. Train and save
    if model_arguments.text_warmup_epochs and checkpoint is None and not classify:
        losses = warm_up_text(
            trainer.model,
            trainer.processing_class.tokenizer,
            train_records,
            model_arguments.text_warmup_epochs,
            seed=training_arguments.seed,
        )
        logger.info("Text warm-up: loss %.3f in the first epoch, %.3f in the last.", losses[0], losses[-1])
    if search.search_trials is not None:
        for line in run_search(trainer, search, options, argv):
            print(line)
        return
    trainer.train(resume_from_checkpoint=checkpoint)
    if training_arguments.save_top_k is not None:
        use_top_checkpoints(trainer)
    trainer.save_model()
    trainer.save_state()
    if trainer.is_world_process_zero():
        trainer.write_card()
    if trainer.unreadable:
        image_ids = [image_id for image_id, _ in trainer.unreadable.values()]
        print(f"Skipped {len(image_ids)} training images that do not decode: {', '.join(image_ids)}")
    if training_arguments.push_to_hub:
        trainer.push_to_hub()
    trainer.accelerator.wait_for_everyone()  # a process that is gone too early aborts those that still talk to it
    trainer.accelerator.end_training()


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; SystemExit(2) after one sentence on stderr when the input is bad."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    for name in ("train_tier", "training_tier"):
        logging.getLogger(name).setLevel(logging.INFO)
    disable_progress_bar()  # those of writing weights
    with one_sentence_errors("train_tier.py", every_process=True):
        argv = sys.argv[1:] if argv is None else argv
        types = (TaskArguments, ModelArguments, DataArguments, TierTrainingArguments, SearchArguments)
        arguments = parse_arguments(argv, types, "train_tier.py")
        try:
            with only_run(arguments[types.index(TierTrainingArguments)]):
                train(*arguments, argv=argv)
        except TrainingStopped as stop:
            if not stop.in_all_processes or os.environ.get("RANK", "0") == "0":
                print(f"train_tier.py: {stop}", file=sys.stderr)
            raise SystemExit(stop.exit_code) from None


if __name__ == "__main__":
    main()
