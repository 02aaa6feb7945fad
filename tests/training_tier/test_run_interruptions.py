"""Trainings that are killed, terminated or hit a loss that is not finite, in one process and in two."""

import json
import random
import re
import time

import pytest
import torch
from child_processes import launcher, run_child
from safetensors.torch import load_file
from training_runs import QUICK, REPOSITORY, run

from processing_tier.phantom.dataset import make_phantom
from training_tier.loop.checkpoints import last_checkpoint
from training_tier.loop.integrity import find_fault

# Runs train_tier.py and lets something happen to it: an event, a step and a process, from the environment.
BREAKABLE = """
import os, signal, sys
import torch
from pathlib import Path
from transformers import TrainerCallback
import train_tier
from training_tier.loop.trainer import RadiographTrainer

EVENT, STEP = os.environ["EVENT"], int(os.environ["STEP"])
RANKS = os.environ.get("RANKS", "0,1").split(",")


class Event(TrainerCallback):
    def __init__(self, trainer):
        self.trainer = trainer

    def on_pre_optimizer_step(self, args, state, control, **kwargs):  # when the gradients are there
        if os.environ.get("RANK", "0") not in RANKS or state.global_step + 1 != STEP:
            return
        if EVENT == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif EVENT == "terminate":
            os.kill(os.getpid(), signal.SIGTERM)
        elif EVENT == "terminate the launcher":
            os.kill(os.getppid(), signal.SIGTERM)

    def on_step_begin(self, args, state, control, **kwargs):
        if os.environ.get("RANK", "0") in RANKS and state.global_step + 1 == STEP and EVENT == "nan":
            self.trainer.model.logit_scale.data.fill_(float("nan"))


make = RadiographTrainer.__init__
RadiographTrainer.__init__ = lambda self, **kwargs: make(self, **kwargs) or self.add_callback(Event(self))
if EVENT == "kill in a save":
    save = torch.save

    def torn(content, file, *args, **kwargs):
        save(content, file, *args, **kwargs)
        if f"checkpoint-{STEP}" in str(file) and str(file).endswith("optimizer.pt"):
            os.truncate(file, os.path.getsize(file) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = torn
if __name__ == "__main__":
    train_tier.main()
"""


@pytest.fixture(scope="module")
def breakable(tmp_path_factory):
    file = tmp_path_factory.mktemp("breakable") / "breakable.py"
    file.write_text(BREAKABLE)

    def launch(argv, processes=1, event="none", step=0, ranks="0,1"):
        command = [*launcher(processes), file, *argv]
        return run_child(command, PYTHONPATH=REPOSITORY, EVENT=event, STEP=step, RANKS=ranks)

    return launch


def assert_equal_runs(folders):
    """The same weights, and the same log but for what is measured in seconds and the line on the whole training."""
    one, other = (load_file(folder / "model.safetensors") for folder in folders)
    assert all(torch.equal(one[name], other[name]) for name in one)
    histories = []
    for folder in folders:
        history = json.loads((folder / "trainer_state.json").read_text())["log_history"][:-1]
        timed = ("runtime", "per_second", "data_wait", "tflops")
        histories.append([{k: v for k, v in entry.items() if not k.endswith(timed)} for entry in history])
    assert histories[0] == histories[1]
    steps = [entry["step"] for entry in histories[0] if "loss" in entry]
    assert steps == sorted(set(steps)) and len(steps) > 2 and any("eval_loss" in entry for entry in histories[0])


STREAMED = ["--streaming", "--shuffle_buffer", "10", "--dataloader_num_workers", "1"]
# lines of the log and checkpoints lie across one another; the AUROC is left out to be quick
LOGGED = ["--num_train_epochs", "3", "--logging_steps", "3", "--save_strategy", "steps", "--save_steps", "2"]
LOGGED += ["--model", "nano", "--load_best_model_at_end", "false", "--metric_for_best_model", "eval_loss"]
LOGGED += ["--token_entropy_weight", "0.1"]


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], STREAMED], ids=["map-style", "streamed by a worker"])
@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(breakable, prepared, tmp_path, options, processes):
    """18 steps, or 9 of two processes with the same number of images each."""
    argv = [*QUICK, "--data", prepared, *LOGGED, *options]
    step = random.Random(f"{options} {processes}").randrange(3, 18 // processes)
    folders = [tmp_path / name for name in ("whole", "run")]
    whole = breakable([*argv, "--output_dir", folders[0]], processes)
    assert whole.returncode == 0, whole.stderr[-2000:]
    killed = breakable([*argv, "--output_dir", folders[1]], processes, "kill", step)
    assert killed.returncode == (-9 if processes == 1 else 1)
    saved = max(int(path.name.removeprefix("checkpoint-")) for path in folders[1].glob("checkpoint-*"))
    assert saved == (step - 1) // 2 * 2 and not (folders[1] / "model.safetensors").exists()
    resumed = breakable([*argv, "--output_dir", folders[1], "--resume_from_checkpoint", "last"], processes)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert_equal_runs(folders)


@pytest.mark.slow
def test_a_kill_within_a_save_leaves_the_checkpoint_before(breakable, prepared, tmp_path):
    argv = [*QUICK, "--data", prepared, *LOGGED, "--output_dir", tmp_path / "run"]
    killed = breakable(argv, event="kill in a save", step=4)
    assert killed.returncode == -9
    content = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert content == ["_lock", "_saving", "checkpoint-2"]
    assert find_fault(tmp_path / "run" / "_saving" / "checkpoint-4") is not None
    assert last_checkpoint(tmp_path / "run") == str(tmp_path / "run" / "checkpoint-2")
    run(*argv, "--resume_from_checkpoint", "last")
    assert not (tmp_path / "run" / "_saving").exists()
    assert json.loads((tmp_path / "run" / "trainer_state.json").read_text())["global_step"] == 18


@pytest.mark.slow
def test_a_terminated_run_ends_at_once_with_its_own_exit_code(breakable, prepared, tmp_path):
    argv = [*QUICK, "--data", prepared, *LOGGED, *STREAMED, "--output_dir", tmp_path / "run"]
    stopped = breakable(argv, event="terminate", step=4)  # too late for that step
    assert time.time() - (tmp_path / "run" / "checkpoint-5").stat().st_mtime < 10  # the worker ends too
    assert stopped.returncode == 143
    assert stopped.stderr.splitlines()[-1] == (
        f"train_tier.py: SIGTERM stopped the run at step 5 of 18. The checkpoint is {tmp_path}/run/checkpoint-5; "
        "resume with --resume_from_checkpoint last."
    )


@pytest.mark.slow
def test_two_processes_save_once_when_their_launcher_is_terminated(breakable, prepared, tmp_path):
    argv = [*QUICK, "--data", prepared, *LOGGED, *STREAMED]
    folders = [tmp_path / name for name in ("whole", "run")]
    assert breakable([*argv, "--output_dir", folders[0]], 2).returncode == 0
    stopped = breakable([*argv, "--output_dir", folders[1]], 2, "terminate the launcher", 4, ranks="0")
    assert stopped.returncode == 1  # torchrun's
    checkpoints = sorted(folders[1].glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    step = int(checkpoints[-1].name.split("-")[1])
    assert step >= 4 and find_fault(checkpoints[-1]) is None
    sentence = (
        f"train_tier.py: SIGTERM stopped the run at step {step} of 9. The checkpoint is {checkpoints[-1]}; resume with"
    )
    assert stopped.stderr.count("SIGTERM stopped the run") == 1 and sentence in stopped.stderr
    resumed = breakable([*argv, "--output_dir", folders[1], "--resume_from_checkpoint", "last"], 2)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert_equal_runs(folders)


@pytest.mark.slow
def test_a_loss_that_is_not_finite_in_one_process_stops_both_within_the_step(breakable, prepared, tmp_path):
    argv = [*QUICK, "--data", prepared, *LOGGED, "--output_dir", tmp_path / "run"]
    stopped = breakable(argv, 2, "nan", 5, ranks="1")
    assert stopped.returncode == 1
    sentences = [line for line in stopped.stderr.splitlines() if line.startswith("train_tier.py: ")]
    match = re.fullmatch(
        r"train_tier\.py: The loss of step 5 is not finite; its images are (.*), and the last good checkpoint is "
        r"(.*)/checkpoint-4\. Check these images .*",
        sentences[0],
    )
    assert len(sentences) == 1 and match and match[2] == str(tmp_path / "run")
    ids = match[1].split(", ")
    assert len(set(ids)) == 16 and set(ids) <= set(make_phantom(52, 0, 64, "train")["image_id"])
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoint-2", "checkpoint-4"]


@pytest.mark.slow
def test_one_process_that_dies_brings_down_the_other_within_a_minute(breakable, prepared, tmp_path):
    argv = [*QUICK, "--data", prepared, *LOGGED, "--num_train_epochs", "200", "--output_dir", tmp_path / "run"]
    stopped = breakable(argv, 2, "kill", 6, ranks="1")
    saved = (tmp_path / "run" / "checkpoint-4").stat().st_mtime
    assert time.time() - saved < 60
    assert stopped.returncode == 1
    sentence = r"train_tier\.py: Process 0 stops after step [56], because another process has ended \("
    assert re.search(sentence, stopped.stderr), stopped.stderr[-3000:]
    assert f"the last good checkpoint is {tmp_path / 'run' / 'checkpoint-4'}." in stopped.stderr
    assert "Signal 9 (SIGKILL)" in stopped.stderr
