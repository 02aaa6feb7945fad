"""DICOM files as a whole: what is read of a header, which files are refused, and what messages may say."""

import copy
import io
import traceback
import warnings

import numpy as np
import pydicom
import pytest
from dicom_files import RAMP, read
from pydicom.dataset import Dataset
from pydicom.uid import (
    BasicTextSRStorage,
    CTImageStorage,
    EncapsulatedPDFStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    GrayscaleSoftcopyPresentationStateStorage,
    ImplicitVRLittleEndian,
    generate_uid,
)

from processing_tier import TierImageProcessor, read_radiograph


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
