import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, roc_curve

from evaluation_tier.scoring.protocols import PROTOCOLS
from evaluation_tier.statistics.resampling import Resampling
from evaluation_tier.statistics.summary import summarize
from evaluation_tier.statistics.thresholds import ThresholdChoice, ThresholdRule, f1_threshold


def make(num_images: int, seed: int):
    generator = np.random.default_rng(seed)
    labels = (generator.random((num_images, 1)) < 0.3).astype(float)
    return labels, labels + generator.standard_normal(labels.shape)


def reported(rule: ThresholdRule) -> dict:
    labels, scores = make(300, 0)
    choice = ThresholdChoice(rule, *make(200, 5))
    return summarize(labels, scores, np.arange(300), ["Edema"], thresholds=choice, resampling=Resampling(20))


def best(function, labels, scores) -> float:
    """The candidate with the highest value, tried one by one."""
    candidates = np.sort(scores[:, 0])[::-1]
    return candidates[np.argmax([function(labels[:, 0], scores[:, 0] >= candidate) for candidate in candidates])]


def test_f1_is_at_the_threshold_that_the_rule_names():
    labels, scores = make(300, 0)
    mcc_at, f1_at = (best(function, *make(200, 5)) for function in (matthews_corrcoef, f1_score))
    assert mcc_at != f1_at
    truth, scores = labels[:, 0], scores[:, 0]
    for rule, at in ((PROTOCOLS["chexzero"].rule, mcc_at), (PROTOCOLS["tier"].rule, f1_at)):
        found = reported(rule)
        result = found["findings"]["Edema"]
        assert (
            (result["threshold"], result["f1_threshold"])
            == (mcc_at, at)
            == (result["threshold"], f1_threshold(result))
        )
        assert result["f1"] == found["mean"]["f1"] == pytest.approx(f1_score(truth, scores >= at))
        assert result["mcc"] == pytest.approx(matthews_corrcoef(truth, scores >= mcc_at))
        assert "accuracy" not in result and "accuracy" not in found["mean"]
    assert reported(PROTOCOLS["tier"].rule)["findings"]["Edema"]["f1_ci95"] != result["mcc_ci95"]


def test_accuracy_is_at_the_point_nearest_to_the_corner():
    """As zero_shot_covid.py finds it, but calling present what reaches the threshold, as scikit-learn means it."""
    false_positive_rate, true_positive_rate, thresholds = roc_curve(*(part[:, 0] for part in make(200, 5)))
    nearest = thresholds[np.argmin(np.hypot(false_positive_rate, 1 - true_positive_rate))]
    labels, scores = make(300, 0)
    found = reported(PROTOCOLS["tier-covid"].rule)
    result = found["findings"]["Edema"]
    assert result["accuracy_threshold"] == nearest != result["threshold"]
    accuracy = accuracy_score(labels[:, 0], scores[:, 0] >= nearest)
    assert result["accuracy"] == found["mean"]["accuracy"] == pytest.approx(accuracy)
    assert result["accuracy_ci95"][0] < accuracy < result["accuracy_ci95"][1]


def test_the_rule_in_words():
    assert ThresholdRule().describe("the split 'a'") == "highest MCC on the split 'a'"
    assert PROTOCOLS["tier"].rule.describe("a split apart") == (
        "highest MCC on a split apart; for F1 the highest F1 there"
    )
    assert PROTOCOLS["tier-covid"].rule.describe("a split apart") == (
        "highest MCC on a split apart; for F1 the highest F1 there; for accuracy the ROC point nearest to (0, 1) there"
    )
    with pytest.raises(ValueError, match="criterion of a threshold is 'best'; choose mcc, f1, youden, corner"):
        ThresholdRule(f1="best")


def test_results_without_a_threshold_of_f1_have_one_for_all():
    assert f1_threshold({"threshold": 0.3}) == 0.3 and f1_threshold({"threshold": 0.3, "f1_threshold": None}) is None
