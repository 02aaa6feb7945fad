import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from child_processes import launcher, run_child

from evaluation_tier.models.processes import (
    fail_together,
    is_main_process,
    joined_processes,
    merge_entries,
    merge_rows,
    own_rows,
)
from processing_tier.phantom.dataset import make_phantom

ROOT = Path(__file__).resolve().parents[3]
COMMAND = ["eval_zeroshot.py", "--n_bootstrap", "40", "--batch_size", "4", "--device", "cpu"]


def launch(*arguments, processes: int) -> subprocess.CompletedProcess:
    """As accelerate launch does on several GPUs; on CPUs it starts one process, however many are asked."""
    return run_child([*launcher(processes), *COMMAND, *arguments], OMP_NUM_THREADS=1)


@pytest.fixture(scope="module")
def models(make_tier_model, tmp_path_factory):
    folders = []
    for seed in range(2):
        folders.append(tmp_path_factory.mktemp("model") / str(seed))
        for part in make_tier_model(seed):
            part.save_pretrained(folders[-1])
    return folders


def test_one_process_alone():
    with joined_processes("cpu") as device:
        assert device.type == "cpu" and is_main_process()
    assert own_rows(5, 2).tolist() == [0, 1, 2, 3, 4]
    values = np.ones((5, 2))
    assert merge_rows(values, own_rows(5, 2)) is values
    assert list(merge_entries({3: "c", 1: "a"})) == [1, 3]
    with pytest.raises(ValueError, match="^as it is$"), fail_together():
        raise ValueError("as it is")


def test_an_error_of_the_disk_in_one_process_is_told_to_all(monkeypatch):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)

    def gather(messages, message):
        messages[:] = [None, message]

    monkeypatch.setattr("torch.distributed.all_gather_object", gather)
    with pytest.raises(ValueError, match="No space left on device"), fail_together():
        raise OSError(28, "No space left on device")


def test_whole_batches_are_dealt_out(monkeypatch):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 3)
    parts = []
    for rank in range(3):
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        parts.append(own_rows(14, 4).tolist())
    assert parts == [[0, 1, 2, 3, 12, 13], [4, 5, 6, 7], [8, 9, 10, 11]]


@pytest.mark.slow
def test_two_processes_write_what_one_writes(models, tmp_path):
    arguments = [*models, "--data", "phantom:num_images=26,image_size=64", "--min_positives", 3]
    arguments += ["--protocol", "chexzero", "--score_level", "both-lse", "--threshold_split", "train"]
    for processes in (1, 2):
        cache = ["--cache_dir", tmp_path / "cache"] if processes == 2 else []
        result = launch(*arguments, *cache, "--output_dir", tmp_path / str(processes), processes=processes)
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("Zero-shot on") == 1  # only one process prints
    for name in ("metrics.json", "predictions.parquet"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()
    assert json.loads((tmp_path / "2" / "metrics.json").read_text())["n_images"] == 26


@pytest.mark.slow
def test_analyses_of_two_processes_are_those_of_one(models, tmp_path):
    arguments = [models[0], "--data", "phantom:num_images=26,image_size=64", "--min_positives", 3]
    arguments += ["--analyses", "grounding", "deletion", "retrieval", "sparsity", "robustness"]
    for processes in (1, 2):
        cache = ["--cache_dir", tmp_path / "cache"] if processes == 2 else []
        result = launch(*arguments, *cache, "--output_dir", tmp_path / str(processes), processes=processes)
        assert result.returncode == 0, result.stderr
    for name in ("metrics.json", "predictions.parquet", "grounding_regions.parquet"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


@pytest.mark.slow
def test_the_failure_of_one_process_ends_all(models, tmp_path):
    """The second process alone meets the broken images."""
    (tmp_path / "table.csv").write_text(
        "image,image_id,patient_id,Mass\n" + "".join(f"{i // 4}.png,image-{i},{i},{i % 2}\n" for i in range(8))
    )
    (tmp_path / "0.png").write_bytes(make_phantom(1, image_size=64)[0]["image"]["bytes"])
    (tmp_path / "1.png").write_bytes(b"no image")
    arguments = ["--data", tmp_path / "table.csv", "--min_positives", 1, "--output_dir", tmp_path / "out"]
    result = launch(models[0], *arguments, processes=2)
    assert result.returncode == 1  # the launcher's
    message = "eval_zeroshot.py: error: At least 4 of 8 images do not decode, more than 1 %"
    assert result.stderr.count(message) == 1
    assert not (tmp_path / "out").exists()
