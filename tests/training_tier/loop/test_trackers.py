"""Experiment trackers (docs/trackers.md): after a short training, their files hold its losses and its AUROC."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from training_runs import QUICK, REPOSITORY

pytestmark = pytest.mark.slow


def train(folder: Path, tracker: str, **environment: str) -> dict[str, list[float]]:
    """A training with a tracker; the losses and AUROCs of its log."""
    options = [*QUICK, "--num_train_epochs", "2", "--model", "nano", "--image_size", "32", "--logging_steps", "2"]
    options += ["--report_to", tracker, "--run_name", "short", "--output_dir", "run"]
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPOSITORY), **environment}
    command = [sys.executable, str(REPOSITORY / "train_tier.py"), *options]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    log = json.loads((folder / "run" / "trainer_state.json").read_text())["log_history"]
    return {name: [entry[name] for entry in log if name in entry] for name in ("loss", "token_entropy", "eval_auroc")}


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = train(tmp_path, "tensorboard")
    [events] = (tmp_path / "run" / "runs").iterdir()
    scalars = EventAccumulator(str(events)).Reload()
    written = {
        name: [scalar.value for scalar in scalars.Scalars(tag)]
        for name, tag in (
            ("loss", "train/loss"),
            ("token_entropy", "train/token_entropy"),
            ("eval_auroc", "eval/auroc"),
        )
    }
    assert written == {name: pytest.approx(values, rel=1e-5) for name, values in log.items()}


def leveldb_records(data: bytes) -> Iterator[bytes]:
    """
    The records of a file in LevelDB's log format after the 7 bytes of W&B's header. Blocks of 32 KiB hold chunks with
    a checksum, a length and a kind: 1 whole, 2 first, 3 middle, 4 last.
    """
    place, record = 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def test_wandb_offline(tmp_path):
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    log = train(tmp_path, "wandb", WANDB_MODE="offline", WANDB_SILENT="true")
    [path] = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    rows = []
    for data in leveldb_records(path.read_bytes()):
        record = Record.FromString(data)
        if record.WhichOneof("record_type") == "history":
            rows.append({item.key or "/".join(item.nested_key): item.value_json for item in record.history.item})
    for name, key in (("loss", "train/loss"), ("token_entropy", "train/token_entropy"), ("eval_auroc", "eval/auroc")):
        assert [float(row[key]) for row in rows if key in row] == pytest.approx(log[name])


def test_mlflow(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    place = f"sqlite:///{tmp_path / 'mlflow.db'}"
    log = train(tmp_path, "mlflow", MLFLOW_TRACKING_URI=place, MLFLOW_EXPERIMENT_NAME="chest")
    client = mlflow.MlflowClient(place)
    [run] = client.search_runs([client.get_experiment_by_name("chest").experiment_id])
    assert run.info.run_name == "short" and run.info.status == "FINISHED"
    for name, values in log.items():
        assert [entry.value for entry in client.get_metric_history(run.info.run_id, name)] == pytest.approx(values)


def test_trackio(tmp_path):
    pytest.importorskip("trackio")
    log = train(tmp_path, "trackio", TRACKIO_DIR=str(tmp_path / "trackio"))
    program = "import json, trackio; from trackio.sqlite_storage import SQLiteStorage as S; "
    program += "print(json.dumps(S.get_logs('huggingface', 'short'), default=str))"
    variables = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")}
    done = subprocess.run([sys.executable, "-c", program], env=variables, capture_output=True, text=True, check=True)
    rows = json.loads(done.stdout.splitlines()[-1])
    for name, key in (("loss", "train/loss"), ("token_entropy", "train/token_entropy"), ("eval_auroc", "eval/auroc")):
        assert [row[key] for row in rows if key in row] == pytest.approx(log[name])
