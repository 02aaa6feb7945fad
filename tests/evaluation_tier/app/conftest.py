"""A small model with a calibrated finding, as the page shows it, and the page's samples."""

from pathlib import Path

import pytest
from tiny_models import save_tiny_clip

from evaluation_tier.app.models import ShownModel, load_shown_models
from evaluation_tier.app.samples import Sample, draw_samples

STORED = {
    "Edema": {"positive": ["Edema.", "Oedema."], "negative": ["No edema."], "score_level": "global"},
    "Pleural Effusion": {
        "positive": ["Small left pleural effusion."],
        "negative": ["No pleural effusion."],
        "score_level": "global",
        "scale": 20.0,
        "bias": 0.5,
        "threshold": 0.4,
        "measured_on": {"dataset": "phantom", "split": "validation", "images": 300, "date": "2026-01-02"},
    },
}


@pytest.fixture(scope="package")
def model_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    return save_tiny_clip(folder / "tiny", 0, image_pooling="patch_mean", zero_shot_findings=STORED)


@pytest.fixture(scope="package")
def samples() -> list[Sample]:
    return draw_samples()


@pytest.fixture(scope="package")
def model(model_folder, samples) -> ShownModel:
    (model,) = load_shown_models([str(model_folder)], "cpu", samples)
    return model
