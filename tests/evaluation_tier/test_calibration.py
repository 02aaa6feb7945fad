import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from evaluation_tier.calibration import fit_calibration


@st.composite
def labelled_scores(draw):
    """Labels with both classes, and scores with many ties."""
    size = draw(st.integers(2, 60))
    labels = draw(st.lists(st.integers(0, 1), min_size=size, max_size=size).filter(lambda row: 0 < sum(row) < size))
    scores = draw(st.lists(st.integers(-6, 6).map(lambda score: score / 4), min_size=size, max_size=size))
    return np.array(labels), np.array(scores)


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
    if np.isnan(scale):  # useless scores
        assert np.isnan(bias)
        assert np.ptp(scores) == 0 or scores[labels == 1].mean() <= scores[labels == 0].mean() + 1e-9
        return
    best = likelihood_loss(labels, scores, scale, bias)
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
    for labels, scores in (([1, 0], [0.1, 0.9]), ([1, 1], [0.1, 0.2]), ([1, 0], [0.5, 0.5]), ([], [])):
        assert np.isnan(fit_calibration(labels, scores)).all()  # upside down, one class, all equal, nothing
