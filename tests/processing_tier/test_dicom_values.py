"""DICOM files whose header contradicts their pixels: the right value, or the true reason for the refusal."""

import io
import struct

import numpy as np
import pydicom
import pytest
from dicom_files import RAMP, jpeg_lossless, lut_item, read
from PIL import Image
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    RLELossless,
)

from processing_tier import dicom_tier, read_radiograph

LINEAR = np.rint(RAMP / 4095 * 255)
COLOUR = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}


def refusal(source) -> str:
    with pytest.raises(ValueError) as error:
        read_radiograph(source)
    return str(error.value).removeprefix("an image in memory: ")


def noise(bits: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2**bits, (64, 64)).astype(np.uint16)


@pytest.mark.parametrize(("bits", "most"), [(16, 4095), (10, 4095), (12, 4095), (16, 65535), (8, 4095), (16, 1023)])
def test_tables_of_another_range_than_they_say(make_dicom, bits, most):
    values = np.rint(np.arange(4096) / 4095 * most).astype(int)
    picture = read(make_dicom(RAMP, VOILUTSequence=[lut_item(values, bits=bits)]))
    np.testing.assert_array_equal(picture, np.rint(values[RAMP] / most * 255))
    assert len(np.unique(picture)) == 256
    inverse = read(
        make_dicom(RAMP, VOILUTSequence=[lut_item(values[::-1], bits=bits)], PhotometricInterpretation="MONOCHROME1")
    )
    np.testing.assert_array_equal(inverse, 255 - np.rint(values[::-1][RAMP] / most * 255))


def test_palettes_and_colours_of_another_range_than_they_say(make_dicom):
    index = np.arange(256, dtype=np.uint8).reshape(16, 16)
    elements = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour in ("Red", "Green", "Blue"):
        elements[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        elements[f"{colour}PaletteColorLookupTableData"] = (np.arange(256) * 16).astype("<u2").tobytes()  # 12 bits
    np.testing.assert_array_equal(read(make_dicom(index, 8, **elements)), index)
    deep = np.stack([RAMP] * 3, axis=-1)
    np.testing.assert_array_equal(read(make_dicom(deep, 16, **COLOUR, PlanarConfiguration=0)), RAMP >> 4)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless, JPEGLosslessSV1])
def test_values_above_bits_stored_do_not_wrap(make_dicom, syntax):
    values = noise(14)
    frame = {}
    if syntax in (JPEG2000Lossless, JPEGLosslessSV1):
        whole = make_dicom(values, 14, syntax=JPEG2000Lossless)
        frame["frame"] = pydicom.encaps.get_frame(pydicom.dcmread(io.BytesIO(whole)).PixelData, 0, number_of_frames=1)
        if syntax == JPEGLosslessSV1:
            frame["frame"] = jpeg_lossless(values, 14)
    elif syntax == RLELossless:
        whole = pydicom.dcmread(io.BytesIO(make_dicom(values, 16, syntax=RLELossless)))
        frame["frame"] = pydicom.encaps.get_frame(whole.PixelData, 0, number_of_frames=1)
    window = {"WindowCenter": 8192, "WindowWidth": 16384}
    np.testing.assert_array_equal(
        read(make_dicom(values, 12, syntax=syntax, **frame, **window)), read(make_dicom(values, 14, **window))
    )


def test_signed_values_above_bits_stored_do_not_wrap(make_dicom):
    window = {"WindowCenter": 0, "WindowWidth": 16384}
    values = noise(14).astype(np.int16) - 2**13
    np.testing.assert_array_equal(read(make_dicom(values, 12, **window)), read(make_dicom(values, 16, **window)))
    # Copies of the sign, or zeros, in the bits beside the values, are not values
    small = values >> 2
    expected = read(make_dicom(small, 16, **window))
    np.testing.assert_array_equal(read(make_dicom(small, 12, **window)), expected)
    np.testing.assert_array_equal(read(make_dicom(small & np.int16(0x0FFF), 12, **window)), expected)


def test_declared_overlays_are_cleared_and_nothing_else(make_dicom):
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    values = noise(12)
    written = values | (np.arange(64) % 2 * 2**14).astype(np.uint16)
    np.testing.assert_array_equal(
        read(make_dicom(written, 12, overlays=[14], **window)), read(make_dicom(values, **window))
    )
    whole = read(make_dicom(written, 12, overlays=[15], **window))
    np.testing.assert_array_equal(whole[:, ::2], read(make_dicom(values, **window))[:, ::2])
    assert (whole[:, 1::2] == 255).all()  # above the window


def test_windows_outside_all_values_are_flagged(make_dicom):
    outside = "the window or lookup table of the DICOM file lies outside all pixel values"
    equal = "all pixels of the image are equal"
    for elements, reason, level in (
        ({"WindowCenter": 9000, "WindowWidth": 100}, outside, 0),
        ({"WindowCenter": -9000, "WindowWidth": 100}, outside, 255),
        ({"WindowCenter": 90000, "WindowWidth": 10, "VOILUTFunction": "SIGMOID"}, outside, 0),
        ({"VOILUTSequence": [lut_item(np.zeros(4096), bits=16)]}, outside, 0),
    ):
        image = read_radiograph(make_dicom(RAMP, **elements))
        assert image.info["blank"].startswith(reason) and image.getextrema() == (level, level)
    padded = RAMP.copy()
    padded[:, :9] = 4000
    image = read_radiograph(make_dicom(padded // 2, PixelPaddingValue=2000, WindowCenter=-99, WindowWidth=9))
    assert image.info["blank"].startswith(outside) and image.getextrema() == (0, 255)
    assert read_radiograph(make_dicom(RAMP * 0 + 7)).info["blank"].startswith(equal)
    assert "blank" not in read_radiograph(make_dicom(RAMP, WindowCenter=4096, WindowWidth=3)).info


# What follows the end, and true reasons


def test_what_follows_the_end_of_a_frame(make_dicom):
    grey = (RAMP >> 4).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "JPEG", quality=95)
    whole = pydicom.dcmread(io.BytesIO(make_dicom(RAMP, syntax=JPEG2000Lossless)))
    codestream = pydicom.encaps.get_frame(whole.PixelData, 0, number_of_frames=1)
    for array, bits, syntax, frame in (
        (grey, 8, JPEGBaseline8Bit, buffer.getvalue()),
        (RAMP, 12, JPEG2000Lossless, codestream),
        (RAMP, 12, JPEGLosslessSV1, jpeg_lossless(RAMP, 12)),
    ):
        expected = read(make_dicom(array, bits, syntax=syntax, frame=frame))
        for rest in (bytes(64), bytes(5000), b"\x5a" * 101, frame):
            np.testing.assert_array_equal(read(make_dicom(array, bits, syntax=syntax, frame=frame + rest)), expected)
        cut = make_dicom(array, bits, syntax=syntax, frame=frame[: len(frame) // 2] + bytes(500))
        assert refusal(cut) == "the DICOM pixels are cut short; copy or download the file again."
    # An end of an image in a comment does not count
    jpeg = buffer.getvalue()
    comment = jpeg[:2] + b"\xff\xfe\x00\x06\xff\xd9\xff\xd9" + jpeg[2:]
    np.testing.assert_array_equal(
        read(make_dicom(grey, 8, syntax=JPEGBaseline8Bit, frame=comment)),
        read(make_dicom(grey, 8, syntax=JPEGBaseline8Bit, frame=jpeg)),
    )


@pytest.mark.parametrize("rows", [63, 32])
def test_headers_that_name_too_few_rows(make_dicom, rows):
    assert refusal(make_dicom(RAMP + 1, 13, Rows=rows)) == (
        f"the file holds 8,192 bytes of pixels where the DICOM header says {rows * 128:,}; correct the header or "
        "export the image as PNG."
    )


def test_true_reasons(make_dicom):
    rgb = np.zeros((8, 8, 3), dtype=np.uint8)
    assert refusal(make_dicom(rgb, 8, **COLOUR)) == (
        "the DICOM header does not say how the colours are arranged (Planar Configuration); export the image as PNG."
    )
    dataset = pydicom.dcmread(io.BytesIO(make_dicom(RAMP)))
    del dataset.PixelData
    for keyword, name, dtype in (
        ("FloatPixelData", "Float Pixel Data", "<f4"),
        ("DoubleFloatPixelData", "Double Float Pixel Data", "<f8"),
    ):
        setattr(dataset, keyword, RAMP.astype(dtype).tobytes())
        assert (
            refusal(dataset) == f"a DICOM image of floating-point pixels ({name}) is not supported; export it as PNG."
        )
        delattr(dataset, keyword)
    compressed = pydicom.dcmread(io.BytesIO(make_dicom(RAMP, syntax=JPEG2000Lossless)))
    codestream = pydicom.encaps.get_frame(compressed.PixelData, 0, number_of_frames=1)
    for pixels in (codestream + b"\0" * (len(codestream) % 2), compressed.PixelData):
        dataset.PixelData = pixels
        dataset["PixelData"].VR = "OW"
        assert refusal(dataset) == (
            "the DICOM pixels are compressed as JPEG 2000, where the header says Explicit VR Little Endian; correct "
            "the transfer syntax or export the image as PNG."
        )


def test_run_lengths_longer_than_the_header_says(make_dicom):
    whole = pydicom.dcmread(io.BytesIO(make_dicom(RAMP, syntax=RLELossless)))
    frame = pydicom.encaps.get_frame(whole.PixelData, 0, number_of_frames=1)
    np.testing.assert_array_equal(read(make_dicom(RAMP, syntax=RLELossless, frame=frame)), read(make_dicom(RAMP)))
    for longer in (b"\x81\0" * 2, b"\x7f" + bytes(128)):
        assert refusal(make_dicom(RAMP, syntax=RLELossless, frame=frame + longer)) == (
            "the DICOM pixels decode to more than 8,192 bytes; replace the file."
        )


@pytest.mark.parametrize("place", ["first", "behind long elements"])
def test_deflated_files_are_inflated_within_a_bound(make_dicom, monkeypatch, place):
    """Wherever the header says that they are deflated: pydicom would inflate without a bound."""
    data = make_dicom(RAMP, syntax=DeflatedExplicitVRLittleEndian)
    if place != "first":  # 3,000 bytes of private information before the transfer syntax, and no length of the group
        at = data.index(struct.pack("<HH", 2, 0x10))
        private = struct.pack("<HH2s2xI", 2, 0x0009, b"OB", 3000) + bytes(3000)
        data = data[:132] + private + data[at:]
    np.testing.assert_array_equal(read(data), read(make_dicom(RAMP)))
    monkeypatch.setattr(dicom_tier, "MAX_FILE_BYTES", 8000)
    assert refusal(data) == "the file inflates to more than 0 MiB; export it as a smaller PNG."
