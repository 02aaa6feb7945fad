import numpy as np
import pytest

from evaluation_tier.metrics import auroc
from evaluation_tier.scoring import zero_shot_scores


def unit(*shape, seed=0):
    rows = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_scores_by_hand():
    image, positive, negative = np.array([[1.0, 0.0]]), np.array([[0.6, 0.8]]), np.array([[0.8, -0.6]])
    assert zero_shot_scores(image, positive, negative, "difference")[0, 0] == pytest.approx(-0.2)
    expected = np.exp(0.6) / (np.exp(0.6) + np.exp(0.8))
    assert zero_shot_scores(image, positive, negative, "softmax")[0, 0] == pytest.approx(expected)
    with pytest.raises(ValueError, match="difference, softmax, sigmoid, but is 'ratio'"):
        zero_shot_scores(image, positive, negative, "ratio")


def test_both_scorings_rank_one_model_alike():
    images, positive, negative = unit(2000, 64), unit(5, 64, seed=1), unit(5, 64, seed=2)
    difference = zero_shot_scores(images, positive, negative, "difference")
    softmax = zero_shot_scores(images, positive, negative, "softmax")
    np.testing.assert_array_equal(np.argsort(difference, axis=0), np.argsort(softmax, axis=0))
    labels = np.random.default_rng(3).integers(0, 2, 2000)
    assert [auroc(labels, row) for row in difference.T] == [auroc(labels, row) for row in softmax.T]
