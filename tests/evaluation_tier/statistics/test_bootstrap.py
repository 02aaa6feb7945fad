import numpy as np
import pytest
from sklearn import metrics as yardstick
from statistics_data import normal_scores

from evaluation_tier.statistics.bootstrap import (
    AREAS,
    AT_THRESHOLD,
    bootstrap,
    bootstrap_auroc,
    percentile_interval,
)
from evaluation_tier.statistics.metrics import auprc, auroc, metrics_at_threshold
from evaluation_tier.statistics.paired import paired_bootstrap
from evaluation_tier.statistics.resampling import (
    Resampling,
    draw_resamples,
    draw_stratified_resamples,
    find_too_few,
)


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


def test_one_study_is_not_an_error():
    found = bootstrap(np.ones((1, 1)), np.ones((1, 1)), np.ones((3, 1)), [0.5])
    assert np.isnan(found["auroc"]).all() and np.isnan(found["mcc"]).all()
    np.testing.assert_array_equal(found["sensitivity"], 1.0)


def test_an_interval_is_of_half_of_the_resamples_at_least():
    assert percentile_interval(np.array([1.0, np.nan])).tolist() == [1, 1]
    assert np.isnan(percentile_interval(np.array([1.0, np.nan, np.nan]))).all()


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
