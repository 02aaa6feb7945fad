import json
import math

import pytest

from evaluation_tier.output.saved_thresholds import write_thresholds
from processing_tier.prompts.loader import Prompts


def test_thresholds_are_kept_in_the_configuration(metrics, tmp_path, caplog):
    kept = {"Edema": {"positive": ["Edema."], "negative": ["Dry."], "threshold": 0.25}}
    before = {
        "model_type": "tier_clip",
        "zero_shot_findings": {**kept, "Cardiomegaly": {"positive": ["Old."], "negative": ["No."]}},
    }
    (tmp_path / "config.json").write_text(json.dumps(before))
    metrics["protocol"]["score_level"] = "both-lse"
    prompts = {name: Prompts([f"{name}.", f"There is {name}."], [f"No {name}."]) for name in metrics["findings"]}
    told = {"dataset": "padchest", "split": "validation", "images": 40, "date": "2026-01-31"}
    assert write_thresholds(tmp_path, metrics, prompts, told) == tmp_path / "config.json"
    assert "Kept without calibration: Nodule|Mass. A calibration needs" in caplog.text
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.keys() == before.keys() and not list(tmp_path.glob("*partial*"))
    findings = config["zero_shot_findings"]
    assert findings["Edema"] == kept["Edema"]  # of an earlier evaluation, at its own level
    logit = 30 * (0.01 - 1e-6) - 2
    assert findings["Cardiomegaly"] == {
        "positive": ["Cardiomegaly.", "There is Cardiomegaly."],
        "negative": ["No Cardiomegaly."],
        "score_level": "both-lse",
        "scale": 30.0,
        "bias": -2.0,
        "threshold": pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-12),
        "measured_on": told,
    }
    assert findings["Nodule|Mass"].keys() == {"positive", "negative", "score_level"}  # nothing was measured

    # a scale of 0, one probability for all images, is no calibration that a pipeline could rank by
    metrics["findings"]["Cardiomegaly"] |= {"scale": 0.0, "bias": -2.0}
    write_thresholds(tmp_path, metrics, prompts, told)
    again = json.loads((tmp_path / "config.json").read_text())["zero_shot_findings"]["Cardiomegaly"]
    assert again.keys() == {"positive", "negative", "score_level", "threshold", "measured_on"}
    assert "Kept without calibration: Cardiomegaly, Nodule|Mass." in caplog.text
    assert again["threshold"] == pytest.approx(1 / (1 + math.exp(-(0.01 - 1e-6))), abs=1e-12)
    metrics["findings"]["Cardiomegaly"] |= {"scale": 30.0, "bias": -2.0}

    # CheXzero's scores are the sigmoid of the difference
    metrics["protocol"]["scoring"] = "softmax"
    metrics["findings"]["Cardiomegaly"]["threshold"] = 1 / (1 + math.exp(-0.01))
    write_thresholds(tmp_path, metrics, prompts, told)
    again = json.loads((tmp_path / "config.json").read_text())["zero_shot_findings"]
    assert again["Cardiomegaly"]["threshold"] == pytest.approx(findings["Cardiomegaly"]["threshold"], abs=1e-12)
