"""The Trainer of a run from its options and records: model and processor, pairs or labelled images."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import datasets
import numpy as np
from transformers import EvalPrediction

from evaluation_tier.scoring.findings import read_labels, select_findings
from evaluation_tier.statistics.metrics import auroc, nanmean
from modeling_tier.texts_tier import is_padded_to_the_end
from training_tier.data.collator import PairCollator
from training_tier.data.labels import LabelledDataset, choose_findings, collate_labelled
from training_tier.data.pairs import PairDataset, PairOptions
from training_tier.data.splits import make_images
from training_tier.loop.contrastive import TierTrainer
from training_tier.loop.trainer import RadiographTrainer
from training_tier.options.checks import CONTRASTIVE_METRICS, auroc_names, check_metric
from training_tier.options.parsing import Options
from training_tier.start.classifier import make_classifier
from training_tier.start.freezing import freeze_towers
from training_tier.start.initialization import make_model
from training_tier.start.text_lora import add_text_lora

logger = logging.getLogger(__name__)


def make_contrastive_trainer(
    options: Options, train_records: datasets.Dataset, eval_records: datasets.Dataset, facts: Mapping
) -> TierTrainer:
    """The model with its processor, the pairs, and their Trainer."""
    task, model_arguments, data_arguments, training_arguments, _ = options
    findings: list[str] = []
    metric = training_arguments.metric_for_best_model
    if str(metric).startswith("eval_auroc") or data_arguments.findings:
        findings, left_out = select_findings(eval_records, data_arguments.findings, data_arguments.min_positives)
        reasons = "; ".join(f"{finding}: {reason}" for finding, reason in left_out.items())
        logger.info("Zero-shot AUROC of %s%s.", ", ".join(findings), f" (left out: {reasons})" if reasons else "")
    of_evidence = ["eval_evidence_entropy"] if model_arguments.evidence_entropy_weight else []
    check_metric(metric, [*CONTRASTIVE_METRICS, *of_evidence, *auroc_names(findings)])

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
        sentences_per_image=data_arguments.sentences_per_image,
        rare_sentences=data_arguments.rare_sentences,
        soft_targets=data_arguments.soft_targets,
        augmentation=data_arguments.augmentation,
        image_views=data_arguments.image_views,
    )
    trainer = TierTrainer(
        model=model,
        args=training_arguments,
        train_dataset=PairDataset(
            train_records,
            processor.image_processor,
            as_trained,
            images=make_images(train_records, processor.image_processor, data_arguments, training_arguments),
        ),
        eval_dataset=PairDataset(eval_records, processor.image_processor, as_read),
        data_collator=PairCollator(
            processor.tokenizer,
            training_arguments.pad_to_multiple_of,
            for_siglip=is_padded_to_the_end(model.config),
        ),
        processing_class=processor,
        findings=findings,
        prompts=data_arguments.prompts,
        avoid_duplicates=data_arguments.avoid_duplicates,
        training_facts=facts,
    )
    freeze_towers(trainer.model, task, model_arguments)
    if model_arguments.text_lora_rank is not None:
        add_text_lora(trainer.model, model_arguments.text_lora_rank)
    if data_arguments.cache_features is not None:
        trainer.use_cached_features(data_arguments.cache_features)
    return trainer


def make_classification_trainer(
    options: Options, train_records: datasets.Dataset, eval_records: datasets.Dataset, facts: Mapping
) -> RadiographTrainer:
    """The findings to learn, the classifier with its image processor, the labelled images, and their Trainer."""
    task, model_arguments, data_arguments, training_arguments, _ = options
    findings, scored = choose_findings(
        train_records, eval_records, data_arguments.findings, data_arguments.min_positives
    )
    check_metric(training_arguments.metric_for_best_model, ["eval_loss", *auroc_names(scored)])
    logger.info(
        "Learning %s from %d images of %d patients; AUROC of %s.",
        ", ".join(findings),
        len(train_records),
        len(set(train_records["patient_id"][:])),
        ", ".join(scored) if scored != findings else "all",
    )
    with training_arguments.main_process_first(desc="making the model"):
        sections = train_records.select_columns(["impression", "findings"])
        reports = (f"{record['impression']} {record['findings']}" for record in sections)
        classifier, image_processor = make_classifier(
            model_arguments,
            findings,
            read_labels(train_records, findings),
            texts=chain(findings, reports),  # only the names without reports
            prompts=data_arguments.prompts if task.head_from_prompts else None,
        )
    if task.freeze_image_tower:
        classifier.freeze_image_tower()
    images: dict[str, Any] = {"findings": findings, "image_processor": image_processor}
    return RadiographTrainer(
        model=classifier,
        args=training_arguments,
        train_dataset=LabelledDataset(
            train_records,
            options=PairOptions(augmentation=data_arguments.augmentation, seed=training_arguments.seed),
            images=make_images(train_records, image_processor, data_arguments, training_arguments),
            **images,
        ),
        eval_dataset=LabelledDataset(eval_records, **images),
        data_collator=collate_labelled,
        compute_metrics=make_compute_metrics(findings, scored),
        processing_class=image_processor,
        training_facts=facts,
    )


def make_compute_metrics(findings: Sequence[str], scored: Sequence[str]) -> Callable[[EvalPrediction], dict]:
    """Function for the Trainer that computes the AUROC of each scored finding, and their mean as `auroc`."""

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        labels = np.where(prediction.label_ids >= 0, prediction.label_ids, np.nan)
        columns = [list(findings).index(finding) for finding in scored]
        values = [auroc(labels[:, column], prediction.predictions[:, column]) for column in columns]
        return {"auroc": nanmean(values), **{f"auroc_{name}": v for name, v in zip(scored, values, strict=True)}}

    return compute_metrics
