"""What hostile files may take: each is read or refused in a process whose memory is limited, in seconds."""

import io
import json
import struct
import subprocess
import sys
import zlib

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from .test_image_files import chunk, encode, png, tiff

NOISE = np.asarray(Image.effect_noise((64, 48), 80))
SCRIPT = """
import json, pathlib, resource, sys, time
import PIL.JpegImagePlugin, PIL.TiffImagePlugin, pydicom.pixels
from processing_tier import TierImageProcessor
pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + int(sys.argv[2]) * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
processor = TierImageProcessor(geometry="crop", output_dtype="uint8")
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    start = time.process_time()
    try:
        processor(path)
        outcome = "read"
    except ValueError as error:
        outcome = str(error).removeprefix(path.name + ": ")
    print(json.dumps([path.name, outcome, time.process_time() - start]))
"""


def outcomes(files: dict[str, bytes], folder, mebibytes: int) -> dict[str, str]:
    """What becomes of each file in one process with so much memory more than it starts with; each within seconds."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
    command = [sys.executable, "-c", SCRIPT, str(folder), str(mebibytes)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert max(seconds for _, _, seconds in lines) < 10
    assert [name for name, _, _ in lines] == sorted(files)
    return {name: outcome for name, outcome, _ in lines}


def exif_bomb() -> bytes:
    """Tags that all point at the same 60 kB: read one by one, they are 300 MB."""
    tags = b"".join(struct.pack(">HHII", 0x9000 + i, 7, 60_000, 8) for i in range(5000))
    return b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 5000) + tags


def hostile_files(make_dicom) -> dict[str, bytes]:
    """Small files that would take gigabytes, or minutes, without a bound."""
    whole = pydicom.dcmread(io.BytesIO(make_dicom(NOISE, 8, syntax=JPEG2000Lossless)))
    codestream = bytearray(pydicom.encaps.get_frame(whole.PixelData, 0, number_of_frames=1))
    codestream[8:16] = codestream[24:32] = struct.pack(">II", 8900, 8900)
    bmp = bytearray(encode(Image.fromarray(NOISE).convert("P"), "BMP"))
    bmp[30:34] = struct.pack("<I", 1)
    webp = bytearray(encode(Image.fromarray(NOISE), "WEBP", lossless=True))
    webp[21:25] = struct.pack("<I", int.from_bytes(webp[21:25], "little") | 0xFFFFFFF)
    deflated = make_dicom(NOISE, 8, syntax=DeflatedExplicitVRLittleEndian)
    private = struct.pack("<HH2s2xI", 2, 0x0009, b"OB", 3000) + bytes(3000)
    body = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = b"".join([*(body.compress(bytes(2**24)) for _ in range(20)), body.flush()])  # 320 MiB
    syntax = struct.pack("<HH2sH", 2, 0x10, b"UI", 22) + b"1.2.840.10008.1.2.1.99"
    jpeg = encode(Image.fromarray(NOISE), "JPEG")
    many = b"\xff\xfe\x00\x02" * 300_000  # comments without content
    return {
        "aspect.png": png(NOISE, 0, size=(1, 80_000_000)),
        "bmp.bmp": bytes(bmp) + bytes(17 * 2**20),
        "chunks.png": png(NOISE, 0, chunk(b"teST") * 1_000_000),
        "deflated.dcm": deflated[:132] + private + syntax + packed,
        "exif.jpg": encode(Image.fromarray(NOISE), "JPEG", exif=exif_bomb()),
        "exif.png": png(NOISE, 0, chunk(b"eXIf", exif_bomb()[6:])),
        "huge.jp2": bytes(codestream),
        "huge.webp": bytes(webp),
        "j2k.dcm": make_dicom(np.zeros((8900, 8900), np.uint8), 8, syntax=JPEG2000Lossless, frame=bytes(codestream)),
        "plain.ppm": b"P3 2000 2000 255\n" + b"1 " * 9 * 2**20,
        "comments.ppm": b"P6\n#" + b"x" * 40 * 2**20 + b"\n8 8 255\n" + bytes(192),
        "float.pfm": b"Pf\n#" + b"x" * 40 * 2**20 + b"\n8 8\n-1.0\n" + bytes(256),
        "rle.dcm": make_dicom(
            NOISE, 8, syntax=RLELossless, frame=struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\0" * 2_000_000
        ),
        "segments.jpg": jpeg[:2] + many + jpeg[2:],
        "tags.tif": tiff(NOISE, "<", 1, 1, t320=[1] * 3_000_000),
        "text.png": png(NOISE, 0, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**26)))),
        "tiles.tif": tiff(NOISE, "<", 1, 8, t322=[65520], t323=[65520]),
    }


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_hostile_files_within_a_memory_limit(make_dicom, tmp_path):
    found = outcomes(hostile_files(make_dicom), tmp_path, 1024)
    little = "the file holds too little for the 8900x8900 pixels that it claims; replace it."
    damaged = "the image cannot be decoded: the file is damaged; replace the file or leave it out."
    slow = "more than 16 MiB of text or run lengths would take too long to decode; export it as PNG."
    assert found == {
        "aspect.png": (
            "80000000x1 pixels are not a radiograph: one side is more than 100 times the other; leave it out."
        ),
        "bmp.bmp": slow,
        "chunks.png": "a PNG of more than 100,000 chunks would take too long to read; save it again.",
        "comments.ppm": damaged,
        "deflated.dcm": "the file inflates to more than 256 MiB; export it as a smaller PNG.",
        "exif.jpg": "read",
        "exif.png": "read",
        "float.pfm": (
            "the image cannot be decoded: it is not PNG, JPEG, JPEG 2000, TIFF, BMP, WebP, PPM or DICOM; convert it "
            "or leave it out."
        ),
        "huge.jp2": little,
        "huge.webp": "16384x16384 pixels are more than 80,000,000; export it at a smaller size.",
        "j2k.dcm": little,
        "plain.ppm": slow,
        "rle.dcm": "the DICOM pixels decode to more than 3,072 bytes; replace the file.",
        "segments.jpg": "a JPEG of more than 100,000 segments would take too long to read; replace the file.",
        "tags.tif": "tables of 6,000,008 bytes are out of proportion; replace the file.",
        "text.png": "read",
        "tiles.tif": "tiles of 4,292,870,400 pixels are larger than the image; replace the file.",
    }


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_the_largest_files_within_a_memory_limit(make_dicom, tmp_path):
    """What is within the budget is read with 1.5 GiB."""
    grey = np.tile(NOISE, (180, 140))[:8640, :8960]  # 77 million pixels
    deep = np.tile((NOISE.astype(np.uint16) << 4)[..., None], (100, 60, 3))  # 18 million of three colours
    files = {
        "grey.png": encode(Image.fromarray(grey), "PNG", compress_level=1),
        "grey.jpg": encode(Image.fromarray(grey), "JPEG"),
        "rgb.png": encode(Image.fromarray(grey).convert("RGB"), "PNG", compress_level=1),
        "deep.png": png(deep, 2),
        "deep.tif": tiff(deep, ">", 2, 8),
        "native.dcm": make_dicom(grey.astype(np.uint16) << 4, WindowCenter=2048, WindowWidth=4096),
    }
    assert set(outcomes(files, tmp_path, 1536).values()) == {"read"}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_changed_bytes_are_read_or_refused(make_dicom, tmp_path):
    """Files of every kind with random bytes changed, cut, doubled: each gives a picture or the documented error."""
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(NOISE)
    deep = NOISE.astype(np.uint16) << 4
    seeds = [encode(image, kind) for kind in ("BMP", "PPM", "WEBP", "JPEG2000", "TIFF")]
    seeds += [
        encode(image, "JPEG", exif=exif),
        encode(image, "JPEG", progressive=True),
        encode(image, "PNG", exif=exif),
    ]
    seeds += [png(np.stack([deep] * 3, axis=-1), 2), png(np.stack([deep] * 2, axis=-1), 4), tiff(deep, ">", 0, 8)]
    seeds += [make_dicom(deep), make_dicom(deep, syntax=DeflatedExplicitVRLittleEndian)]
    seeds += [make_dicom(deep, syntax=syntax) for syntax in (RLELossless, JPEG2000Lossless)]
    files = {}
    for index in range(3000):
        data = bytearray(seeds[index % len(seeds)])
        for _ in range(rng.integers(1, 6)):
            at = int(min(rng.exponential(200), len(data) - 1)) if rng.random() < 0.7 else int(rng.integers(len(data)))
            change = rng.integers(3)
            if change == 0:
                data[at] = rng.integers(256)
            elif change == 1:
                data[at : at + 4] = bytes(rng.choice([0, 1, 127, 128, 255], 4).astype(np.uint8))
            else:
                data[at:at] = data[at : at + int(rng.integers(1, 40))]
        files[f"{index:04d}"] = bytes(data)
    found = list(outcomes(files, tmp_path, 1024).values())
    assert found.count("read") > 100 and len(set(found)) > 10
    assert all(outcome == "read" or outcome.endswith(".") and "\n" not in outcome for outcome in found)
