import numpy as np
import pytest

from evaluation_tier.output.result_tables import groups_table
from evaluation_tier.statistics.groups import group_by_frequency, summarize_groups
from evaluation_tier.statistics.resampling import Resampling
from evaluation_tier.statistics.summary import summarize

BOUNDS = {"head": 0.1, "medium": 0.01, "tail": 0.0}


def test_groups_by_the_share_of_positives():
    labels = np.zeros((1000, 6))
    for column, positives in enumerate((500, 100, 99, 10, 9)):
        labels[:positives, column] = 1
    labels[:, 5] = np.nan  # never stated
    labels[500:, 0] = -1  # uncertain
    groups = group_by_frequency(labels, list("abcdef"), BOUNDS)
    assert groups == {"head": ["a", "b"], "medium": ["c", "d"], "tail": ["e"]}
    assert group_by_frequency(labels[:, :1], ["a"], BOUNDS) == {"head": ["a"]}
    assert group_by_frequency(labels, list("abcdef"), {}) == {}


def test_means_of_groups_are_those_of_their_findings_alone():
    rng = np.random.default_rng(0)
    labels = (rng.random((200, 3)) < [0.5, 0.3, 0.05]).astype(float)
    scores, patients = rng.random((200, 3)) + labels * 0.3, np.arange(200) // 2
    groups = {"head": ["a", "b"], "tail": ["c"]}
    data = labels, scores, patients, ["a", "b", "c"]
    found = summarize_groups(*data, groups, resampling=Resampling(50))
    assert found["head"]["findings"] == ["a", "b"]
    alone = summarize(labels[:, :2], scores[:, :2], patients, ["a", "b"], resampling=Resampling(50))["mean"]
    rare = summarize(*data, resampling=Resampling(50))["findings"]["c"]
    for name in ("auroc", "auprc", "auroc_ci95", "auprc_ci95"):
        assert found["head"][name] == pytest.approx(alone[name])
        assert found["tail"][name] == pytest.approx(rare[name])
    few = summarize_groups(labels[:8], scores[:8], patients[:8], ["a", "b", "c"], groups, resampling=Resampling(5))
    assert np.isnan(few["head"]["auroc_ci95"]).all()  # four patients
    assert summarize_groups(*data, {}) == {}
    table = groups_table({"groups": found, "protocol": {"groups": BOUNDS}})
    assert [row[:2] for row in table.rows] == [("Head", "2"), ("Tail", "1")]
    assert "head: a, b; tail: c." in table.note and groups_table({"protocol": {}}) is None
