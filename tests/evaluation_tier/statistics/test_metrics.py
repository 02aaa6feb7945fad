import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as yardstick
from statistics_data import labelled_scores

from evaluation_tier.statistics.metrics import (
    CRITERIA,
    auprc,
    auroc,
    best_threshold,
    count_labels,
    f1,
    mcc,
    metrics_at_threshold,
    npv,
    ppv,
    precision_recall_curve,
    roc_curve,
    sensitivity,
    sensitivity_threshold,
    specificity,
    weighted_areas,
)


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


def test_rates_by_hand():
    labels, scores = [1, 1, 1, 0, 0, 0, 0, 0], [0.9, 0.8, 0.2, 0.7, 0.6, 0.3, 0.2, 0.1]
    # at 0.6: TP 2, FN 1, FP 2, TN 3
    assert sensitivity(labels, scores, 0.6) == pytest.approx(2 / 3)
    assert specificity(labels, scores, 0.6) == pytest.approx(3 / 5)
    assert ppv(labels, scores, 0.6) == pytest.approx(2 / 4)
    assert npv(labels, scores, 0.6) == pytest.approx(3 / 4)
    assert f1(labels, scores, 0.6) == pytest.approx(4 / 7)
    assert mcc(labels, scores, 0.6) == pytest.approx((2 * 3 - 2 * 1) / np.sqrt(4 * 4 * 3 * 5))


def test_best_thresholds_by_hand():
    labels = [1, 0, 0, 0, 0, 1, 1, 0, 0, 0]
    scores = [10, 9, 8, 7, 6, 5, 4, 3, 2, 1]
    # at 10: TP 1, FP 0: MCC = 7 / sqrt(1*9*3*7) = 0.51; at 4: TP 3, FP 4: MCC = 9 / sqrt(7*3*3*7) = 0.43
    assert best_threshold(labels, scores) == 10
    # F1: at 10 2*1/(1+3) = 0.5; at 4 2*3/(7+3) = 0.6
    assert best_threshold(labels, scores, "f1") == 4
    # sensitivity + specificity - 1: at 10 1/3; at 4 1 - 4/7 = 3/7
    assert best_threshold(labels, scores, "youden") == 4
    # sensitivity + specificity: at 7 2/6 + 2/2, at 4 5/6 + 1/2: equal, though not as floats; the higher score wins
    assert best_threshold([1, 1, 0, 1, 1, 1, 0, 1], [8, 7, 6, 5, 4, 3, 2, 1], "youden") == 7
    with pytest.raises(ValueError, match="criterion of a threshold is 'recall'; choose mcc, f1, youden"):
        best_threshold(labels, scores, "recall")


@pytest.mark.parametrize("criterion", ["mcc", "f1", "youden"])
def test_best_threshold_of_constant_scores_is_that_score(criterion):
    """There is one candidate: all are called present, none at an infinite threshold."""
    assert best_threshold([1, 0, 0], [0.3, 0.3, 0.3], criterion) == 0.3
    assert mcc([1, 0, 0], [0.3, 0.3, 0.3], 0.3) == 0
    assert np.isnan(best_threshold([0, 0, -1], [0.1, 0.2, 0.3], criterion))


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


@settings(max_examples=20, deadline=None)
@given(labelled_scores(), st.integers(-6, 6).map(lambda score: score / 4))
def test_equal_to_scikit_learn(sample, threshold):
    labels, scores = sample
    assert auroc(labels, scores) == pytest.approx(yardstick.roc_auc_score(labels, scores), abs=1e-12)
    assert auprc(labels, scores) == pytest.approx(yardstick.average_precision_score(labels, scores), abs=1e-12)
    predicted, undefined = scores >= threshold, {"zero_division": np.nan}
    expected = {
        "mcc": yardstick.matthews_corrcoef(labels, predicted),
        "f1": yardstick.f1_score(labels, predicted),
        "sensitivity": yardstick.recall_score(labels, predicted),
        "specificity": yardstick.recall_score(labels, predicted, pos_label=0),
        "ppv": yardstick.precision_score(labels, predicted, **undefined),
        "npv": yardstick.precision_score(labels, predicted, pos_label=0, **undefined),
    }
    assert metrics_at_threshold(labels, scores, threshold) == pytest.approx(expected, abs=1e-12, nan_ok=True)
    false_rates, true_rates, _ = yardstick.roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(roc_curve(labels, scores), (false_rates, true_rates), atol=1e-12)
    precision, recall, _ = yardstick.precision_recall_curve(labels, scores)
    expected = recall[-2::-1], precision[-2::-1]  # without the point (0, 1), which is no threshold's
    np.testing.assert_allclose(precision_recall_curve(labels, scores), expected, atol=1e-12)


@settings(max_examples=10, deadline=None)
@given(labelled_scores(), st.integers(0, 2**31))
def test_weights_equal_those_of_scikit_learn(sample, seed):
    """Whole and broken weights, few weightings and many (which are added up in another way)."""
    labels, scores = sample
    weights = np.random.default_rng(seed).gamma(1.0, size=(len(labels), 130)).round(1)
    few, many = (weighted_areas(labels == 1, scores, weights[:, :width]) for width in (3, 130))
    np.testing.assert_allclose([area[:3] for area in many], few, atol=1e-12)
    for k in range(3):
        if min(weights[labels == 1, k].sum(), weights[labels == 0, k].sum()) == 0:
            assert np.isnan(few[0][k])
            continue
        given = {"sample_weight": weights[:, k]}
        assert few[0][k] == pytest.approx(yardstick.roc_auc_score(labels, scores, **given), abs=1e-12)
        assert few[1][k] == pytest.approx(yardstick.average_precision_score(labels, scores, **given), abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(labelled_scores())
def test_no_threshold_is_better_than_the_best(sample):
    labels, scores = sample
    tried = [metrics_at_threshold(labels, scores, threshold) for threshold in np.unique(scores)]
    for found in tried:
        found["youden"] = found["sensitivity"] + found["specificity"]
        found["corner"] = -np.hypot(1 - found["sensitivity"], 1 - found["specificity"])
    for criterion in CRITERIA:
        best = best_threshold(labels, scores, criterion)
        assert best in scores
        value = tried[np.searchsorted(np.unique(scores), best)][criterion]
        assert value == pytest.approx(max(found[criterion] for found in tried), abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(labelled_scores())
def test_auroc_symmetries(sample):
    labels, scores = sample
    assert auroc(labels, scores) == pytest.approx(1 - auroc(1 - labels, scores), abs=1e-12)
    assert auroc(labels, scores) == auroc(labels, np.exp(scores))  # only ranks count
    assert auprc(labels, scores) == auprc(labels, np.exp(scores))
    order = np.random.default_rng(0).permutation(len(labels))
    for measure in (auroc, auprc, best_threshold):
        assert measure(labels[order], scores[order]) == pytest.approx(measure(labels, scores), abs=1e-12)


def test_uncertain_and_unstated_labels_change_nothing():
    labels, scores = np.array([0.0, 1, 1, 0, 1]), np.array([0.2, 0.6, 0.3, 0.4, 0.9])
    more_labels = np.concatenate([labels, [-1, np.nan, -1]])
    more_scores = np.concatenate([scores, [5.0, -5.0, np.nan]])  # a score of an excluded image may even be NaN
    for measure in (auroc, auprc, best_threshold):
        assert measure(more_labels, more_scores) == measure(labels, scores)
    for measure in (mcc, f1, sensitivity, specificity, ppv, npv):
        assert measure(more_labels, more_scores, 0.5) == measure(labels, scores, 0.5)


def test_labels_are_counted_apart():
    counts = {"n_positive": 2, "n_negative": 1, "n_uncertain": 3, "n_missing": 1}
    assert count_labels([1, 1, 0, -1, -1, -1, np.nan]) == counts
    assert sum(count_labels([]).values()) == 0
    with pytest.raises(ValueError, match="must be 1, 0, -1 or NaN, but one is 0.5"):
        count_labels([0.5])


@pytest.mark.parametrize("labels", [[], [1, 1], [0, 0], [-1, np.nan]])
def test_undefined_is_nan(labels):
    scores = np.arange(len(labels), dtype=float)
    assert np.isnan(auroc(labels, scores))
    assert np.isnan(best_threshold(labels, scores))
    assert np.isnan(mcc(labels, scores, float("nan")))
    assert np.isnan(mcc(labels, scores, 0.5))


def test_undefined_rates_are_nan():
    assert np.isnan(specificity([1, 1], [0.1, 0.2], 0.15)) and sensitivity([1, 1], [0.1, 0.2], 0.15) == 0.5
    assert np.isnan(sensitivity([0, 0], [0.1, 0.2], 0.15)) and np.isnan(f1([0, 0], [0.1, 0.2], 0.15))
    assert np.isnan(ppv([0, 1], [0.1, 0.2], 0.3)) and np.isnan(npv([0, 1], [0.1, 0.2], 0.0))
    assert f1([0, 1], [0.1, 0.2], 0.3) == 0 == mcc([0, 1], [0.1, 0.2], 0.3)


def test_foreign_labels_and_scores_are_refused():
    with pytest.raises(ValueError, match="must be 1, 0, -1 or NaN, but one is 2"):
        auroc([0, 2], [0.1, 0.2])
    with pytest.raises(ValueError, match="Scores must be finite"):
        auroc([0, 1], [0.1, np.nan])
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        auroc([0, 1], [0.1, 0.2, 0.3])


def test_threshold_of_a_wanted_sensitivity():
    labels = np.array([1.0] * 20 + [0.0] * 5 + [-1.0, np.nan])
    scores = np.concatenate([np.arange(20.0), np.full(7, 50.0)])
    assert sensitivity_threshold(labels, scores, 0.95) == 1.0  # 19 of 20, whatever the rounding
    assert sensitivity_threshold(labels, scores, 0.951) == sensitivity_threshold(labels, scores, 1.0) == 0.0
    assert np.isnan(sensitivity_threshold(np.zeros(3), np.arange(3.0), 0.5))
    with pytest.raises(ValueError, match="above 0 and at most 1, but is 0"):
        sensitivity_threshold(labels, scores, 0)
