"""What happens to a training that is stopped from outside or from inside; each test does it."""

import functools
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from small_trainings import At, assert_same, make_twelve_steps, truncate
from transformers import TrainerState

from training_tier.loop.checkpoints import last_checkpoint
from training_tier.loop.integrity import find_fault
from training_tier.loop.resuming import BestOfThisRun
from training_tier.loop.stopping import TrainingStopped


@pytest.fixture
def make_trainer(tmp_path, phantom, processor):
    return functools.partial(make_twelve_steps, tmp_path, phantom, processor)


@pytest.fixture(scope="module")
def make_whole(tmp_path_factory, phantom, processor):
    """Function that gives a run that nothing stops, which the first call trains."""

    @functools.cache
    def make():
        trainer = make_twelve_steps(tmp_path_factory.mktemp("whole"), phantom, processor)
        trainer.train()
        return trainer

    return make


@pytest.fixture
def whole(make_whole):  # of a single test, as the preset that it trains
    return make_whole()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "workers"), [(3, 0), (6, 0), (9, 2)], ids=["within an epoch", "at its end", "with workers"]
)
def test_sigterm_saves_and_resuming_equals_the_run_that_was_not_stopped(make_trainer, whole, step, workers):
    def terminate():
        # as a scheduler does, to all processes of the job, and from outside
        workers = [child.pid for child in multiprocessing.active_children()]
        subprocess.run(["kill", "-TERM", *map(str, [*workers, os.getpid()])], check=True)

    before = signal.getsignal(signal.SIGTERM)
    trainer = make_trainer(dataloader_num_workers=workers)
    trainer.add_callback(At(step, terminate))
    others = set(multiprocessing.active_children())
    with pytest.raises(TrainingStopped) as stop:
        trainer.train()
    folder = trainer.args.output_dir
    assert str(stop.value) == (
        f"SIGTERM stopped the run at step {step} of 12. The checkpoint is {folder}/checkpoint-{step}; resume with "
        "--resume_from_checkpoint last."
    )
    assert stop.value.exit_code == 143 and stop.value.in_all_processes
    assert signal.getsignal(signal.SIGTERM) is before
    assert trainer.state.global_step == step and last_checkpoint(folder) == f"{folder}/checkpoint-{step}"

    left = set(multiprocessing.active_children()) - others
    assert len(left) == workers  # held by the traceback, and outlived the signal
    for child in left:
        child.terminate()  # as multiprocessing does when the program ends
        child.join(10)
        assert child.exitcode == 0

    resumed = make_trainer(dataloader_num_workers=workers)
    resumed.train(resume_from_checkpoint=last_checkpoint(folder))
    assert_same(resumed, whole)


def test_sigterm_in_the_last_step_lets_the_run_end(make_trainer, whole):
    trainer = make_trainer()
    trainer.add_callback(At(12, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    trainer.train()
    assert_same(trainer, whole)


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_what_is_not_finite_ends_the_run_within_the_step(make_trainer, phantom, kind):
    trainer = make_trainer()
    batches = []
    collate = trainer.data_collator
    trainer.data_collator = lambda pairs: batches.append([pair["image_id"] for pair in pairs]) or collate(pairs)

    def spoil():
        scale = trainer.model.logit_scale
        if kind == "loss":
            scale.data.fill_(float("nan"))
        else:
            scale.register_hook(lambda gradient: gradient * float("inf"))

    trainer.add_callback(At(7, spoil))
    with pytest.raises(TrainingStopped) as stop:
        trainer.train()
    folder = trainer.args.output_dir
    ids = batches[7]  # the first is the evaluation's
    assert str(stop.value) == (
        f"The {kind} of step 7 is not finite; its images are {', '.join(ids)}, and the last good checkpoint is "
        f"{folder}/checkpoint-4. Check these images and their texts, or resume with a lower --learning_rate and "
        "--resume_changed true."
    )
    assert trainer.state.global_step == 6 and find_fault(f"{folder}/checkpoint-4") is None


def test_a_full_disk_leaves_the_checkpoint_before(make_trainer):
    trainer = make_trainer()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # the weights fit, the optimizer's two moments of them do not
    trainer.add_callback(At(8, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))))
    size = 4 * trainer.model.num_parameters()
    assert size < 190_000 < 2 * size
    try:
        with pytest.raises(TrainingStopped) as stop:
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    folder = trainer.args.output_dir
    message = str(stop.value)
    assert message.startswith(f"The checkpoint of step 8 cannot be written to {folder!r} (")
    assert message.endswith(
        f"Free some space and resume with --resume_from_checkpoint last ({folder}/checkpoint-4 is whole)."
    )
    assert stop.value.exit_code == 1 and "\n" not in message
    assert os.listdir(folder) == ["checkpoint-4"] and last_checkpoint(folder) == f"{folder}/checkpoint-4"


def test_a_full_disk_at_the_end_leaves_the_model_before(make_trainer, monkeypatch):
    trainer = make_trainer(max_steps=1, save_strategy="no", eval_strategy="no")
    trainer.train()
    trainer.save_model()
    folder = Path(trainer.args.output_dir)
    before = (folder / "model.safetensors").read_bytes()
    trainer.model.logit_scale.data.zero_()

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(TrainingStopped, match=r"^The model cannot be written to .*No space left on device\)"):
        trainer.save_model()
    assert (folder / "model.safetensors").read_bytes() == before and not (folder / "_saving").exists()


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda folder: truncate(folder / "model.safetensors"), "model.safetensors is cut short"),
        (lambda folder: truncate(folder / "optimizer.pt"), "optimizer.pt is cut short"),
        (lambda folder: truncate(folder / "trainer_state.json"), "trainer_state.json is cut short"),
        (lambda folder: (folder / "model.safetensors").unlink(), "it does not hold weights"),
        (lambda folder: (folder / "optimizer.pt").unlink(), "it does not hold optimizer.pt"),
        (lambda folder: (folder / "rng_state.pth").unlink(), "it does not hold rng_state"),
        (lambda folder: (folder / "trainer_state.json").unlink(), "it does not hold trainer_state.json"),
        (lambda folder: None, None),
    ],
)
def test_a_torn_checkpoint_is_never_the_last(whole, tmp_path, caplog, spoil, fault):
    for step in (4, 8):
        shutil.copytree(Path(whole.args.output_dir, "checkpoint-12"), tmp_path / f"checkpoint-{step}")
    spoil(tmp_path / "checkpoint-8")
    assert find_fault(tmp_path / "checkpoint-8") == fault
    assert last_checkpoint(tmp_path) == str(tmp_path / ("checkpoint-4" if fault else "checkpoint-8"))
    assert (f"{tmp_path}/checkpoint-8 is not whole and is skipped: {fault}." in caplog.text) == bool(fault)


def test_the_name_of_the_best_checkpoint_is_its_final_one(make_trainer):
    trainer = make_trainer(eval_strategy="steps", eval_steps=4, save_total_limit=1, load_best_model_at_end=True)
    trainer.train()
    folder = Path(trainer.args.output_dir)
    best = folder / f"checkpoint-{trainer.state.best_global_step}"
    assert trainer.state.best_model_checkpoint == str(best) and best.is_dir()
    assert {path.name for path in folder.iterdir()} == {best.name}
    assert json.loads((best / "trainer_state.json").read_text())["best_model_checkpoint"] == str(best)


def test_checkpoints_of_the_model_alone_give_the_best_one(make_trainer):
    """Without what resuming needs; as the library has it, such a run cannot be resumed."""
    options = {"eval_strategy": "steps", "eval_steps": 4, "load_best_model_at_end": True}
    options["greater_is_better"] = True  # of a loss that falls: the first evaluation is the best
    whole, alone = make_trainer("whole", **options), make_trainer("alone", **options, save_only_model=True)
    for trainer in (whole, alone):
        trainer.train()
    best = Path(alone.state.best_model_checkpoint)
    assert alone.state.best_global_step == 4 and not (best / "optimizer.pt").exists()
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(alone.model.state_dict()[name], tensor)
    assert find_fault(best, only_model=True) is None and find_fault(best) == "it does not hold rng_state"
    truncate(best / "model.safetensors")
    with pytest.raises(TrainingStopped, match="best checkpoint .* is not whole: model.safetensors is cut short"):
        alone._load_best_model()


@pytest.mark.slow
def test_the_best_checkpoint_of_a_run_that_was_moved_is_its_own(make_trainer, tmp_path, caplog):
    """The state of a checkpoint names the best one by its path; another run may be there by now."""
    options = {"eval_strategy": "steps", "eval_steps": 4, "load_best_model_at_end": True, "save_total_limit": None}
    options["greater_is_better"] = True  # of a loss that falls: the first evaluation is the best
    make_trainer("first", **options).train()
    first, moved = tmp_path / "first", shutil.copytree(tmp_path / "first", tmp_path / "moved")
    resumed = make_trainer("moved", **options)
    resumed.train(resume_from_checkpoint=str(moved / "checkpoint-12"))
    assert resumed.state.best_model_checkpoint == str(moved / "checkpoint-4")

    # a better step than the best that was saved, and one of which nothing was saved
    for step, named, found in ((6, first / "checkpoint-4", moved / "checkpoint-4"), (6, None, None)):
        state = TrainerState(best_global_step=step, best_metric=0.5, best_model_checkpoint=named and str(named))
        BestOfThisRun().on_train_begin(resumed.args, state, None)
        assert state.best_model_checkpoint == (found and str(found))
        assert (state.best_global_step, state.best_metric) == (6, 0.5)
    state = TrainerState(best_global_step=4, best_metric=0.5, best_model_checkpoint=str(first / "checkpoint-4"))
    shutil.rmtree(moved / "checkpoint-4")
    BestOfThisRun().on_train_begin(resumed.args, state, None)
    assert (state.best_global_step, state.best_metric, state.best_model_checkpoint) == (None, None, None)
    assert f"The best checkpoint so far, of step 4, is not in {moved}: only later steps can be the best" in caplog.text


@pytest.mark.slow
def test_the_loss_of_the_whole_training_counts_each_step_once(make_trainer):
    """Of 12 steps, logged after 5 and 10, and resumed after 4 and after 8."""
    whole = make_trainer(save_total_limit=None)
    whole.train()
    folder = Path(whole.args.output_dir)
    losses = {entry["step"]: entry["loss"] for entry in whole.state.log_history if "loss" in entry}
    final = whole.state.log_history[-1]["train_loss"]
    unlogged = whole._tr_loss.item()  # of steps 11 and 12
    assert list(losses) == [5, 10] and final == pytest.approx((5 * losses[5] + 5 * losses[10] + unlogged) / 12)
    for step in (4, 8):
        resumed = make_trainer(f"resumed-{step}")
        output = resumed.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
        assert output.training_loss == output.metrics["train_loss"] == resumed.state.log_history[-1]["train_loss"]
        assert output.training_loss == final


@pytest.mark.slow
def test_a_resumed_run_warns_of_no_option_that_is_the_same(make_trainer, caplog):
    options = {"eval_strategy": "steps", "eval_steps": 0.25, "logging_steps": 0.4, "save_steps": 0.25}
    options["save_total_limit"] = None
    trainer = make_trainer(**options, max_steps=4)
    trainer.train()
    resumed = make_trainer("resumed", **options, max_steps=4)
    resumed.train(resume_from_checkpoint=f"{trainer.args.output_dir}/checkpoint-2")
    assert "do not match" not in caplog.text
    assert (resumed.args.eval_steps, resumed.args.logging_steps, resumed.args.save_steps) == (0.25, 0.4, 0.25)
    assert [entry["step"] for entry in resumed.state.log_history if "eval_loss" in entry] == [1, 2, 3, 4]
