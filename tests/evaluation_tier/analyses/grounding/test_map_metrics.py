import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from evaluation_tier.analyses.grounding.map_metrics import (
    FIXED_THRESHOLDS,
    METRICS,
    SCALED_THRESHOLDS,
    TOP_PERCENTS,
    contrast_to_noise,
    dilate,
    measure_map,
    overlap,
    pixel_auroc,
    pointing_game,
    scaled_overlap,
    split_pixels,
    top_percent_overlap,
)

MAP = np.array([[0.0, 0.1, 0.2, 0.3], [0.4, 0.5, 0.6, 0.9]], dtype=np.float32)
REGION = np.array([[0, 0, 0, 1], [0, 0, 1, 1]], dtype=bool)  # 0.3, 0.6, 0.9


def random_case(seed: int, levels: int = 7, height: int = 9, width: int = 11) -> tuple[np.ndarray, np.ndarray]:
    """A map with many ties, and a region."""
    generator = np.random.default_rng(seed)
    return generator.integers(levels, size=(height, width)).astype(np.float32), generator.random((height, width)) < 0.3


def named(similarity, mask) -> dict[str, float]:
    return dict(zip(METRICS, measure_map(similarity, mask)[0], strict=True))


def test_metrics_by_hand():
    pixels = split_pixels(MAP, REGION)
    np.testing.assert_array_equal(pixels.inside, np.float32([0.3, 0.6, 0.9]))
    assert pointing_game(MAP, REGION) == 1
    # 0.6 and 0.9 lie above all five others, 0.3 above three of them
    assert pixel_auroc(pixels) == pytest.approx(13 / 15)
    # means 0.6 and 0.24, variances 0.06 and 0.0344
    assert contrast_to_noise(pixels) == pytest.approx(0.36 / math.sqrt(0.0944), rel=1e-6)
    iou, dice = overlap(pixels, [0.1, 0.5, 0.55, 2])
    np.testing.assert_allclose(iou, [3 / 7, 2 / 4, 2 / 3, 0])
    np.testing.assert_allclose(dice, [6 / 10, 4 / 6, 4 / 5, 0])
    # scaled by 1 / 0.9, a threshold of 0.5 lies at 0.45
    np.testing.assert_allclose(scaled_overlap(pixels, [0.5])[0], [2 / 4])
    # of 8 pixels 10 % are one, 30 % are three: 0.9, 0.6, 0.5
    np.testing.assert_allclose(top_percent_overlap(pixels, [10, 30, 100]), [1 / 3, 2 / 4, 3 / 8])


def test_all_metrics_of_a_map_are_those_of_the_functions():
    pixels, values = split_pixels(MAP, REGION), named(MAP, REGION)
    assert values["pointing"] == 1 and values["pixel_auroc"] == pixel_auroc(pixels)
    assert values["cnr"] == values["signed_cnr"] == contrast_to_noise(pixels)
    assert values["miou_cosine"] == pytest.approx(overlap(pixels, FIXED_THRESHOLDS)[0].mean())
    assert values["miou_scaled"] == pytest.approx(scaled_overlap(pixels, FIXED_THRESHOLDS)[0].mean())
    centred = scaled_overlap(pixels, [0.55, 0.6, 0.65, 0.7, 0.75])[0].mean()  # 0.1 to 0.5 of a map scaled to -1..1
    assert values["miou_centred"] == pytest.approx(centred)
    assert values["dice_scaled"] == pytest.approx(scaled_overlap(pixels, FIXED_THRESHOLDS)[1].mean())
    assert [values[f"iou_top_{p}"] for p in TOP_PERCENTS] == top_percent_overlap(pixels).tolist()
    curves = measure_map(MAP, REGION)[1]
    np.testing.assert_array_equal(curves, scaled_overlap(pixels, SCALED_THRESHOLDS))
    assert math.isnan(dict(zip(METRICS, measure_map(MAP, REGION, is_cosine=False)[0], strict=True))["miou_cosine"])


@pytest.mark.parametrize("seed", range(5))
def test_the_measures_of_kaf_ground(seed):
    """Its formulas (kafground/eval/metrics.py, without its border): mIoU, CNR, which is signed, and P@1."""
    generator = np.random.default_rng(seed)
    similarity, region = generator.normal(size=(40, 30)), np.zeros((40, 30), dtype=bool)
    region[5:20, 3:12] = True
    similarity += region * generator.normal()
    values = named(similarity, region)
    scaled = 2 * (similarity - similarity.min()) / (similarity.max() - similarity.min()) - 1
    predicted = [scaled > threshold for threshold in (0.1, 0.2, 0.3, 0.4, 0.5)]
    overlaps = [(mask & region).sum() / (mask | region).sum() for mask in predicted]
    assert values["miou_centred"] == pytest.approx(np.mean(overlaps))
    inside, outside = scaled[region], scaled[~region]
    assert values["signed_cnr"] == pytest.approx(
        (inside.mean() - outside.mean()) / (inside.var() + outside.var()) ** 0.5
    )
    assert values["pointing"] == region.ravel()[scaled.argmax()]


def test_cnr_is_bioVils_and_its_sign_tells_an_inverted_map():
    pixels, inverted = split_pixels(MAP, REGION), split_pixels(-MAP, REGION)
    assert contrast_to_noise(inverted) == pytest.approx(contrast_to_noise(pixels))
    assert contrast_to_noise(inverted, signed=True) == pytest.approx(-contrast_to_noise(pixels))


@pytest.mark.parametrize("seed", range(5))
def test_auroc_is_that_of_scikit_learn_with_ties(seed):
    similarity, mask = random_case(seed)
    expected = roc_auc_score(mask.ravel(), similarity.ravel())
    assert pixel_auroc(split_pixels(similarity, mask)) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_overlaps_are_those_of_counting(seed):
    similarity, mask = random_case(seed, levels=40)
    pixels = split_pixels(similarity, mask)
    iou, dice = overlap(pixels, [0, 7, 20.5, 39, 100])
    for i, threshold in enumerate([0, 7, 20.5, 39, 100]):
        predicted = similarity >= threshold
        assert iou[i] == (predicted & mask).sum() / (predicted | mask).sum()
        assert dice[i] == 2 * (predicted & mask).sum() / (predicted.sum() + mask.sum())
    scaled = (similarity - similarity.min()) / (similarity.max() - similarity.min())
    exact = split_pixels(scaled.astype(np.float64), mask)
    np.testing.assert_allclose(scaled_overlap(pixels, [0.33, 0.71])[0], overlap(exact, [0.33, 0.71])[0])


def test_the_top_percent_shares_its_last_places_among_ties():
    similarity = np.zeros((4, 5), dtype=np.float32)
    similarity[0, 0] = 1
    mask = np.zeros((4, 5), dtype=bool)
    mask[0], mask[1, 0] = True, True  # six pixels, the highest among them
    # of 20 pixels 25 % are five: the highest, and four of the other 19, five of which are in the region
    hits = 1 + 4 * 5 / 19
    assert top_percent_overlap(split_pixels(similarity, mask), [25])[0] == pytest.approx(hits / (6 + 5 - hits))


@pytest.mark.parametrize("seed", range(3))
def test_ranks_are_all_that_pointing_auroc_and_top_percent_see(seed):
    similarity, mask = random_case(seed)
    before, after = named(similarity, mask), named(np.exp(similarity / 3) - 5, mask)
    for metric in ("pointing", "pixel_auroc", *(f"iou_top_{p}" for p in TOP_PERCENTS)):
        assert after[metric] == before[metric]
    shifted = named(2 * similarity + 8, mask)  # exact in binary
    for metric in ("cnr", "signed_cnr", "miou_scaled", "dice_scaled"):
        assert shifted[metric] == pytest.approx(before[metric])


@pytest.mark.parametrize("flip", [np.fliplr, np.flipud, np.transpose])
def test_mirroring_map_and_region_changes_nothing(flip):
    similarity, mask = random_case(1)
    np.testing.assert_allclose(measure_map(flip(similarity), flip(mask))[0], measure_map(similarity, mask)[0])


def test_pointing_at_several_highest_pixels_is_the_share_that_hits():
    similarity = np.array([[3, 3, 1, 3]], dtype=np.float32)
    assert pointing_game(similarity, np.array([[1, 0, 0, 0]])) == pytest.approx(1 / 3)
    assert pointing_game(np.zeros((2, 2)), np.array([[1, 0], [0, 0]])) == 0.25


def test_pointing_with_a_tolerance():
    similarity, mask = np.zeros((9, 9), dtype=np.float32), np.zeros((9, 9), dtype=bool)
    similarity[1, 1], mask[4, 5] = 1, True  # five pixels apart: 3 down, 4 across
    assert [pointing_game(similarity, mask, tolerance) for tolerance in (0, 4, 5)] == [0, 0, 1]


@pytest.mark.parametrize("radius", [0, 1, 2, 5, 40])
def test_dilation_is_by_distance(radius):
    mask = np.random.default_rng(radius).random((12, 17)) < 0.03
    rows, columns = np.nonzero(mask)
    y, x = np.mgrid[:12, :17]
    near = ((y[..., None] - rows) ** 2 + (x[..., None] - columns) ** 2 <= radius**2).any(axis=-1)
    np.testing.assert_array_equal(dilate(mask, radius), near)


def test_a_constant_map_is_at_chance_and_never_looks_measured():
    constant = np.full((4, 5), 0.3, dtype=np.float32)
    mask = np.zeros((4, 5), dtype=bool)
    mask[0] = True  # a quarter
    values = named(constant, mask)
    assert values["pointing"] == 0.25 and values["pixel_auroc"] == 0.5
    assert math.isnan(values["cnr"]) and math.isnan(values["signed_cnr"])
    assert values["miou_scaled"] == values["dice_scaled"] == 0
    assert values["iou_top_20"] == pytest.approx(1 / (5 + 4 - 1))  # four pixels, one of which hits by chance
    assert values["miou_cosine"] == pytest.approx(0.25 * 3 / 5)  # everything is predicted up to 0.3
    assert (measure_map(constant, mask)[1] == 0).all()


def test_an_empty_region_has_no_metric():
    values, curves = measure_map(MAP, np.zeros_like(REGION))
    assert np.isnan(values).all() and np.isnan(curves).all()


def test_a_region_that_is_the_whole_image():
    values = named(MAP, np.ones_like(REGION))
    assert values["pointing"] == 1 and values["iou_top_20"] == 2 / 8
    assert math.isnan(values["pixel_auroc"]) and math.isnan(values["cnr"])
    np.testing.assert_allclose(values["miou_cosine"], np.mean([7, 6, 5, 4, 3]) / 8)


def test_a_map_without_a_seen_pixel_has_no_metric():
    nothing = np.full(MAP.shape, np.nan, dtype=np.float32)
    values, curves = measure_map(nothing, REGION)
    assert np.isnan(values).all() and np.isnan(curves).all()
    pixels = split_pixels(nothing, REGION)
    assert math.isnan(pointing_game(nothing, REGION)) and math.isnan(pixel_auroc(pixels))
    assert math.isnan(contrast_to_noise(pixels)) and np.isnan(top_percent_overlap(pixels)).all()


@pytest.mark.parametrize("seed", range(4))
def test_unseen_pixels_are_the_lowest_and_never_predicted(seed):
    similarity, mask = random_case(seed)
    unseen = np.random.default_rng(seed).random(mask.shape) < 0.3
    cropped = np.where(unseen, np.nan, similarity).astype(np.float32)
    lowest = np.where(unseen, -1e6, similarity)
    pixels = split_pixels(cropped, mask)
    assert pixels.num_inside == mask.sum() and len(pixels.inside) == (mask & ~unseen).sum()
    assert pixel_auroc(pixels) == pytest.approx(roc_auc_score(mask.ravel(), lowest.ravel()))
    np.testing.assert_array_equal(overlap(pixels, [2, 5]), overlap(split_pixels(lowest, mask), [2, 5]))
    np.testing.assert_allclose(top_percent_overlap(pixels), top_percent_overlap(split_pixels(lowest, mask)))
    assert pointing_game(cropped, mask) == pointing_game(lowest, mask)
    seen = np.where(unseen, 0, similarity)[~unseen][None], mask[~unseen][None]
    assert contrast_to_noise(pixels) == pytest.approx(contrast_to_noise(split_pixels(*seen)))


def test_more_percent_than_was_seen_takes_what_was_seen():
    cropped = np.array([[1, 2, np.nan, np.nan]])
    pixels = split_pixels(cropped, np.array([[0, 1, 1, 0]]))
    assert top_percent_overlap(pixels, [100])[0] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    "similarity, mask", [(np.zeros((2, 3)), np.zeros((3, 2))), (np.zeros((1, 2, 3)), np.zeros((1, 2, 3)))]
)
def test_arrays_of_other_shapes_are_refused(similarity, mask):
    for function in (split_pixels, pointing_game):
        with pytest.raises(ValueError, match=r"must have one shape \(height, width\), not"):
            function(similarity, mask)
