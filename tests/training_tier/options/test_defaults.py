"""A training that names no weights is TIER; its learning rate is chosen by what is trained; both are told."""

import logging

import pytest

from training_tier.options.defaults import fill_defaults
from training_tier.options.model import ModelArguments
from training_tier.options.task import TaskArguments
from training_tier.options.training import TierTrainingArguments
from training_tier.start.initialization import make_model

TEXTS = ["no acute disease of the chest", "small left pleural effusion"] * 3


@pytest.fixture
def make_checkpoint(tmp_path):
    """Function that saves a small model with entropy weights, and gives its folder."""

    def make(token, patch, **options):
        arguments = ModelArguments(
            model="tiniest", token_entropy_weight=token, patch_entropy_weight=patch, vocab_size=600, **options
        )
        model, processor = make_model(arguments, TEXTS)
        folder = tmp_path / f"checkpoint-{token}-{patch}"
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        return str(folder)

    return make


def fill(task=None, learning_rate=None, **model):
    arguments = ModelArguments(**model)
    training = TierTrainingArguments(output_dir="run", use_cpu=True, learning_rate=learning_rate)
    told = fill_defaults(task or TaskArguments(), arguments, training)
    return told, (arguments.token_entropy_weight, arguments.patch_entropy_weight), training.learning_rate


@pytest.mark.parametrize(
    ("options", "weights", "told"),
    [
        ({}, (0.2, 0.2), "0.2 (token) and 0.2 (patch), the default"),
        ({"vision_model": "a", "text_model": "b"}, (0.2, 0.2), "0.2 (token) and 0.2 (patch), the default"),
        (
            {"token_entropy_weight": 0.0, "patch_entropy_weight": 0.0},
            (0, 0),
            "0 (token) and 0 (patch), as given; this is plain CLIP",
        ),
        (
            {"token_entropy_weight": 0.1},
            (0.1, 0.2),
            "0.1 (token) and 0.2 (patch), token_entropy_weight as given, the other the default",
        ),
    ],
)
def test_the_weights_of_a_training_from_random_weights_or_two_towers(options, weights, told, caplog):
    assert fill(**options)[:2] == (told, weights)
    announced = "From version 0.4 on, the entropy weights are 0 by default, because the study" in caplog.text
    assert announced == ("default" in told)


@pytest.mark.parametrize(
    ("stored", "options", "weights", "told"),
    [
        ((0.0, 0.0), {}, (0.2, 0.2), "0.2 (token) and 0.2 (patch), the default"),
        ((0.3, 0.0), {}, (0.3, 0.0), "0.3 (token) and 0 (patch), of the checkpoint"),
        (
            (0.3, 0.1),
            {"patch_entropy_weight": 0.0},
            (0.3, 0.0),
            "0.3 (token) and 0 (patch), patch_entropy_weight as given, the other of the checkpoint",
        ),
    ],
)
def test_a_checkpoint_keeps_its_own_weights_unless_both_are_0(make_checkpoint, stored, options, weights, told):
    folder = make_checkpoint(*stored)
    assert fill(model=folder, **options)[:2] == (told, weights)
    arguments = ModelArguments(model=folder, **options)
    fill_defaults(TaskArguments(), arguments, TierTrainingArguments(output_dir="run", use_cpu=True))
    config = make_model(arguments, TEXTS)[0].config
    assert (config.token_entropy_weight, config.patch_entropy_weight) == weights


def test_the_evidence_weight_is_told_and_kept(make_checkpoint, caplog):
    given = {"token_entropy_weight": 0.0, "patch_entropy_weight": 0.0, "evidence_entropy_weight": 0.1}
    assert fill(**given)[0] == "0 (token) and 0 (patch), as given; 0.1 (evidence)"
    folder = make_checkpoint(0.0, 0.0, evidence_entropy_weight=0.1, evidence_patches=3.0)
    assert fill(model=folder)[:2] == ("0 (token) and 0 (patch), of the checkpoint; 0.1 (evidence)", (0, 0))
    arguments = ModelArguments(model=folder, evidence_patches=2.0)
    fill_defaults(TaskArguments(), arguments, TierTrainingArguments(output_dir="run", use_cpu=True))
    config = make_model(arguments, TEXTS)[0].config
    assert (config.evidence_entropy_weight, config.evidence_patches) == (0.1, 2.0)
    assert "has no effect" not in caplog.text
    fill(evidence_patches=55.0)
    message = (
        "evidence_patches=55 has no effect without --evidence_entropy_weight; add it, or leave evidence_patches out."
    )
    assert message in caplog.text


def test_the_defaults_of_a_configuration_stay_those_of_clip():
    config = make_model(ModelArguments(model="tiniest", vocab_size=600), TEXTS)[0].config
    assert (config.token_entropy_weight, config.patch_entropy_weight) == (0, 0)


CLASSIFY, PROBE = (TaskArguments(task="classification", freeze_image_tower=frozen) for frozen in (False, True))


@pytest.mark.parametrize(
    ("task", "options", "rate", "why"),
    [
        (None, {}, 5e-4, "random weights"),
        (None, {"vision_model": "a", "text_model": "b"}, 5e-5, "pretrained weights"),
        (CLASSIFY, {}, 5e-4, "random weights"),
        (CLASSIFY, {"model": "checkpoint"}, 1e-4, "a classifier on pretrained weights"),
        (PROBE, {"model": "checkpoint"}, 1e-2, "a new head on a frozen image tower"),
        (
            TaskArguments(freeze_image_tower=True, freeze_text_tower=True),
            {"vision_model": "a", "text_model": "b"},
            5e-4,
            "projection heads on frozen towers",
        ),
    ],
)
def test_the_learning_rate_is_chosen_by_what_is_trained_and_told(task, options, rate, why, caplog):
    with caplog.at_level(logging.INFO, logger="training_tier"):
        assert fill(task, **options)[2] == rate
    assert f"Learning rate: {rate:g}, the default for {why}." in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="training_tier"):
        assert fill(task, learning_rate=3e-3, **options)[2] == 3e-3
    assert "Learning rate" not in caplog.text


def test_a_checkpoint_gets_the_rate_of_pretrained_weights(make_checkpoint, caplog):
    with caplog.at_level(logging.INFO, logger="training_tier"):
        told, _, rate = fill(model=make_checkpoint(0.0, 0.0))
    assert rate == 5e-5
    assert "Learning rate: 5e-05, the default for pretrained weights." in caplog.text
    assert f"Entropy weights: {told}." in caplog.text


def test_classifiers_have_no_weights():
    assert fill(CLASSIFY)[:2] == (None, (None, None))
