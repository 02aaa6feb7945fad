"""What a training tells about its time, and its progress in a log."""

import logging
import re
import time

import pytest
from small_trainings import At, make_twelve_steps
from transformers import TrainerState

from processing_tier import progress
from training_tier.loop.time_left import TimeLeft, count_evaluations


def sentences(caplog) -> list[str]:
    return [record.message for record in caplog.records if record.name == "training_tier.loop.time_left"]


@pytest.mark.slow
def test_the_first_steps_give_an_estimate(tmp_path, phantom, processor, caplog):
    caplog.set_level(logging.INFO, logger="training_tier")
    trainer = make_twelve_steps(tmp_path, phantom, processor, eval_strategy="steps", eval_steps=8)
    for step in range(2, 7):
        trainer.add_callback(At(step, lambda: time.sleep(0.1)))
    trainer.train()
    start, steps, both = sentences(caplog)
    assert start == "Training: 2 epochs, 12 steps of 8 images. After 6 steps, an estimate of the time follows."
    told = re.fullmatch(
        r"The other 6 steps will take about (\d+) s: (.+) s each, estimated from 5 steps, without 1 evaluation\.",
        steps,
    )
    assert told and 0.1 <= float(told[2]) and int(told[1]) == pytest.approx(6 * float(told[2]), abs=1)
    told = re.fullmatch(r"About (\d+) s left: 4 steps, and 0 evaluations of \d+ s each\.", both)
    assert told and int(told[1]) >= 0


@pytest.mark.slow
def test_a_resumed_training_tells_what_is_done(tmp_path, phantom, processor, caplog):
    make_twelve_steps(tmp_path, phantom, processor, max_steps=4).train()
    caplog.set_level(logging.INFO, logger="training_tier")
    caplog.clear()
    make_twelve_steps(tmp_path, phantom, processor).train("last")
    start, steps = sentences(caplog)
    assert start.startswith("Training: 2 epochs, 12 steps of 8 images, of which 4 are done.")
    assert steps.startswith("The other 2 steps will take about ")


def test_too_few_steps_give_no_estimate(tmp_path, phantom, processor, caplog):
    caplog.set_level(logging.INFO, logger="training_tier")
    make_twelve_steps(tmp_path, phantom, processor, max_steps=6).train()
    assert sentences(caplog) == ["Training: 1 epoch, 6 steps of 8 images."]


@pytest.mark.parametrize(
    ("strategy", "step", "left"), [("no", 3, 0), ("epoch", 3, 2), ("epoch", 6, 1), ("steps", 3, 3), ("steps", 4, 2)]
)
def test_evaluations_that_follow(tmp_path, phantom, processor, strategy, step, left):
    arguments = make_twelve_steps(tmp_path, phantom, processor, eval_strategy=strategy, eval_steps=4).args
    state = TrainerState(global_step=step, epoch=step / 6, max_steps=12, num_train_epochs=2, eval_steps=4)
    assert count_evaluations(arguments, state) == left


@pytest.mark.slow
def test_a_log_file_gets_lines_and_the_losses(tmp_path, phantom, processor, capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINES_AFTER", 0.0)
    trainer = make_twelve_steps(tmp_path, phantom, processor, disable_tqdm=False)
    with progress.library_bars():
        trainer.train()
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.startswith("training: ")]
    assert lines[-1].startswith("training: 100 % (12 of 12 steps) in ")
    assert len(lines) == 10 and "\r" not in err
    assert "'contrastive_loss': " in out


@pytest.mark.slow
def test_without_progress_there_are_no_lines(tmp_path, phantom, processor, capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINES_AFTER", 0.0)
    trainer = make_twelve_steps(tmp_path, phantom, processor, disable_tqdm=True)
    trainer.train()
    assert "training: " not in capsys.readouterr().err
    assert any(isinstance(callback, TimeLeft) for callback in trainer.callback_handler.callbacks)
