import time

import numpy as np
import pytest
from sklearn import metrics as yardstick

from evaluation_tier.metrics import auroc
from evaluation_tier.resampling import bootstrap_auroc, percentile_interval


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
    monkeypatch.setattr("evaluation_tier.resampling.NUMBERS_IN_MEMORY", 50 * 7)
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
