import numpy as np
import pandas as pd
import pytest
from statistics_data import normal_scores

from evaluation_tier.statistics.bootstrap import (
    bootstrap,
)
from evaluation_tier.statistics.resampling import (
    describe_intervals,
    draw_resamples,
    draw_stratified_resamples,
)


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


def test_what_results_say_of_intervals():
    assert describe_intervals(["a"] * 60, "bootstrap") == "none: 1 patient, and an interval needs 5"
    assert describe_intervals(list("abcd"), "bootstrap") == "none: 4 patients, and an interval needs 5"
    assert describe_intervals(list("abcde"), "bootstrap") == "bootstrap"


def test_draws_refuse_images_without_a_patient():
    for ids in (["a", None], ["a", float("nan")], np.array([1.0, np.nan]), ["a", ""], pd.Series(["a", pd.NA])):
        with pytest.raises(
            ValueError, match="1 of 2 images have no patient id .* Give each its patient, or a unique id"
        ):
            draw_resamples(ids)
    with pytest.raises(ValueError, match="needs at least one image"):
        draw_resamples([])
    with pytest.raises(ValueError, match="at least 1, but is 0"):
        draw_stratified_resamples(np.zeros((10, 2)), np.arange(10), 0)
