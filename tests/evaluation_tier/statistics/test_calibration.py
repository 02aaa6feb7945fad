import numpy as np
import pytest
from hypothesis import given, settings
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss
from statistics_data import labelled_scores

from evaluation_tier.statistics.calibration import (
    brier,
    calibrate,
    ece,
    fit_calibration,
    fit_temperature,
    reliability_curve,
    resample_ece,
    sigmoid,
)


def likelihood_loss(labels, scores, scale, bias) -> float:
    """Negative log likelihood of the smoothed labels."""
    targets = np.where(
        np.array(labels) == 1, (sum(labels) + 1) / (sum(labels) + 2), 1 / (len(labels) - sum(labels) + 2)
    )
    logits = scale * np.array(scores) + bias
    return (np.logaddexp(0, logits) - targets * logits).sum()


@given(labelled_scores())
@settings(deadline=None, max_examples=60)
def test_calibration_is_the_best_there_is(data):
    labels, scores = data
    scale, bias = fit_calibration(labels, scores)
    if np.isnan(scale):
        assert np.isnan(bias) and np.ptp(scores) == 0
        return
    assert scale >= 0
    if scale == 0:  # useless scores
        assert scores[labels == 1].mean() <= scores[labels == 0].mean() + 1e-9
    best = likelihood_loss(labels, scores, scale, bias) * (1 - 1e-12)  # rounding
    assert best <= likelihood_loss(labels, scores, scale + 0.001, bias)
    for other_scale, other_bias in ((scale * 1.001, bias), (scale, bias + 0.001), (scale * 0.99, bias * 1.01), (0, 0)):
        assert best <= likelihood_loss(labels, scores, other_scale, other_bias)


def test_calibration_equals_logistic_regression():
    rng = np.random.default_rng(0)
    scores = 0.02 * rng.normal(size=4000) + 0.1
    labels = (rng.random(4000) < 1 / (1 + np.exp(-(60 * scores - 8)))).astype(float)
    labels[:50], labels[50:90] = np.nan, -1  # not stated, uncertain: left out
    known = labels >= 0
    scale, bias = fit_calibration(labels, scores)
    assert (scale, bias) == pytest.approx((60, -8), rel=0.1)
    reference = LogisticRegression(C=1e12, tol=1e-10, max_iter=1000).fit(100 * scores[known, None], labels[known])
    assert scale == pytest.approx(100 * reference.coef_[0, 0], rel=0.01)  # which does not smooth the labels
    assert bias == pytest.approx(reference.intercept_[0], rel=0.01)
    # the mean probability is the mean of the smoothed labels: the prevalence
    probabilities = 1 / (1 + np.exp(-(scale * scores[known] + bias)))
    assert probabilities.mean() == pytest.approx(labels[known].mean(), abs=1e-3)


def test_calibration_of_hard_cases():
    scale, bias = fit_calibration([0, 0, 0, 1, 1], [0.1, 0.2, 0.3, 0.7, 0.8])  # separable: finite all the same
    assert 3 < scale < 100 and 0.3 < -bias / scale < 0.7
    scale, bias = fit_calibration([0] * 999 + [1], [*np.linspace(0, 1, 999), 1.0])
    assert 0 < 1 / (1 + np.exp(-(scale * 0.5 + bias))) < 0.01
    for labels, scores in (([1, 1], [0.1, 0.2]), ([1, 0], [0.5, 0.5]), ([], [])):
        assert np.isnan(fit_calibration(labels, scores)).all()  # one class, all equal, nothing


def test_scores_that_rank_upside_down_give_the_smoothed_prevalence():
    # the targets are 2/3, 1/5, 1/5 and 1/5, whose mean is 19/60
    scale, bias = fit_calibration([1, 0, 0, 0], [0.1, 0.7, 0.8, 0.9])
    assert scale == 0 and sigmoid(bias) == pytest.approx(19 / 60)
    assert brier([1, 0, 0, 0], calibrate([0.1, 0.7, 0.8, 0.9], scale, bias)) == pytest.approx(
        ((41 / 60) ** 2 + 3 * (19 / 60) ** 2) / 4
    )


@pytest.mark.parametrize("constant", [0.1, 0.3, 0.7])
@pytest.mark.parametrize("num_samples", [6, 7, 10, 11, 100, 355])
def test_equal_scores_have_no_calibration(constant, num_samples):
    labels = np.arange(num_samples) % 2
    assert np.isnan(fit_calibration(labels, np.full(num_samples, constant))).all()


def test_temperature_is_found_again():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=20_000)
    labels = (rng.random(20_000) < sigmoid(logits)).astype(float)
    assert fit_temperature(labels, 5 * logits) == pytest.approx(5, rel=0.05)
    assert fit_temperature(labels, 0.2 * logits) == pytest.approx(0.2, rel=0.05)
    assert fit_temperature(labels, 3 * logits) == pytest.approx(3 * fit_temperature(labels, logits), rel=1e-6)
    temperature = fit_temperature(labels, 5 * logits)
    assert ece(labels, calibrate(5 * logits, 1 / temperature)) < 0.02 < 0.15 < ece(labels, sigmoid(5 * logits))


@given(labelled_scores())
@settings(deadline=None, max_examples=30)
def test_temperature_is_the_best_there_is(data):
    labels, scores = data
    temperature = fit_temperature(labels, scores)
    if np.isnan(temperature):
        assert scores @ (labels - 0.5) <= 0.5 * np.abs(scores).sum()
        return
    best = likelihood_loss(labels, scores, 1 / temperature, 0)
    for factor in (0.9, 0.999, 1.001, 1.1):
        assert best <= likelihood_loss(labels, scores, factor / temperature, 0) * (1 + 1e-12)  # rounding


def test_temperature_of_hard_cases():
    # separable, yet finite: the targets are 3/4 and 1/4, and scores times (probability - target) add up to 0
    temperature = fit_temperature([0, 0, 1, 1], [-2, -1, 1, 2])
    assert (sigmoid(1 / temperature) - 0.75) + 2 * (sigmoid(2 / temperature) - 0.75) == pytest.approx(0, abs=1e-9)
    for labels, scores in (([1, 0], [-1, 1]), ([1, 1], [1, 2]), ([1, 0], [0, 0]), ([], [])):
        assert np.isnan(fit_temperature(labels, scores))  # upside down, one class, nothing but 0, nothing


def test_sigmoid_does_not_overflow():
    np.testing.assert_allclose(sigmoid([-1e4, -1, 0, 1, 1e4]), [0, 1 / (1 + np.e), 0.5, 1 / (1 + 1 / np.e), 1])


def test_calibration_error_by_hand():
    labels, probabilities = [0, 1, 1, 1, 0, np.nan, -1], [0.1, 0.15, 0.9, 1.0, 0.2, 0.5, np.nan]
    # two bins: [0, 0.5) with 0.1, 0.15, 0.2 (mean 0.15, one of three), [0.5, 1] with 0.9, 1.0 (mean 0.95, two of two)
    curve = reliability_curve(labels, probabilities, bins=2)
    np.testing.assert_allclose(curve.mean_probability, [0.15, 0.95])
    np.testing.assert_allclose(curve.frequency, [1 / 3, 1])
    assert curve.count.tolist() == [3, 2]
    assert ece(labels, probabilities, bins=2) == pytest.approx(0.6 * (1 / 3 - 0.15) + 0.4 * 0.05)
    assert brier(labels, probabilities) == pytest.approx((0.01 + 0.85**2 + 0.01 + 0 + 0.04) / 5)
    assert brier(labels[:5], probabilities[:5]) == pytest.approx(brier_score_loss(labels[:5], probabilities[:5]))


def test_bins_hold_their_lower_edge():
    curve = reliability_curve([1, 0, 1], [0.0, 0.5, 1.0], bins=2)
    assert curve.count.tolist() == [1, 2]
    assert reliability_curve([1, 0, 1], [0.2, 0.2, 0.19], bins=5).count.tolist() == [1, 2]
    assert reliability_curve([1, 0], [0.05, 0.95], bins=10).count.tolist() == [1, 1]  # empty bins are left out


def test_bins_of_equal_mass():
    rng = np.random.default_rng(0)
    probabilities = rng.random(100) ** 3
    labels = (rng.random(100) < probabilities).astype(float)
    curve = reliability_curve(labels, probabilities, bins=4, binning="equal_mass")
    assert np.abs(curve.count - 25).max() <= 1 and curve.count.sum() == 100
    tied = reliability_curve([1, 0, 0, 0, 1], [0.3, 0.3, 0.3, 0.3, 0.9], bins=5, binning="equal_mass")
    assert tied.count.tolist() == [4, 1]  # ties are never parted
    np.testing.assert_allclose(tied.mean_probability, [0.3, 0.9])
    np.testing.assert_allclose(tied.frequency, [0.25, 1])


@pytest.mark.parametrize("binning", ["equal_width", "equal_mass"])
def test_calibration_error_of_the_truth_is_small_and_order_is_nothing(binning):
    rng = np.random.default_rng(0)
    probabilities = rng.random(20_000).round(3)
    labels = (rng.random(20_000) < probabilities).astype(float)
    error = ece(labels, probabilities, binning=binning)
    assert error < 0.02
    order = rng.permutation(20_000)
    assert ece(labels[order], probabilities[order], binning=binning) == pytest.approx(error, abs=1e-12)
    assert ece(labels, np.full(20_000, 0.9), binning=binning) == pytest.approx(0.9 - labels.mean())  # one bin


def test_calibration_refuses_what_are_no_probabilities():
    with pytest.raises(ValueError, match="between 0 and 1, but one is 1.5: calibrate"):
        ece([0, 1], [0.2, 1.5])
    with pytest.raises(ValueError, match="between 0 and 1, but one is -0.1"):
        brier([0, 1], [-0.1, 1])
    with pytest.raises(ValueError, match="bins must be at least 1, but is 0"):
        ece([0, 1], [0.2, 0.5], bins=0)
    with pytest.raises(ValueError, match="binning is 'width'; choose equal_width or equal_mass"):
        ece([0, 1], [0.2, 0.5], binning="width")
    assert np.isnan(brier([-1, np.nan], [0.1, 0.2])) and np.isnan(ece([], []))
    assert len(reliability_curve([], []).count) == 0


def test_resampled_calibration_error_is_that_of_repeated_images():
    generator = np.random.default_rng(3)
    labels, probabilities = generator.choice([0, 1, -1, np.nan], 200), generator.random(200)
    draws = generator.integers(4, size=(5, 200))
    expected = [ece(np.repeat(labels, row), np.repeat(probabilities, row)) for row in draws]
    np.testing.assert_allclose(resample_ece(labels, probabilities, draws), expected, atol=1e-12)
    assert resample_ece(labels, probabilities, np.ones((1, 200))) == pytest.approx(ece(labels, probabilities))
    assert np.isnan(resample_ece(labels, np.full(200, np.nan), draws)).all()
