"""The modules for `evaluate.load`, from their folders and offline."""

import ast
import math
import re
from pathlib import Path

import evaluate
import numpy as np
import pytest

import evaluation_tier
from evaluation_tier.statistics.bootstrap import bootstrap_auroc
from evaluation_tier.statistics.metrics import best_threshold
from evaluation_tier.statistics.resampling import Resampling

MODULES = Path(evaluation_tier.__file__).parent / "evaluate_modules"
LABELS, SCORES = [0, 0, 1, 1, -1, math.nan], [0.1, 0.4, 0.4, 0.8, 9.0, -9.0]


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.setattr("evaluate.config.HF_EVALUATE_OFFLINE", True)

    def load_module(name: str):
        return evaluate.load(str(MODULES / name), cache_dir=str(tmp_path), experiment_id=tmp_path.name)

    return load_module


def test_auroc_module(load):
    module = load("tier_auroc")
    patients = ["a", "b", "b", "c", "d", "e"]
    result = module.compute(predictions=SCORES, references=LABELS, patient_ids=patients, num_resamples=50, seed=3)
    assert result["auroc"] == 0.875
    expected = bootstrap_auroc(np.array(LABELS)[:, None], np.array(SCORES)[:, None], patients, Resampling(50, 3))
    np.testing.assert_array_equal(result["auroc_ci95"], expected.interval[0])
    assert np.isnan(result["auroc_ci95"]).all()  # 2 positives
    labels, scores = LABELS[:4] * 3, [score + i for i in range(3) for score in SCORES[:4]]
    result = module.compute(predictions=scores, references=labels, num_resamples=50, seed=3)
    expected = bootstrap_auroc(np.array(labels)[:, None], np.array(scores)[:, None], range(12), Resampling(50, 3))
    assert result["auroc_ci95"] == expected.interval[0].tolist() and result["auroc_ci95"][0] < result["auroc"]
    module.add_batch(predictions=SCORES[:3], references=LABELS[:3])
    module.add_batch(predictions=SCORES[3:], references=LABELS[3:])
    assert module.compute(num_resamples=5)["auroc"] == 0.875
    with pytest.raises(ValueError, match="A label must be 1, 0, -1 or NaN"):
        module.compute(predictions=[0.1, 0.2], references=[0, 2])


def test_mcc_module(load):
    module = load("tier_mcc")
    labels, scores = [1, 1, 0, 0, 0], [0.9, 0.4, 0.5, 0.2, 0.1]
    result = module.compute(predictions=scores, references=labels)
    assert result == {"mcc": pytest.approx(2 / 3), "f1": pytest.approx(0.8), "threshold": 0.4}
    result = module.compute(predictions=scores, references=labels, threshold=0.9)
    assert result["mcc"] == pytest.approx(3 / math.sqrt(24))
    other = {"threshold_references": [0, 0, 1], "threshold_predictions": [0.3, 0.6, 0.7]}
    result = module.compute(predictions=scores, references=labels, criterion="youden", **other)
    assert result["threshold"] == 0.7 == best_threshold([0, 0, 1], [0.3, 0.6, 0.7], "youden")
    with pytest.raises(ValueError, match="give both"):
        module.compute(predictions=scores, references=labels, threshold_references=[0, 1])


def test_the_page_prints_what_it_says(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("evaluate.config.HF_EVALUATE_OFFLINE", True)
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", tmp_path)
    page = Path(evaluation_tier.__file__).parents[1] / "docs" / "evaluate_modules.md"
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    names: dict = {}
    for language, block in blocks:
        if language == "python":
            exec(block, names)
    first, second, by_batches = capsys.readouterr().out.splitlines()
    assert f"{first}\n{second}\n" == blocks[1][1]
    assert float(by_batches) == ast.literal_eval(first)["auroc"]
