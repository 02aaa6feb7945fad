"""Folders as an evaluation leaves them, from labels and scores alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from evaluation_tier.output.metrics_file import write_metrics
from evaluation_tier.output.predictions import write_predictions


def save_result(
    folder: Path,
    scores: Mapping[str, Sequence[float]],
    labels: Mapping[str, Sequence[float]],
    image_ids: Sequence[str] | None = None,
    patients: Sequence[str] | None = None,
    threshold: float | None = 0.5,
    **protocol,
) -> Path:
    """Write `metrics.json` and `predictions.parquet` of the findings in `scores` and `labels`."""
    number = len(next(iter(scores.values())))
    image_ids = image_ids or [f"image{i}" for i in range(number)]
    result = {"auroc": 0.5, "auroc_ci95": [0.4, 0.6], "auprc": 0.5, "threshold": threshold}
    metrics = {
        "dataset": "mine",
        "protocol": {"split": "test", "prompts": "report", "scoring": "difference", "seed": 0, **protocol},
        "n_images": number,
        "models": [f"runs/{folder.name}"],
        "findings": {
            finding: {**result, "n_positive": count(labels[finding], 1), "n_negative": count(labels[finding], 0)}
            for finding in scores
        },
        "mean": {},
        "versions": {},
    }
    predictions = pd.DataFrame({"image_id": image_ids, "patient_id": patients or image_ids})
    for finding in scores:
        predictions[f"score_{finding}"] = np.array(scores[finding], dtype=float)
        predictions[f"label_{finding}"] = np.array(labels[finding], dtype=float)
    write_predictions(folder / "predictions.parquet", predictions)
    write_metrics(folder / "metrics.json", metrics)
    return folder


def count(labels: Sequence[float], value: int) -> int:
    return int(np.sum(np.array(labels) == value))
