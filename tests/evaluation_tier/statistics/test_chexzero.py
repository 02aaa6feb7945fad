"""CheXzero's bootstrap, against what its eval.py and metrics.py compute, once more with their libraries."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import auc, confusion_matrix, matthews_corrcoef, roc_auc_score, roc_curve
from sklearn.utils import resample

from evaluation_tier.statistics.bootstrap import percentile_interval
from evaluation_tier.statistics.chexzero import chexzero_interval, draw_chexzero_resamples
from evaluation_tier.statistics.resampling import Resampling
from evaluation_tier.statistics.summary import summarize


def test_chexzero_draws_are_those_of_the_reference():
    draws = draw_chexzero_resamples(50, 20, seed=3)
    for i, row in enumerate(draws):
        drawn = resample(np.arange(50), replace=True, random_state=3 + i)
        np.testing.assert_array_equal(row, np.bincount(drawn, minlength=50))


def test_chexzero_interval_takes_the_reference_positions():
    values = np.random.default_rng(0).permutation(1000).astype(float)
    centre, bounds = chexzero_interval(values)
    assert centre == 499.5 and bounds.tolist() == [24, 974]
    assert percentile_interval(values) == pytest.approx([24.975, 974.025])
    values[:100] = np.nan  # sorted last, as by pandas: the upper bound is one of them
    centre, bounds = chexzero_interval(values)
    assert centre == pytest.approx(values[100:].mean()) and np.isnan(bounds[1])
    assert np.isnan(chexzero_interval(np.full(40, np.nan))[0])
    with pytest.raises(ValueError, match="at least 40 resamples, but there are 39"):
        chexzero_interval(np.zeros(39))


def reference_interval(values):
    """`compute_cis` of one column: undefined values are sorted last, and left out of the mean."""
    ordered = pd.Series(values).sort_values()
    lower, upper = (ordered.iloc[int(share * len(ordered)) - 1] for share in (0.025, 0.975))
    return ordered.mean(), [lower, upper]


def reference_f1(labels, called):
    """`compute_f1`: a confusion matrix of one cell counts as true negatives, and F1 without any positive is 1."""
    counts = confusion_matrix(labels, called).ravel()
    true_negative, false_positive, missed, right = counts if len(counts) == 4 else (len(labels), 0, 0, 0)
    total = 2 * right + false_positive + missed
    return 2 * right / total if total else 1.0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning", "ignore:A single label")
@pytest.mark.parametrize("num_positive", [20, 4, 2, 1])
def test_rare_findings_have_the_intervals_of_the_reference(num_positive):
    """With 4 positives 2 % of the resamples lack one, with 2 14 %, with 1 37 %."""
    num_images, num_resamples = 120, 400
    labels = np.zeros((num_images, 1))
    labels[:num_positive] = 1
    scores = labels + np.random.default_rng(1).standard_normal(labels.shape)
    found = summarize(
        labels, scores, np.arange(num_images), ["Fracture"], resampling=Resampling(num_resamples, kind="chexzero")
    )
    found, missing = found["findings"]["Fracture"], found["resamples_dropped"]["Fracture"]
    values = {"auroc": [], "mcc": [], "f1": []}
    for i in range(num_resamples):
        rows = resample(np.arange(num_images), replace=True, random_state=i)
        truth, called = labels[rows, 0].astype(int), (scores[rows, 0] >= found["threshold"]).astype(int)
        false_positive_rate, true_positive_rate, _ = roc_curve(truth, scores[rows, 0])
        values["auroc"].append(auc(false_positive_rate, true_positive_rate))
        values["mcc"].append(matthews_corrcoef(truth, called))
        values["f1"].append(reference_f1(truth, called))
    assert missing == np.isnan(values["auroc"]).sum() and (missing > 0) == (num_positive < 20)
    for name, resampled in values.items():
        centre, bounds = reference_interval(resampled)
        assert found[f"{name}_bootstrap_mean"] == pytest.approx(centre, abs=1e-12)
        assert found[f"{name}_ci95"] == pytest.approx(bounds, abs=1e-12, nan_ok=True)
    assert np.isnan(found["auroc_ci95"][1]) == (num_positive < 3)
    if num_positive == 4:  # what dropping the undefined values first would give
        assert found["auroc_ci95"] != pytest.approx(percentile_interval(np.array(values["auroc"])), abs=1e-4)


def test_the_intervals_are_those_that_the_authors_code_gave():
    """Its `bootstrap`, run on these numbers: mean, lower and upper bound, rounded as there."""
    generator = np.random.default_rng(3)
    labels = np.zeros((500, 6))
    for i, num_positive in enumerate((4, 5, 8, 9, 78, 1)):
        labels[generator.choice(500, num_positive, replace=False), i] = 1
    scores = 1 / (1 + np.exp(-(0.03 * labels + 0.03 * generator.standard_normal(labels.shape))))
    names = ["Pleural Other", "Fracture", "Lung Lesion", "Pneumothorax", "Edema", "Rib"]
    found = summarize(labels, scores, np.arange(500), names, resampling=Resampling(kind="chexzero"))
    expected = [(0.8002, 0.6012, 0.9699), (0.8087, 0.6717, 0.9484), (0.7319, 0.4831, 0.9388)]
    expected += [(0.7792, 0.5838, 0.943), (0.7357, 0.6766, 0.7914), (0.3402, 0.3046, np.nan)]
    for result, numbers in zip(found["findings"].values(), expected, strict=True):
        rounded = np.round([result["auroc_bootstrap_mean"], *result["auroc_ci95"]], 4)
        np.testing.assert_array_equal(rounded, numbers)
    assert list(found["resamples_dropped"].values())[:2] == [18, 2]


def test_the_mean_is_over_the_findings_of_each_resample():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, (60, 2)).astype(float)
    scores = labels * 0.5 + generator.standard_normal((60, 2))
    expected = np.empty((100, 2))
    for i in range(100):
        rows = resample(np.arange(60), replace=True, random_state=i)
        expected[i] = [roc_auc_score(labels[rows, j], scores[rows, j]) for j in range(2)]
    found = summarize(labels, scores, np.arange(60), ["Edema", "Mass"], resampling=Resampling(100, kind="chexzero"))
    means = [*expected.T, expected.mean(axis=1)]
    for result, values in zip([*found["findings"].values(), found["mean"]], means, strict=True):
        assert result["auroc_bootstrap_mean"] == pytest.approx(values.mean())
        assert result["auroc_ci95"] == pytest.approx(np.sort(values)[[1, 96]])


def test_labels_that_are_not_known_are_left_out():
    labels = np.array([[1.0], [0.0], [0.0], [-1.0], [np.nan]])
    scores = np.array([[2.0], [1.0], [0.0], [3.0], [9.0]])
    found = summarize(labels, scores, np.arange(5), ["Edema"], resampling=Resampling(200, kind="chexzero"))
    assert 0 < found["resamples_dropped"]["Edema"] < 160
    assert found["findings"]["Edema"]["auroc_bootstrap_mean"] == 1.0
    assert found["findings"]["Edema"]["auroc_ci95"][0] == 1.0 and np.isnan(found["findings"]["Edema"]["auroc_ci95"][1])
    with pytest.raises(ValueError, match="need at least 40 resamples, but there are 30"):
        summarize(labels, scores, np.arange(5), ["Edema"], resampling=Resampling(30, kind="chexzero"))


def test_a_finding_without_a_class_is_nan_throughout():
    found = summarize(
        np.zeros((9, 1)), np.arange(9.0)[:, None], np.arange(9), ["Edema"], resampling=Resampling(50, kind="chexzero")
    )
    result = found["findings"]["Edema"]
    for name in ("auroc", "mcc", "f1"):
        assert np.isnan([result[name], result[f"{name}_bootstrap_mean"], *result[f"{name}_ci95"]]).all()
