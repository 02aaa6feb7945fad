import datasets
import numpy as np
import pytest
from marked_scenes import ASK, as_mask, box, make_dataset, scene

from evaluation_tier.analyses.grounding.evaluation import evaluate_grounding
from evaluation_tier.analyses.grounding.map_metrics import measure_map
from evaluation_tier.analyses.grounding.regions import Case, boxes_to_mask, read_cases, read_region
from evaluation_tier.statistics.resampling import Resampling
from processing_tier.records.masks import counts_from_siim, encode_mask


def test_boxes_cover_the_pixels_whose_centre_they_hold():
    box = {"x": 1.0, "y": 0.4, "w": 2.0, "h": 1.0}
    np.testing.assert_array_equal(boxes_to_mask([box], 3, 4), [[0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    inner = {"x": 0.6, "y": 0.0, "w": 0.8, "h": 9.0}  # between the centres 0.5 and 1.5
    assert not boxes_to_mask([inner], 3, 4).any()
    beyond = {"x": -5.0, "y": 2.0, "w": 6.0, "h": 50.0}
    np.testing.assert_array_equal(boxes_to_mask([box, beyond], 3, 4).sum(axis=1), [2, 0, 1])
    assert not boxes_to_mask([{"x": 10.0, "y": 0.0, "w": 5.0, "h": 3.0}], 3, 4).any()


def test_a_region_is_the_union_of_boxes_and_masks_of_its_finding():
    drawn = np.zeros((6, 8), dtype=bool)
    drawn[5, 7] = True
    record = {
        "boxes": [box("Mass", 0, 0, 2, 2), box("Mass", 1, 1, 2, 2), box("Edema", 4, 0, 4, 6)],
        "masks": [as_mask("Mass", drawn), as_mask("Edema", ~drawn)],
    }
    region = read_region(record, Case(0, "Mass", ""), 6, 8)
    expected = drawn.copy()
    expected[:2, :2] = expected[1:3, 1:3] = True
    np.testing.assert_array_equal(region.mask, expected)
    assert (region.num_marks, region.num_outside) == (3, 0)
    assert region.mask.sum() == 8  # not 9: the overlap counts once


def test_the_same_region_as_box_mask_and_run_lengths_is_the_same():
    box_region = read_region({"boxes": [box("Mass", 2, 1, 3, 4)]}, Case(0, "Mass", ""), 7, 9).mask
    drawn = np.zeros((7, 9), dtype=bool)
    drawn[1:5, 2:5] = True
    # SIIM: offset from the end of the last run, length; column by column
    siim = counts_from_siim("15 4 3 4 3 4", 7, 9)
    for counts in (siim, encode_mask(drawn)):
        mask = {"finding": "Mass", "height": 7, "width": 9, "counts": counts}
        region = read_region({"masks": [mask]}, Case(0, "Mass", ""), 7, 9).mask
        np.testing.assert_array_equal(region, box_region)
        similarity = np.random.default_rng(3).integers(7, size=(7, 9)).astype(np.float32)
        np.testing.assert_array_equal(measure_map(similarity, region)[0], measure_map(similarity, box_region)[0])


def test_cases_in_the_order_of_the_data():
    dataset = make_dataset(
        [np.zeros((8, 8))] * 3,
        [
            [box("B", 0, 0, 1, 1, "left"), box("B", 2, 2, 1, 1, "right"), box("A", 0, 0, 1, 1)],
            [],
            [box("B", 1, 1, 1, 1)],
        ],
        [[], [as_mask("C", np.eye(8))], [as_mask("B", np.eye(8))]],
    )
    assert read_cases(dataset) == [(0, "B", ""), (0, "A", ""), (1, "C", ""), (2, "B", "")]
    assert read_cases(dataset, ["A", "C"]) == [(0, "A", ""), (1, "C", "")]
    assert read_cases(dataset, phrases=True) == [(0, "B", "left"), (0, "B", "right")]
    record = dataset[0]
    assert read_region(record, Case(0, "B", "right"), 8, 8).mask.sum() == 1
    assert read_region(record, Case(0, "B", ""), 8, 8).mask.sum() == 2


def test_data_without_what_is_needed_are_refused():
    images = [np.zeros((8, 8))]
    with pytest.raises(ValueError, match="^The data set has neither boxes nor masks. Grounding needs one"):
        read_cases(make_dataset(images))
    with pytest.raises(ValueError, match="^None of the 1 images has a box or a mask"):
        read_cases(make_dataset(images, [[]]))
    boxed = make_dataset(images, [[box("A", 0, 0, 1, 1)]])
    with pytest.raises(ValueError, match="^None of the 1 images has a box with a sentence"):
        read_cases(boxed, phrases=True)
    with pytest.raises(ValueError, match="^No box or mask is of 'B': there are some of 'A'"):
        read_cases(boxed, ["B"])


def test_boxes_of_the_nih(shared_data):
    from processing_tier.readers import read_records

    dataset = datasets.concatenate_datasets(
        [read_records(shared_data / "nih_cxr14", split) for split in ("train", "validation")]
    )
    cases = read_cases(dataset)
    assert len(cases) == 50
    regions = [read_region(dataset[case.row], case, 320, 320) for case in cases]
    assert sum(region.num_marks for region in regions) == 50 and not any(region.num_outside for region in regions)
    assert all(0.005 < region.mask.mean() < 0.6 for region in regions)


def test_boxes_of_another_size_are_refused(bright):
    dataset = make_dataset([np.zeros((64, 64))] * 2, boxes=[[box("A", 500, 40, 200, 200)], [box("A", 5, 5, 9, 9)]])
    with pytest.raises(ValueError, match="^1 of 2 boxes and masks are empty or reach beyond their image.* image_size"):
        evaluate_grounding(*bright(), dataset, ASK)


def test_few_boxes_outside_are_cut_or_left_out_and_counted(bright, caplog):
    boxes = [[box("A", 4, 4, 8, 8)] for _ in range(41)]
    boxes[3] = [box("A", 60, 4, 8, 8)]  # half of it
    boxes[4] = [box("A", 64, 4, 8, 8)]  # nothing of it
    dataset = make_dataset([np.eye(64) * 255] * 41, boxes=boxes)
    results = evaluate_grounding(*bright(), dataset, ASK, resampling=Resampling(2))
    assert results["n_regions"] == 40 and results["protocol"]["boxes_beyond_image"] == 2
    assert results["protocol"]["regions_without_area"] == 1
    assert results["regions"][3]["area"] == pytest.approx(4 * 8 / 64**2)
    assert "2 boxes reach beyond their image and are cut; 1 regions lie outside it" in caplog.text


def test_masks_of_another_size_are_refused(bright):
    dataset = make_dataset([np.zeros((64, 64))], masks=[[as_mask("A", np.eye(32))]])
    with pytest.raises(ValueError, match=r"^Image 0 of the data set .* has 64x64 pixels .*, but its mask has 32x32"):
        evaluate_grounding(*bright(), dataset, ASK)


def test_boxes_masks_and_run_lengths_evaluate_alike(bright):
    image, mask = scene(96, 160, 8, 100, 32)
    as_box = make_dataset([image], boxes=[[box("A", 100, 8, 16, 32), box("A", 110, 8, 22, 32)]])  # overlapping halves
    as_masks = make_dataset([image], masks=[[as_mask("A", mask)]])
    first = evaluate_grounding(*bright(), as_box, ASK, resampling=Resampling(2))
    second = evaluate_grounding(*bright(), as_masks, ASK, resampling=Resampling(2))
    assert first["regions"][0].pop("n_marks") == 2 and second["regions"][0].pop("n_marks") == 1
    assert first == second
