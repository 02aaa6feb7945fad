"""Defaults that depend on the training: the learning rate, and the weights of the entropies."""

import logging

from training_tier.options.compatibility import has_random_weights
from training_tier.options.model import ModelArguments
from training_tier.options.task import TaskArguments
from training_tier.options.training import RANDOM_WEIGHTS_RATE, TierTrainingArguments
from training_tier.start.initialization import read_stored_config

logger = logging.getLogger(__name__)

ENTROPY_WEIGHT = 0.2  # 0 from version 0.4 on, see docs/tier_study.md

ENTROPY_WEIGHTS = ("token_entropy_weight", "patch_entropy_weight")  # of the paper


def fill_defaults(
    task: TaskArguments, model_arguments: ModelArguments, training_arguments: TierTrainingArguments
) -> str | None:
    """
    Sets the options that were not given, in place, and logs the values.

    Args:
        task ([`TaskArguments`]), model_arguments ([`ModelArguments`]): the task and the model.
        training_arguments ([`TierTrainingArguments`]): receives the learning rate.

    Returns:
        `str`, *optional*: the weights of the entropies and where they come from; `None` for a classifier.

    Raises:
        `ValueError`: the checkpoint does not exist, or it is of another kind of model.
    """
    if not training_arguments.learning_rate_given:
        training_arguments.learning_rate, why = choose_learning_rate(task, model_arguments)
        logger.info("Learning rate: %g, the default for %s.", training_arguments.learning_rate, why)
    if task.task == "classification":
        return None
    weights = fill_entropy_weights(model_arguments)
    logger.info("Entropy weights: %s.", weights)
    return weights


def choose_learning_rate(task: TaskArguments, arguments: ModelArguments) -> tuple[float, str]:
    """The peak learning rate of the training, and a description of the training. See the recipes in configs/."""
    if task.task == "classification" and task.freeze_image_tower:
        return 1e-2, "a new head on a frozen image tower"
    if has_random_weights(arguments):
        return RANDOM_WEIGHTS_RATE, "random weights"
    if task.task == "classification":
        return 1e-4, "a classifier on pretrained weights"
    if task.freeze_image_tower and task.freeze_text_tower:
        return RANDOM_WEIGHTS_RATE, "projection heads on frozen towers"
    return 5e-5, "pretrained weights"


def fill_entropy_weights(arguments: ModelArguments) -> str:
    """
    Sets the weights that were not given: to the checkpoint's if one of them is not 0; otherwise those of the paper to
    0.2, and that of the evidence to 0. The default of the configurations stays 0, which is plain CLIP; a training
    makes it TIER.
    """
    own = {}
    if not has_random_weights(arguments) and arguments.vision_model is None:
        stored = read_stored_config(arguments)
        own = {name: stored.get(name) or 0.0 for name in (*ENTROPY_WEIGHTS, "evidence_entropy_weight")}
    named = [name for name in ENTROPY_WEIGHTS if getattr(arguments, name) is not None]
    for name in ENTROPY_WEIGHTS:
        if name not in named:
            setattr(arguments, name, float(own[name]) if any(own.values()) else ENTROPY_WEIGHT)
    token, patch = (getattr(arguments, name) for name in ENTROPY_WEIGHTS)
    if arguments.evidence_entropy_weight is None:
        arguments.evidence_entropy_weight = float(own.get("evidence_entropy_weight", 0.0))
    evidence = arguments.evidence_entropy_weight
    if arguments.evidence_patches is not None and not evidence:
        logger.warning(
            "evidence_patches=%g has no effect without --evidence_entropy_weight; add it, or leave evidence_patches "
            "out.",
            arguments.evidence_patches,
        )
    if len(named) < 2 and not any(own.values()):
        logger.warning(
            "From version 0.4 on, the entropy weights are 0 by default, because the study (docs/tier_study.md) found "
            "no gain. Pass --token_entropy_weight and --patch_entropy_weight to choose them now."
        )
    if len(named) == 2:
        source = "as given"
    else:
        source = "of the checkpoint" if any(own.values()) else "the default"
        if named:
            source = f"{named[0]} as given, the other {source}"
    told = f"{token:g} (token) and {patch:g} (patch), {source}"
    if evidence:
        return f"{told}; {evidence:g} (evidence)"
    return told if token + patch else f"{told}; this is plain CLIP"
