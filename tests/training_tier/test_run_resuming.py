"""A resumed training has the options, the data and the model of its checkpoint, unless a change is allowed."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file
from training_runs import QUICK, refused, run

RESUMABLE = [
    *QUICK,
    *("--model", "nano"),
    *("--max_steps", "4"),
    *("--save_strategy", "steps"),
    *("--save_steps", "2"),
    *("--eval_strategy", "no"),
    *("--load_best_model_at_end", "false"),
    *("--token_entropy_weight", "0.1"),
]


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run of which the second half is lost."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    run(*RESUMABLE, "--output_dir", folder)
    shutil.rmtree(folder / "checkpoint-4")
    return folder


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--token_entropy_weight", "0.3"],
            "checkpoint-2: token_entropy_weight was 0.1 and is 0.3. Set them back, or add --resume_changed true to "
            "resume with the change.",
        ),
        (
            ["--data", "phantom:num_images=40,image_size=64"],
            r"data was 48 and 48 images of phantom:num_images=48,image_size=64 \(digest \w{12} \w{12}\) and is 40 and "
            r"40 images of phantom:num_images=40,image_size=64 \(digest \w{12} \w{12}\)\. Set",
        ),
        (
            ["--learning_rate", "1e-3", "--max_steps", "8"],
            "learning_rate was 0.0005 and is 0.001; max_steps was 4 and is 8",
        ),
        (["--augmentation", "none"], "augmentation was 'standard' and is 'none'. Set"),
        (
            ["--model", "tiny", "--resume_changed", "true"],
            "checkpoint-2 belongs to another model: its vision_config.hidden_size is 128, and this run's is 192.",
        ),
        (["--findings", "Consolidatoin"], "Consolidatoin"),
        (
            ["--resume_from_checkpoint", "runs/nowhere"],
            "'runs/nowhere' is not a whole checkpoint: the folder does not exist",
        ),
    ],
)
def test_a_run_that_would_go_on_otherwise_is_refused(argv, message, capsys, begun):
    before = sorted(path.name for path in begun.iterdir())
    said = refused(capsys, *RESUMABLE, "--resume_from_checkpoint", "last", "--output_dir", begun, *argv)
    assert re.search(message if "\\" in message else re.escape(message), said)
    assert sorted(path.name for path in begun.iterdir()) == before


def test_a_checkpoint_with_another_tokenizer_is_refused(capsys, begun, tmp_path):
    shutil.copytree(begun / "checkpoint-2", tmp_path / "checkpoint-2")
    file = tmp_path / "checkpoint-2" / "tokenizer.json"
    content = json.loads(file.read_text())
    words = content["model"]["vocab"]
    first, second = list(words)[-2:]
    words[first], words[second] = words[second], words[first]
    file.write_text(json.dumps(content))
    argv = ["--resume_from_checkpoint", tmp_path / "checkpoint-2", "--resume_changed", "true"]
    message = refused(capsys, *RESUMABLE, "--output_dir", begun, *argv)
    assert re.search(r"belongs to another model: its tokenizer lacks 2 of the \d+ tokens of this run, or", message)


@pytest.mark.slow
def test_what_changes_no_result_may_change_and_the_rest_when_forced(begun, tmp_path, caplog):
    argv = ["--resume_from_checkpoint", begun / "checkpoint-2", "--logging_steps", "1", "--save_total_limit", "5"]
    run(*RESUMABLE, *argv, "--output_dir", tmp_path / "a")
    whole, resumed = (load_file(folder / "model.safetensors") for folder in (begun, tmp_path / "a"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert "otherwise" not in caplog.text

    run(*RESUMABLE, *argv, "--patch_entropy_weight", "0.3", "--resume_changed", "true", "--output_dir", tmp_path / "b")
    assert "The run resumes with changes: patch_entropy_weight was 0.2 and is 0.3." in caplog.text
    assert json.loads((tmp_path / "b" / "config.json").read_text())["patch_entropy_weight"] == 0.3
