"""`speed/gpu.py`, which is made for a GPU, runs in all its parts on a CPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_every_part_runs_at_small_sizes(tmp_path):
    command = [sys.executable, ROOT / "speed" / "gpu.py", "--small", "--repetitions", "1", "--output_dir", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert results["failed"] == []
    trained = {(row["model"], row["training"]): row for row in results["training"]}
    ours = ["ours", "ours, compiled", "ours, --group_texts"]
    expected = [("tiny", form) for form in (*ours, "plain")] + [("resnet-tiny", form) for form in ours]
    assert list(trained) == [*expected, *(("siglip-tiny", form) for form in ours[:2])]
    for row in trained.values():
        assert row["images/s"] > 0 and row["TFLOP/s"] > 0 and 0 <= row["data wait"] < 1
        assert row["utilisation"] is None  # of a CPU
        assert (row["times the plain Trainer"] is None) == (row["model"] != "tiny")
    assert trained["tiny", "plain"]["times the plain Trainer"] == 1
    for row in results["where the time goes"]:
        assert sum(value for value in row.values() if isinstance(value, float)) == pytest.approx(1)
    assert [row["batch"] for row in results["large batches"]] == [4, 8, 16]
    assert [row["precision"] for row in results["inference"]] == 3 * ["float32", "bfloat16"]
    assert len(results["entropies"]) == 3
    table = (tmp_path / "gpu.md").read_text()
    assert table in done.stdout + "\n" and table.count("\n| --- ") == 5
