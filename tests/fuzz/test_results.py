"""Damaged results and lists beside a model: read, or one sentence."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fuzz.mutations import fuzz, run_child

from evaluation_tier.figures.training import plot_training_curves
from evaluation_tier.output.baseline_comparison import write_baseline_comparison
from evaluation_tier.output.comparison import write_comparison
from evaluation_tier.output.console import format_table
from evaluation_tier.output.metrics_file import read_metrics, write_metrics
from evaluation_tier.output.page import write_page
from evaluation_tier.output.predictions import read_predictions, write_predictions
from evaluation_tier.output.speed_file import write_speeds
from evaluation_tier.statistics.baseline_comparison import compare_with_baseline
from evaluation_tier.statistics.comparison import compare_evaluations
from evaluation_tier.statistics.resampling import Resampling
from processing_tier.records.identities import TrainedOn, make_source, read_trained_on, write_trained_on

FINDINGS = ("Edema", "No Finding")


def write_results(folder: Path, name: str) -> Path:
    """A folder as an evaluation leaves it."""
    rng = np.random.default_rng(0)
    numbers = {"auroc": 0.5, "auprc": 0.5, "mcc": 0.1, "f1": 0.5, "threshold": 0.5, "sensitivity": 0.5}
    numbers |= {"auroc_ci95": [0.4, 0.6], "n_excluded": 0}
    metrics = {
        "dataset": "mine",
        "protocol": {"name": "tier", "split": "test", "prompts": "report", "scoring": "difference", "n_patients": 12}
        | {"n_bootstrap": 10, "seed": 0, "images_skipped": [], "findings_left_out": {"Mass": "no positive"}},
        "n_images": 12,
        "models": [name],
        "findings": {finding: {**numbers, "n_positive": 6, "n_negative": 6} for finding in FINDINGS},
        "mean": {"auroc": 0.5, "auroc_ci95": [0.4, 0.6], "auprc": 0.5, "mcc": None, "f1": 0.4},
        "versions": {"torch": "2"},
        "sizes": {name: {"parameters": 100, "image_size": 224}},
        "subgroups": {"sex": {"F": {"n_images": 6, "mean": {"auroc": 0.5, "auroc_ci95": None}}}},
    }
    ids = [f"i{i}" for i in range(12)]
    predictions = pd.DataFrame({"image_id": ids, "patient_id": ids})
    for finding in FINDINGS:
        predictions[f"score_{finding}"] = rng.random(12)
        predictions[f"label_{finding}"] = np.arange(12) % 2.0
    write_predictions(folder / name / "predictions.parquet", predictions)
    write_metrics(folder / name / "metrics.json", metrics)
    speed = {"images": 12, "seconds": 0.5, "images_per_second": 24.0, "device": "CPU, 1 thread", "dtype": None}
    write_speeds(folder / name / "speed.json", {name: speed})
    keys = np.arange(1, 13, dtype=np.uint64)
    write_trained_on(folder / name, TrainedOn((make_source("mine", "train", keys, ids),), ("other",)))
    log = [{"step": step, "epoch": step / 10, "loss": 1.0, "grad_norm": 1.0, "eval_loss": 2.0} for step in (10, 20)]
    (folder / name / "trainer_state.json").write_text(json.dumps({"log_history": log, "global_step": 20}))
    return folder / name


def read(folder: Path) -> None:
    refused = None
    metrics = None
    for call in (read_metrics, read_trained_list, draw_curves):
        try:
            found = call(folder)
            metrics = found if call is read_metrics else metrics
        except ValueError as error:
            refused = error
    if metrics is None:
        raise refused
    read_predictions(folder, metrics)
    format_table(metrics)
    write_page(folder, draw=False)
    other = write_results(folder.parent, "other")
    write_comparison(
        folder.parent / "comparison", compare_evaluations(folder, other, Resampling(10), trained="include")
    )
    both = compare_with_baseline({"own": folder, "other": other}, "other", Resampling(10), trained="include")
    write_baseline_comparison(folder.parent / "comparison", both)
    if refused:
        raise refused


def read_trained_list(folder: Path) -> None:
    read_trained_on(folder / "trained_on.json")


def draw_curves(folder: Path) -> None:
    plot_training_curves(folder / "trainer_state.json", folder / "curves.png")


def victims(folder: Path) -> list[Path]:
    metrics, *others = (folder / name for name in ("metrics.json", "predictions.parquet", "trained_on.json"))
    return [*[metrics] * 3, *others, folder / "speed.json", folder / "trainer_state.json"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_damaged_results_are_read_or_refused(tmp_path):
    seed = write_results(tmp_path, "model")
    found = run_child(__file__, [seed], 60)
    assert found["read"] > 10 and found["refused"] > 10


if __name__ == "__main__":
    fuzz(read, victims)
