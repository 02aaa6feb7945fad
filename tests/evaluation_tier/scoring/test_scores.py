import numpy as np
import pytest

from evaluation_tier.scoring.scores import (
    SCORINGS,
    no_finding_scores,
    scores_from_differences,
    zero_shot_scores,
)
from evaluation_tier.statistics.metrics import auroc


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


def test_sigmoid_takes_the_positive_side_alone():
    image, positive, negative = np.array([[1.0, 0.0]]), np.array([[0.6, 0.8]]), np.array([[0.8, -0.6]])
    assert zero_shot_scores(image, positive, negative, "sigmoid")[0, 0] == pytest.approx(1 / (1 + np.exp(-0.6)))


# No finding


def test_no_finding_is_minus_the_largest_standardised_score():
    reference = np.array([[0.0, 10.0], [2.0, 30.0]])  # means 1 and 20, spreads 1 and 10
    scores = np.array([[1.0, 20.0], [4.0, 20.0], [0.0, 50.0]])
    assert no_finding_scores(scores, reference).tolist() == [0.0, -3.0, -3.0]
    rescaled = no_finding_scores(scores * [2, 0.1] + 7, reference * [2, 0.1] + 7)
    np.testing.assert_allclose(rescaled, [0.0, -3.0, -3.0], atol=1e-9)


@pytest.mark.parametrize("constant", [0.1, 0.3, 0.7, -5.0, 0.0])
@pytest.mark.parametrize("num_images", [2, 6, 7, 10, 11, 100, 355])
def test_a_constant_score_says_nothing_of_no_finding(constant, num_images):
    scores = np.column_stack([np.full(num_images, constant), np.arange(num_images)])
    np.testing.assert_array_equal(no_finding_scores(scores, scores), no_finding_scores(scores[:, 1:], scores[:, 1:]))
    np.testing.assert_array_equal(no_finding_scores(scores[:, :1], scores[:, :1]), 0)


def test_rounding_errors_rank_no_image():
    differences = np.array([[0.123], [0.123 + 2.6e-10], [0.123 - 2.6e-10], [0.1230002]])
    for scoring in SCORINGS:
        scores = scores_from_differences(differences, scoring)[:, 0]
        assert scores[0] == scores[1] == scores[2] < scores[3]
    image, positive, negative = unit(1, 64), unit(2, 64, seed=1), unit(2, 64, seed=2)
    nearly = np.concatenate([image, image * np.float32(1 + 1e-8), np.nextafter(image, 2)])
    assert len(np.unique(zero_shot_scores(nearly[:2], positive, negative), axis=0)) == 1
    assert abs(np.diff(zero_shot_scores(nearly, positive, negative), axis=0)).max() < 1.5e-7
