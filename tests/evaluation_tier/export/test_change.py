"""The numbers of a change, and the card that tells them."""

import numpy as np
import pytest

from evaluation_tier.export.card import write_card
from evaluation_tier.export.change import compare
from evaluation_tier.export.int8 import choose_images

NAN = float("nan")
TOLD = {
    "model": "runs/mine",
    "format": "onnx",
    "int8": False,
    "image_size": 112,
    "text_length": 77,
    "text_varies": True,
    "thresholds": False,
    "versions": {"torch": "2.13.0", "onnxruntime": "1.32.0"},
}


@pytest.fixture
def change():
    """Two findings on four images, of which the last does not decode; the change swaps two images of the first."""
    before = np.array([[0.3, 0.1], [0.2, 0.2], [0.1, 0.3], [NAN, NAN]])
    after = np.array([[0.2, 0.1], [0.3, 0.2], [0.1, 0.3], [NAN, NAN]])
    labels = np.array([[1, 0], [0, 0], [0, 1], [1, 1]], dtype=float)
    maps = np.arange(4 * 2 * 4, dtype=np.float32).reshape(4, 2, 4)
    other = maps.copy()
    other[0, 0] = maps[0, 0, ::-1]
    maps[3] = NAN
    return compare(["Edema", "Pleural Effusion"], labels, (before, after), (maps, other))


def test_auroc_scores_and_maps_before_and_after(change):
    assert (change["n_images"], change["n_maps"]) == (3, 3)
    edema, effusion = change["findings"].values()
    assert (edema["n_positive"], edema["auroc_before"], edema["auroc_after"]) == (1, 1.0, 0.5)
    assert edema["auroc_change"] == -0.5 and edema["largest_score_change"] == pytest.approx(0.1)
    assert edema["score_sd"] == pytest.approx(np.std([0.1, 0.2, 0.3]))
    assert (effusion["auroc_before"], effusion["auroc_change"], effusion["largest_score_change"]) == (1.0, 0.0, 0.0)
    assert change["mean"] == {"auroc_before": 1.0, "auroc_after": 0.75, "auroc_change": -0.25}
    maps = change["maps"]
    assert maps["correlation"] == pytest.approx((5 - 1) / 6) and maps["lowest_correlation"] == pytest.approx(-1)
    assert maps["largest_change"] == 3 and maps["sd"] == pytest.approx(np.std(np.arange(24)))


def test_without_labels_there_is_no_auroc():
    scores, maps = np.ones((2, 1)), np.ones((2, 1, 4))
    change = compare(["Edema"], None, (scores, scores), (maps, maps))
    assert "mean" not in change and change["findings"]["Edema"] == {"largest_score_change": 0.0, "score_sd": 0.0}
    assert np.isnan(change["maps"]["correlation"])  # maps of one value


def test_the_card_tells_the_numbers(change, tmp_path):
    measured = {"dataset": "phantom", "split": "test", "prompts": "report", "score_level": "global", **change}
    told = {**TOLD, "int8": True, "calibration": {"dataset": "phantom", "split": "train", "n_images": 64}}
    text = write_card(tmp_path, "mine-int8", {**told, "change": {**measured, "calibrated_on_them": False}}).read_text()
    assert "Mean AUROC: 1.0000 before, 0.7500 after, a change of -0.2500." in text
    assert "| Edema | 1 | 1.0000 | 0.5000 | -0.5000 | 0.100 | 0.082 |" in text
    assert "from 64 images of phantom (synthetic), split train. No label was used." in text
    assert "include those that set the ranges" not in text and "not for clinical use" in text
    assert "torch 2.13.0, onnxruntime 1.32.0." in text
    text = write_card(tmp_path, "mine", TOLD).read_text()
    assert "Not measured." in text and "int8" not in text and "texts have 77 tokens at most" in text
    assert (
        "have 77 tokens (the processor pads them)"
        in write_card(tmp_path, "m", {**TOLD, "text_varies": False}).read_text()
    )


def test_calibration_images_are_spread_over_the_data():
    assert choose_images(range(1000), 5).tolist() == [0, 250, 500, 749, 999]
    assert choose_images(range(3), 128).tolist() == [0, 1, 2]
