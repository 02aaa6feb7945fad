import io
import sys
from collections.abc import Callable

import datasets
import numpy as np
import pytest
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.tag import Tag
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRBigEndian, ExplicitVRLittleEndian, generate_uid


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A separate cache of `datasets` for each test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="session")
def make_dicom() -> Callable[..., bytes]:
    """A function from stored values (height, width[, 3]) to the bytes of a DICOM file, with a patient's name in it."""

    def make(
        array: np.ndarray, bits: int = 12, syntax: str = ExplicitVRLittleEndian, frame=None, overlays=(), **elements
    ) -> bytes:
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.SOPClassUID = ComputedRadiographyImageStorage
        dataset.SOPInstanceUID = generate_uid(entropy_srcs=["tier"])
        dataset.PatientName = "DOE^JANE"
        dataset.Rows, dataset.Columns = array.shape[:2]
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8 * array.itemsize, bits, bits - 1
        dataset.PixelRepresentation = int(array.dtype.kind == "i")
        for keyword, value in elements.items():
            if isinstance(value, str):  # as it stands: what files hold is not always what the standard allows
                raw = value.encode() + b" " * (len(value) % 2)
                tag = Tag(keyword)
                dataset[tag] = RawDataElement(tag, dictionary_VR(keyword), len(raw), raw, 0, False, True)
            else:
                setattr(dataset, keyword, value)
        for index, position in enumerate(overlays):  # in bits of the pixels
            dataset.add_new((0x6000 + 2 * index, 0x0100), "US", 8 * array.itemsize)
            dataset.add_new((0x6000 + 2 * index, 0x0102), "US", position)
        if frame is not None:
            dataset.PixelData = encapsulate([frame])
            dataset["PixelData"].VR = "OB"
        else:
            little_endian = array.astype(array.dtype.newbyteorder("<"))
            dataset.PixelData = little_endian.tobytes() + b"\0" * (array.nbytes % 2)
            dataset["PixelData"].VR = "OW" if array.itemsize == 2 else "OB"
            if syntax == ExplicitVRBigEndian:
                dataset.PixelData = array.astype(array.dtype.newbyteorder(">")).tobytes()
            elif dataset.file_meta.TransferSyntaxUID.is_encapsulated:
                dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
                dataset.compress(syntax, generate_instance_uid=False)
        buffer = io.BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
        return buffer.getvalue()

    assert sys.byteorder == "little"
    return make
