import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processing_tier.records.masks import (
    counts_from_coco_string,
    counts_from_row_pairs,
    counts_from_siim,
    decode_mask,
    encode_mask,
    finding_mask,
)

BAD_COUNTS = "the run lengths of a mask do not fill its 2x3 pixels (height x width); download its file again."
CUT_STRING = "a compressed mask is cut short or is not a string of run lengths; download its file again."
BAD_PAIRS = "a mask is not -1 or pairs of an offset and a length; download its file again."


@st.composite
def masks(draw):
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    share = draw(st.sampled_from([0, 0.02, 0.5, 0.98, 1]))
    return np.random.default_rng(draw(st.integers(0, 2**32 - 1))).random((height, width)) < share


def coco_string(counts) -> str:
    """What cocoapi's rleToString writes, one run at a time."""
    text = ""
    for index, count in enumerate(counts):
        value, more = count - (counts[index - 2] if index > 2 else 0), True
        while more:
            group = value & 31
            value >>= 5
            more = value != (-1 if group & 16 else 0)
            text += chr(48 + group + 32 * more)
    return text


def test_runs_go_down_the_columns_and_start_outside():
    mask = np.array([[0, 1, 1], [1, 1, 0]], dtype=bool)
    assert encode_mask(mask) == [1, 4, 1]
    assert encode_mask(mask * 255) == [1, 4, 1]
    assert encode_mask(~mask) == [0, 1, 4, 1]
    assert encode_mask(np.zeros((2, 3))) == [6] and encode_mask(np.ones((2, 3))) == [0, 6]
    decoded = decode_mask([1, 4, 1], 2, 3)
    assert decoded.dtype == bool and decoded.tolist() == mask.tolist()
    assert decode_mask([1, 2, 0, 2, 1], 2, 3).tolist() == mask.tolist()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(masks())
def test_round_trips(mask):
    counts = encode_mask(mask)
    assert sum(counts) == mask.size and all(counts[1:])
    np.testing.assert_array_equal(decode_mask(counts, *mask.shape), mask)
    assert counts_from_coco_string(coco_string(counts), *mask.shape) == counts
    pairs = counts[: len(counts) // 2 * 2]
    text = " ".join(map(str, pairs)) if mask.any() else "-1"
    assert counts_from_siim(text, *mask.shape) == counts
    rows = encode_mask(mask.T)  # the runs of the rows
    starts = np.cumsum(rows)[:-1:2] + 1
    if mask.any():
        text = " ".join(f"{start} {length}" for start, length in zip(starts, rows[1::2], strict=True))
        assert counts_from_row_pairs(text, *mask.shape) == counts


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.text(max_size=12), st.integers(1, 4), st.integers(1, 4))
def test_any_text_is_a_mask_or_one_sentence(text, height, width):
    for read in (counts_from_coco_string, counts_from_siim):
        try:
            assert decode_mask(read(text, height, width), height, width).shape == (height, width)
        except ValueError as error:
            assert str(error) in (CUT_STRING, BAD_PAIRS) or "do not fill" in str(error)


def test_strings_of_pycocotools():
    # Written by pycocotools 2.0.11
    assert counts_from_coco_string("141", 2, 3) == [1, 4, 1]
    assert counts_from_coco_string("0120", 2, 2) == [0, 1, 2, 1]
    assert counts_from_coco_string("01", 1, 1) == [0, 1]
    mask = np.zeros((50, 40), dtype=bool)
    mask[10:30, 5:9] = True
    mask[12:28, 9] = True
    counts = [260, 20, 30, 20, 30, 20, 30, 20, 32, 16, 1522]
    assert encode_mask(mask) == counts
    assert counts_from_coco_string("T8d0n0000002Lb^1", 50, 40) == counts
    # Of CheXlocalize: empty masks of two of its validation images
    assert counts_from_coco_string("nefl3", 2022, 2021) == [2022 * 2021]
    assert counts_from_coco_string("PVWX6", 2320, 2828) == [2320 * 2828]


def test_offsets_of_siim():
    # The example of the challenge's page; 387620 is column 378, row 548
    text = "387620 23 996 33 986 43 977 51 968 58 962 65 956 70 952 74 949 76 946 79"
    counts = counts_from_siim(text)
    assert counts[:4] == [387620, 23, 996, 33] and sum(counts) == 1024 * 1024
    mask = decode_mask(counts, 1024, 1024)
    assert mask[:, 378].nonzero()[0].tolist() == list(range(548, 571))
    assert mask[:, 379].nonzero()[0].tolist() == list(range(543, 576))
    assert mask.sum() == 23 + 33 + 43 + 51 + 58 + 65 + 70 + 74 + 76 + 79
    assert counts_from_siim("-1") == counts_from_siim(" -1") == [1024 * 1024]
    assert counts_from_siim("1 2 0 1 1 1", 2, 3) == [1, 3, 1, 1]
    assert counts_from_siim("0 6", 2, 3) == [0, 6]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: encode_mask(np.zeros((2, 3, 1))),
            "a mask of shape (2, 3, 1) is not (height, width); give one channel.",
        ),
        (
            lambda: encode_mask(np.zeros((0, 3))),
            "a mask of 0x3 pixels (height x width) is empty or larger than any radiograph.",
        ),
        (
            lambda: decode_mask([1 << 40], 1 << 20, 1 << 20),
            "a mask of 1048576x1048576 pixels (height x width) is empty or larger than any radiograph.",
        ),
        (lambda: decode_mask([1, 4], 2, 3), BAD_COUNTS),
        (lambda: decode_mask([-1, 4, 3], 2, 3), BAD_COUNTS),
        (lambda: decode_mask([], 2, 3), BAD_COUNTS),
        (lambda: counts_from_coco_string("142", 2, 3), BAD_COUNTS),
        (lambda: counts_from_coco_string("nefl", 2, 3), CUT_STRING),
        (lambda: counts_from_coco_string("o" * 20 + "1", 2, 3), CUT_STRING),
        (lambda: counts_from_coco_string("", 2, 3), CUT_STRING),
        (lambda: counts_from_coco_string("1 4", 2, 3), CUT_STRING),
        (lambda: counts_from_siim("1 2 3", 2, 3), BAD_PAIRS),
        (lambda: counts_from_siim("", 2, 3), BAD_PAIRS),
        (lambda: counts_from_siim("1 -2", 2, 3), BAD_PAIRS),
        (lambda: counts_from_siim("1 9", 2, 3), BAD_COUNTS),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert str(error.value) == message


def test_the_masks_of_one_finding_are_one():
    masks = [
        {"finding": "Nodule", "height": 2, "width": 2, "counts": [0, 1, 3]},
        {"finding": "Edema", "height": 2, "width": 2, "counts": [4]},
        {"finding": "Nodule", "height": 2, "width": 2, "counts": [3, 1]},
    ]
    assert finding_mask(masks, "Nodule").tolist() == [[True, False], [False, True]]
    assert finding_mask(masks, "Edema").tolist() == [[False, False], [False, False]]
    assert finding_mask(masks, "Mass") is finding_mask(None, "Mass") is None
    masks[2] = {"finding": "Nodule", "height": 1, "width": 2, "counts": [2]}
    with pytest.raises(ValueError, match="the masks of 'Nodule' have different sizes; fix the record."):
        finding_mask(masks, "Nodule")
