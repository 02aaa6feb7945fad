import numpy as np
import pytest
from statistics_data import normal_scores

from evaluation_tier.statistics.bootstrap import (
    bootstrap,
    percentile_interval,
)
from evaluation_tier.statistics.metrics import auroc
from evaluation_tier.statistics.resampling import (
    draw_resamples,
)
from evaluation_tier.statistics.subgroups import age_bands, subgroup_metrics, wilson_interval


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
