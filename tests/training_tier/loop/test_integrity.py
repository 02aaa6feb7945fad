"""Damaged checkpoints, checkpoints of another model, and runs that share an output folder; each test makes one."""

import functools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_trainings import At, assert_same, make_twelve_steps, truncate

from training_tier.loop.changed_options import check_model, check_options
from training_tier.loop.checkpoints import average_weights, choose_checkpoint, last_checkpoint, list_checkpoints
from training_tier.loop.integrity import CHECKSUMS, RUN_OPTIONS, find_fault
from training_tier.loop.locking import LOCK, locked
from training_tier.loop.stopping import TrainingStopped

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture
def make_trainer(tmp_path, phantom, processor):
    return functools.partial(make_twelve_steps, tmp_path, phantom, processor)


@pytest.fixture(scope="module")
def whole_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("whole")


@pytest.fixture
def whole(whole_folder, phantom, processor, shared):
    """A run that nothing stops, once for all tests."""
    if "whole" not in shared:
        shared["whole"] = make_twelve_steps(whole_folder, phantom, processor)
        shared["whole"].train()
    return shared["whole"]


@pytest.fixture(scope="module")
def shared():
    return {}


@pytest.fixture
def run(whole, tmp_path):
    """A copy of a run with two checkpoints, of steps 8 and 12."""
    return Path(shutil.copytree(whole.args.output_dir, tmp_path / "run"))


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def forget_checksums(folder):
    (folder / CHECKSUMS).unlink()


RESUMED = ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
RESUMED += ["log_sums_0.json"]


@pytest.mark.parametrize("name", RESUMED)
def test_a_flipped_bit_passes_a_checkpoint_over(run, caplog, name):
    newest = run / "checkpoint-12"
    size = (newest / name).stat().st_size
    saved = (newest / name).read_bytes()
    for place in np.random.default_rng(0).integers(0, size, 8):
        (newest / name).write_bytes(saved)
        flip(newest / name, int(place))
        fault = find_fault(newest)
        assert fault is not None and fault.startswith(f"{name} "), place
        caplog.clear()
        assert last_checkpoint(run) == str(run / "checkpoint-8")
        assert f"{newest} is not whole and is skipped: {fault}." in caplog.text
        with pytest.raises(ValueError, match=f"^resume_from_checkpoint='.*-12' is not a whole checkpoint: {name}"):
            choose_checkpoint(str(newest), run)
    (newest / name).write_bytes(saved)
    assert find_fault(newest) is None and last_checkpoint(run) == str(newest)


def test_a_flipped_bit_in_the_weights_is_told_by_the_checksum_alone(run):
    newest = run / "checkpoint-12"
    flip(newest / "model.safetensors", -5)
    assert find_fault(newest) == "model.safetensors has changed since it was saved (its checksum differs)"


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("scheduler.pt", b"", "scheduler.pt is cut short"),
        ("rng_state.pth", b"PK", "rng_state.pth is cut short"),
        ("trainer_state.json", b"[]", "trainer_state.json has unexpected content"),
        ("trainer_state.json", b'{"global_step": "12"}', "trainer_state.json has unexpected content"),
        ("trainer_state.json", b'{"unknown": 1}', "trainer_state.json has unexpected content"),
        ("trainer_state.json", b'{"log_history": [1]}', "trainer_state.json has unexpected content"),
        ("trainer_state.json", b"\xff\xfe", "trainer_state.json is cut short"),
        ("trainer_state.json", b"[" * 100_000, "trainer_state.json is cut short"),
        ("log_sums_0.json", b'{"loss": 1.0}', "log_sums_0.json has unexpected content"),
        ("log_sums_0.json", b"null", "log_sums_0.json has unexpected content"),
        ("config.json", b"[]", "config.json has unexpected content"),
        ("checksums.json", b"[]", "checksums.json has unexpected content"),
        ("checksums.json", b"{", "checksums.json is cut short"),
        ("checksums.json", b"{}", "log_sums_0.json was not saved with it"),
    ],
)
def test_what_is_no_part_of_a_checkpoint_passes_it_over(run, name, content, fault):
    (run / "checkpoint-12" / name).write_bytes(content)
    assert find_fault(run / "checkpoint-12") == fault
    assert last_checkpoint(run) == str(run / "checkpoint-8")


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_without_checksums_archives_are_checked_by_their_own(run, name):
    """Checkpoints of an earlier version."""
    newest = run / "checkpoint-12"
    forget_checksums(newest)
    assert find_fault(newest) is None
    content = (newest / name).read_bytes()
    flip(newest / name, content.index(b"data.pkl") + 200)
    assert find_fault(newest) == f"{name} is damaged"


def test_a_file_that_is_missing_by_the_checksums(run):
    (run / "checkpoint-12" / "log_sums_0.json").unlink()
    assert find_fault(run / "checkpoint-12") == "it does not hold log_sums_0.json"


def test_a_configuration_may_gain_thresholds(run):
    """As evaluations add them, and a card."""
    file = run / "checkpoint-12" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"zero_shot_findings": {}}))
    (run / "checkpoint-12" / "README.md").write_text("results")
    assert find_fault(run / "checkpoint-12") is None


def test_a_text_of_a_checkpoint_has_a_bound(run):
    os.truncate(run / "checkpoint-12" / "tokenizer.json", 64 * 2**20 + 1)  # takes no space on the disk
    assert find_fault(run / "checkpoint-12") == "tokenizer.json is larger than 64 MiB"
    assert last_checkpoint(run) == str(run / "checkpoint-8")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "config.json",
            {"vision_config": 0.5},
            r"The configuration of .*checkpoint-12 cannot be used \(StrictDataclassFieldValidationError: Validation "
            r"error for field 'vision_config':\); resume from another checkpoint, or start again\.",
        ),
        (
            "tokenizer.json",
            {"model": 7},
            r"The tokenizer of .*checkpoint-12 cannot be used \(\w+: .*\); resume from another checkpoint, or start "
            r"again\.",
        ),
    ],
)
def test_a_damaged_configuration_or_tokenizer_is_one_sentence(run, whole, processor, name, change, message):
    file = run / "checkpoint-12" / name
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_model(str(run / "checkpoint-12"), whole.model, processor, allow=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)."),
        ("{}", "does not name the data of the run; resume from another checkpoint, or start again."),
        (
            '{"data": {"images": 1}}',
            "does not name the data of the run; resume from another checkpoint, or start again.",
        ),
    ],
)
def test_damaged_options_of_a_run_are_one_sentence(tmp_path, content, message):
    (tmp_path / RUN_OPTIONS).write_text(content)
    with pytest.raises(ValueError) as error:
        check_options(str(tmp_path), {"data": {"images": "x", "digest": "y"}}, allow=True)
    assert type(error.value) is ValueError and str(error.value) == f"{tmp_path / RUN_OPTIONS} {message}"


def test_the_run_goes_on_from_the_whole_checkpoint_before(make_trainer, whole, run, caplog):
    flip(run / "checkpoint-12" / "optimizer.pt", 300)
    resumed = make_trainer("run")
    resumed.train(resume_from_checkpoint=True)
    assert_same(resumed, whole)
    assert f"{run}/checkpoint-12 is not whole and is skipped: optimizer.pt has" in caplog.text
    assert f"The run continues from step 8. {run}/checkpoint-12 is now _stale-checkpoint-12; you can" in caplog.text
    assert {path.name for path in run.iterdir()} == {"checkpoint-8", "checkpoint-12", "_stale-checkpoint-12"}
    assert find_fault(run / "checkpoint-12") is None


def test_no_checkpoint_is_whole(make_trainer, run):
    for step in (8, 12):
        truncate(run / f"checkpoint-{step}" / "scheduler.pt")
    with pytest.raises(ValueError, match="^output_dir '.*run' does not hold a whole checkpoint to resume from; leave"):
        make_trainer("run").train(resume_from_checkpoint="last")
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint-12", "checkpoint-8"]


def rename_tensors(tensors):
    return {f"other.{name}": tensor for name, tensor in tensors.items()}


def drop_tensor(tensors):
    return {name: tensor for name, tensor in tensors.items() if name != "logit_scale"}


def transpose_tensor(tensors):
    return tensors | {"visual_projection.weight": torch.zeros(8, 32)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename_tensors, r"of its tensors \d+ are missing, \d+ are unknown and 0 have another shape, for example "),
        (
            drop_tensor,
            "1 are missing, 0 are unknown and 0 have another shape, for example logit_scale.$",
        ),
        (
            transpose_tensor,
            "0 are missing, 0 are unknown and 1 have another shape, for example visual_projection.weight.$",
        ),
    ],
)
def test_tensors_of_another_network_are_refused(make_trainer, run, change, message):
    newest = run / "checkpoint-12"
    tensors = change(load_file(newest / "model.safetensors"))
    save_file(tensors, newest / "model.safetensors", metadata={"format": "pt"})
    assert find_fault(newest) is not None
    forget_checksums(newest)
    with pytest.raises(ValueError, match=f"checkpoint-12 belongs to another model: .*{message}"):
        make_trainer("run").train(resume_from_checkpoint=str(newest))


@pytest.mark.parametrize(
    ("name", "what"), [("optimizer.pt", "optimizer or scheduler"), ("rng_state.pth", "random state")]
)
def test_what_cannot_be_used_without_checksums_is_one_sentence(make_trainer, run, name, what):
    older = run / "checkpoint-8"
    forget_checksums(older)
    torch.save({"nothing": 1}, older / name)
    with pytest.raises(ValueError, match=rf"^The {what} of .*checkpoint-8 cannot be used \(\w+: .*; resume"):
        make_trainer("run").train(resume_from_checkpoint=str(older))


def test_a_damaged_best_checkpoint_is_not_loaded_at_the_end(make_trainer):
    trainer = make_trainer(eval_strategy="steps", eval_steps=4, load_best_model_at_end=True, save_total_limit=None)

    def spoil():
        best = Path(trainer.args.output_dir, f"checkpoint-{trainer.state.best_global_step}")
        flip(best / "model.safetensors", -5)

    trainer.add_callback(At(11, spoil))
    trainer.state.best_global_step = 8
    trainer.args.greater_is_better = True  # the loss falls: the first checkpoint stays the best
    with pytest.raises(TrainingStopped) as stop:
        trainer.train()
    best = trainer.state.best_model_checkpoint
    assert str(stop.value) == (
        f"The training is complete, but its best checkpoint {best} is not whole: model.safetensors has changed "
        "since it was saved (its checksum differs). To end with the last weights instead, delete it and add "
        "--resume_from_checkpoint last."
    )


def test_a_damaged_checkpoint_is_not_averaged(whole, run):
    flip(run / "checkpoint-8" / "model.safetensors", -5)
    with pytest.raises(ValueError, match="checkpoint-8 cannot be averaged: model.safetensors has changed since"):
        average_weights(whole.model, [run / "checkpoint-12", run / "checkpoint-8"])


def test_a_clock_set_back_deletes_no_new_checkpoint(make_trainer):
    """As if each checkpoint had been saved an hour before the one before it."""
    trainer = make_trainer(save_steps=2, eval_strategy="no")
    folder, kept = Path(trainer.args.output_dir), []

    def set_back():
        for step, path in list_checkpoints(folder).items():
            saved = time.time() - 3600 * step
            os.utime(path, (saved, saved))
        kept.append(list(list_checkpoints(folder)))

    for step in range(3, 13, 2):
        trainer.add_callback(type(f"At{step}", (At,), {})(step, set_back))
    trainer.train()
    assert kept == [[2], [2, 4], [4, 6], [6, 8], [8, 10]] and list(list_checkpoints(folder)) == [10, 12]


def test_later_checkpoints_of_a_run_that_was_given_up_are_set_aside(make_trainer, run, caplog):
    resumed = make_trainer("run", max_steps=10)
    resumed.train(resume_from_checkpoint=str(run / "checkpoint-8"))
    assert {path.name for path in run.iterdir()} == {"checkpoint-8", "checkpoint-10", "_stale-checkpoint-12"}
    assert last_checkpoint(run) == str(run / "checkpoint-10")


HOLD = """
import os, sys, time
from training_tier.loop.locking import locked
with locked(sys.argv[1]):
    if len(sys.argv) > 2 and os.fork() == 0:  # as a data-loader worker that outlives its run
        time.sleep(60)
        os._exit(0)
    print("locked", flush=True)
    time.sleep(60)
"""


def hold(folder, *arguments):
    """A process that has locked a folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), *arguments],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout.readline() == "locked\n"
    return process


@pytest.mark.slow
def test_a_second_run_in_the_same_folder_is_refused_until_the_first_ends_however(make_trainer, tmp_path):
    folder = tmp_path / "run"
    process = hold(folder, "with a child")
    try:
        trainer = make_trainer(max_steps=1, save_strategy="no", eval_strategy="no")
        message = "^output_dir '.*run' is in use by another run; wait until it ends, or choose another --output_dir.$"
        with pytest.raises(ValueError, match=message):
            trainer.train()
        assert trainer.state.global_step == 0 and (folder / LOCK).exists()
        process.kill()
        process.wait()
        trainer.train()  # though the lock's file is still there, and the child alive
        assert trainer.state.global_step == 1 and not (folder / LOCK).exists()
    finally:
        os.killpg(process.pid, 9)


def test_a_lock_leaves_nothing_and_may_be_taken_within(tmp_path):
    folder = tmp_path / "a" / "b"
    with locked(folder), locked(folder):
        assert (folder / LOCK).exists()
    assert not (tmp_path / "a").exists()
    folder.mkdir(parents=True)
    with locked(folder):
        (folder / "model").touch()
    assert [path.name for path in folder.iterdir()] == ["model"]
    with pytest.raises(ValueError, match="^output_dir '.*model' cannot be written; choose another.$"):
        with locked(folder / "model"):
            pass
