import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as yardstick
from sklearn.linear_model import LogisticRegression

from evaluation_tier.metrics import (
    auprc,
    auroc,
    best_threshold,
    bootstrap_auroc,
    f1,
    fit_calibration,
    mcc,
    percentile_interval,
    roc_curve,
)


@st.composite
def labelled_scores(draw):
    """Labels with both classes, and scores with many ties."""
    size = draw(st.integers(2, 60))
    labels = draw(st.lists(st.integers(0, 1), min_size=size, max_size=size).filter(lambda row: 0 < sum(row) < size))
    scores = draw(st.lists(st.integers(-6, 6).map(lambda score: score / 4), min_size=size, max_size=size))
    return np.array(labels), np.array(scores)


def test_auroc_by_hand():
    # pairs (positive, negative): 0.8 beats 0.1 and 0.4, 0.4 beats 0.1 and ties with 0.4 -> 3.5 of 4
    assert auroc([0, 0, 1, 1], [0.1, 0.4, 0.4, 0.8]) == 0.875
    assert auroc([0, 1], [0.0, 1.0]) == 1.0
    assert auroc([1, 0], [0.0, 1.0]) == 0.0
    assert auroc([1, 0, 1, 0], [5, 5, 5, 5]) == 0.5


def test_threshold_metrics_by_hand():
    labels, scores = [1, 1, 0, 0, 0], [0.9, 0.4, 0.5, 0.2, 0.1]
    # at 0.4: TP 2, FP 1, FN 0, TN 2 -> MCC = (2*2 - 1*0) / sqrt(3*2*3*2) = 4/6, F1 = 4/5
    assert mcc(labels, scores, 0.4) == pytest.approx(2 / 3)
    assert f1(labels, scores, 0.4) == pytest.approx(0.8)
    # at 0.9: TP 1, FP 0, FN 1, TN 3 -> MCC = 3 / sqrt(1*2*3*4) = 0.6124; 0.4 is the best
    assert mcc(labels, scores, 0.9) == pytest.approx(3 / np.sqrt(24))
    assert best_threshold(labels, scores) == 0.4


def test_prediction_is_present_at_the_threshold_itself():
    """The authors' strict > made the best MCC of separable data 0.577 instead of 1."""
    labels, scores = [0, 0, 1, 1], [0.1, 0.2, 0.7, 0.8]
    threshold = best_threshold(labels, scores)
    assert threshold == 0.7
    assert mcc(labels, scores, threshold) == 1.0
    assert f1(labels, scores, threshold) == 1.0


def test_best_threshold_is_a_finite_score_even_when_the_scores_are_useless():
    threshold = best_threshold([1, 0, 0, 0], [0.0, 1.0, 2.0, 3.0])
    assert threshold in (0.0, 1.0, 2.0, 3.0)
    assert np.isnan(best_threshold([1, 1], [0.1, 0.2]))


@settings(max_examples=50, deadline=None)
@given(labelled_scores())
def test_equal_to_scikit_learn(sample):
    labels, scores = sample
    assert auroc(labels, scores) == pytest.approx(yardstick.roc_auc_score(labels, scores), abs=1e-12)
    assert auprc(labels, scores) == pytest.approx(yardstick.average_precision_score(labels, scores), abs=1e-12)
    for threshold in np.unique(scores):
        assert mcc(labels, scores, threshold) == pytest.approx(
            yardstick.matthews_corrcoef(labels, scores >= threshold), abs=1e-12
        )
        assert f1(labels, scores, threshold) == pytest.approx(
            yardstick.f1_score(labels, scores >= threshold, zero_division=0), abs=1e-12
        )
    best = max(yardstick.matthews_corrcoef(labels, scores >= threshold) for threshold in np.unique(scores))
    assert mcc(labels, scores, best_threshold(labels, scores)) == pytest.approx(best, abs=1e-12)
    false_rates, true_rates, _ = yardstick.roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(roc_curve(labels, scores), (false_rates, true_rates), atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(labelled_scores())
def test_auroc_symmetries(sample):
    labels, scores = sample
    assert auroc(labels, scores) == pytest.approx(1 - auroc(1 - labels, scores), abs=1e-12)
    assert auroc(labels, scores) == pytest.approx(auroc(labels, np.exp(scores)), abs=1e-12)  # only ranks count


def test_uncertain_and_unstated_labels_change_nothing():
    labels, scores = np.array([0.0, 1, 1, 0, 1]), np.array([0.2, 0.6, 0.3, 0.4, 0.9])
    more_labels = np.concatenate([labels, [-1, np.nan, -1]])
    more_scores = np.concatenate([scores, [5.0, -5.0, np.nan]])  # a score of an excluded image may even be NaN
    for measure in (auroc, auprc, best_threshold):
        assert measure(more_labels, more_scores) == measure(labels, scores)
    for measure in (mcc, f1):
        assert measure(more_labels, more_scores, 0.5) == measure(labels, scores, 0.5)


@pytest.mark.parametrize("labels", [[], [1, 1], [0, 0], [-1, np.nan]])
def test_undefined_is_nan(labels):
    scores = np.arange(len(labels), dtype=float)
    assert np.isnan(auroc(labels, scores))
    assert np.isnan(best_threshold(labels, scores))
    assert np.isnan(mcc(labels, scores, float("nan")))


def test_foreign_labels_and_scores_are_refused():
    with pytest.raises(ValueError, match="must be 1, 0, -1 or NaN, but one is 2"):
        auroc([0, 2], [0.1, 0.2])
    with pytest.raises(ValueError, match="Scores must be finite"):
        auroc([0, 1], [0.1, np.nan])
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        auroc([0, 1], [0.1, 0.2, 0.3])


def normal_scores(num_images: int, num_findings: int = 1, effect: float = 1.0, seed: int = 0):
    rng = np.random.default_rng(seed)
    labels = (rng.random((num_images, num_findings)) < 0.3).astype(float)
    return labels, rng.standard_normal((num_images, num_findings)) + effect * labels


def test_bootstrap_equals_resampling_patient_by_patient():
    """The weighted form gives the same numbers as repeating rows and asking scikit-learn."""
    labels, scores = normal_scores(40, 2)
    patients = np.repeat(np.arange(20), 2).astype(str)
    result = bootstrap_auroc(labels, scores, patients, num_resamples=60, seed=3)
    rng, aurocs = np.random.default_rng(3), []
    rows_of = {patient: np.flatnonzero(patients == patient) for patient in np.unique(patients)}
    for drawn in rng.integers(20, size=(60, 20)):
        rows = np.concatenate([rows_of[np.unique(patients)[i]] for i in drawn])
        aurocs.append([yardstick.roc_auc_score(labels[rows, i], scores[rows, i]) for i in range(2)])
    np.testing.assert_allclose(result.interval, np.percentile(aurocs, [2.5, 97.5], axis=0).T, atol=1e-12)
    np.testing.assert_allclose(result.mean_interval, np.percentile(np.mean(aurocs, axis=1), [2.5, 97.5]), atol=1e-12)
    assert result.num_dropped.tolist() == [0, 0] and result.mean_num_dropped == 0


def test_bootstrap_is_deterministic_by_seed_and_not_by_chunk(monkeypatch):
    labels, scores = normal_scores(50, 3)
    patients = np.arange(50)
    first = bootstrap_auroc(labels, scores, patients, 200, seed=1)
    again = bootstrap_auroc(labels, scores, patients, 200, seed=1)
    other = bootstrap_auroc(labels, scores, patients, 200, seed=2)
    np.testing.assert_array_equal(first.interval, again.interval)
    assert (first.interval != other.interval).any()
    monkeypatch.setattr("evaluation_tier.metrics.RESAMPLES_IN_MEMORY", 50 * 7)
    np.testing.assert_array_equal(first.interval, bootstrap_auroc(labels, scores, patients, 200, seed=1).interval)


def test_bootstrap_over_patients_is_wider_than_over_images_when_images_repeat():
    labels, scores = normal_scores(60)
    labels, scores = np.repeat(labels, 5, axis=0), np.repeat(scores, 5, axis=0)
    by_patient = bootstrap_auroc(labels, scores, np.repeat(np.arange(60), 5), 500).interval[0]
    by_image = bootstrap_auroc(labels, scores, np.arange(300), 500).interval[0]
    assert np.diff(by_patient) > 1.7 * np.diff(by_image)  # sqrt(5) = 2.2 in expectation


def test_bootstrap_covers_the_true_value():
    """Of 95 % intervals, about 95 % hold the true AUROC: Phi(1 / sqrt(2)) for two unit normals one apart."""
    truth = 0.7602499389
    covered = []
    for seed in range(120):
        labels, scores = normal_scores(150, seed=seed)
        low, high = bootstrap_auroc(labels, scores, np.arange(150), 300, seed).interval[0]
        covered.append(low <= truth <= high)
    assert 0.89 <= np.mean(covered) <= 0.99


def test_resamples_without_both_classes_are_dropped_and_counted():
    labels = np.array([[1.0, 1.0], [0, 1], [0, 0], [0, 0], [0, 0]])
    scores = np.array([[0.9, 0.9], [0.1, 0.8], [0.2, 0.1], [0.3, 0.2], [0.4, 0.3]])
    result = bootstrap_auroc(labels, scores, np.arange(5), 1000, seed=0)
    assert 250 < result.num_dropped[0] < 410  # the one positive is missing from (4/5)^5 = 32.8 % of the resamples
    assert result.mean_num_dropped >= result.num_dropped.max()
    np.testing.assert_array_equal(result.interval, 1.0)  # always separated: no NaN has leaked into the percentiles


def test_bootstrap_leaves_excluded_labels_out():
    labels, scores = normal_scores(80)
    hidden = np.concatenate([labels, np.full((20, 1), -1.0), np.full((20, 1), np.nan)])
    result = bootstrap_auroc(hidden, np.concatenate([scores, np.full((40, 1), 99.0)]), np.arange(120), 300)
    assert np.isfinite(result.interval).all()
    low, high = result.interval[0]
    assert low < auroc(labels[:, 0], scores[:, 0]) < high


def test_bootstrap_without_a_class_is_nan_without_a_warning():
    result = bootstrap_auroc(np.zeros((4, 1)), np.arange(4.0)[:, None], np.arange(4), 20)
    assert np.isnan(result.interval).all() and np.isnan(result.mean_interval).all()
    assert result.num_dropped.tolist() == [20]
    assert np.isnan(percentile_interval(np.full(3, np.nan))).all()
    with pytest.raises(ValueError, match="at least 1, but is 0"):
        bootstrap_auroc(np.zeros((4, 1)), np.zeros((4, 1)), np.arange(4), 0)


def test_bootstrap_is_fast():
    labels, scores = normal_scores(3000, 14)
    start = time.perf_counter()
    bootstrap_auroc(labels, scores, np.arange(3000), 1000)
    assert time.perf_counter() - start < 10  # about 1 s on 2 cores; 14,000 calls of scikit-learn take a minute


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
