"""Files that are not radiographs: each is refused with its own reason, in one sentence and bounded memory."""

import gzip
import io
import struct
import subprocess
import sys
import tracemalloc
import zipfile
import zlib

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from processing_tier import dicom_tier, read_radiograph

NOISE = np.asarray(Image.effect_noise((64, 48), 80))
EMPTY = "the file is empty; copy or download it again."
CUT_SHORT = "the file is cut short, its end is missing; copy or download it again."
DAMAGED = "the image cannot be decoded: the file is damaged; replace the file or leave it out."
PAGE = "the file is a web page, not an image; download it again, logged in."
TEXT = "the file is text, not an image; name the image file."
POINTER = "the file is a Git LFS pointer; run git lfs pull."
UNKNOWN = (
    "the image cannot be decoded: it is not PNG, JPEG, JPEG 2000, TIFF, BMP, WebP, PPM or DICOM; convert it or leave "
    "it out."
)
HEADER = "the DICOM header cannot be read or describes no image; replace the file or leave it out."
NO_PIXELS = "the DICOM file ends before its pixels; copy or download it again."
PIXELS = "the DICOM pixels cannot be decoded: the file is damaged; replace it, or export the image as PNG."


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def refusal(data: bytes, tmp_path, name: str = "x.png") -> str:
    """The reason, without the file's name, for which the path and its bytes are refused."""
    path = tmp_path / name
    path.write_bytes(data)
    messages = []
    for source, called in ((path, name), (data, "an image in memory")):
        with pytest.raises(ValueError) as error:
            read_radiograph(source)
        message = str(error.value)
        assert message.startswith(f"{called}: ") and message.endswith(".") and "\n" not in message
        assert str(tmp_path) not in message
        messages.append(message.removeprefix(f"{called}: "))
    assert messages[0] == messages[1]
    return messages[0]


def peak_bytes(data: bytes) -> int:
    """What reading the file takes at most, of what Python, numpy and PIL's own buffers in Python allocate."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError):
            read_radiograph(data)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", EMPTY),
        (b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>", PAGE),
        (b"\xef\xbb\xbf\n  <HTML>\n<BODY>404</BODY></HTML>", PAGE),
        (b'<?xml version="1.0"?><!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0"><html/>', PAGE),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", POINTER),
        (b"Access denied", TEXT),
        (b'{"error": "quota exceeded"}', TEXT),
        ("Radiograf\u00eda de t\u00f3rax\r\n".encode(), TEXT),
        (b"image_id,label\n1,0\n", TEXT),
        (b"%PDF-1.7\n%\xe2\xe3", "the file is a PDF document, not an image; export its image as PNG."),
        (gzip.compress(b"x", mtime=0), "the file is a gzip archive, not an image; unpack it."),
        (b"\x93NUMPY\x01\0", "the file is a NumPy array, not an image file; load it and pass the array."),
        (b"\x89HDF\r\n\x1a\n", "the file is an HDF5 file, not an image; pass the array that it holds."),
        (bytes(range(256)) * 10, UNKNOWN),
        (bytes(1000), UNKNOWN),
        (b"\x00\x00\x00\x1cftypavif", UNKNOWN),
        (bytes(128) + b"DICM", HEADER),
        (bytes(128) + b"DICM" + bytes(300), HEADER),
        (bytes(128) + b"DICM" + b"\xff" * 300, HEADER),
    ],
)
def test_files_of_another_kind(data, message, tmp_path):
    for name in ("x.png", "x.jpg", "x.dcm"):  # the name does not matter
        assert refusal(data, tmp_path, name) == message


def test_archives(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x.png", encode(Image.fromarray(NOISE), "PNG"))
    assert refusal(buffer.getvalue(), tmp_path) == "the file is a ZIP archive, not an image; unpack it."


def test_wrong_extensions_do_not_matter(tmp_path, make_dicom):
    files = [encode(Image.fromarray(NOISE), kind) for kind in ("PNG", "TIFF", "BMP", "PPM")]
    files.append(make_dicom(NOISE, 8, WindowCenter=128, WindowWidth=256))
    for data in files:
        (tmp_path / "x.jpg").write_bytes(data)
        np.testing.assert_array_equal(np.asarray(read_radiograph(tmp_path / "x.jpg")), NOISE)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "JPEG2000", "TIFF", "BMP", "WEBP", "PPM"])
def test_files_cut_short_anywhere(kind, tmp_path):
    data = encode(Image.fromarray(NOISE).convert("RGB"), kind)
    for share in (0.3, 0.5, 0.8, 0.95):
        assert refusal(data[: int(share * len(data))], tmp_path) == CUT_SHORT
    for length in range(1, len(data) - 64, max(len(data) // 60, 1)):
        message = refusal(data[:length], tmp_path)
        assert message in (CUT_SHORT, DAMAGED, UNKNOWN, TEXT)  # the last two only for the first few bytes
        assert message == CUT_SHORT or length < 200


def test_damaged_files(tmp_path):
    data = bytearray(encode(Image.fromarray(NOISE), "PNG"))
    data[60:400] = bytes(340)
    assert refusal(bytes(data), tmp_path) == DAMAGED
    data = bytearray(encode(Image.fromarray(np.tile(NOISE, (8, 8))), "PNG"))
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)  # a download that never got further
    assert refusal(bytes(data), tmp_path) in (DAMAGED, CUT_SHORT)
    jpeg2000 = bytearray(encode(Image.fromarray(NOISE), "JPEG2000"))
    jpeg2000[200:-10] = b"\xff" * (len(jpeg2000) - 210)
    assert refusal(bytes(jpeg2000), tmp_path) == DAMAGED
    tiff = encode(Image.fromarray(np.full((8, 8), np.nan, dtype=np.float32)), "TIFF")
    assert refusal(tiff, tmp_path) == "an image holds NaN or infinite pixels; replace them with numbers."


def test_sources_of_the_wrong_kind(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("a note")
    with open(path) as file, pytest.raises(ValueError) as error:
        read_radiograph(file)
    assert str(error.value) == "x.txt: the file is open as text; open it in binary mode."
    with pytest.raises(ValueError, match="^.*: the image file does not exist; check the path and the image folder.$"):
        read_radiograph(tmp_path)
    with pytest.raises(
        ValueError, match=r"^a+: the file cannot be read \(File name too long\); check its permissions.$"
    ):
        read_radiograph("a" * 5000)


def test_dicom_cut_short_anywhere(make_dicom, tmp_path):
    array = (NOISE.astype(np.uint16) << 4) | 7
    for syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless):
        data = make_dicom(array, syntax=syntax, WindowCenter=2048, WindowWidth=4096)
        pixels = data.rindex(struct.pack("<HH", 0x7FE0, 0x0010))
        # Behind compressed pixels stands an end of eight bytes, without which they are whole
        end = len(data) - (8 if syntax.is_encapsulated else 1)
        for length in range(140, end, max(len(data) // 80, 1)):
            message = refusal(data[:length], tmp_path, "x.dcm")
            if length > pixels + 12 and not syntax.is_encapsulated:
                stored = length - pixels - (8 if syntax == ImplicitVRLittleEndian else 12)
                assert message == (
                    f"the DICOM pixels are cut short, {stored:,} of 6,144 bytes; copy or download the file again."
                )
            else:
                assert message == NO_PIXELS or length < 400 and message in (HEADER, UNKNOWN)
    data = make_dicom(array, syntax=DeflatedExplicitVRLittleEndian)
    for length in range(400, len(data) - 8, 300):
        assert refusal(data[:length], tmp_path, "x.dcm") == CUT_SHORT


def test_compressed_dicom_cut_short(make_dicom, tmp_path):
    """The codestream ends early in a container that is whole; libjpeg would fill up with grey and say nothing."""
    jpeg = encode(Image.fromarray(NOISE), "JPEG", quality=95)
    whole = pydicom.dcmread(io.BytesIO(make_dicom(NOISE, 8, syntax=JPEG2000Lossless)))
    codestream = pydicom.encaps.get_frame(whole.PixelData, 0, number_of_frames=1)
    for syntax, frame in ((JPEGBaseline8Bit, jpeg), (JPEG2000Lossless, codestream)):
        assert read_radiograph(make_dicom(NOISE, 8, syntax=syntax, frame=frame)).size == (64, 48)
        for share in (0.5, 0.9, 0.97):
            data = make_dicom(NOISE, 8, syntax=syntax, frame=frame[: int(share * len(frame))])
            assert refusal(data, tmp_path) == "the DICOM pixels are cut short; copy or download the file again."
        for nonsense in (b"\xff\xd8\xff", b"nonsense" * 20, frame[:2] + bytes(200)):
            assert refusal(make_dicom(NOISE, 8, syntax=syntax, frame=nonsense), tmp_path) == PIXELS
    middle = codestream[:300] + b"\xff" * (len(codestream) - 310) + codestream[-10:]
    assert refusal(make_dicom(NOISE, 8, syntax=JPEG2000Lossless, frame=middle), tmp_path) == PIXELS
    rle = make_dicom(NOISE, 8, syntax=RLELossless, frame=struct.pack("<16I", 1, 64, *[0] * 14) + b"\x05")
    assert refusal(rle, tmp_path) == PIXELS


# Memory


def png_of(width: int, height: int, body: bytes = b"") -> bytes:
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0), b"IDAT" + body, b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bombs_in_image_files(tmp_path):
    pixels = zlib.compress(bytes(20_000_000), 9)  # 20 kB that inflate a thousandfold
    assert "12000x12000 pixels are more than 80,000,000;" in refusal(png_of(12000, 12000, pixels), tmp_path)
    assert peak_bytes(png_of(12000, 12000, pixels)) < 2**20
    assert peak_bytes(png_of(2**31 - 1, 2**31 - 1, pixels)) < 2**20
    tiff = bytearray(encode(Image.fromarray(NOISE), "TIFF"))
    offset = int.from_bytes(tiff[4:8], "little")
    for i in range(int.from_bytes(tiff[offset : offset + 2], "little")):
        entry = offset + 2 + 12 * i
        if int.from_bytes(tiff[entry : entry + 2], "little") in (256, 257):  # width and height
            tiff[entry + 2 : entry + 12] = struct.pack("<HII", 4, 1, 60000)
    assert refusal(bytes(tiff), tmp_path) == (
        "60000x60000 pixels are more than 80,000,000; export it at a smaller size."
    )
    assert peak_bytes(bytes(tiff)) < 2**20
    jpeg2000 = bytearray(encode(Image.fromarray(NOISE), "JPEG2000", no_jp2=True))
    jpeg2000[8:16] = struct.pack(">II", 60000, 60000)
    assert "60000x60000 pixels are more than 80,000,000;" in refusal(bytes(jpeg2000), tmp_path)
    text = zlib.compress(bytes(100 * 2**20), 9)  # in a comment
    chunk = b"zTXtComment\0\0" + text
    data = png_of(8, 8, zlib.compress(bytes(72)))
    chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    tracemalloc.start()
    assert read_radiograph(data[:33] + chunk + data[33:]).size == (8, 8)  # the pixels are good
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_scans_without_end(make_dicom, tmp_path):
    data = encode(Image.fromarray(NOISE), "JPEG", progressive=True)
    assert 2 < data.count(b"\xff\xda") < 20 and read_radiograph(data).size == (64, 48)
    last = data.rindex(b"\xff\xda")
    data = data[:-2] + data[last:-2] * 100 + data[-2:]
    message = "a JPEG of more than 100 scans would take too long to decode; replace the file."
    assert refusal(data, tmp_path) == message
    assert refusal(make_dicom(NOISE, 8, syntax=JPEGBaseline8Bit, frame=data), tmp_path) == message


def test_bombs_in_deflated_dicom(make_dicom, monkeypatch, tmp_path):
    monkeypatch.setattr(dicom_tier, "MAX_FILE_BYTES", 2**20)
    data = make_dicom(np.zeros((4000, 4000), dtype=np.uint16), syntax=DeflatedExplicitVRLittleEndian)
    assert len(data) < 100_000
    assert refusal(data, tmp_path) == "the file inflates to more than 1 MiB; export it as a smaller PNG."
    assert peak_bytes(data) < 8 * 2**20


def test_codestreams_larger_than_the_header_says(make_dicom, tmp_path):
    large = np.zeros((3000, 3000), dtype=np.uint8)
    jpeg = encode(Image.fromarray(large), "JPEG")
    whole = pydicom.dcmread(io.BytesIO(make_dicom(large, 8, syntax=JPEG2000Lossless)))
    codestream = pydicom.encaps.get_frame(whole.PixelData, 0, number_of_frames=1)
    message = "the compressed pixels are 3000x3000x1 where the DICOM header says 64x48x1; replace the file."
    for syntax, frame in ((JPEGBaseline8Bit, jpeg), (JPEG2000Lossless, codestream)):
        data = make_dicom(NOISE, 8, syntax=syntax, frame=frame)
        assert refusal(data, tmp_path) == message
        assert peak_bytes(data) < 2**20
    components = encode(Image.fromarray(NOISE).convert("RGB"), "JPEG")
    assert "64x48x3 where the DICOM header says 64x48x1" in refusal(
        make_dicom(NOISE, 8, syntax=JPEGBaseline8Bit, frame=components), tmp_path
    )


def test_run_lengths_that_expand(make_dicom, tmp_path):
    frame = struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\x00" * 100_000  # 128 bytes of every two
    data = make_dicom(NOISE, 8, syntax=RLELossless, frame=frame)
    assert refusal(data, tmp_path) == "the DICOM pixels decode to more than 3,072 bytes; replace the file."
    assert peak_bytes(data) < 2 * 2**20
    rng = np.random.default_rng(0)
    array = rng.integers(0, 4096, (64, 64)).astype(np.uint16)
    fine = make_dicom(array, syntax=RLELossless)
    np.testing.assert_array_equal(np.asarray(read_radiograph(fine)), np.asarray(read_radiograph(make_dicom(array))))


def test_huge_headers(make_dicom, monkeypatch, tmp_path):
    monkeypatch.setattr(dicom_tier, "MAX_HEADER_READS", 5_000)  # tracemalloc is slow
    start = make_dicom(NOISE, 8)
    at = start.index(struct.pack("<HH", 0x0010, 0x0010))  # the patient's name
    # Empty elements without end, of each of which pydicom would make an object: at the top, and in a sequence
    empty = b"".join(struct.pack("<HH2sH", 0x0009, i, b"LO", 0) for i in range(0x1000, 0x4000))
    sequence = struct.pack("<HH2s2xIHHI", 0x0009, 0x1002, b"SQ", 2**32 - 1, 0xFFFE, 0xE000, 2**32 - 1)
    for data in (start[:at] + empty + start[at:], start[:at] + sequence + empty):
        assert refusal(data, tmp_path) == HEADER
        assert peak_bytes(data) < 4 * 2**20
    # One element that says it is 4 GB long
    data = start[:at] + struct.pack("<HH2s2xI", 0x0009, 0x1001, b"UN", 2**32 - 16) + bytes(1000)
    assert refusal(data, tmp_path) == NO_PIXELS
    assert peak_bytes(data) < 2**20
    # A million values instead of one number do not count
    long = make_dicom(NOISE, 8, syntax=ImplicitVRLittleEndian, WindowCenter=1, WindowWidth=256)
    at = long.index(struct.pack("<HH", 0x0028, 0x1051))
    after = at + 8 + int.from_bytes(long[at + 4 : at + 8], "little")
    values = b"1\\" * 1_000_000
    data = long[:at] + struct.pack("<HHI", 0x0028, 0x1051, len(values)) + values + long[after:]
    tracemalloc.start()
    plain = read_radiograph(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(np.asarray(plain), np.asarray(read_radiograph(make_dicom(NOISE, 8))))
    assert peak < 32 * 2**20
    # Sequences in sequences, without end
    assert refusal(start[:200] + sequence * 2000, tmp_path) == HEADER


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_memory_of_a_process(make_dicom, tmp_path):
    """Decoders take memory that Python knows nothing of: what a process that reads the bombs has at its peak."""
    black = np.zeros((5000, 8000), dtype=np.uint8)  # 40 MB
    good = pydicom.dcmread(io.BytesIO(make_dicom(black, 8, syntax=JPEG2000Lossless)))
    codestream = pydicom.encaps.get_frame(good.PixelData, 0, number_of_frames=1)
    tiff = encode(Image.fromarray(black), "TIFF", compression="tiff_deflate")
    bombs = {
        "a.png": png_of(12000, 12000, zlib.compress(bytes(50 * 2**20), 9)),
        "b.dcm": make_dicom(NOISE, 8, syntax=JPEGBaseline8Bit, frame=encode(Image.fromarray(black), "JPEG")),
        "c.dcm": make_dicom(NOISE, 8, syntax=JPEG2000Lossless, frame=codestream),
        "d.tif": tiff[: len(tiff) // 2],
        "e.dcm": make_dicom(
            NOISE, 8, syntax=RLELossless, frame=struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\0" * 9000
        ),
        "f.dcm": make_dicom(black, 8, syntax=DeflatedExplicitVRLittleEndian),
    }
    for name, data in bombs.items():
        (tmp_path / name).write_bytes(data)
    script = """
import pathlib, sys
import PIL.JpegImagePlugin, pydicom.pixels
from processing_tier import dicom_tier, read_radiograph
dicom_tier.MAX_FILE_BYTES = 16 * 2**20
peak = lambda: int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024
start = peak()
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    try:
        read_radiograph(path)  # pydicom drops what an RLE image has too much
    except ValueError:
        pass
    print(path.name, peak() - start)
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    growth = dict(line.split() for line in result.stdout.splitlines())
    assert growth.keys() == bombs.keys()
    assert int(growth["e.dcm"]) < 16  # MiB; decoding any of the five would take 40
    assert int(growth["f.dcm"]) < 80  # a few times the bound on what a file inflates to
