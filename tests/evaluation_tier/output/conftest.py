"""One evaluation of two findings, of which one was not measured."""

import numpy as np
import pytest


def result(auroc: float, n_positive: int = 25, **changes) -> dict:
    numbers = {
        "auroc": auroc,
        "auroc_ci95": [auroc - 0.05, auroc + 0.05],
        "auprc": 0.4,
        "mcc": 0.3,
        "f1": 0.5,
        "threshold": 0.01,
        "scale": 30.0,
        "bias": -2.0,
        "n_positive": n_positive,
        "n_negative": 300,
        "n_excluded": 2,
    }
    return numbers | changes


@pytest.fixture
def metrics() -> dict:
    nan = float("nan")
    return {
        "dataset": "iu_cxr",
        "protocol": {
            "split": "validation",
            "prompts": "report",
            "scoring": "difference",
            "thresholds": "highest MCC on the evaluated images (optimistic)",
            "intervals": "95 % percentile bootstrap over patients",
            "n_bootstrap": 1000,
            "seed": 0,
            "n_patients": 350,
            "min_positives": 10,
            "findings_left_out": {"Edema": "3 positives"},
            "resamples_dropped": {"Cardiomegaly": 0, "Nodule|Mass": 0},
            "images_skipped": ["a"],
        },
        "n_images": 355,
        "models": ["runs/demo"],
        "findings": {
            "Cardiomegaly": result(np.float64(0.8512345)),
            "Nodule|Mass": result(nan, 1, auroc_ci95=[nan, nan], mcc=nan, threshold=nan, scale=nan, bias=nan),
        },
        "mean": {"auroc": 0.8512345, "auroc_ci95": [0.8, np.float32(0.9)], "auprc": 0.4, "mcc": 0.3, "f1": 0.5},
        "versions": {"python": "3.11", "torch": "2.13.0", "transformers": "5.23.0", "numpy": "2", "tier-clip": "0.1"},
    }
