"""A warning when the training reports are learnt by heart."""

import math

import pytest
import torch

from training_tier.data.pairs import PairOptions
from training_tier.loop.by_heart import (
    ByHeart,
    as_evaluated,
    learns_by_heart,
    mean_contrastive_loss,
    spread_batches,
)

VARIED = PairOptions(augmentation="standard", sentences_per_image=2)
OF_EACH_EPOCH = {"eval_strategy": "epoch", "save_strategy": "no", "load_best_model_at_end": False}


def test_it_is_a_question_of_what_carries_over():
    chance = math.log(32)
    assert learns_by_heart(1.0, 3.0, chance)  # gains of 2.47 and 0.47
    assert not learns_by_heart(1.0, 2.0, chance)
    assert not learns_by_heart(3.2, 3.5, chance)  # nothing is learnt yet
    assert learns_by_heart(0.1, 6.0, chance)  # worse than chance


def test_nothing_is_said_without_a_loss():
    assert not learns_by_heart(float("nan"), 3.0, 3.4) and not learns_by_heart(1.0, float("nan"), 3.4)


def test_batches_of_neighbours_are_spread_over_the_records():
    assert spread_batches(100, 10, 3) == [range(0, 10), range(33, 43), range(66, 76)]
    assert spread_batches(25, 10, 5) == [range(0, 10), range(12, 22)]
    assert spread_batches(9, 10, 5) == []


def test_the_training_images_are_measured_as_an_evaluation_does(make_contrastive, phantom):
    trainer = make_contrastive(pairs=VARIED, per_device_eval_batch_size=8)
    trainer.eval_dataset.options = PairOptions(seed=3)
    dataset = as_evaluated(trainer.train_dataset, trainer.eval_dataset)
    batches = spread_batches(48, 8, 6)
    state, draw = trainer.model.training, torch.get_rng_state()
    found = mean_contrastive_loss(trainer.model, dataset, batches, trainer.data_collator, trainer.args)
    assert trainer.model.training == state and torch.equal(torch.get_rng_state(), draw)
    assert found == pytest.approx(trainer.evaluate(dataset)["eval_contrastive_loss"], rel=1e-6)
    assert trainer.train_dataset.options == VARIED  # as before


def warnings_of(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if "by heart" in record.getMessage()]


@pytest.mark.slow
def test_few_reports_learnt_in_many_epochs_are_warned_of_once(make_contrastive, phantom, caplog):
    options = {"per_device_eval_batch_size": 8, "learning_rate": 3e-3, **OF_EACH_EPOCH}
    trainer = make_contrastive(phantom.select(range(16)), pairs=PairOptions(), num_train_epochs=30, **options)
    trainer.train()
    (message,) = warnings_of(caplog)
    assert message.startswith("The model is learning the training reports by heart: the contrastive loss is ")
    assert "on the evaluated ones, measured alike (chance: 2.08)" in message


def test_a_training_that_has_learnt_nothing_is_not_warned_of(make_contrastive, caplog):
    trainer = make_contrastive(per_device_eval_batch_size=8, learning_rate=1e-6, num_train_epochs=1, **OF_EACH_EPOCH)
    trainer.train()
    assert warnings_of(caplog) == []
    assert any(isinstance(callback, ByHeart) for callback in trainer.callback_handler.callbacks)


@pytest.mark.slow
def test_the_measurement_changes_no_training(make_contrastive):
    weights = []
    for measured in (True, False):
        trainer = make_contrastive(
            folder=f"run{measured}", pairs=VARIED, per_device_eval_batch_size=8, max_steps=12, **OF_EACH_EPOCH
        )
        if not measured:
            trainer.remove_callback(ByHeart)
        trainer.train()
        weights.append(torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()]))
    assert torch.equal(*weights)
