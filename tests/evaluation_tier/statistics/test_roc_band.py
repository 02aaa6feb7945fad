import numpy as np

from evaluation_tier.statistics.metrics import roc_curve
from evaluation_tier.statistics.resampling import draw_resamples
from evaluation_tier.statistics.roc_band import roc_band

RATES = np.linspace(0, 1, 21)


def make(seed: int = 0, images: int = 120):
    generator = np.random.default_rng(seed)
    labels = (generator.random(images) < 0.4).astype(float)
    return labels, np.round(generator.normal(size=images) + labels, 1)  # rounded: some scores are equal


def test_the_band_is_that_of_the_curves_of_repeated_images():
    labels, scores = make()
    draws = draw_resamples(range(len(labels)), 200, seed=1)
    curves = []
    for drawn in draws:
        rows = np.repeat(np.arange(len(labels)), drawn)
        curves.append(np.interp(RATES, *roc_curve(labels[rows], scores[rows])))
    np.testing.assert_allclose(roc_band(labels, scores, draws, RATES), np.percentile(curves, [2.5, 97.5], axis=0).T)


def test_the_curve_lies_in_its_band_and_unknown_labels_do_not_count():
    labels, scores = make()
    draws = draw_resamples(range(len(labels)), 300)
    band = roc_band(labels, scores, draws, RATES)
    curve = np.interp(RATES, *roc_curve(labels, scores))
    assert (band[:, 0] <= curve + 1e-9).all() and (curve <= band[:, 1] + 1e-9).all()
    more = np.append(labels, [-1, np.nan]), np.append(scores, [9.0, -9.0])
    np.testing.assert_array_equal(roc_band(*more, np.pad(draws, ((0, 0), (0, 2)), constant_values=3), RATES), band)


def test_without_both_classes_or_resamples_there_is_no_band():
    labels, scores = make()
    draws = draw_resamples(range(len(labels)), 50)
    assert np.isnan(roc_band(np.ones_like(labels), scores, draws, RATES)).all()
    assert np.isnan(roc_band(labels, scores, draws[:0], RATES)).all()
