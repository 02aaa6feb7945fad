"""Grey levels of DICOM files against a computation from the formulas of the standard, one pixel at a time."""

import io
import math

import numpy as np
import pydicom
import pytest
from dicom_files import RAMP, lut_item, read
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)


def window_level(x: float, center: float, width: float, function: str) -> float:
    """PS3.3 C.11.2.1.2.1, C.11.2.1.3.2 and C.11.2.1.3.1, for the output range 0 to 255."""
    if function == "SIGMOID":
        exponent = -4 * (x - center) / width
        return 255 / (1 + math.exp(exponent)) if exponent < 700 else 0.0
    if function == "LINEAR":
        if x <= center - 0.5 - (width - 1) / 2:
            return 0.0
        if x > center - 0.5 + (width - 1) / 2:
            return 255.0
        return ((x - (center - 0.5)) / (width - 1) + 0.5) * 255
    if x <= center - width / 2:
        return 0.0
    if x > center + width / 2:
        return 255.0
    return ((x - center) / width + 0.5) * 255


def expected_levels(stored: list[int], case: dict) -> list[float]:
    """The grey level, 0 to 255 and not rounded, of each stored value."""
    slope, intercept = case["rescale"] or (1.0, 0.0)
    if slope == 0:
        slope, intercept = 1.0, 0.0
    padding = [case["padding"] is not None and min(case["padding"]) <= v <= max(case["padding"]) for v in stored]
    values = [slope * v + intercept for v in stored]
    if case["lut"] is not None:
        first, table = case["lut"]
        levels = []
        for x in values:
            index = min(max(round(x) - first, 0), len(table) - 1)
            levels.append(table[index] / (2 ** max(max(table).bit_length(), 8) - 1) * 255)
    elif case["window"] is not None:
        levels = [window_level(x, *case["window"][:2], case["function"] or "LINEAR") for x in values]
    else:
        inside = [x for x, pad in zip(values, padding, strict=True) if not pad]
        low, high = np.percentile(inside, (0.5, 99.5)) if inside else (0, 0)
        levels = [min(max((x - low) / (high - low), 0), 1) * 255 if high > low else 0.0 for x in values]
    if case["photometric"] == "MONOCHROME1":
        levels = [255 - level for level in levels]
    return [0.0 if pad else level for level, pad in zip(levels, padding, strict=True)]


@st.composite
def cases(draw) -> dict:
    allocated = draw(st.sampled_from((8, 16)))
    bits = draw(st.integers(1, allocated))
    high_bit = draw(st.integers(bits - 1, allocated - 1))
    signed = draw(st.booleans())
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    stored = st.integers(low, high)
    window = st.tuples(st.integers(-2000, 40000), st.integers(1, 70000))
    windows = draw(st.one_of(st.none(), st.lists(window, min_size=1, max_size=3)))
    bad = draw(st.sampled_from((None, None, ("100", "NaN"), ("NaN", "100"), ("100", "0"), ("100", "-5"), ("x", "y"))))
    table = draw(st.lists(st.integers(0, 65535), min_size=2, max_size=9))
    rescale = draw(st.sampled_from((None, (1.0, -1024.0), (0.5, 0.25), (2.5, 7.0), (-1.0, 4095.0), (0.0, 9.0))))
    syntax = draw(st.sampled_from((ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)))
    # Implicit VR does not say whether a table starts at -1 or 65535; where no value is negative it is the latter
    first = st.integers(-1000 if syntax != ImplicitVRLittleEndian or signed or rescale == (1.0, -1024.0) else 0, 5000)
    return {
        "allocated": allocated,
        "bits": bits,
        "high_bit": high_bit,
        "signed": signed,
        "stored": draw(st.lists(stored, min_size=12, max_size=12)),
        "unused": draw(st.integers(0, 2**allocated - 1)),
        "rescale": rescale,
        "windows": windows if bad is None else None,
        "window": windows[0] if windows and bad is None else None,
        "bad": bad,
        "function": draw(st.sampled_from((None, "LINEAR", "LINEAR_EXACT", "SIGMOID"))),
        "lut": draw(st.one_of(st.none(), st.tuples(first, st.just(table)))),
        "photometric": draw(st.sampled_from(("MONOCHROME1", "MONOCHROME2"))),
        "padding": draw(st.one_of(st.none(), st.tuples(stored), st.tuples(stored, stored))),
        "syntax": syntax,
    }


def encode_case(make_dicom, case: dict) -> bytes:
    shift, mask = case["high_bit"] + 1 - case["bits"], 2 ** case["bits"] - 1
    unused = case["unused"] & ~(mask << shift)
    words = [(v & mask) << shift | unused for v in case["stored"]]  # overlays may lie in the other bits, as declared
    kind = "i" if case["signed"] else "u"
    array = np.array(words, dtype=f"u{case['allocated'] // 8}").view(f"{kind}{case['allocated'] // 8}").reshape(3, 4)
    elements = {"HighBit": case["high_bit"], "PhotometricInterpretation": case["photometric"]}
    overlays = range(case["high_bit"] + 1, case["allocated"])
    if case["rescale"]:
        elements |= {"RescaleSlope": case["rescale"][0], "RescaleIntercept": case["rescale"][1]}
    if case["windows"]:
        centers, widths = zip(*case["windows"], strict=True)
        elements |= {"WindowCenter": list(centers), "WindowWidth": list(widths)}
    if case["bad"]:
        elements |= {"WindowCenter": case["bad"][0], "WindowWidth": case["bad"][1]}
    if case["function"]:
        elements["VOILUTFunction"] = case["function"]
    if case["lut"]:
        item = lut_item(np.array(case["lut"][1]), first=case["lut"][0])
        if case["syntax"] == ExplicitVRBigEndian:
            item.LUTData = np.array(case["lut"][1]).astype(">u2").tobytes()
        elements["VOILUTSequence"] = [item]
    if case["padding"]:
        elements["PixelPaddingValue"] = case["padding"][0]
        if len(case["padding"]) == 2:
            elements["PixelPaddingRangeLimit"] = case["padding"][1]
    return make_dicom(array, case["bits"], syntax=case["syntax"], overlays=overlays, **elements)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(case=cases())
def test_every_combination_of_attributes_gives_the_levels_of_the_standard(make_dicom, case):
    picture = read(encode_case(make_dicom, case)).ravel()
    expected = np.array(expected_levels(case["stored"], case))
    assert np.abs(picture - expected).max() <= 0.5 + 1e-6


def test_windows_of_a_ramp(make_dicom):
    picture = read(make_dicom(RAMP, WindowCenter=2048, WindowWidth=1024))
    expected = ((RAMP - 2047.5) / 1023 + 0.5) * 255
    assert np.abs(picture - expected.clip(0, 255)).max() <= 0.5 + 1e-6
    # The first of several; and a lookup table goes before them
    several = make_dicom(RAMP, WindowCenter=[2048, 5], WindowWidth=[1024, 5])
    np.testing.assert_array_equal(read(several), picture)
    table = lut_item(65535 - 16 * np.arange(4096))
    both = make_dicom(RAMP, WindowCenter=2048, WindowWidth=1024, VOILUTSequence=[table])
    np.testing.assert_array_equal(read(both), np.rint((65535 - 16.0 * RAMP) / 65535 * 255))


def test_windows_that_cannot_be_applied_are_as_good_as_none(make_dicom):
    plain = read(make_dicom(RAMP))
    np.testing.assert_array_equal(plain, read(RAMP))  # as an array or a PNG of these numbers
    for center, width in [("NaN", "100"), ("100", "NaN"), ("5", "0"), ("5", "-1"), ("5", "0.5"), ("a", "b"), ("", "")]:
        np.testing.assert_array_equal(read(make_dicom(RAMP, WindowCenter=center, WindowWidth=width)), plain)
    np.testing.assert_array_equal(read(make_dicom(RAMP, WindowCenter=100)), plain)
    odd = make_dicom(RAMP, WindowCenter=100, WindowWidth=50, VOILUTFunction="CUBIC")
    np.testing.assert_array_equal(read(odd), plain)
    damaged = make_dicom(RAMP, RescaleSlope="NaN", RescaleIntercept="0")
    np.testing.assert_array_equal(read(damaged), plain)


def test_a_negative_slope_turns_the_picture_and_not_the_window(make_dicom):
    """pydicom's apply_windowing gives the highest value of a falling rescale to what lies below the window."""
    rescale = {"RescaleSlope": -1, "RescaleIntercept": 4095}
    turned = read(make_dicom(RAMP, WindowCenter=2048, WindowWidth=1024, **rescale))
    np.testing.assert_array_equal(turned, read(make_dicom(4095 - RAMP, WindowCenter=2048, WindowWidth=1024)))


def test_pydicom_agrees_where_it_follows_the_standard(make_dicom):
    for function in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        data = make_dicom(
            RAMP, WindowCenter=1000, WindowWidth=900, RescaleSlope=0.5, RescaleIntercept=-7, VOILUTFunction=function
        )
        dataset = pydicom.dcmread(io.BytesIO(data))
        windowed = pydicom.pixels.apply_windowing(pydicom.pixels.apply_rescale(RAMP, dataset), dataset)
        expected = (windowed + 7) / (0.5 * 4095) * 255
        assert np.abs(read(data) - expected).max() <= 0.5 + 1e-6
    table = np.random.default_rng(0).permutation(4096) * 16
    data = make_dicom(RAMP, VOILUTSequence=[lut_item(table)])
    expected = pydicom.pixels.apply_voi_lut(RAMP, pydicom.dcmread(io.BytesIO(data))) / 65535 * 255
    assert np.abs(read(data) - expected).max() <= 0.5 + 1e-6


def test_lookup_tables(make_dicom):
    # One of 8 bits for more than 256 values, a word each or two to a word; pydicom wraps the index
    table = np.arange(4096) // 16
    np.testing.assert_array_equal(read(make_dicom(RAMP, VOILUTSequence=[lut_item(table, bits=8)])), RAMP // 16)
    packed = lut_item(table, bits=8)
    packed.LUTData = table.astype(np.uint8).tobytes()
    np.testing.assert_array_equal(read(make_dicom(RAMP, VOILUTSequence=[packed])), RAMP // 16)
    # Values far above the table stay at its end
    rescaled = make_dicom(RAMP, RescaleSlope=100, RescaleIntercept=0, VOILUTSequence=[lut_item(np.array([0, 65535]))])
    np.testing.assert_array_equal(read(rescaled), np.where(RAMP > 0, 255, 0))
    # All 65,536 entries, whose number is written as 0
    everything = lut_item(65535 - np.arange(65536))
    wide = (RAMP * 16).astype(np.uint16)
    np.testing.assert_array_equal(read(make_dicom(wide, 16, VOILUTSequence=[everything])), np.rint(255 - wide / 257))
    # The modality's table, and a window in what it gives
    modality = {"ModalityLUTSequence": [lut_item(4095 - np.arange(4096))], "WindowCenter": 2048, "WindowWidth": 1024}
    np.testing.assert_array_equal(
        read(make_dicom(RAMP, **modality)), read(make_dicom(4095 - RAMP, WindowCenter=2048, WindowWidth=1024))
    )
    for broken in (lut_item(np.arange(10)), lut_item(np.arange(10), bits=32), Dataset()):
        if "LUTDescriptor" in broken and broken.LUTDescriptor[2] == 16:
            broken.LUTDescriptor = [4096, 0, 16]  # says more than it has
        with pytest.raises(
            ValueError, match="^an image in memory: a lookup table of the DICOM file is damaged; export"
        ):
            read(make_dicom(RAMP, VOILUTSequence=[broken]))


def test_padding_is_black_and_sets_no_window(make_dicom):
    array = np.tile(np.linspace(1000, 2000, 64).astype(np.uint16), (64, 1))
    clean = read(make_dicom(array))
    array[:20] = 4095  # a collimated edge, filled
    picture = read(make_dicom(array, PixelPaddingValue=4095))
    assert (picture[:20] == 0).all()
    assert np.abs(picture[20:].astype(int) - clean[20:]).max() <= 1
    assert read(make_dicom(array))[20:].max() < 100  # what it would be
    inverted = read(make_dicom(4095 - array, PixelPaddingValue=0, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(inverted, picture)
    array[:10] = 4000
    limits = {"PixelPaddingValue": 4095, "PixelPaddingRangeLimit": 3900}
    np.testing.assert_array_equal(read(make_dicom(array, **limits)), picture)
    signed = make_dicom((array.astype(int) - 3000).astype(np.int16), 13, PixelPaddingValue=1095)
    array[:10] = 4095
    signed = make_dicom((array.astype(int) - 3000).astype(np.int16), 13, PixelPaddingValue=1095)
    np.testing.assert_array_equal(read(signed), picture)
    assert read(make_dicom(array, PixelPaddingValue=0, PixelPaddingRangeLimit=4095)).max() == 0  # nothing is left


@pytest.mark.parametrize("shape", ["IDENTITY", "INVERSE"])
def test_the_photometric_interpretation_alone_decides_the_polarity(make_dicom, shape):
    """The standard asks for INVERSE with MONOCHROME1 and IDENTITY with MONOCHROME2: the same said twice."""
    for photometric in ("MONOCHROME1", "MONOCHROME2"):
        plain = read(make_dicom(RAMP, PhotometricInterpretation=photometric))
        both = read(make_dicom(RAMP, PhotometricInterpretation=photometric, PresentationLUTShape=shape))
        np.testing.assert_array_equal(both, plain)
    dark = read(make_dicom(RAMP, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(dark, 255 - read(make_dicom(RAMP)))
