"""Transfer syntaxes and colours of DICOM files: the stored pixels, whatever the encoder."""

import io
import logging
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pydicom
import pytest
from dicom_files import RAMP, jpeg_lossless, read
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    RLELossless,
)

from processing_tier import read_radiograph


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


def test_missing_decoder_and_unknown_syntax(make_dicom, monkeypatch):
    data = make_dicom(RAMP, syntax=JPEG2000Lossless)
    monkeypatch.setattr(pydicom.pixels.decoders.base.Decoder, "is_available", False)
    with pytest.raises(
        ValueError, match=r"^an image in memory: no installed package decodes JPEG 2000 .*; pip install pylibj"
    ):
        read_radiograph(data)
    video = make_dicom(RAMP, syntax=pydicom.uid.MPEG2MPML, frame=b"\0" * 100)
    with pytest.raises(
        ValueError, match="^an image in memory: DICOM pixels stored as MPEG2 Main .* cannot be read; ex"
    ):
        read_radiograph(video)


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
