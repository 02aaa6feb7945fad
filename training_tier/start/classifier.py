"""The classifier that a training with labels starts from: an image tower, and a new, kept or zero-shot head."""

import logging
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from evaluation_tier.models.embedding import embed_prompts
from modeling_tier import (
    TierCLIPForImageClassification,
    TierCLIPModel,
    TierDualEncoderConfig,
    TierDualEncoderForImageClassification,
    TierDualEncoderModel,
)
from processing_tier import TierImageProcessor
from processing_tier.prompts.loader import load_prompts
from training_tier.options.compatibility import refuse, rules_on_head_of_random_weights
from training_tier.options.model import ModelArguments
from training_tier.start.initialization import load_image_processor, load_weights, make_model, read_stored_config
from training_tier.start.presets import PRESETS

logger = logging.getLogger(__name__)

CLASSIFIERS: dict[type[PreTrainedModel], type[PreTrainedModel]] = {
    TierCLIPModel: TierCLIPForImageClassification,
    TierDualEncoderModel: TierDualEncoderForImageClassification,
}

Classifier = TierCLIPForImageClassification | TierDualEncoderForImageClassification


def make_classifier(
    arguments: ModelArguments,
    findings: Sequence[str],
    labels: np.ndarray,
    texts: Iterable[str],
    prompts: str | None = None,
) -> tuple[Classifier, TierImageProcessor]:
    """
    A classifier and its image processor: the image tower that `arguments` names, and a head. The head of a saved
    classifier with the same findings is kept. In a new head, each bias starts at the log odds of its finding (Lin et
    al. 2017, section 4.1), so that the weights need not learn how rare it is. The weights start at 0, or as those of
    the zero-shot classifier.

    Args:
        arguments ([`ModelArguments`]): name the model to start from.
        findings (`Sequence[str]`): names of the labels.
        labels (`np.ndarray` of shape `(images, findings)`): of the training images, both classes of each finding.
        texts (`Iterable[str]`): train the tokenizer of a model with random weights.
        prompts (`str`, *optional*): sentences of a zero-shot classifier, see [`load_prompts`].

    Raises:
        `ValueError`: see [`make_model`]; or prompts for a checkpoint without a text tower, or for random weights.
    """
    if prompts is not None:
        refuse(rules_on_head_of_random_weights(arguments))
    if starts_from_classifier(arguments):
        if prompts is not None:
            raise ValueError(
                f"head_from_prompts needs a text tower, which the classifier {arguments.model!r} does not have; start "
                "from the image-text model that it was made from."
            )
        return load_classifier(arguments, findings, labels)
    model, processor = make_model(arguments, texts)
    if type(model) not in CLASSIFIERS:
        raise ValueError(
            f"--task classification does not support SigLIP models such as {arguments.model!r}; start from a CLIP or "
            "TIER model, or train it with texts."
        )
    classifier = CLASSIFIERS[type(model)].from_image_tower(model, findings)
    if prompts is not None:
        positive, negative = embed_prompts(model, processor, load_prompts(prompts, findings))
        classifier.set_zero_shot_head(
            torch.from_numpy(positive), torch.from_numpy(negative), model.logit_scale.exp().item()
        )
    set_bias(classifier, labels)
    return classifier, processor.image_processor


def starts_from_classifier(arguments: ModelArguments) -> bool:
    """Whether the model to start from is a saved classifier."""
    if arguments.vision_model is not None or arguments.model in PRESETS:
        return False
    architectures = read_stored_config(arguments).get("architectures") or [""]
    return architectures[0] in {classifier.__name__ for classifier in CLASSIFIERS.values()}


def load_classifier(
    arguments: ModelArguments, findings: Sequence[str], labels: np.ndarray
) -> tuple[Classifier, TierImageProcessor]:
    """A saved classifier and its image processor. It gets a new head if its findings differ."""
    is_dual = read_stored_config(arguments).get("model_type") == TierDualEncoderConfig.model_type
    classifier = load_weights(CLASSIFIERS[TierDualEncoderModel if is_dual else TierCLIPModel], arguments)
    image_processor = load_image_processor(arguments, classifier.config)
    if list(classifier.config.id2label.values()) != list(findings):
        logger.warning("The head of %s has other findings: a new head is trained.", arguments.model)
        classifier = classifier.from_image_tower(classifier, findings)
        set_bias(classifier, labels)
    return classifier, image_processor


def set_bias(classifier: Classifier, labels: np.ndarray) -> None:
    """Sets each bias to the log odds of its finding in the labels, which need both classes."""
    odds = (labels == 1).sum(axis=0) / (labels == 0).sum(axis=0)
    classifier.classifier.bias.data.copy_(torch.from_numpy(np.log(odds)))
