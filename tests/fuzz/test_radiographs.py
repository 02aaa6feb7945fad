"""Damaged image files: PNG by chunks, DICOM by elements, the others by bytes; each is read, or one sentence."""

import io
import random
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from fuzz import mutations
from fuzz.mutations import fuzz, run_child
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, RLELossless

from processing_tier import read_radiograph
from processing_tier.limits_tier import MAX_PIXELS

SIGNATURE = b"\x89PNG\r\n\x1a\n"
NUMBERS = (0, 1, 2, 3, 4, 7, 8, 16, 17, 32, 255, 2**15, 2**16 - 1)
ELEMENTS = """Rows Columns BitsAllocated BitsStored HighBit PixelRepresentation SamplesPerPixel NumberOfFrames
PlanarConfiguration PhotometricInterpretation WindowCenter WindowWidth RescaleSlope RescaleIntercept
PixelPaddingValue VOILUTFunction ImagerPixelSpacing PresentationLUTShape PixelData""".split()
WORDS = (
    "",
    "x",
    "0",
    "-1",
    "1e400",
    "nan",
    "1\\2",
    "MONOCHROME1",
    "RGB",
    "PALETTE COLOR",
    "SIGMOID",
    "99999999999",
    "2",
)


def damage_png(data: bytes, rng: random.Random) -> bytes:
    """One to three chunks left out, doubled, moved, renamed or changed; their checksums fit."""
    chunks, at = [], len(SIGNATURE)
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    for _ in range(rng.choice((1, 1, 3))):
        if not chunks:
            break
        place, kind = rng.randrange(len(chunks)), rng.randrange(6)
        name, body = chunks[place]
        if kind == 0:
            del chunks[place]
        elif kind == 1:
            chunks[place:place] = [chunks[place]] * rng.choice((1, 1, 500))
        elif kind == 2:
            chunks.insert(rng.randrange(len(chunks)), chunks.pop(place))
        elif kind == 3:
            chunks[place] = (
                rng.choice((b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf", b"acTL", b"fcTL", b"zTXt")),
                body,
            )
        elif kind == 4 and name == b"IHDR" and len(body) == 13:
            fields = list(struct.unpack(">IIBBBBB", body))
            field = rng.randrange(7)
            fields[field] = rng.choice(NUMBERS if field < 2 else NUMBERS[:11])
            chunks[place] = (name, struct.pack(">IIBBBBB", *fields))
        else:
            chunks[place] = (name, mutations.damage_bytes(body, rng))
    written = [struct.pack(">I", len(body)) + name + body for name, body in chunks]
    sums = [struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks]
    return SIGNATURE + b"".join(chunk + check for chunk, check in zip(written, sums, strict=True))


def damage_dicom(data: bytes, rng: random.Random) -> bytes:
    """One to three elements of the image left out, or with another value, cut short or doubled."""
    dataset = pydicom.dcmread(io.BytesIO(data), force=True)
    for _ in range(rng.choice((1, 1, 3))):
        keyword, kind = rng.choice(ELEMENTS), rng.randrange(4)
        tag = pydicom.datadict.tag_for_keyword(keyword)
        vr = pydicom.datadict.dictionary_VR(tag).split()[0]
        if kind == 0:
            dataset.pop(tag, None)
            continue
        old = dataset.get_item(tag)
        old = old.value if old is not None and isinstance(old.value, bytes) else b""
        if keyword == "PixelData":
            value, vr = mutations.damage_bytes(old, rng), "OW"
        elif vr == "US":
            value = b"".join(struct.pack("<H", rng.choice(NUMBERS)) for _ in range(rng.choice((0, 1, 1, 1, 2))))
        else:
            value = rng.choice(WORDS).encode()
            value += b" " * (len(value) % 2)
        dataset[tag] = pydicom.dataelem.RawDataElement(tag, vr, len(value), value, 0, False, True)
    buffer = io.BytesIO()
    try:
        dataset.save_as(buffer)
    except (ValueError, TypeError, AttributeError, OverflowError, struct.error):  # what pydicom cannot write
        return mutations.damage_bytes(data, rng)
    return buffer.getvalue()


def damage_image(path: Path, rng: random.Random) -> bytes:
    data, way = path.read_bytes(), rng.random()
    if way < 0.7 and data.startswith(SIGNATURE):
        return damage_png(data, rng)
    if way < 0.7 and path.suffix == ".dcm":
        return damage_dicom(data, rng)
    return mutations.damage_bytes(data, rng)


def read(path: Path) -> None:
    image = read_radiograph(path)
    width, height = image.size
    assert image.mode == "L" and 0 < width * height <= MAX_PIXELS
    assert np.asarray(image).shape == (height, width)


def write_dicom(path: Path, array: np.ndarray, syntax: str, **elements) -> None:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = ComputedRadiographyImageStorage, "1.2.3"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = *array.shape, 1
    dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.PixelData = array.astype("<u2").tobytes()
    dataset["PixelData"].VR = "OW"
    if syntax != ExplicitVRLittleEndian:
        dataset.compress(syntax, generate_instance_uid=False)
    dataset.save_as(path, enforce_file_format=True)


def write_seeds(folder: Path) -> list[Path]:
    """A file of each kind, as small as damage to its header needs."""
    levels = np.random.default_rng(0).integers(0, 4096, (24, 20)).astype(np.uint16)
    grey = Image.fromarray((levels >> 4).astype(np.uint8))
    grey.save(folder / "grey.png")
    Image.fromarray(levels).save(folder / "deep.png")
    grey.convert("P").save(folder / "palette.png", transparency=3)
    exif = Image.Exif()
    exif[0x0112] = 6
    grey.save(folder / "turned.jpg", exif=exif)
    Image.fromarray(levels).save(folder / "deep.tif", compression="tiff_deflate")
    grey.save(folder / "grey.jp2")
    write_dicom(folder / "plain.dcm", levels, ExplicitVRLittleEndian, WindowCenter=2000, WindowWidth=3000)
    write_dicom(folder / "rle.dcm", levels, RLELossless, RescaleSlope=1, RescaleIntercept=-5)
    return sorted(folder.iterdir())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_damaged_radiographs_are_read_or_refused(tmp_path):
    seeds = write_seeds(tmp_path)
    for seed in seeds:
        read(seed)
    found = run_child(__file__, seeds, 120)
    assert found["read"] > 200 and found["refused"] > 200


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_files_that_broke_decoders_stay_read_or_refused(shared_cases):
    seeds = sorted(path for path in shared_cases.iterdir() if path.suffix in (".png", ".dcm", ".jpg", ".jpeg"))
    assert run_child(__file__, seeds, 60).total() == 60 * len(seeds)


if __name__ == "__main__":
    fuzz(read, damage=damage_image)
