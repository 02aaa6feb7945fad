"""DICOM files against a computation from the formulas of the standard, one pixel at a time."""

import copy
import io
import logging
import math
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import (
    BasicTextSRStorage,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EncapsulatedPDFStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    GrayscaleSoftcopyPresentationStateStorage,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    RLELossless,
    generate_uid,
)

from processing_tier import TierImageProcessor, read_radiograph

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def read(source) -> np.ndarray:
    return np.asarray(read_radiograph(source))


def lut_item(table: np.ndarray, first: int = 0, bits: int = 16) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(table) % 2**16, first, bits])
    item.LUTData = np.asarray(table).astype("<u2").tobytes()
    item["LUTData"].VR = "OW"
    return item


def jpeg_lossless(array: np.ndarray, precision: int) -> bytes:
    """JPEG process 14, selection value 1 (ITU T.81 annex H), with a code of five bits for each category."""
    height, width = array.shape
    bits = []
    for y in range(height):
        for x in range(width):
            if x:
                prediction = int(array[y, x - 1])
            else:
                prediction = int(array[y - 1, 0]) if y else 1 << (precision - 1)
            difference = (int(array[y, x]) - prediction + 2**15) % 2**16 - 2**15
            category = 16 if difference == -(2**15) else abs(difference).bit_length()
            bits.append(format(category, "05b"))
            if 0 < category < 16:
                bits.append(
                    format(difference if difference > 0 else difference + (1 << category) - 1, f"0{category}b")
                )
    bits = "".join(bits)
    bits += "1" * (-len(bits) % 8)
    body = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\x00")

    def segment(marker: int, content: bytes) -> bytes:
        return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content

    size = bytes([precision]) + height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return b"".join(
        [
            b"\xff\xd8",
            segment(0xC3, size + bytes([1, 1, 0x11, 0])),
            segment(0xC4, bytes([0, 0, 0, 0, 0, 17, *[0] * 11, *range(17)])),
            segment(0xDA, bytes([1, 1, 0, 1, 0, 0])),
            body,
            b"\xff\xd9",
        ]
    )


# Windows, rescale, polarity, padding, bits: properties


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


# Transfer syntaxes


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    "syntax",
    [
        ImplicitVRLittleEndian,
        ExplicitVRLittleEndian,
        ExplicitVRBigEndian,
        DeflatedExplicitVRLittleEndian,
        RLELossless,
        JPEG2000Lossless,
        JPEGLossless,
        JPEGLosslessSV1,
    ],
    ids=lambda syntax: syntax.keyword,
)
def test_lossless_transfer_syntaxes_decode_to_the_same_pixels(make_dicom, syntax, signed):
    rng = np.random.default_rng(0)
    for bits, dtype in ((8, np.uint8), (10, np.uint16), (12, np.uint16), (16, np.uint16)):
        array = rng.integers(0, 2**bits, (33, 47)).astype(dtype)
        elements = {"WindowCenter": 2 ** (bits - 1), "WindowWidth": 2**bits}
        if signed:
            array = (array.astype(int) - 2 ** (bits - 1)).astype(dtype().dtype.str.replace("u", "i"))
            elements["WindowCenter"] = 0
        frame = None
        if syntax in (JPEGLossless, JPEGLosslessSV1):
            frame = jpeg_lossless(array.view(dtype) & (2**bits - 1), bits)
        data = make_dicom(array, bits, syntax=syntax, frame=frame, **elements)
        assert pydicom.dcmread(io.BytesIO(data)).file_meta.TransferSyntaxUID == syntax
        plain = read(make_dicom(array, bits, **elements))
        np.testing.assert_array_equal(read(data), plain)
        assert len(np.unique(plain)) > 200


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGExtended12Bit], ids=lambda syntax: syntax.keyword)
def test_jpeg_baseline(make_dicom, syntax):
    array = np.asarray(Image.effect_noise((40, 30), 60))
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "JPEG", quality=95)
    data = make_dicom(array, 8, syntax=syntax, frame=buffer.getvalue(), WindowCenter=128, WindowWidth=256)
    expected = np.asarray(Image.open(buffer)).astype(int)
    assert np.abs(read(data) - expected).max() <= 1  # two decoders round differently


@pytest.mark.filterwarnings("ignore:The pixel data is 8320 bytes long")
@pytest.mark.parametrize(
    "variant",
    ["RLE", "bigendian", "expb", "implicit", "jp2klossless", "jpeg_ls_lossless", "padded"],
)
def test_files_of_other_encoders(variant):
    """pydicom's own test files: one image in many transfer syntaxes, here called a radiograph."""
    pictures = []
    for name in ("MR_small.dcm", f"MR_small_{variant}.dcm"):
        dataset = pydicom.dcmread(get_testdata_file(name))
        dataset.SOPClassUID, dataset.Modality = pydicom.uid.ComputedRadiographyImageStorage, "CR"
        pictures.append(read(dataset))
    np.testing.assert_array_equal(*pictures)
    assert pictures[0].std() > 20


def test_jpeg_ls_near_lossless_and_signed_jpeg_2000():
    near = read(get_testdata_file("JPEGLSNearLossless_16.dcm"))
    assert near.shape == (50, 10) and near.min() == 0 and near.max() == 255
    mismatch = pydicom.dcmread(get_testdata_file("J2K_pixelrep_mismatch.dcm"))  # signed, by an unsigned codestream
    mismatch.SOPClassUID, mismatch.Modality = pydicom.uid.ComputedRadiographyImageStorage, "CR"
    picture = read(mismatch)
    assert picture[200:300, 200:300].mean() > picture[:40, :40].mean()  # the body is brighter than the air


# Colours


def test_colours_become_luma(make_dicom):
    rgb = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    luma = rgb @ np.array([0.299, 0.587, 0.114])
    colour = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PhotometricInterpretation": "RGB"}
    assert np.abs(read(make_dicom(rgb, 8, **colour)) - luma).max() <= 1
    planes = make_dicom(np.moveaxis(rgb, -1, 0), 8, **{**colour, "PlanarConfiguration": 1}, Rows=16, Columns=24)
    np.testing.assert_array_equal(read(planes), read(make_dicom(rgb, 8, **colour)))
    deep = make_dicom(rgb.astype(np.uint16) * 257, 16, **colour)
    np.testing.assert_array_equal(read(deep), read(make_dicom(rgb, 8, **colour)))
    grey = np.stack([rgb[..., 0], np.full((16, 24), 128, np.uint8), np.full((16, 24), 128, np.uint8)], axis=-1)
    ybr = make_dicom(grey, 8, **{**colour, "PhotometricInterpretation": "YBR_FULL"})
    np.testing.assert_array_equal(read(ybr), rgb[..., 0])
    pairs = np.stack([grey[:, ::2, 0], grey[:, 1::2, 0], grey[:, ::2, 1], grey[:, ::2, 2]], axis=-1)
    half = make_dicom(pairs, 8, **{**colour, "PhotometricInterpretation": "YBR_FULL_422"}, Rows=16, Columns=24)
    np.testing.assert_array_equal(read(half), rgb[..., 0])


@pytest.mark.parametrize("bits", [8, 16])
def test_palette(make_dicom, bits):
    rng = np.random.default_rng(0)
    palette = rng.integers(0, 2**bits, (256, 3))
    index = rng.integers(0, 256, (16, 16), dtype=np.uint8)
    elements = {"PhotometricInterpretation": "PALETTE COLOR"}
    for channel, colour in enumerate(("Red", "Green", "Blue")):
        elements[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, bits]
        table = palette[:, channel].astype("u1" if bits == 8 else "<u2").tobytes()
        elements[f"{colour}PaletteColorLookupTableData"] = table
    picture = read(make_dicom(index, 8, **elements))
    expected = (palette // (1 if bits == 8 else 257))[index] @ np.array([0.299, 0.587, 0.114])
    assert np.abs(picture - expected).max() <= 2


# What is kept of the header, and what is left alone


def test_pixel_spacing(make_dicom):
    image = read_radiograph(make_dicom(RAMP, PixelSpacing=[0.2, 0.1], ImagerPixelSpacing=[0.5, 0.5]))
    assert image.info == {"original_size": (64, 64), "reduction": 1, "pixel_spacing": (0.2, 0.1)}
    assert read_radiograph(make_dicom(RAMP, ImagerPixelSpacing=[0.5, 0.4])).info["pixel_spacing"] == (0.5, 0.4)
    for useless in ("0\\0", "NaN\\1", "1", "-1\\-1", "x\\y", "inf\\1"):
        assert "pixel_spacing" not in read_radiograph(make_dicom(RAMP, PixelSpacing=useless)).info
    assert TierImageProcessor().read(image).info == image.info  # of a picture that was read before


def test_a_dataset_is_read_and_left_as_it_is(make_dicom):
    data = make_dicom(
        RAMP << 4, 12, HighBit=15, WindowCenter=2048, WindowWidth=1024, RescaleSlope=1, RescaleIntercept=0
    )
    dataset = pydicom.dcmread(io.BytesIO(data))
    before = copy.deepcopy(dataset)
    np.testing.assert_array_equal(read(dataset), read(data))
    np.testing.assert_array_equal(read(dataset), read(make_dicom(RAMP, WindowCenter=2048, WindowWidth=1024)))
    assert dataset == before
    del dataset.file_meta  # made in memory
    np.testing.assert_array_equal(read(dataset), read(data))


def test_files_without_preamble_and_under_any_name(make_dicom, tmp_path):
    plain = read(make_dicom(RAMP))
    for syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian):
        data = make_dicom(RAMP, syntax=syntax)
        path = tmp_path / "chest.png"
        path.write_bytes(data)
        np.testing.assert_array_equal(read(path), plain)
        path.write_bytes(data[132:])  # no preamble
        np.testing.assert_array_equal(read(path), plain)
        dataset = pydicom.dcmread(io.BytesIO(data))
        body = pydicom.filebase.DicomBytesIO()
        body.is_little_endian, body.is_implicit_VR = syntax.is_little_endian, syntax.is_implicit_VR
        pydicom.filewriter.write_dataset(body, dataset)
        path.write_bytes(body.getvalue())  # no file meta information either
        np.testing.assert_array_equal(read(path), plain)


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ({"Modality": "CT"}, "a DICOM image of the modality CT is not a radiograph; leave it out."),
        ({"Modality": "MG"}, "a DICOM image of the modality MG is not a radiograph; leave it out."),
        (
            {"SOPClassUID": CTImageStorage},
            "a DICOM file of the class CT Image Storage is not a radiograph; leave it out.",
        ),
        ({"NumberOfFrames": 2}, "a DICOM file of 2 frames is not a radiograph; export the frame you need."),
        (
            {"PhotometricInterpretation": "HSV", "SamplesPerPixel": 3},
            "the DICOM image is neither grey nor of known colours; export it as PNG.",
        ),
        ({"BitsAllocated": 32, "BitsStored": 32}, "a DICOM image of 32 bits is not a radiograph; export it as PNG."),
        (
            {"Rows": 60000, "Columns": 60000},
            "60000x60000 pixels are more than 80,000,000; export it at a smaller size.",
        ),
        (
            {"Rows": 500},
            "the DICOM pixels are cut short, 128 of 8,000 bytes; copy or download the file again.",
        ),
        (
            {"BitsStored": 77},
            "the DICOM header says that 77 of 16 bits are used; replace the file.",
        ),
    ],
)
def test_refused(make_dicom, elements, message, tmp_path):
    path = tmp_path / "x.dcm"
    path.write_bytes(make_dicom(np.zeros((8, 8), dtype=np.uint16), **elements))
    with pytest.raises(ValueError) as error:
        read_radiograph(path)
    assert str(error.value) == f"x.dcm: {message}"


@pytest.mark.parametrize(
    ("sop_class", "name"),
    [
        (BasicTextSRStorage, "Basic Text SR Storage"),
        (EncapsulatedPDFStorage, "Encapsulated PDF Storage"),
        (GrayscaleSoftcopyPresentationStateStorage, "Grayscale Softcopy Presentation State Storage"),
    ],
)
def test_files_without_an_image(sop_class, name):
    dataset = Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, generate_uid(entropy_srcs=["tier"])
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    with pytest.raises(ValueError) as error:
        read_radiograph(buffer.getvalue())
    assert str(error.value) == (f"an image in memory: a DICOM file of the class {name} holds no image; leave it out.")


def test_missing_decoder_and_unknown_syntax(make_dicom, monkeypatch):
    data = make_dicom(RAMP, syntax=JPEG2000Lossless)
    monkeypatch.setattr(pydicom.pixels.decoders.base.Decoder, "is_available", False)
    with pytest.raises(
        ValueError, match=r"^an image in memory: nothing here decodes JPEG 2000 .*; pip install pylibj"
    ):
        read_radiograph(data)
    video = make_dicom(RAMP, syntax=pydicom.uid.MPEG2MPML, frame=b"\0" * 100)
    with pytest.raises(
        ValueError, match="^an image in memory: DICOM pixels stored as MPEG2 Main .* cannot be read; ex"
    ):
        read_radiograph(video)


def test_errors_and_warnings_hold_no_patient_data(make_dicom, recwarn, caplog):
    elements = {"WindowCenter": "DOE^JANE", "PixelSpacing": "DOE\\JANE", "StudyDate": "DOE"}
    data = make_dicom(np.zeros((8, 8), dtype=np.uint16), **elements)
    assert b"DOE^JANE" in data
    warnings.simplefilter("always")
    with caplog.at_level("DEBUG"):
        for length in range(140, len(data), 7):
            try:
                read_radiograph(data[:length])
            except ValueError as error:
                assert "JANE" not in "".join(traceback.format_exception(error))
        read_radiograph(data)
    assert not [warning for warning in recwarn if "JANE" in str(warning.message)]
    assert "JANE" not in caplog.text


def test_threads_read_at_once(make_dicom):
    """Python's warning filters and pydicom's logger belong to the process: they are as before."""
    files = [
        make_dicom(np.roll(RAMP, i), syntax=syntax) for i in range(6) for syntax in (RLELossless, JPEG2000Lossless)
    ]
    expected = [read(data) for data in files]
    filters, propagate = list(warnings.filters), logging.getLogger("pydicom").propagate
    with ThreadPoolExecutor(8) as pool:
        pictures = list(pool.map(read, files * 4))
    for picture, wanted in zip(pictures, expected * 4, strict=True):
        np.testing.assert_array_equal(picture, wanted)
    assert warnings.filters == filters and logging.getLogger("pydicom").propagate == propagate
