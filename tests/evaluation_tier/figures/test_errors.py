import numpy as np
import pandas as pd
import pytest
from PIL import Image

from evaluation_tier.figures.errors import Error, describe_error, find_worst_errors, plot_errors


@pytest.fixture
def predictions() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "label_A": [1, 1, 1, 0, 0, 0, -1, np.nan],
            "score_A": [0.9, 0.8, 0.1, 0.85, 0.2, 0.0, 9.0, 9.0],
            "label_B": [1, 1, 0, 0, 0, 0, 0, 0],
            "score_B": [0.5, 0.6, 0.7, 0.9, 0.8, 0.1, 0.1, 0.1],
        },
        index=[3, 4, 5, 6, 7, 8, 9, 10],  # rows of the data set
    )


def test_the_worst_errors_of_each_kind_and_finding(predictions):
    metrics = {"findings": {"A": {"threshold": 0.5}, "B": {"threshold": 0.55}, "C": {}}}
    predictions["label_C"], predictions["score_C"] = 1.0, 0.0  # without a threshold, nothing is an error
    assert find_worst_errors(metrics, predictions) == [
        Error("A", 2, True, pytest.approx(2 / 3)),  # missed: below 2 of 3 negatives
        Error("B", 0, True, 0.5),
        Error("B", 3, False, 1.0),  # false alarms: above both positives, the farthest from the threshold first
        Error("B", 4, False, 1.0),
        Error("A", 3, False, pytest.approx(2 / 3)),  # two of B, not three
    ]


def test_the_share_is_the_part_of_an_image_in_the_auroc(predictions):
    labels, scores = predictions["label_A"][:6], predictions["score_A"][:6]
    metrics = {"findings": {"A": {"threshold": -1.0}}}  # every negative is a false alarm
    errors = find_worst_errors(metrics, predictions)
    assert [error.share for error in errors] == pytest.approx([2 / 3, 1 / 3])
    above = (scores[labels == 1].to_numpy()[:, None] < scores[labels == 0].to_numpy()).mean(axis=0)
    assert sorted(above)[:0:-1] == pytest.approx([error.share for error in errors])


def test_words_of_an_error():
    assert describe_error(Error("A$", 12, True, 0.999), 0.25) == (
        "A\\$: missed\nscore 0.250, row 12\nbelow 99 % of the images without it"
    )
    assert describe_error(Error("A", 1_200, False, 1.0), -0.25).splitlines() == [
        "A: false alarm",
        "score -0.250, row 1,200",
        "above 100 % of the images with it",
    ]


def test_sheet(phantom, tmp_path):
    pytest.importorskip("matplotlib")
    finding = "Consolidation"
    labels = np.array(phantom[finding], dtype=float)
    predictions = pd.DataFrame({f"label_{finding}": labels, f"score_{finding}": -labels})
    metrics = {"findings": {finding: {"threshold": -0.5}}, "dataset": "phantom"}
    errors = find_worst_errors(metrics, predictions)
    assert [error.is_positive for error in errors] == [True, True, False, False]
    path = plot_errors(errors, phantom, metrics, predictions, tmp_path / "errors.png")
    with Image.open(path) as image:
        picture = np.asarray(image.convert("RGB")).astype(int)
    assert picture.shape[1] > 1.8 * picture.shape[0]  # four in a row
    green = np.abs(picture - [0x39, 0xFF, 0x88]).max(axis=-1) < 40  # the true regions of the first two
    half = picture.shape[1] // 2
    assert green[:, :half].sum() > 50 and not green[:, half:].any()
