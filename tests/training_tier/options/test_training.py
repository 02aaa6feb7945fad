"""With few images, a training takes more epochs."""

import logging

import pytest

from training_tier.options.training import TierTrainingArguments


@pytest.mark.parametrize(
    ("num_images", "options", "epochs"),
    [
        (300, {}, 50),  # two steps an epoch
        (300, {"dataloader_drop_last": False}, 34),  # three
        (300, {"gradient_accumulation_steps": 2}, 100),  # one
        (1_300, {}, 12),  # ten steps: 120 in 12 epochs
        (300, {"max_steps": 7}, 12),
        (300, {"min_train_steps": 0}, 12),
    ],
)
def test_few_images_are_trained_in_more_epochs(num_images, options, epochs, caplog):
    common = {"num_train_epochs": 12, "per_device_train_batch_size": 128, "min_train_steps": 100}
    training = TierTrainingArguments(output_dir="run", use_cpu=True, **(common | options))
    with caplog.at_level(logging.INFO):
        training.reach_min_train_steps(num_images)
    assert training.num_train_epochs == epochs
    told = f"{epochs} epochs instead of 12: so few images need them for 100 steps (min_train_steps)."
    assert (told in caplog.text) == (epochs > 12)
    assert ("min_train_steps has no effect with max_steps=7." in caplog.text) == ("max_steps" in options)
