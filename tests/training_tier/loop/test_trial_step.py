"""A trial before the training tells how long a step takes, and leaves no trace."""

import copy
import random
import re

import numpy as np
import pytest
import torch
from small_trainings import assert_same, break_images, make_twelve_steps, small_arguments
from transformers import TrainerControl, TrainerState

from modeling_tier import TierDualEncoderModel
from training_tier.data.collator import PairCollator
from training_tier.data.pairs import PairDataset
from training_tier.loop.time_left import TimeLeft
from training_tier.loop.trial_step import time_trial_step
from training_tier.start.presets import preset_config


def make_loader(records, processor):
    dataset = PairDataset(records, processor.image_processor)
    return torch.utils.data.DataLoader(dataset, batch_size=8, collate_fn=PairCollator(processor.tokenizer))


@pytest.fixture
def with_batch_norms(processor):
    """A ResNet and a BERT, which has dropout."""
    return TierDualEncoderModel(preset_config("tiniest-dual", processor.tokenizer))


@pytest.mark.parametrize("options", [{}, {"contrastive_chunk_size": 4}, {"gradient_accumulation_steps": 2}])
def test_the_model_and_the_random_state_are_as_before(tmp_path, phantom, processor, with_batch_norms, options):
    model, loader, arguments = with_batch_norms, make_loader(phantom, processor), small_arguments(tmp_path, **options)
    before = copy.deepcopy(model.state_dict())
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    seconds = time_trial_step(model, loader, arguments)
    assert 0 < seconds < 60
    assert any("running_mean" in name for name in before)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert states[:2] == (random.getstate(), np.random.get_state()[1].tolist())
    assert torch.equal(states[2], torch.get_rng_state())


def test_what_is_told_before_the_first_step(tmp_path, phantom, processor, with_batch_norms, caplog):
    caplog.set_level("INFO", logger="training_tier.loop.time_left")
    parts = {"model": with_batch_norms, "train_dataloader": make_loader(phantom, processor)}
    arguments = small_arguments(tmp_path, eval_strategy="epoch")
    for steps in (24, 14):
        state = TrainerState(max_steps=steps, num_train_epochs=4)
        TimeLeft().on_train_begin(arguments, state, TrainerControl(), **parts)
    tried, short = (record.message for record in caplog.records)
    told = re.fullmatch(
        r"Training: 4 epochs, 24 steps of 8 images\. About (\d+) s: (.+) s each in a trial on the first images, "
        r"without 4 evaluations\. After 6 steps, a better estimate follows\.",
        tried,
    )
    assert told and int(told[1]) == pytest.approx(24 * float(told[2]), abs=1 + 24 * 0.05 * float(told[2]))
    assert short == "Training: 4 epochs, 14 steps of 8 images. After 6 steps, an estimate of the time follows."


@pytest.mark.slow
def test_a_training_with_a_trial_equals_one_without_and_a_resumed_one(tmp_path, phantom, processor):
    options = {"num_train_epochs": 4, "save_steps": 5, "save_total_limit": None}
    tried = make_twelve_steps(tmp_path, phantom, processor, "tried", **options)
    tried.train()
    plain = make_twelve_steps(tmp_path, phantom, processor, "plain", **options)
    plain.remove_callback(TimeLeft)
    plain.train()
    assert_same(tried, plain)
    resumed = make_twelve_steps(tmp_path, phantom, processor, "plain", **options)
    resumed.train(str(tmp_path / "plain" / "checkpoint-10"))
    assert_same(resumed, plain)


def test_images_that_do_not_decode(tmp_path, phantom, processor, with_batch_norms):
    arguments = small_arguments(tmp_path)
    assert time_trial_step(with_batch_norms, make_loader(break_images(phantom, [0, 5]), processor), arguments) > 0
    loader = make_loader(break_images(phantom, list(range(8))), processor)
    assert time_trial_step(with_batch_norms, loader, arguments) is None
