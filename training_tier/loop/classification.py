"""Training with labels (`--task classification`): which patients and findings, the head's start, batches and AUROC."""

import logging
from collections.abc import Callable, Iterable, Sequence

import datasets
import numpy as np
import torch
from transformers import EvalPrediction

from evaluation_tier.models.embedding import embed_prompts
from evaluation_tier.scoring.findings import read_labels, select_findings
from evaluation_tier.statistics.metrics import auroc, nanmean
from modeling_tier import (
    TierCLIPForImageClassification,
    TierCLIPModel,
    TierDualEncoderConfig,
    TierDualEncoderForImageClassification,
    TierDualEncoderModel,
)
from processing_tier import TierImageProcessor
from processing_tier.prompts.loader import load_prompts
from training_tier.data.collator import list_unreadable
from training_tier.data.pairs import PairDataset
from training_tier.loop.evaluation import NOT_STATED
from training_tier.options.compatibility import head_of_random_weights, refuse
from training_tier.options.model import ModelArguments
from training_tier.start.initialization import load_image_processor, load_weights, make_model, read_stored_config
from training_tier.start.presets import PRESETS

logger = logging.getLogger(__name__)

CLASSIFIERS = {
    TierCLIPModel: TierCLIPForImageClassification,
    TierDualEncoderModel: TierDualEncoderForImageClassification,
}

Classifier = TierCLIPForImageClassification | TierDualEncoderForImageClassification


def take_patients(records: datasets.Dataset, fraction: float, seed: int) -> datasets.Dataset:
    """
    The images of a share of the patients, at least one, in the order of the records. Of two shares drawn by the same
    seed from the same records, the larger one holds the smaller one.
    """
    patient_ids = np.array(records["patient_id"][:])
    patients = np.random.default_rng(seed).permutation(np.unique(patient_ids))
    taken = patients[: max(1, round(fraction * len(patients)))]
    return records.select(np.flatnonzero(np.isin(patient_ids, taken)))


def choose_findings(
    train: datasets.Dataset, evaluation: datasets.Dataset, asked: Sequence[str] | None, min_positives: int
) -> tuple[list[str], list[str]]:
    """
    The findings to learn, and those of them whose AUROC chooses the checkpoint.

    Args:
        train (`datasets.Dataset`): where a finding needs `min_positives` positives and as many negatives.
        evaluation (`datasets.Dataset`): where it needs `min_positives` positives and a negative.
        asked (`Sequence[str]`, *optional*): learn and score these, if there is at least one of each class.
        min_positives (`int`): see above.

    Raises:
        `ValueError`: an asked finding that a data set lacks or that lacks a class there; no finding is left.
    """
    learnt, _ = select_findings(train, asked, min_positives)
    if not asked:
        enough = (read_labels(train, learnt) == 0).sum(axis=0) >= min_positives
        learnt = [finding for finding, kept in zip(learnt, enough, strict=True) if kept]
    scored, _ = select_findings(evaluation, asked, min_positives)
    scored = [finding for finding in learnt if finding in scored]
    if not scored:
        raise ValueError(
            f"No finding has {min_positives} positives and as many negatives among the {len(train)} training images "
            f"and {min_positives} positives among the {len(evaluation)} of evaluation: lower --min_positives, name "
            "--findings, or use more images."
        )
    return learnt, scored


class LabelledDataset(PairDataset):
    """
    A [`PairDataset`] whose items have `labels` as well, a row of float32: 1 present, 0 absent, -100 for what is
    uncertain or not stated.

    Args:
        records (`datasets.Dataset`): with a column for each finding.
        findings (`Sequence[str]`): the columns, in the order of the labels.
        kwargs: what [`PairDataset`] takes.
    """

    def __init__(self, records: datasets.Dataset, findings: Sequence[str], **kwargs):
        super().__init__(records, **kwargs)
        self.findings = list(findings)
        labels = read_labels(records, findings)
        self.labels = torch.tensor(np.where(labels >= 0, labels, NOT_STATED), dtype=torch.float32)

    def __getitem__(self, index: int) -> dict:
        return {**super().__getitem__(index), "labels": self.labels[index]}


def collate_labelled(items: list[dict]) -> dict:
    """
    Stacks pixels and labels. An image that did not decode is black and has no label, and is reported under
    `unreadable`, see [`list_unreadable`]. Where no image of a batch decodes, there are no pixels. The numbers of all
    records are under `indices`, and their ids under `image_ids`. The Trainer takes these out of the batch again.
    """
    batch = {
        "labels": torch.stack(
            [torch.full_like(item["labels"], NOT_STATED) if "error" in item else item["labels"] for item in items]
        ),
        "image_ids": [item["image_id"] for item in items],
        "indices": [item["index"] for item in items],
        "unreadable": list_unreadable(items),
    }
    readable = [item["pixel_values"] for item in items if "error" not in item]
    if readable:
        black = torch.zeros_like(readable[0])
        batch["pixel_values"] = torch.stack([item.get("pixel_values", black) for item in items])
    return batch


def make_compute_metrics(findings: Sequence[str], scored: Sequence[str]) -> Callable[[EvalPrediction], dict]:
    """Function for the Trainer that gives the AUROC of each of the scored findings, and their mean as `auroc`."""

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        labels = np.where(prediction.label_ids >= 0, prediction.label_ids, np.nan)
        columns = [list(findings).index(finding) for finding in scored]
        values = [auroc(labels[:, column], prediction.predictions[:, column]) for column in columns]
        return {"auroc": nanmean(values), **{f"auroc_{name}": v for name, v in zip(scored, values, strict=True)}}

    return compute_metrics


def make_classifier(
    arguments: ModelArguments,
    findings: Sequence[str],
    labels: np.ndarray,
    texts: Iterable[str],
    prompts: str | None = None,
) -> tuple[Classifier, TierImageProcessor]:
    """
    A classifier and its image processor: the image tower that `arguments` asks for, and a head. The head of a saved
    classifier of the same findings is kept. A new one starts with each bias at the log odds of its finding (Lin et
    al. 2017, section 4.1), which spares the weights from learning how rare it is, and with the weights at 0, or as the
    zero-shot classifier.

    Args:
        arguments ([`ModelArguments`]): what is asked for.
        findings (`Sequence[str]`): names of the labels.
        labels (`np.ndarray` of shape `(images, findings)`): of the training images, with both classes of each finding.
        texts (`Iterable[str]`): for the tokenizer of random weights.
        prompts (`str`, *optional*): sentences of a zero-shot classifier, see [`load_prompts`].

    Raises:
        `ValueError`: see [`make_model`]; prompts for a checkpoint that has no text tower, or for random weights.
    """
    if prompts is not None:
        refuse(head_of_random_weights(arguments))
    if is_classifier(arguments):
        if prompts is not None:
            raise ValueError(
                f"head_from_prompts needs a text tower, which the classifier {arguments.model!r} does not have; start "
                "from the model of images and texts that it was made of."
            )
        return load_classifier(arguments, findings, labels)
    model, processor = make_model(arguments, texts)
    classifier = CLASSIFIERS[type(model)].from_image_tower(model, findings)
    if prompts is not None:
        positive, negative = embed_prompts(model, processor, load_prompts(prompts, findings))
        classifier.set_zero_shot_head(
            torch.from_numpy(positive), torch.from_numpy(negative), model.logit_scale.exp().item()
        )
    set_bias(classifier, labels)
    return classifier, processor.image_processor


def is_classifier(arguments: ModelArguments) -> bool:
    """Whether the model to start from is a saved classifier."""
    if arguments.vision_model is not None or arguments.model in PRESETS:
        return False
    architectures = read_stored_config(arguments).get("architectures") or [""]
    return architectures[0] in {classifier.__name__ for classifier in CLASSIFIERS.values()}


def load_classifier(
    arguments: ModelArguments, findings: Sequence[str], labels: np.ndarray
) -> tuple[Classifier, TierImageProcessor]:
    """A saved classifier, under a new head where it knows other findings, and its image processor."""
    is_dual = read_stored_config(arguments).get("model_type") == TierDualEncoderConfig.model_type
    classifier = load_weights(CLASSIFIERS[TierDualEncoderModel if is_dual else TierCLIPModel], arguments)
    image_processor = load_image_processor(arguments, classifier.config)
    if list(classifier.config.id2label.values()) != list(findings):
        logger.warning("The head of %s knows other findings: it starts anew.", arguments.model)
        classifier = classifier.from_image_tower(classifier, findings)
        set_bias(classifier, labels)
    return classifier, image_processor


def set_bias(classifier: Classifier, labels: np.ndarray) -> None:
    """Sets each bias to the log odds of its finding among the labels, which need both classes."""
    odds = (labels == 1).sum(axis=0) / (labels == 0).sum(axis=0)
    classifier.classifier.bias.data.copy_(torch.from_numpy(np.log(odds)))
