import numpy as np
import pytest
from scipy.stats import norm, rankdata  # scikit-learn brings it
from statistics_data import normal_scores

from evaluation_tier.statistics.bootstrap import (
    bootstrap,
)
from evaluation_tier.statistics.metrics import auroc
from evaluation_tier.statistics.paired import bootstrap_p_value, delong, holm, midranks, paired_bootstrap
from evaluation_tier.statistics.resampling import (
    draw_resamples,
)


def test_paired_bootstrap_of_equal_models_is_no_difference():
    labels, scores = normal_scores(60, 2)
    found = paired_bootstrap(labels, scores, np.exp(scores), draw_resamples(np.arange(60), 50))
    assert set(found) == {"auroc", "auprc"}
    np.testing.assert_allclose(found["auroc"].difference, 0, atol=1e-12)
    np.testing.assert_array_equal(found["auroc"].p_value, 1)
    assert found["auroc"].mean_difference == 0 and found["auroc"].mean_p_value == 1


def test_paired_bootstrap_finds_a_difference_and_its_sign():
    labels, scores = normal_scores(200, 2, effect=2.0)
    noise = np.random.default_rng(9).standard_normal(scores.shape)
    worse = scores + 2 * noise
    draws = draw_resamples(np.arange(200), 200)
    thresholds = [1.0, 1.0]
    found = paired_bootstrap(labels, worse, scores, draws, thresholds, thresholds)
    back = paired_bootstrap(labels, scores, worse, draws, thresholds, thresholds)
    better, worse_values = (bootstrap(labels, given, draws, thresholds) for given in (scores, worse))
    for name, result in found.items():
        np.testing.assert_array_equal(result.difference, -back[name].difference)
        np.testing.assert_allclose(result.interval, -back[name].interval[:, ::-1], atol=1e-12)
        np.testing.assert_array_equal(result.p_value, back[name].p_value)
        expected = np.percentile(better[name] - worse_values[name], [2.5, 97.5], axis=0).T
        np.testing.assert_allclose(result.interval, expected, atol=1e-12)
    assert (found["auroc"].interval[:, 0] > 0).all() and (found["auroc"].p_value == 2 / 201).all()
    assert found["auroc"].mean_difference == pytest.approx(found["auroc"].difference.mean())
    with pytest.raises(ValueError, match="Only one of the two models has thresholds"):
        paired_bootstrap(labels, scores, worse, draws, thresholds)


def test_bootstrap_p_value_by_hand():
    assert bootstrap_p_value(np.array([0.1, 0.2, -0.1, 0.3])) == pytest.approx(2 * 2 / 5)
    assert bootstrap_p_value(np.array([0.1, 0.2, np.nan])) == pytest.approx(2 / 3)
    assert bootstrap_p_value(np.zeros(5)) == 1
    assert np.isnan(bootstrap_p_value(np.array([0.1, np.nan, np.nan])))  # fewer than half are left
    assert np.isnan(bootstrap_p_value(np.full(3, np.nan)))


def slow_delong(labels, scores):
    """Covariance of the AUROCs by the definition: all pairs of positives and negatives."""
    over, under = [], []
    for row in scores:
        pairs = row[labels == 1][:, None] - row[labels == 0]
        wins = (pairs > 0) + 0.5 * (pairs == 0)
        over.append(wins.mean(axis=1))
        under.append(wins.mean(axis=0))
    m, n = len(over[0]), len(under[0])
    return np.mean(over, axis=1), np.cov(over) / m + np.cov(under) / n


def test_delong_equals_its_definition():
    labels, scores = normal_scores(80, 1, seed=4)
    first, second = scores[:, 0].round(1), (scores[:, 0] + np.random.default_rng(1).standard_normal(80)).round(1)
    labels = labels[:, 0].copy()
    aurocs, covariance = slow_delong(labels, np.stack([first, second]))
    hidden = np.concatenate([labels, [-1, np.nan]])
    found = delong(hidden, np.append(first, [9, np.nan]), np.append(second, [0, 1]))
    np.testing.assert_allclose(found.aurocs, aurocs, atol=1e-12)
    assert found.aurocs[0] == pytest.approx(auroc(labels, first))
    np.testing.assert_allclose(found.covariance, covariance, atol=1e-12)
    error = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    difference = aurocs[1] - aurocs[0]
    assert found.difference == pytest.approx(difference)
    assert found.p_value == pytest.approx(2 * norm.sf(abs(difference) / error))
    np.testing.assert_allclose(found.difference_interval, norm.interval(0.95, difference, error))
    np.testing.assert_allclose(found.intervals[0], norm.interval(0.95, aurocs[0], np.sqrt(covariance[0, 0])))
    assert midranks(np.array([3.0, 1, 3, 2, 3])).tolist() == rankdata([3, 1, 3, 2, 3]).tolist() == [4, 1, 4, 2, 4]


def test_delong_agrees_with_the_paired_bootstrap():
    labels, scores = normal_scores(400, 1, seed=2)
    other = scores + np.random.default_rng(3).standard_normal(scores.shape)
    exact = delong(labels[:, 0], scores[:, 0], other[:, 0])
    sampled = paired_bootstrap(labels, scores, other, draw_resamples(np.arange(400), 1000))["auroc"]
    assert exact.difference == pytest.approx(sampled.difference[0])
    np.testing.assert_allclose(exact.difference_interval, sampled.interval[0], atol=0.01)


def test_delong_is_level_and_symmetric():
    """Of two equally good, independent scores, about 5 % differ at p < 0.05."""
    p_values = []
    for seed in range(200):
        labels, scores = normal_scores(100, 1, seed=seed)
        other = np.random.default_rng(1000 + seed).standard_normal(100) + labels[:, 0]
        found = delong(labels[:, 0], scores[:, 0], other)
        assert found.p_value == pytest.approx(delong(labels[:, 0], other, scores[:, 0]).p_value)
        p_values.append(found.p_value)
    assert 0.01 <= np.mean(np.array(p_values) < 0.05) <= 0.1


def test_delong_of_hard_cases():
    labels, scores = [0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4]
    same = delong(labels, scores, np.exp(scores))
    assert same.difference == 0 and same.p_value == 1 and same.difference_interval.tolist() == [0, 0]
    opposite = delong(labels, scores, [-score for score in scores])
    assert opposite.difference == -1 and np.isnan(opposite.p_value)
    single = delong([0, 0, 1], scores[:3], scores[:3])
    assert single.aurocs.tolist() == [1, 1] and np.isnan(single.p_value) and np.isnan(single.covariance).all()
    none = delong([1, 1], [0.1, 0.2], [0.2, 0.3])
    assert np.isnan(none.aurocs).all() and np.isnan(none.difference)


def test_holm_by_hand():
    # ascending 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.04, and never lower than the one before
    assert holm([0.03, 0.01, 0.04, 0.02]).tolist() == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.4, 0.3]).tolist() == pytest.approx([0.6, 0.6])
    assert holm([0.7, 0.6]).tolist() == [1, 1]  # 1.2, at most 1
    assert holm([0.02]).tolist() == [0.02] and holm([]).tolist() == []
    # a test that could not be made is not in the family
    np.testing.assert_allclose(holm([0.02, np.nan, 0.03]), [0.04, np.nan, 0.04])
    assert holm([0.01, 0.01, 0.01]).tolist() == pytest.approx([0.03] * 3)


def test_holm_holds_its_level_where_bonferroni_does_and_rejects_more():
    p_values = np.random.default_rng(0).uniform(size=(20_000, 5))  # nothing differs
    adjusted = np.array([holm(row) for row in p_values])
    assert abs((adjusted.min(axis=1) <= 0.05).mean() - (1 - 0.99**5)) < 0.005
    bonferroni = np.minimum(5 * p_values, 1)
    assert (adjusted >= p_values).all() and (adjusted <= bonferroni).all() and (adjusted < bonferroni).any()
