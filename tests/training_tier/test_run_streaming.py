"""Trainings that read their images from the shards of a prepared data set."""

import json
import sys

import pyarrow.parquet as pq
import pytest
from child_processes import run_child
from hub_server import Commit, HubServer, Repo
from training_runs import QUICK, REPOSITORY, refused, run


@pytest.mark.slow
def test_streaming_trains_on_the_records_of_the_shards(prepared, tmp_path):
    argv = [*QUICK, "--data", prepared, "--text_warmup_epochs", "0", "--max_train_images", "50"]
    run(
        *argv, "--streaming", "--shuffle_buffer", "10", "--dataloader_num_workers", "2", "--output_dir", tmp_path / "a"
    )
    run(*argv, "--output_dir", tmp_path / "b")  # the same folder without streaming
    cards = [(tmp_path / name / "README.md").read_text() for name in "ab"]
    states = [json.loads((tmp_path / name / "trainer_state.json").read_text()) for name in "ab"]
    assert [state["global_step"] for state in states] == [6, 6]  # 50 // 8
    for card, state in zip(cards, states, strict=True):
        assert "| Images | 50 |" in card
        assert any("eval_auroc" in entry for entry in state["log_history"])
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (tmp_path / "b" / "tokenizer.json").read_bytes()


def test_streaming_trains_a_classifier(prepared, tmp_path):
    argv = ["--data", prepared, "--streaming", "--task", "classification", "--label_fraction", "0.8"]
    argv += ["--model", "resnet-tiny", "--findings", "Consolidation", "--dataloader_drop_last", "false"]
    run(*QUICK, *argv, "--output_dir", tmp_path / "run")
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert any("eval_auroc_Consolidation" in entry for entry in history)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--data", "phantom"], "--streaming reads the Parquet files of tier-prepare, in a folder or on the Hub"),
        (
            ["--train_split", "training"],
            "it has train, validation. Choose one with --split (tier-train: --train_split",
        ),
        (["--columns", "image=img"], "columns has no effect with streaming, which reads prepared data; leave it out."),
        (["--shuffle_buffer", "0"], "shuffle_buffer=0 must be at least 1."),
        (["--per_device_train_batch_size", "64"], "52 training pairs do not fill one batch of 64; lower"),
        (
            ["--dataloader_persistent_workers", "true"],
            "dataloader_persistent_workers=True would repeat the random dra",
        ),
    ],
)
def test_what_streaming_cannot_do_is_refused(argv, message, capsys, prepared, tmp_path):
    assert message in refused(
        capsys, *QUICK, "--data", prepared, "--streaming", *argv, "--output_dir", tmp_path / "run"
    )


def test_streaming_needs_a_split_for_evaluation(capsys, prepared, tmp_path):
    argv = [word for word in QUICK if word not in ("--eval_split", "validation")]
    message = refused(capsys, *argv, "--data", prepared, "--streaming", "--output_dir", tmp_path / "run")
    assert message == "Streaming cannot hold out patients: pass --eval_split."
    message = refused(capsys, *QUICK, "--shuffle_buffer", "5", "--output_dir", tmp_path / "run")
    assert message == "shuffle_buffer=5 has no effect without --streaming; leave it out."


@pytest.mark.slow
def test_streaming_from_the_hub_fetches_ranges_and_keeps_no_copy(prepared, tmp_path):
    files = {f"data/{path.name}": path.read_bytes() for path in (prepared / "data").iterdir()}
    argv = [*QUICK, "--data", "user/prepared", "--streaming", "--views", "all", "--eval_strategy", "no"]
    argv += ["--save_strategy", "no", "--load_best_model_at_end", "false", "--output_dir", str(tmp_path / "run")]
    with HubServer() as hub:
        hub.repos["user/prepared"] = Repo(private=True, commits=[Commit("data", files)])
        hub_env = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "token", "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, REPOSITORY / "train_tier.py", *argv]
        result = run_child(command, HF_HOME=tmp_path / "cache", **hub_env)
        assert result.returncode == 0, result.stderr[-2000:]
        sent = hub.sent
    assert (tmp_path / "run" / "model.safetensors").is_file()
    shards = [name for name in files if "train" in name]
    assert not any("train" in path.name for path in (tmp_path / "cache").rglob("*"))
    images = [pq.read_table(prepared / name, columns=["image"]).nbytes for name in shards]
    for name, size in zip(shards, images, strict=True):
        # once to be hashed, the first images once more by the check before the training; also footers (50 KiB here)
        assert 2 * size < sent[name] < 3 * size + 3 * 2**17
