import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm, rankdata  # scikit-learn brings it
from sklearn import metrics as yardstick

from evaluation_tier.statistics.bootstrap import (
    AREAS,
    AT_THRESHOLD,
    bootstrap,
    bootstrap_auroc,
    percentile_interval,
)
from evaluation_tier.statistics.metrics import auprc, auroc, metrics_at_threshold
from evaluation_tier.statistics.paired import bootstrap_p_value, delong, midranks, paired_bootstrap
from evaluation_tier.statistics.resampling import (
    Resampling,
    describe_intervals,
    draw_resamples,
    draw_stratified_resamples,
    find_too_few,
)
from evaluation_tier.statistics.subgroups import age_bands, subgroup_metrics, wilson_interval


def normal_scores(num_images: int, num_findings: int = 1, effect: float = 1.0, seed: int = 0):
    rng = np.random.default_rng(seed)
    labels = (rng.random((num_images, num_findings)) < 0.3).astype(float)
    return labels, rng.standard_normal((num_images, num_findings)) + effect * labels


def test_bootstrap_equals_resampling_patient_by_patient():
    """The weighted form gives the same numbers as repeating rows and asking scikit-learn."""
    labels, scores = normal_scores(40, 2)
    patients = np.repeat(np.arange(20), 2).astype(str)
    result = bootstrap_auroc(labels, scores, patients, Resampling(60, 3))
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
    first = bootstrap_auroc(labels, scores, patients, Resampling(200, 1))
    again = bootstrap_auroc(labels, scores, patients, Resampling(200, 1))
    other = bootstrap_auroc(labels, scores, patients, Resampling(200, 2))
    np.testing.assert_array_equal(first.interval, again.interval)
    assert (first.interval != other.interval).any()
    monkeypatch.setattr("evaluation_tier.statistics.resampling.NUMBERS_IN_MEMORY", 50 * 7)
    np.testing.assert_array_equal(
        first.interval, bootstrap_auroc(labels, scores, patients, Resampling(200, 1)).interval
    )


def test_bootstrap_over_patients_is_wider_than_over_images_when_images_repeat():
    labels, scores = normal_scores(60)
    labels, scores = np.repeat(labels, 5, axis=0), np.repeat(scores, 5, axis=0)
    by_patient = bootstrap_auroc(labels, scores, np.repeat(np.arange(60), 5), Resampling(500)).interval[0]
    by_image = bootstrap_auroc(labels, scores, np.arange(300), Resampling(500)).interval[0]
    assert np.diff(by_patient) > 1.7 * np.diff(by_image)  # sqrt(5) = 2.2 in expectation


def test_bootstrap_covers_the_true_value():
    """Of 95 % intervals, about 95 % hold the true AUROC: Phi(1 / sqrt(2)) for two unit normals one apart."""
    truth = 0.7602499389
    covered = []
    for seed in range(120):
        labels, scores = normal_scores(150, seed=seed)
        low, high = bootstrap_auroc(labels, scores, np.arange(150), Resampling(300, seed)).interval[0]
        covered.append(low <= truth <= high)
    assert 0.89 <= np.mean(covered) <= 0.99


def test_resamples_without_both_classes_are_dropped_and_counted():
    labels = np.array([[1.0, 1.0], [0, 1], [0, 0], [0, 0], [0, 0]])
    scores = np.array([[0.9, 0.9], [0.1, 0.8], [0.2, 0.1], [0.3, 0.2], [0.4, 0.3]])
    result = bootstrap_auroc(labels, scores, np.arange(5), Resampling(1000, 0))
    assert 250 < result.num_dropped[0] < 410  # the one positive is missing from (4/5)^5 = 32.8 % of the resamples
    assert result.mean_num_dropped >= result.num_dropped.max()
    assert np.isnan(result.interval).all()  # of so few
    resampled = bootstrap(labels, scores, draw_resamples(np.arange(5), 1000))["auroc"]
    for column in resampled.T:  # always separated: no NaN has leaked into the percentiles
        np.testing.assert_array_equal(percentile_interval(column), 1.0)


def test_bootstrap_leaves_excluded_labels_out():
    labels, scores = normal_scores(80)
    hidden = np.concatenate([labels, np.full((20, 1), -1.0), np.full((20, 1), np.nan)])
    result = bootstrap_auroc(hidden, np.concatenate([scores, np.full((40, 1), 99.0)]), np.arange(120), Resampling(300))
    assert np.isfinite(result.interval).all()
    low, high = result.interval[0]
    assert low < auroc(labels[:, 0], scores[:, 0]) < high


def test_bootstrap_without_a_class_is_nan_without_a_warning():
    result = bootstrap_auroc(np.zeros((5, 1)), np.arange(5.0)[:, None], np.arange(5), Resampling(20))
    assert np.isnan(result.interval).all() and np.isnan(result.mean_interval).all()
    assert result.num_dropped.tolist() == [20]
    assert np.isnan(percentile_interval(np.full(3, np.nan))).all()
    with pytest.raises(ValueError, match="at least 1, but is 0"):
        bootstrap_auroc(np.zeros((4, 1)), np.zeros((4, 1)), np.arange(4), Resampling(0))


def loop_over_scikit_learn(labels, scores, draws, threshold=None):
    """Metric by metric, resample by resample, on repeated rows; NaN where a class is lacking."""
    functions = {"auroc": yardstick.roc_auc_score, "auprc": yardstick.average_precision_score}
    if threshold is not None:
        functions |= {
            "mcc": yardstick.matthews_corrcoef,
            "f1": yardstick.f1_score,
            "sensitivity": yardstick.recall_score,
            "specificity": lambda truth, given: yardstick.recall_score(truth, given, pos_label=0),
        }
    values = {name: np.full(len(draws), np.nan) for name in functions}
    for r, row in enumerate(draws):
        drawn = np.repeat(np.arange(len(labels)), row)
        drawn = drawn[np.isin(labels[drawn], (0, 1))]
        if len(np.unique(labels[drawn])) < 2:
            continue
        for name, function in functions.items():
            given = scores[drawn] if name in AREAS else scores[drawn] >= threshold
            values[name][r] = function(labels[drawn], given)
    return values


@pytest.mark.parametrize("rare", [False, True])
def test_bootstrap_equals_scikit_learn_on_the_same_resamples(rare):
    """Ties, excluded labels, and (rare) resamples that lose a class."""
    rng = np.random.default_rng(5)
    labels, scores = normal_scores(12 if rare else 60, 2, seed=5)
    scores, labels[4:] = scores.round(1), 0 if rare else labels[4:]
    labels[rng.random(labels.shape) < 0.1] = -1
    labels[rng.random(labels.shape) < 0.1] = np.nan
    labels[:4, 0], labels[:4, 1] = [1, 0, 0, 0], [0, 1, 1, 0]
    thresholds = [0.3, np.quantile(scores[:, 1], 0.8)]  # some scores tie with it
    draws = draw_resamples(np.arange(len(labels)) // 2, 20, seed=1)
    ours = bootstrap(labels, scores, draws, thresholds)
    for i in range(2):
        theirs = loop_over_scikit_learn(labels[:, i], scores[:, i], draws, thresholds[i])
        assert np.isnan(theirs["auroc"]).any() == rare
        defined = ~np.isnan(theirs["auroc"])
        np.testing.assert_array_equal(np.isnan(ours["auroc"][:, i]), ~defined)
        for name, values in theirs.items():
            np.testing.assert_allclose(ours[name][defined, i], values[defined], atol=1e-12, err_msg=name)


def test_bootstrap_of_the_data_themselves_gives_the_plain_metrics():
    labels, scores = normal_scores(50, 3)
    found = bootstrap(labels, scores, np.ones((1, 50)), [0.1, 0.2, np.nan])
    for i, threshold in enumerate((0.1, 0.2)):
        assert found["auroc"][0, i] == auroc(labels[:, i], scores[:, i])
        assert found["auprc"][0, i] == auprc(labels[:, i], scores[:, i])
        plain = metrics_at_threshold(labels[:, i], scores[:, i], threshold)
        assert {name: found[name][0, i] for name in AT_THRESHOLD} == {name: plain[name] for name in AT_THRESHOLD}
    assert np.isnan([found[name][0, 2] for name in AT_THRESHOLD]).all()
    assert set(bootstrap(labels, scores, np.ones((1, 50)))) == {"auroc", "auprc"}


def test_bootstrap_does_not_depend_on_order_or_scale():
    labels, scores = normal_scores(40, 2)
    draws = draw_resamples(np.arange(40), 20)
    expected = bootstrap(labels, scores, draws)
    order = np.random.default_rng(0).permutation(40)
    for changed in (
        bootstrap(labels, np.exp(scores), draws),
        bootstrap(labels[order], scores[order], draws[:, order]),
        bootstrap(labels, scores, np.stack([draws, draws])),
    ):
        for name in AREAS:
            np.testing.assert_allclose(changed[name], expected[name], atol=1e-12)


def test_bootstrap_refuses_what_does_not_fit():
    labels, scores = normal_scores(10, 2)
    with pytest.raises(ValueError, match=r"but have shapes \(10, 2\) and \(10, 1\)"):
        bootstrap(labels, scores[:, :1], np.ones((1, 10)))
    for draws in (np.ones((1, 9)), np.ones((3, 1, 10)), np.ones(10)):
        with pytest.raises(ValueError, match="Draws of 10 images and 2 findings must be"):
            bootstrap(labels, scores, draws)
    with pytest.raises(ValueError, match="some are negative"):
        bootstrap(labels, scores, -np.ones((1, 10)))
    with pytest.raises(ValueError, match="2 findings, but 1 thresholds"):
        bootstrap(labels, scores, np.ones((1, 10)), [0.5])
    for ids in (["a", None], ["a", float("nan")], np.array([1.0, np.nan]), ["a", ""], pd.Series(["a", pd.NA])):
        with pytest.raises(
            ValueError, match="1 of 2 images have no patient id .* give each its patient, or its own id"
        ):
            draw_resamples(ids)
    with pytest.raises(ValueError, match="no images to resample"):
        draw_resamples([])
    with pytest.raises(ValueError, match="at least 1, but is 0"):
        draw_stratified_resamples(labels, np.arange(10), 0)


def test_one_study_is_not_an_error():
    found = bootstrap(np.ones((1, 1)), np.ones((1, 1)), np.ones((3, 1)), [0.5])
    assert np.isnan(found["auroc"]).all() and np.isnan(found["mcc"]).all()
    np.testing.assert_array_equal(found["sensitivity"], 1.0)


def test_draws_are_whole_units():
    units = ["a", "b", "a", "c", "d", "b", "e"]
    draws = draw_resamples(units, 200, seed=3)
    np.testing.assert_array_equal(draws[:, 0], draws[:, 2])
    np.testing.assert_array_equal(draws[:, 1], draws[:, 5])
    np.testing.assert_array_equal(draws[:, [0, 1, 3, 4, 6]].sum(axis=1), 5)
    assert draws.mean() == pytest.approx(1, abs=0.1)


def test_stratified_draws_keep_every_class():
    """Two positives among 300 images are gone from e^-2 = 13.5 % of plain resamples, and from none of these."""
    labels = np.zeros((300, 2))
    labels[:2, 0], labels[:100, 1], labels[250:, 1] = 1, 1, np.nan
    patients = np.arange(300)
    plain, stratified = draw_resamples(patients, 400), draw_stratified_resamples(labels, patients, 400)
    assert 0.07 < (plain[:, :2].sum(axis=1) == 0).mean() < 0.2
    assert stratified.shape == (2, 400, 300)
    np.testing.assert_array_equal(stratified[0][:, :2].sum(axis=1), 2)
    np.testing.assert_array_equal(stratified[0][:, 2:].sum(axis=1), 298)
    for part, size in ((slice(0, 100), 100), (slice(100, 250), 150), (slice(250, 300), 50)):
        np.testing.assert_array_equal(stratified[1][:, part].sum(axis=1), size)
    assert not np.isnan(bootstrap(labels, np.arange(600.0).reshape(300, 2), stratified)["auroc"]).any()


def test_stratified_draws_are_uniform_and_shared():
    labels = np.zeros((40, 2))
    labels[:8, 0], labels[:12, 1] = 1, 1
    draws = draw_stratified_resamples(labels, np.arange(40), 4000, seed=1)
    np.testing.assert_allclose(draws.mean(axis=1), 1, atol=0.08)  # standard error 0.016
    # within a stratum of n, a unit's count is binomial: variance 1 - 1/n, covariance of two units -1/n
    covariance = np.cov(draws[0][:, :8].T)
    np.testing.assert_allclose(np.diag(covariance), 1 - 1 / 8, atol=0.12)
    np.testing.assert_allclose(covariance[~np.eye(8, dtype=bool)], -1 / 8, atol=0.08)
    assert np.corrcoef(draws[0][:, 20], draws[1][:, 20])[0, 1] > 0.7  # findings share most draws


def test_stratified_draws_of_units_with_several_images():
    """Strata: a to c have a positive, b and c a negative too; d to g have negatives only, h neither."""
    units = list("aabbccddefgh")
    labels = np.array([[1, 1, 1, 0, 0, 1, 0, 0, 0, 0, -1, np.nan]]).T
    labels[10] = 0
    draws = draw_stratified_resamples(labels, units, 100)[0]
    np.testing.assert_array_equal(draws[:, 11], 1)  # alone in its stratum
    np.testing.assert_array_equal(draws[:, 0] + draws[:, 2] + draws[:, 4], 3)
    assert set(draws[:, 0].tolist()) == {0, 1, 2, 3}  # positives alone are no stratum
    np.testing.assert_array_equal(draws[:, [6, 8, 9, 10]].sum(axis=1), 4)
    np.testing.assert_array_equal(draws[:, 2], draws[:, 3])


def test_stratified_draws_keep_negatives_that_only_units_with_a_positive_have():
    labels = np.array([[1.0, 1, 1, 1, 1, 0]]).T
    draws = draw_stratified_resamples(labels, list("abcdee"), 100)[0]
    np.testing.assert_array_equal(draws[:, 4:], 1)
    np.testing.assert_array_equal(draws[:, :4].sum(axis=1), 4)


def test_draws_do_not_depend_on_the_memory(monkeypatch):
    labels, _ = normal_scores(30, 2)
    plain, stratified = draw_resamples(np.arange(30), 50), draw_stratified_resamples(labels, np.arange(30), 50)
    monkeypatch.setattr("evaluation_tier.statistics.resampling.NUMBERS_IN_MEMORY", 30 * 7)
    np.testing.assert_array_equal(draw_resamples(np.arange(30), 50), plain)
    np.testing.assert_array_equal(draw_stratified_resamples(labels, np.arange(30), 50), stratified)


def test_an_interval_is_of_half_of_the_resamples_at_least():
    assert percentile_interval(np.array([1.0, np.nan])).tolist() == [1, 1]
    assert np.isnan(percentile_interval(np.array([1.0, np.nan, np.nan]))).all()


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
    with pytest.raises(ValueError, match="one of the two models only"):
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


def test_age_bands():
    bands = ["<18", "18-39", "18-39", "40-59", "60-79", ">=80", "", ""]
    assert age_bands([17.9, 18, 39.5, 40, 79, 90, np.nan, None]).tolist() == bands
    assert age_bands([64, 65], (65,)).tolist() == ["<65", ">=65"]


def test_subgroups_by_hand():
    labels = np.array([[1, 1, 0, 0, 1, 1, 0, 0, 1, 0, 1]], dtype=float).T
    scores = np.array([[4, 3, 2, 1, 4, 1, 2, 3, 1, 2, 0]], dtype=float).T
    groups = ["F"] * 4 + ["M"] * 4 + ["X", None, float("nan")]
    draws = np.stack([np.ones(11), [0, 1, 1, 0, 1, 0, 0, 1, 1, 1, 1]])
    found = subgroup_metrics(labels, scores, groups, draws, findings=["Edema"], min_cases=2)
    assert list(found["groups"]) == ["F", "M"]
    assert found["groups"]["F"]["auroc"] == {"Edema": 1.0} and found["groups"]["F"]["n_images"] == 4
    # M: 4 beats both negatives, 1 neither; in the second resample 4 beats 3
    assert found["groups"]["M"]["auroc"] == {"Edema": 0.5}
    assert found["groups"]["M"]["auroc_ci95"]["Edema"] == pytest.approx([0.5125, 0.9875])
    gap = {"gap": 0.5, "gap_ci95": pytest.approx([0.0125, 0.4875]), "highest": "F", "lowest": "M"}
    assert found["gap"] == {"Edema": gap} and found["mean_gap"] == gap
    assert found["findings_in_mean"] == ["Edema"] and found["n_unknown"] == 2
    assert found["left_out"] == {"X": "1 images, no finding with 2 positives and negatives"}


def test_the_interval_of_a_gap_is_that_of_two_groups():
    """Not of the highest and the lowest of each resample, which are farther apart than any two."""
    labels, scores = normal_scores(480, 1, seed=3)
    groups = np.arange(480) % 12
    draws = draw_resamples(np.arange(480), 200)
    found = subgroup_metrics(labels, scores, groups, draws, findings=["a"], min_cases=2)["gap"]["a"]
    rows = [groups == int(found[end]) for end in ("highest", "lowest")]
    assert found["gap"] == auroc(labels[rows[0], 0], scores[rows[0], 0]) - auroc(
        labels[rows[1], 0], scores[rows[1], 0]
    )
    highest, lowest = (bootstrap(labels[row], scores[row], draws[:, row])["auroc"][:, 0] for row in rows)
    assert found["gap_ci95"] == pytest.approx(percentile_interval(highest - lowest))
    low, high = found["gap_ci95"]
    assert low < found["gap"] < high


def test_subgroup_means_are_of_the_same_findings():
    labels, scores = normal_scores(120, 2)
    groups = np.array(["PA", "AP"] * 60)
    labels[groups == "AP", 1] = 0  # no positives there
    draws = draw_resamples(np.arange(120), 50)
    found = subgroup_metrics(labels, scores, groups, draws, findings=["a", "b"], min_cases=5)
    assert list(found["groups"]["AP"]["auroc"]) == ["a"] and list(found["groups"]["PA"]["auroc"]) == ["a", "b"]
    assert found["findings_in_mean"] == ["a"] and list(found["gap"]) == ["a"]
    for group in ("AP", "PA"):
        rows = groups == group
        assert found["groups"][group]["auroc"]["a"] == auroc(labels[rows, 0], scores[rows, 0])
        assert found["groups"][group]["mean"]["auroc"] == found["groups"][group]["auroc"]["a"]
    assert found["mean_gap"] == found["gap"]["a"]
    low, high = found["gap"]["a"]["gap_ci95"]
    assert low < found["gap"]["a"]["gap"] < high


def test_subgroups_without_two_groups_have_no_gap():
    labels, scores = normal_scores(60)
    draws = draw_resamples(np.arange(60), 10)
    found = subgroup_metrics(labels, scores, ["F"] * 60, draws, findings=["a"])
    assert found["gap"] == {} and found["mean_gap"] is None and list(found["groups"]) == ["F"]
    found = subgroup_metrics(labels, scores, [""] * 60, draws, findings=["a"])
    assert found["groups"] == {} and found["n_unknown"] == 60 and found["mean_gap"] is None
    with pytest.raises(ValueError, match="60 images, but 59 groups"):
        subgroup_metrics(labels, scores, ["F"] * 59, draws, findings=["a"])
    with pytest.raises(ValueError, match="share their resamples"):
        subgroup_metrics(labels, scores, ["F"] * 60, draws[None], findings=["a"])


def test_the_interval_of_a_share():
    # Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662, 0 of 20 gives 0 to 0.1611
    low, high = wilson_interval(np.array([81 / 263, 0.0]), np.array([263, 20]))
    assert low == pytest.approx([0.2553, 0.0], abs=5e-5) and high == pytest.approx([0.3662, 0.1611], abs=5e-5)


def test_few_patients_give_no_interval_and_no_p_value():
    rng = np.random.default_rng(0)
    labels = np.tile([[1.0], [0.0]], (20, 1))
    first, second = rng.normal(size=(2, 40, 1)) + labels
    for num_patients, defined in ((1, False), (2, False), (4, False), (5, True)):
        patients = np.arange(40) // 2 % num_patients
        draws = draw_resamples(patients, 50)
        assert draws.shape == (50 if defined else 0, 40)
        assert draw_stratified_resamples(labels, patients, 50).shape == (1, 50 if defined else 0, 40)
        result = bootstrap_auroc(labels, first, patients, Resampling(50))
        paired = paired_bootstrap(labels, first, second, draws, unit_ids=patients)["auroc"]
        for value in (result.interval, result.mean_interval, paired.interval, paired.p_value, paired.mean_p_value):
            assert np.isfinite(value).all() == defined, num_patients
    # one patient in 20 has all the positives
    labels = np.repeat([[1.0], [0.0]], [4, 76], axis=0)
    patients, scores = np.arange(80) // 4, rng.normal(size=(80, 1))
    assert find_too_few(labels, patients).tolist() == [True]
    assert find_too_few(labels, np.arange(80)).tolist() == [True]  # 4 positives
    assert np.isnan(bootstrap_auroc(labels, scores, patients, Resampling(50)).interval).all()
    paired = paired_bootstrap(labels, scores, -scores, draw_resamples(patients, 50), unit_ids=patients)["auroc"]
    assert np.isnan(paired.p_value).all() and paired.difference[0] != 0


def test_what_results_say_of_intervals():
    assert describe_intervals(["a"] * 60, "bootstrap") == "none: 1 patient, and an interval needs 5"
    assert describe_intervals(list("abcd"), "bootstrap") == "none: 4 patients, and an interval needs 5"
    assert describe_intervals(list("abcde"), "bootstrap") == "bootstrap"
