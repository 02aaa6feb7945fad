from functools import partial

import numpy as np
import pytest

from evaluation_tier.statistics.bootstrap import bootstrap, bootstrap_auroc
from evaluation_tier.statistics.calibration import brier, ece, sigmoid
from evaluation_tier.statistics.metrics import auprc, auroc, best_threshold, f1, mcc, sensitivity, specificity
from evaluation_tier.statistics.resampling import Resampling, draw_resamples, draw_stratified_resamples
from evaluation_tier.statistics.summary import summarize
from evaluation_tier.statistics.thresholds import ThresholdChoice, ThresholdRule

FINDINGS = ["Edema", "Pneumonia"]


def make(num_images: int = 120, seed: int = 0):
    rng = np.random.default_rng(seed)
    labels = (rng.random((num_images, 2)) < (0.4, 0.15)).astype(float)
    scores = rng.standard_normal(labels.shape) + labels
    labels[rng.random(labels.shape) < 0.05] = -1
    labels[rng.random(labels.shape) < 0.05] = np.nan
    return labels, scores, np.arange(num_images) // 2


def test_every_number_is_the_plain_one():
    labels, scores, patients = make()
    split_labels, split_scores, _ = make(seed=1)
    options = {
        "thresholds": ThresholdChoice(labels=split_labels, scores=split_scores),
        "resampling": Resampling(50, 4),
    }
    found = summarize(labels, scores, patients, FINDINGS, **options)
    thresholds = [best_threshold(split_labels[:, i], split_scores[:, i]) for i in range(2)]
    resampled = bootstrap(labels, scores, draw_resamples(patients, 50, 4), thresholds)
    for i, finding in enumerate(FINDINGS):
        truth, given, result = labels[:, i], scores[:, i], found["findings"][finding]
        assert result["auroc"] == auroc(truth, given) and result["auprc"] == auprc(truth, given)
        assert result["threshold"] == result["thresholds"]["mcc"] == thresholds[i]
        for name in ("f1", "youden"):
            assert result["thresholds"][name] == best_threshold(split_labels[:, i], split_scores[:, i], name)
        for name, function in (("mcc", mcc), ("f1", f1), ("sensitivity", sensitivity), ("specificity", specificity)):
            assert result[name] == function(truth, given, thresholds[i])
        for name, values in resampled.items():
            known = values[:, i][~np.isnan(values[:, i])]
            assert result[f"{name}_ci95"] == pytest.approx(np.percentile(known, [2.5, 97.5]))
        probabilities = sigmoid(result["scale"] * given + result["bias"])
        assert result["brier"] == brier(truth, probabilities) and result["ece"] == ece(truth, probabilities)
        assert result["n_excluded"] == result["n_uncertain"] + result["n_missing"] > 1
        assert result["n_positive"] + result["n_negative"] + result["n_excluded"] == 120
    for name in ("auroc", "auprc", "mcc", "f1", "sensitivity", "specificity", "brier", "ece"):
        expected = np.mean([result[name] for result in found["findings"].values()])
        assert found["mean"][name] == pytest.approx(expected)
    simple = bootstrap_auroc(labels, scores, patients, Resampling(50, 4))
    assert found["mean"]["auroc_ci95"] == simple.mean_interval.tolist()
    dropped = dict(zip([*FINDINGS, "mean"], [*simple.num_dropped.tolist(), simple.mean_num_dropped], strict=True))
    assert found["resamples_dropped"] == dropped


def test_thresholds_come_from_the_data_where_there_is_no_split():
    labels, scores, patients = make()
    found = summarize(
        labels,
        scores,
        patients,
        FINDINGS,
        thresholds=ThresholdChoice(ThresholdRule(mcc="youden")),
        resampling=Resampling(5),
    )
    result = found["findings"]["Edema"]
    assert (
        result["threshold"] == result["thresholds"]["youden"] == best_threshold(labels[:, 0], scores[:, 0], "youden")
    )
    assert result["sensitivity"] == sensitivity(labels[:, 0], scores[:, 0], result["threshold"])


def test_probabilities_are_calibrated_by_their_log_odds():
    labels, scores, patients = make()
    plain = summarize(labels, scores, patients, FINDINGS, resampling=Resampling(5))
    odds = summarize(labels, sigmoid(scores), patients, FINDINGS, resampling=Resampling(5), probabilities=True)
    for finding in FINDINGS:
        for name in ("scale", "bias", "brier", "ece", "auroc", "mcc"):
            assert odds["findings"][finding][name] == pytest.approx(plain["findings"][finding][name], rel=1e-6)
    sure = summarize(
        labels, (scores > 0.5).astype(float), patients, FINDINGS, resampling=Resampling(5), probabilities=True
    )
    assert np.isfinite(sure["findings"]["Edema"]["brier"])


@pytest.mark.parametrize("resampling", ["patients", "stratified"])
def test_brier_scores_are_of_all_findings_and_have_intervals(resampling):
    labels, scores, patients = make()
    scores[:, 1] *= -1  # ranks upside down
    found = summarize(labels, scores, patients, FINDINGS, resampling=Resampling(40, 2, resampling))
    draw = draw_resamples if resampling == "patients" else partial(draw_stratified_resamples, labels)
    draws = np.broadcast_to(draw(patients, 40, 2), (2, 40, 120)) if draw is draw_resamples else draw(patients, 40, 2)
    resampled = np.empty((40, 2))
    for i, finding in enumerate(FINDINGS):
        result = found["findings"][finding]
        probabilities = sigmoid(result["scale"] * scores[:, i] + result["bias"])
        for j, row in enumerate(draws[i]):
            drawn = np.repeat(np.arange(120), row)
            resampled[j, i] = brier(labels[drawn, i], probabilities[drawn])
        assert result["brier_ci95"] == pytest.approx(np.percentile(resampled[:, i], [2.5, 97.5]))
        assert result["brier_ci95"][0] < result["brier"] < result["brier_ci95"][1]
    assert found["findings"]["Pneumonia"]["scale"] == 0
    known = labels[:, 1] >= 0
    prevalence = (labels[known, 1] == 1).mean()
    assert found["findings"]["Pneumonia"]["brier"] == pytest.approx(prevalence * (1 - prevalence), abs=1e-3)
    assert found["mean"]["brier"] == pytest.approx(np.mean([found["findings"][name]["brier"] for name in FINDINGS]))
    assert found["mean"]["brier_ci95"] == pytest.approx(np.percentile(resampled.mean(axis=1), [2.5, 97.5]))


def test_rare_findings_lose_no_resample_when_stratified():
    labels, scores, patients = np.zeros((60, 2)), np.arange(120.0).reshape(60, 2), np.arange(60)
    labels[[3, 50], 0], labels[:30, 1] = 1, 1
    plain = summarize(labels, scores, patients, FINDINGS, resampling=Resampling(100))
    stratified = summarize(labels, scores, patients, FINDINGS, resampling=Resampling(100, kind="stratified"))
    assert plain["resamples_dropped"]["Edema"] > 0
    assert plain["resamples_dropped"]["mean"] == plain["resamples_dropped"]["Edema"]
    assert stratified["resamples_dropped"] == {"Edema": 0, "Pneumonia": 0, "mean": 0}
    assert stratified["findings"]["Edema"]["auroc"] == plain["findings"]["Edema"]["auroc"]


def test_a_mean_of_few_resamples_has_no_interval():
    """Ten findings with one positive each: most resamples of the patients lack one of the positives."""
    labels = np.zeros((200, 10))
    labels[np.arange(10), np.arange(10)] = 1
    scores = np.random.default_rng(0).standard_normal(labels.shape) + labels
    names = list("abcdefghij")
    found = summarize(labels, scores, np.arange(200), names, resampling=Resampling(300))
    assert 290 <= found["resamples_dropped"]["mean"] < 300 and found["resamples_dropped"]["a"] < 150
    assert np.isfinite(found["mean"]["auroc"]) and np.isnan(found["mean"]["auroc_ci95"]).all()
    assert np.isnan(found["findings"]["a"]["auroc_ci95"]).all()  # one positive
    stratified = summarize(labels, scores, np.arange(200), names, resampling=Resampling(50, kind="stratified"))
    assert (
        stratified["resamples_dropped"]["mean"] == 0
    )  # but one positive is too few for each finding, and for the mean
    assert np.isnan(stratified["mean"]["auroc_ci95"]).all()
    labels[10:50] = np.eye(10)[np.arange(40) % 10]  # five positives each
    stratified = summarize(labels, scores, np.arange(200), names, resampling=Resampling(50, kind="stratified"))
    assert np.isfinite(stratified["mean"]["auroc_ci95"]).all()


def test_what_is_undefined_is_nan_and_leaves_the_mean():
    labels, scores, patients = make()
    labels[:, 1] = 0
    found = summarize(labels, scores, patients, FINDINGS, resampling=Resampling(20))
    result = found["findings"]["Pneumonia"]
    for name in ("auroc", "auprc", "mcc", "f1", "sensitivity", "specificity", "threshold", "scale", "brier", "ece"):
        assert np.isnan(result[name]), name
    assert np.isnan(result["auroc_ci95"]).all() and result["n_positive"] == 0
    for name in ("auroc", "mcc", "ece"):
        assert found["mean"][name] == found["findings"]["Edema"][name]
    assert found["mean"]["auroc_ci95"] == found["findings"]["Edema"]["auroc_ci95"]


def test_arguments_that_do_not_fit_are_refused():
    labels, scores, patients = make(20)
    with pytest.raises(ValueError, match=r"20 patient ids and 1 findings, but labels \(20, 2\)"):
        summarize(labels, scores, patients, ["Edema"])
    with pytest.raises(ValueError, match="needs both labels and scores"):
        summarize(labels, scores, patients, FINDINGS, thresholds=ThresholdChoice(labels=labels))
    with pytest.raises(ValueError, match=r"on the thresholds' split \(20, 1\) and \(20, 1\)"):
        one = ThresholdChoice(labels=labels[:, :1], scores=scores[:, :1])
        summarize(labels, scores, patients, FINDINGS, thresholds=one)
    with pytest.raises(ValueError, match="criterion of a threshold is 'best'"):
        summarize(labels, scores, patients, FINDINGS, thresholds=ThresholdChoice(ThresholdRule(mcc="best")))
    with pytest.raises(ValueError, match="resampling must be one of patients, stratified, chexzero, but is 'images'"):
        summarize(labels, scores, patients, FINDINGS, resampling=Resampling(kind="images"))


def test_images_of_one_patient_have_no_interval_and_a_reason():
    rng = np.random.default_rng(0)
    labels = np.tile([[1.0, 1.0], [0.0, 0.0]], (20, 1))
    scores = rng.normal(size=(40, 2)) + labels
    for resampling in ("patients", "stratified", "chexzero"):
        result = summarize(labels, scores, ["p"] * 40, ["A", "B"], resampling=Resampling(50, kind=resampling))
        for part in (*result["findings"].values(), result["mean"]):
            assert 0.5 < part["auroc"] < 1
            for name in ("auroc", "auprc", "mcc", "f1", "sensitivity", "specificity", "brier"):
                assert np.isnan(part[f"{name}_ci95"]).all()
        assert result["no_interval"] == dict.fromkeys(("A", "B", "mean"), "fewer than 5 patients")
    labels[:, 1] = np.arange(40) < 4  # and of B four patients only
    result = summarize(labels, scores, np.arange(40), ["A", "B"], resampling=Resampling(50))
    assert result["no_interval"] == {"B": "fewer than 5 patients with it, or without it"}
    assert np.isfinite(result["findings"]["A"]["auroc_ci95"]).all()
    assert np.isnan(result["findings"]["B"]["auroc_ci95"]).all() and np.isfinite(result["mean"]["auroc_ci95"]).all()
    labels[:, 0] = np.arange(40) < 3  # of neither finding enough: then not of their mean either
    result = summarize(labels, scores, np.arange(40), ["A", "B"], resampling=Resampling(50))
    assert set(result["no_interval"]) == {"A", "B", "mean"}
    for name in ("auroc", "auprc", "mcc", "f1", "sensitivity", "specificity", "brier"):
        assert np.isnan(result["mean"][f"{name}_ci95"]).all()
