"""Damaged models and checkpoints of a training: used, or one sentence."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fuzz.mutations import fuzz, run_child
from small_trainings import TINIEST, make_twelve_steps
from transformers import AutoTokenizer

from evaluation_tier.models.loading import load_model
from evaluation_tier.output.model_card import write_model_card
from evaluation_tier.output.saved_thresholds import write_thresholds
from modeling_tier import TierCLIPModel
from processing_tier import TierImageProcessor, TierProcessor, train_tokenizer
from processing_tier.phantom.dataset import make_phantom
from training_tier.loop.changed_options import check_model, check_options
from training_tier.loop.checkpoints import choose_checkpoint
from training_tier.loop.integrity import CHECKSUMS, RUN_OPTIONS, check_weights, write_checksums
from training_tier.start.presets import PRESETS

TOWER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
OPTIONS = {"learning_rate": 0.5, "data": {"images": "9 and 9 images of mine", "digest": "a b"}, "seed": 1}
PROMPTS = {"Edema": SimpleNamespace(positive=["edema"], negative=["no edema"])}
RESULT = {"auroc": 0.5, "auroc_ci95": [0.4, 0.6], "auprc": 0.5, "mcc": 0.1, "f1": 0.5, "threshold": 0.1}
RESULT |= {"scale": 2.0, "bias": 0.1, "n_positive": 4, "n_negative": 5, "n_excluded": 0}
METRICS = {
    "dataset": "mine",
    "protocol": {
        "score_level": "global",
        "scoring": "difference",
        "split": "test",
        "n_patients": 9,
        "n_bootstrap": 10,
        "seed": 0,
        "intervals": "BCa",
        "thresholds": "MCC",
    }
    | {"findings_left_out": {}, "images_skipped": []},
    "n_images": 9,
    "models": ["m"],
    "findings": {"Edema": RESULT},
    "mean": RESULT,
    "versions": {},
}
MEASURED_ON = {"dataset": "mine", "split": "test", "images": 9, "date": "2026-01-01"}


def read(path: Path) -> None:
    calls = (load, keep_thresholds, write_card) if path.name == "model" else (resume_last, resume_named)
    refused = None
    for call in calls:
        try:
            call(path)
        except ValueError as error:
            if type(error) is not ValueError:
                raise
            refused = refused or error
    if refused:
        raise refused


def load(folder: Path) -> None:
    model, _ = load_model(folder)
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())


def keep_thresholds(folder: Path) -> None:
    before = (folder / "config.json").read_bytes()
    try:
        write_thresholds(folder, METRICS, PROMPTS, MEASURED_ON)
    except ValueError:
        assert (folder / "config.json").read_bytes() == before
        raise
    assert json.loads((folder / "config.json").read_bytes())["zero_shot_findings"]["Edema"]["bias"] == 0.1


def write_card(folder: Path) -> None:
    assert write_model_card(folder, METRICS).read_text(encoding="utf-8").startswith("---\n")


def resume_last(run: Path) -> None:
    """With the model of the checkpoint before, which is as it was."""
    check(choose_checkpoint("last", run), run)


def resume_named(run: Path) -> None:
    check(choose_checkpoint(str(run / "checkpoint-2"), run), run)


def check(checkpoint: str, run: Path) -> None:
    model = TierCLIPModel.from_pretrained(run / "checkpoint-1")
    check_options(checkpoint, OPTIONS, allow=False)
    check_model(checkpoint, model, AutoTokenizer.from_pretrained(run / "checkpoint-1"), allow=False)
    check_weights(checkpoint, model)


def victims(folder: Path) -> list[Path]:
    if folder.name == "model":
        texts = sorted(folder.glob("*.json"))
        return [*texts, *[folder / "config.json"] * len(texts), folder / "model.safetensors"]
    files = [path for path in sorted((folder / "checkpoint-2").iterdir()) if path.name != "training_args.bin"]
    return [*files, *(path for path in files if path.suffix == ".json")]


def write_seeds(folder: Path) -> list[Path]:
    """A model, and runs with two checkpoints each, of which one has no checksums."""
    records = make_phantom(16, seed=0, image_size=64)
    processor = TierProcessor(TierImageProcessor(size=32), train_tokenizer(records["report"][:], vocab_size=530))
    options = {"save_steps": 1, "max_steps": 2, "save_total_limit": None, "eval_strategy": "no"}
    trainer = make_twelve_steps(folder, records, processor, **options)
    trainer.train()
    trainer.save_model(folder / "model")
    (folder / "model" / "training_facts.json").write_text(json.dumps({"dataset": "mine", "epochs": 2}))
    for checkpoint in ("checkpoint-1", "checkpoint-2"):
        (folder / "run" / checkpoint / RUN_OPTIONS).write_text(json.dumps(OPTIONS))
        write_checksums(folder / "run" / checkpoint)
    shutil.copytree(folder / "run", folder / "run-without")
    (folder / "run-without" / "checkpoint-2" / CHECKSUMS).unlink()
    return [folder / name for name in ("model", "run", "run-without")]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_damaged_checkpoints_are_used_or_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "tiniest", TINIEST)
    torch.manual_seed(0)
    (tmp_path / "seeds").mkdir()
    (tmp_path / "copy").mkdir()
    seeds = write_seeds(tmp_path / "seeds")
    for seed in seeds:  # undamaged, each is used
        read(Path(shutil.copytree(seed, tmp_path / "copy" / seed.name)))
    found = run_child(__file__, seeds, 60)
    assert found["read"] > 30 and found["refused"] > 60


if __name__ == "__main__":
    fuzz(read, victims)
