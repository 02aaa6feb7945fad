import math

import numpy as np
import pytest

from processing_tier.records.annotations import read_boxes, read_masks
from processing_tier.records.masks import check_counts, decode_mask

MASK = {"finding": "Edema", "height": 2, "width": 3, "counts": [1, 2, 3]}


def test_masks_are_read_from_lists_and_json():
    assert read_masks([MASK], "t") == [MASK]
    assert read_masks('[{"finding": "Edema", "height": 2, "width": 3, "counts": [1, 2, 3]}]', "t") == [MASK]
    assert read_masks([{**MASK, "counts": np.array([1, 2, 3], np.int16)}], "t") == [MASK]
    assert read_masks(None, "t") == read_masks(math.nan, "t") == read_masks(" ", "t") == []


WORDS = [{"finding": "a", "height": "two", "width": 2, "counts": [4]}]


@pytest.mark.parametrize(
    "value", ["x", "5", "[5]", '{"a": 1}', "[" * 100_000, [{"finding": 1}], '[{"finding": "a"}]', WORDS]
)
def test_other_masks(value):
    with pytest.raises(ValueError) as error:
        read_masks(value, "t.csv")
    assert str(error.value) == (
        "t.csv: a value of the masks column is not a list of finding, height, width and counts; fix or drop the "
        "column."
    )


@pytest.mark.parametrize(
    "counts",
    [
        [2**62] * 4 + [40_000],  # their sum is 40,000 in 64 bits
        [2**63, 2**63, 40_000],
        [2**64, 40_000],
        [-1, 40_001],
        [40_001],
        [39_999],
        [],
        [[40_000]],
        [40_000.0],
        ["40000"],
        [[1], [2, 3]],
        [0] * 90_000 + [40_000],
    ],
)
def test_run_lengths_never_reach_beyond_the_mask(counts):
    for function in (decode_mask, check_counts):
        with pytest.raises(ValueError) as error:
            function(counts, 200, 200)
        assert str(error.value) == (
            "the run lengths of a mask do not fill its 200x200 pixels (height x width); download its file again."
        )


def test_four_numbers_are_not_a_box():
    for value in ([1, 2, 3, 4], [[1, 2, 3, 4]], "[[1, 2, 3, 4], [5, 6, 7, 8]]", np.array([1.0, 2, 3, 4])):
        with pytest.raises(ValueError) as error:
            read_boxes(value, "t.csv")
        assert str(error.value) == (
            "t.csv: the boxes column has four numbers without a finding; write each box as "
            '{"label": "Pneumonia", "bbox_xywh": [x, y, width, height]}.'
        )
    with pytest.raises(ValueError, match="t.csv: a box lies beyond 1,000,000 pixels; fix or drop the column."):
        read_boxes([{"finding": "Edema", "x": 1e300, "y": 0, "w": 1, "h": 1}], "t.csv")
