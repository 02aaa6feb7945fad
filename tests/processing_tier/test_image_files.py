"""Image files whose bits, polarity, size or orientation decoders get wrong, and what is said of those not read."""

import io
import logging
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from transformers.utils.logging import warning_once

from processing_tier import TierImageProcessor, read_radiograph

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)  # 12 bits of 16
GREY = np.asarray(read_radiograph(RAMP))
NOISE = np.asarray(Image.effect_noise((64, 48), 80))


def read(source, **options) -> np.ndarray:
    return np.asarray(read_radiograph(source, **options))


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def refusal(data: bytes) -> str:
    with pytest.raises(ValueError) as error:
        read_radiograph(data)
    return str(error.value).removeprefix("an image in memory: ")


def chunk(kind: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(pixels: np.ndarray, colour: int, *others: bytes, size=None) -> bytes:
    """A PNG of (height, width[, channels]) numbers, with other chunks before the pixels."""
    height, width = size or pixels.shape[:2]
    rows = pixels.astype(pixels.dtype.newbyteorder(">")).reshape(len(pixels), -1)
    body = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, colour, 0, 0, 0)
    return b"".join(
        [b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), *others, chunk(b"IDAT", zlib.compress(body)), chunk(b"IEND")]
    )


def tiff(pixels: np.ndarray, order: str, photometric: int, compression: int, **tags: list[int]) -> bytes:
    """A TIFF of one strip; `tags` are SHORT values by number, as in t274=[6]."""
    height, width = pixels.shape[:2]
    samples = pixels.shape[2] if pixels.ndim == 3 else 1
    body = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    body = zlib.compress(body) if compression == 8 else body
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    values = {256: [width], 257: [height], 258: [8 * pixels.itemsize] * samples, 259: [compression]}
    values |= {262: [photometric], 273: [0], 277: [samples], 278: [height], 279: [len(body)], 339: [kind] * samples}
    values |= {int(name[1:]): value for name, value in tags.items()}
    entries = {tag: ("I" if tag in (256, 257, 273, 278, 279) else "H", value) for tag, value in sorted(values.items())}
    at = 8 + 2 + 12 * len(entries) + 4
    data = sum(len(v) * struct.calcsize(f) for f, v in entries.values() if len(v) * struct.calcsize(f) > 4)
    entries[273] = "I", [at + data]
    directory, extra = struct.pack(order + "H", len(entries)), b""
    for tag, (form, value) in entries.items():
        raw = struct.pack(f"{order}{len(value)}{form}", *value)
        place = raw.ljust(4, b"\0") if len(raw) <= 4 else struct.pack(order + "I", at + len(extra))
        directory += struct.pack(order + "HHI", tag, {"H": 3, "I": 4}[form], len(value)) + place
        extra += raw if len(raw) > 4 else b""
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    return head + directory + bytes(4) + extra + body


# All bits


def test_colour_png_of_sixteen_bits_keeps_them():
    opaque = np.full_like(RAMP, 65535)
    for channels, colour in (([RAMP] * 3, 2), ([*[RAMP] * 3, opaque], 6), ([RAMP, opaque], 4), ([RAMP], 0)):
        data = png(np.stack(channels, axis=-1), colour)
        np.testing.assert_array_equal(read(data), GREY)
        np.testing.assert_array_equal(read(Image.open(io.BytesIO(data))), GREY)  # opened, and not decoded yet
        grey = TierImageProcessor(size=64, output_dtype="uint8")(Image.open(io.BytesIO(data)), return_tensors="np")
        np.testing.assert_array_equal(grey["pixel_values"][0, 0], GREY)
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 65536, (64, 64, 3), dtype=np.uint16)
    luma = np.rint(colours @ np.array([0.299, 0.587, 0.114])).astype(np.uint16)
    assert np.abs(read(png(colours, 2)).astype(int) - read(luma)).max() <= 1


def test_transparency_of_sixteen_bits_lies_on_black():
    half = np.where(np.arange(64) < 32, 0, 65535).astype(np.uint16) * np.ones((64, 1), np.uint16)
    expected = read(np.where(half == 0, 0, RAMP).astype(np.uint16))
    np.testing.assert_array_equal(read(png(np.stack([RAMP, half], axis=-1), 4)), expected)
    np.testing.assert_array_equal(read(png(np.stack([RAMP, RAMP, RAMP, half], axis=-1), 6)), expected)
    named = png(np.stack([RAMP] * 3, axis=-1), 2, chunk(b"tRNS", struct.pack(">3H", 4095, 4095, 4095)))
    assert read(named)[-1, -1] == 0 and read(named)[-1, -3] == 255


@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "u4", "f4"])
def test_tiff_of_every_depth_order_and_polarity(dtype, order, compression):
    pixels = (RAMP >> 4 if dtype == "u1" else RAMP).astype(dtype)
    expected = pixels if dtype == "u1" else GREY
    for photometric in (1, 0):  # black is zero; white is zero
        data = tiff(pixels, order, photometric, compression)
        wanted = expected if photometric else 255 - expected
        if dtype == "u4" and order == ">":
            assert refusal(data) == (
                f"a TIFF of 1 unsigned sample of 32 bits (photometric interpretation {photometric}, compression "
                f"{compression}) cannot be read; export it as PNG."
            )
            continue
        np.testing.assert_array_equal(read(data), wanted)
        if photometric or (dtype, order) in (("u1", "<"), ("u2", "<")):  # PIL opens the others not at all
            np.testing.assert_array_equal(read(Image.open(io.BytesIO(data))), wanted)


@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("order", ["<", ">"])
def test_colour_tiff_of_sixteen_bits_keeps_them(order, compression):
    np.testing.assert_array_equal(read(tiff(np.stack([RAMP] * 3, axis=-1), order, 2, compression)), GREY)
    four = np.stack([RAMP, RAMP, RAMP, np.full_like(RAMP, 65535)], axis=-1)
    np.testing.assert_array_equal(read(tiff(four, order, 2, compression, t338=[2])), GREY)


def test_tiff_of_one_bit_is_inverted_once():
    bits = Image.fromarray(NOISE > 128)
    for kind in ("raw", "group4", "packbits"):
        data = encode(bits, "TIFF", compression=kind, tiffinfo={262: 0})
        white_is_zero = Image.open(io.BytesIO(data)).tag_v2[262] == 0
        assert white_is_zero
        np.testing.assert_array_equal(read(data), np.asarray(Image.open(io.BytesIO(data)).convert("L")))


@pytest.mark.parametrize("most", [4095, 65535])
def test_ppm_of_more_than_eight_bits(most):
    head = f"64 64 # a comment\n{most}\n".encode()
    rgb = np.stack([RAMP] * 3, axis=-1)
    np.testing.assert_array_equal(read(b"P5\n#x\n" + head + RAMP.astype(">u2").tobytes()), GREY)
    np.testing.assert_array_equal(read(b"P6\n" + head + rgb.astype(">u2").tobytes()), GREY)
    text = " ".join(map(str, rgb.ravel())).encode()
    np.testing.assert_array_equal(read(b"P3\n" + head + b"# more\n" + text), GREY)
    assert (
        refusal(b"P6\n" + head + bytes(100)) == "the file is cut short, its end is missing; copy or download it again."
    )


# Orientation


@pytest.mark.parametrize("turn", range(1, 9))
def test_orientation_beside_tags_of_any_kind(turn):
    """One number is looked at: the other tags may be of the wrong type, and nothing is written anew."""
    image = Image.fromarray(NOISE)
    exif = Image.Exif()
    exif[0x0112] = turn
    names = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90".split()
    upright = image if turn == 1 else image.transpose(Image.Transpose[names[turn - 2]])
    upright = np.asarray(upright)
    # A focal length (a fraction) as text, an aperture as float, and one tag that points behind the end
    tags = [(0x0112, 3, 1, turn), (0x829A, 2, 1, 0x41), (0x829D, 11, 1, 0x7F800000), (0x9286, 5, 9, 0xFFFFFF)]
    block = b"MM\0*" + struct.pack(">IH", 8, len(tags))
    for tag, kind, count, content in tags:
        value = struct.pack(">HH", content, 0) if kind == 3 else struct.pack(">I", content)
        block += struct.pack(">HHI", tag, kind, count) + value
    block = b"Exif\0\0" + block + bytes(4)
    for data in (
        encode(image, "PNG", exif=exif),
        encode(image, "PNG", exif=block),
        encode(image, "WEBP", lossless=True, exif=exif),
        tiff(NOISE, "<", 1, 1, t274=[turn]),
        tiff(NOISE, ">", 1, 8, t274=[turn], t33434=[7]),  # an exposure time, not a fraction
    ):
        np.testing.assert_array_equal(read(data), upright)
        np.testing.assert_array_equal(read(Image.open(io.BytesIO(data))), upright)
    jpeg = encode(image, "JPEG", quality=100, exif=block)
    assert np.abs(read(jpeg).astype(int) - upright).max() <= 4


# What is read, and what is said


def test_a_large_text_beside_good_pixels():
    texts = [chunk(b"tEXt", b"Comment\0" + b"x" * 2 * 2**20), chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**23)))]
    texts.append(chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(2**23))))
    np.testing.assert_array_equal(read(png(NOISE, 0, *texts)), NOISE)
    damaged = bytearray(png(NOISE, 0, *texts))
    damaged[-40] ^= 1
    assert refusal(bytes(damaged)) == (
        "the image cannot be decoded: the file is damaged; replace the file or leave it out."
    )


def test_kinds_of_jpeg_that_are_not_read_are_named():
    baseline = encode(Image.fromarray(NOISE), "JPEG")
    at = baseline.index(b"\xff\xc0")
    for marker, bits, what in ((0xC1, 12, "a JPEG"), (0xC3, 16, "a lossless JPEG"), (0xF7, 12, "a JPEG-LS")):
        data = bytearray(baseline)
        data[at + 1], data[at + 4] = marker, bits
        assert refusal(bytes(data)) == (
            f"{what} file of {bits} bits cannot be read outside DICOM; export it as PNG or as DICOM."
        )


@pytest.mark.parametrize("dtype", ["f2", "f8", "i8"])
def test_kinds_of_tiff_that_are_not_read_are_named(dtype):
    kind, bits = {"f": "floating-point", "i": "signed"}[dtype[0]], 8 * int(dtype[1])
    assert refusal(tiff(RAMP.astype(dtype), "<", 1, 1)) == (
        f"a TIFF of 1 {kind} sample of {bits} bits (photometric interpretation 1, compression 1) cannot be read; "
        "export it as PNG."
    )


def test_pictures_larger_than_their_data():
    """Decoders make up the rest, and say nothing."""
    message = "the file holds too little for the {} pixels that it claims; replace it."
    assert refusal(png(NOISE, 0, size=(480, 64))) == message.format("64x480")
    jpeg = bytearray(encode(Image.fromarray(NOISE), "JPEG"))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", 4000, 4000)
    assert refusal(bytes(jpeg)) == message.format("4000x4000")
    for tiles in (b"", struct.pack(">II", 8900, 8900)):
        jpeg2000 = bytearray(encode(Image.fromarray(NOISE), "JPEG2000", no_jp2=True))
        jpeg2000[8:16] = struct.pack(">II", 8900, 8900)
        jpeg2000[24 : 24 + len(tiles)] = tiles
        assert refusal(bytes(jpeg2000)) == message.format("8900x8900")
    black = np.zeros((48, 64), np.uint8)
    black[0, 0] = 9
    np.testing.assert_array_equal(read(png(black, 0)), black)  # black at its end, and whole
    np.testing.assert_array_equal(read(encode(Image.fromarray(black), "PNG")), black)


def test_strips_are_not_radiographs():
    message = "{} pixels are not a radiograph: one side is more than 100 times the other; leave it out."
    for size, name in (((1, 80_000_000), "80000000x1"), ((4000, 3), "3x4000")):
        assert refusal(png(NOISE, 0, size=size)) == message.format(name)
    for source in (np.zeros((2, 300), np.uint8), Image.new("L", (300, 2))):
        with pytest.raises(ValueError, match="^an image in memory: 300x2 pixels are not a radiograph"):
            read_radiograph(source)
        with pytest.raises(ValueError, match="^an image in memory: 300x2 pixels are not a radiograph"):
            TierImageProcessor(geometry="crop")(source)


def test_a_palette_that_is_missing():
    assert refusal(png(NOISE, 3)) == (
        "the image cannot be decoded: the file is damaged; replace the file or leave it out."
    )


def test_pictures_of_one_grey_are_flagged(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    warning_once.cache_clear()  # of earlier tests in this process
    with caplog.at_level("WARNING", logger="transformers"):
        for source in (
            png(np.full((8, 8), 77, np.uint8), 0),
            np.full((8, 8), 1234, np.uint16),
            Image.new("L", (9, 9)),
        ):
            assert read_radiograph(source).info["blank"].startswith("all pixels of the image are equal; replace")
    assert "an image in memory: all pixels of the image are equal" in caplog.text
    assert "blank" not in read_radiograph(png(NOISE, 0)).info


def test_shared_cases(shared_cases):
    for name in ("exif_min.jpg", "exif_wrong_type.jpeg"):
        picture, stored = read(shared_cases / name), Image.open(shared_cases / name).convert("L")
        np.testing.assert_array_equal(picture, np.asarray(stored.transpose(Image.Transpose.ROTATE_270)))
    with pytest.raises(ValueError, match="^palette_missing.png: the image cannot be decoded: the file is damaged"):
        read_radiograph(shared_cases / "palette_missing.png")
    with pytest.raises(ValueError, match="^excess.dcm: the file holds 16,384 bytes of pixels where the DICOM header"):
        read_radiograph(shared_cases / "excess.dcm")
