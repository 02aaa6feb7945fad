import io
import struct
import sys
import zlib

import numpy as np
import pytest
from loopback import serve
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from processing_tier import TierImageProcessor, limits_tier
from processing_tier.radiograph_tier import fetch_radiograph, original_size, path_under, read_radiograph, resize

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """The head of a PNG that claims this size and has no pixels."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0), b"IDAT"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks
    )


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "PA", "I", "I;16", "F", "CMYK"])
def test_every_mode_keeps_grey_levels(mode):
    image = Image.fromarray(RAMP)
    if mode == "I;16":
        image = Image.fromarray(RAMP.astype(np.uint16))
    elif mode != "L":
        image = image.convert("L" if mode == "PA" else mode) if mode != "PA" else image.convert("P").convert("PA")
    assert image.mode == mode
    read = read_radiograph(image)
    assert read.mode == "L"
    np.testing.assert_array_equal(np.asarray(read), RAMP)


def test_one_bit_becomes_black_and_white():
    image = Image.fromarray(RAMP > 100)
    assert image.mode == "1"
    np.testing.assert_array_equal(np.asarray(read_radiograph(image)), np.where(RAMP > 100, 255, 0))


def test_colour_is_luma_and_transparency_is_black():
    assert np.asarray(read_radiograph(Image.new("RGB", (1, 1), (255, 0, 0)))).item() == 76  # 0.299 * 255
    assert np.asarray(read_radiograph(Image.new("RGBA", (1, 1), (200, 200, 200, 0)))).item() == 0
    assert np.asarray(read_radiograph(Image.new("RGBA", (1, 1), (200, 200, 200, 255)))).item() == 200


def test_sixteen_bit_png_is_windowed_between_its_percentiles():
    array = (np.arange(10000, dtype=np.uint16) * 4).reshape(100, 100)  # 0 .. 39996
    data = encode(Image.fromarray(array))
    assert Image.open(io.BytesIO(data)).mode == "I;16"
    low, high = 4 * 0.005 * 9999, 4 * 0.995 * 9999
    expected = np.rint((array - low) / (high - low) * 255).clip(0, 255)
    difference = np.abs(np.asarray(read_radiograph(data)).astype(int) - expected)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01  # float32 rounding at .5


def test_a_burnt_in_marker_does_not_set_the_scale():
    array = np.tile(np.linspace(1000, 3000, 100), (100, 1)).astype(np.uint16)
    clean = np.asarray(read_radiograph(array)).astype(int)
    array[:4, :5] = 65535  # 0.2 % of the picture
    marked = np.asarray(read_radiograph(array)).astype(int)
    assert np.abs(clean - marked)[4:].max() <= 2


def test_arrays():
    np.testing.assert_array_equal(np.asarray(read_radiograph(RAMP)), RAMP)
    np.testing.assert_array_equal(np.asarray(read_radiograph(RAMP[..., None])), RAMP)
    np.testing.assert_array_equal(np.asarray(read_radiograph(np.stack([RAMP] * 3, axis=-1))), RAMP)
    np.testing.assert_array_equal(np.asarray(read_radiograph(RAMP.astype(np.int64))), RAMP)
    np.testing.assert_array_equal(np.asarray(read_radiograph(RAMP.astype(np.float64) / 255)), RAMP)
    assert np.asarray(read_radiograph(np.full((4, 4), 1234, dtype=np.uint16))).max() == 0  # nothing to see
    with pytest.raises(ValueError, match="^an image holds NaN or infinite pixels; replace them with numbers.$"):
        read_radiograph(np.full((4, 4), np.nan))


def test_sources_agree(tmp_path):
    data = encode(Image.fromarray(RAMP))
    path = tmp_path / "x.png"
    path.write_bytes(data)
    sources = [data, path, str(path), {"bytes": data, "path": None}, {"bytes": None, "path": str(path)}]
    for source in sources:
        np.testing.assert_array_equal(np.asarray(read_radiograph(source)), RAMP)
    with open(path, "rb") as file:
        np.testing.assert_array_equal(np.asarray(read_radiograph(file)), RAMP)
    np.testing.assert_array_equal(np.asarray(read_radiograph("x.png", root=tmp_path)), RAMP)
    np.testing.assert_array_equal(np.asarray(read_radiograph({"bytes": None, "path": "x.png"}, root=tmp_path)), RAMP)


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side: turn clockwise
    data = encode(Image.fromarray(RAMP[:8]), "JPEG", quality=100, exif=exif)
    upright = np.asarray(read_radiograph(data)).astype(int)
    assert upright.shape == (16, 8)
    assert np.abs(upright - np.rot90(RAMP[:8], -1)).max() <= 2


def test_missing_files(tmp_path):
    with pytest.raises(
        ValueError, match="^y.png: the image file does not exist; check the path and the image folder.$"
    ):
        read_radiograph(tmp_path / "y.png")
    with pytest.raises(ValueError, match="^an image record has neither bytes nor a path; give one of the two.$"):
        read_radiograph({"bytes": None, "path": None})


def test_sources_that_are_no_image():
    for source, kind in ((None, "NoneType"), (object(), "object"), ({1, 2}, "set")):
        with pytest.raises(ValueError, match=f"^an image cannot be read from a {kind}; give a path, bytes, an open"):
            read_radiograph(source)
    for shape in ((), (5,), (3, 8, 9), (1, 8, 8, 3)):
        with pytest.raises(ValueError) as error:
            read_radiograph(np.zeros(shape))
        assert str(error.value) == (
            f"an array of shape {shape} is not an image; give (height, width) or (height, width, 1 | 3 | 4)."
        )
    with pytest.raises(ValueError, match="has no pixels; give one with at least 1x1.$"):
        read_radiograph(np.zeros((0, 5), dtype=np.uint8))
    noise = encode(Image.effect_noise((64, 64), 80))
    with pytest.raises(ValueError, match="^an image in memory: the image cannot be decoded"):
        read_radiograph(Image.open(io.BytesIO(noise[:2000])))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_gigantic_images_are_refused_before_they_are_decoded(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(png_header(20000, 20000))  # PIL itself refuses to open it
    with pytest.raises(ValueError, match="^x.png: 20000x20000 pixels are more than 80,000,000; export it at a sm"):
        read_radiograph(path)
    path.write_bytes(png_header(9000, 9000))
    message = "9000x9000 pixels are more than 80,000,000; export it at a smaller size."
    with Image.open(path) as image:
        for source, name in ((path, "x.png"), (path.read_bytes(), "an image in memory"), (image, "x.png")):
            with pytest.raises(ValueError, match=f"^{name}: {message}$"):
                read_radiograph(source)
    array = np.broadcast_to(np.uint8(0), (20000, 20000))  # takes one byte
    with pytest.raises(ValueError, match="^an image in memory: 20000x20000 pixels are more than 80,000,000"):
        read_radiograph(array)


@pytest.fixture
def server():
    """URL of a loopback web server with an image, and with a page where an image is expected."""
    image = encode(Image.fromarray(RAMP))
    answers = {"/x.png": (200, image), "/page.png": (200, b"<html>no image</html>"), "/moved.png": (302, b"")}
    with serve(lambda path: answers.get(path, (404, b"")), location="file:///etc/hostname") as url:
        yield url


def test_urls(server):
    np.testing.assert_array_equal(np.asarray(fetch_radiograph(f"{server}/x.png?key=secret")), RAMP)
    processor = TierImageProcessor(size=16)
    np.testing.assert_array_equal(np.asarray(processor.read(f"{server}/x.png")), RAMP)
    grey = processor(f"{server}/x.png", output_dtype="uint8", return_tensors="pt")["pixel_values"]
    np.testing.assert_array_equal(grey[0, 0].numpy(), RAMP)
    with pytest.raises(ValueError, match="^page.png: the file is a web page"):
        fetch_radiograph(f"{server}/page.png")
    hint = "check it, or download the file and give its path.$"
    with pytest.raises(ValueError, match=rf"^no.png: the URL cannot be fetched \(HTTP Error 404: Not Found\); {hint}"):
        fetch_radiograph(f"{server}/no.png?key=secret")
    with pytest.raises(ValueError, match="^moved.png: the URL cannot be fetched"):  # no way to the server's own files
        fetch_radiograph(f"{server}/moved.png")
    with pytest.raises(ValueError, match="^x.png: the URL cannot be fetched .*refused"):
        fetch_radiograph("http://127.0.0.1:9/x.png")
    with pytest.raises(ValueError, match="^127.0.0.1:port: the URL cannot be fetched"):
        fetch_radiograph("http://user:secret@127.0.0.1:port")
    with pytest.raises(ValueError, match=rf"^x.png: the URL cannot be fetched \(InvalidURL\); {hint}"):
        fetch_radiograph(f"{server}/x.png?key=secret and more")
    with pytest.raises(ValueError, match="^an image of a web server: the URL cannot be fetched"):
        fetch_radiograph("http://[secret")
    # What a data set calls a path is never fetched
    for source in (f"{server}/x.png", {"path": f"{server}/x.png", "bytes": None}):
        with pytest.raises(ValueError, match="^x.png: the image file does not exist"):
            read_radiograph(source)


def test_the_image_processor_reads_what_the_reader_reads(make_dicom, tmp_path):
    array = (np.arange(4096).reshape(64, 64)).astype(np.uint16)
    path = tmp_path / "x.dcm"
    path.write_bytes(make_dicom(array, WindowCenter=2048, WindowWidth=1024))
    processor = TierImageProcessor(size=64, output_dtype="uint8")
    expected = np.asarray(read_radiograph(path))
    with open(path, "rb") as file:
        for source in (path, str(path), path.read_bytes(), file):
            np.testing.assert_array_equal(processor(source, return_tensors="pt")["pixel_values"][0, 0], expected)
    both = processor([str(path), array.astype(np.float32)], return_tensors="pt")["pixel_values"]
    np.testing.assert_array_equal(both[0, 0], expected)
    with pytest.raises(ValueError, match="^y.dcm: the image file does not exist"):
        processor(str(tmp_path / "y.dcm"))


def test_dicom_without_pydicom(make_dicom, monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ValueError) as error:
        read_radiograph(make_dicom(np.zeros((8, 8), dtype=np.uint16)))
    assert str(error.value) == (
        "an image in memory: pydicom, which reads DICOM, is not installed: pip install pydicom, or export the image "
        "as PNG."
    )


def test_no_format_that_calls_another_program():
    eps = encode(Image.fromarray(RAMP).convert("RGB"), "EPS")
    with pytest.raises(ValueError, match="^an image in memory: the file is text, not an image; name the image file.$"):
        read_radiograph(eps)


def test_bounds(monkeypatch, tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(encode(Image.fromarray(RAMP)))
    monkeypatch.setattr(limits_tier, "MAX_PIXELS", 255)
    with pytest.raises(ValueError, match="^x.png: 16x16 pixels are more than 255; export it at a smaller size.$"):
        read_radiograph(path)
    monkeypatch.setattr(limits_tier, "MAX_FILE_BYTES", 20)
    with pytest.raises(ValueError, match="^x.png: the file is larger than 0 MiB; export it as a smaller PNG.$"):
        read_radiograph(path)


def test_paths_stay_under_their_root(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside.png"
    root.mkdir()
    outside.write_bytes(encode(Image.fromarray(RAMP)))
    (root / "link.png").symlink_to(outside)
    (root / "folder").symlink_to(tmp_path)
    (root / "inside.png").write_bytes(outside.read_bytes())
    (root / "inner.png").symlink_to(root / "inside.png")
    for leaving in ("../outside.png", str(outside), "link.png", "folder/outside.png", "a/../../outside.png"):
        with pytest.raises(ValueError) as error:
            read_radiograph(leaving, root=root)
        name = leaving.split("/")[-1]
        assert str(error.value) == (
            f"{name}: the path leaves the image folder; name the folder that holds the images."
        )
    assert path_under(root, "inner.png") == (root / "inside.png").resolve()
    assert path_under(root, root / "inside.png") == (root / "inside.png").resolve()
    assert read_radiograph("inner.png", root=root).size == (16, 16)


def make_chest(width: int, height: int) -> Image.Image:
    """Smooth shapes, edges and the noise of a film."""
    y, x = np.mgrid[0:height, 0:width] / max(height, width)
    shapes = 110 + 60 * np.sin(9 * x) * np.cos(7 * y) + 50 * ((x * 40).astype(int) % 7 == 0)
    noise = np.random.default_rng(0).normal(0, 3, (height, width))
    return Image.fromarray((shapes + noise).clip(0, 255).astype(np.uint8))


def test_a_jpeg_is_decoded_at_the_least_size_that_is_asked_for():
    data = encode(make_chest(1003, 805), "JPEG", quality=90)
    full = read_radiograph(data)
    assert full.size == (1003, 805) and full.info == {"original_size": (1003, 805), "reduction": 1}
    cases = [
        ({"longest_edge": 83}, 8),
        ({"longest_edge": 84}, 4),
        ({"longest_edge": 167}, 4),
        ({"longest_edge": 334}, 2),
        ({"longest_edge": 335}, 1),
        ({"shortest_edge": 67}, 8),
        ({"shortest_edge": 68}, 4),
        ({"shortest_edge": 1}, 8),
        ({"shortest_edge": 5000}, 1),
    ]
    for least_size, reduction in cases:
        image = read_radiograph(data, least_size=least_size)
        assert image.info == {"original_size": (1003, 805), "reduction": reduction}
        assert image.size == (-(-1003 // reduction), -(-805 // reduction)) and image.mode == "L"
        assert original_size(image) == (1003, 805)
        # Seen through the image processor's box it is the picture itself
        box = (0, 0, 1003 / reduction, 805 / reduction)
        size = (60, 48)
        difference = np.asarray(full.resize(size)).astype(int) - np.asarray(image.resize(size, box=box))
        assert np.abs(difference).mean() < 0.5
    assert original_size(image.crop((0, 0, 50, 40))) == (50, 40)  # a part stands for itself


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_reduced_jpegs_of_every_mode(mode):
    grey = make_chest(800, 640)
    image = grey.convert(mode) if mode != "RGB" else Image.merge("RGB", [grey, grey.rotate(180), grey.rotate(90)])
    data = encode(image, "JPEG", quality=95, **({"subsampling": 0} if mode == "RGB" else {}))
    full, reduced = read_radiograph(data), read_radiograph(data, least_size={"longest_edge": 60})
    assert reduced.size == (100, 80)
    difference = np.asarray(full.resize((60, 48))).astype(int) - np.asarray(reduced.resize((60, 48)))
    assert np.abs(difference).mean() < 0.6
    luma = np.asarray(Image.open(io.BytesIO(data)).convert("RGB").convert("L")).astype(int)
    assert np.abs(np.asarray(full) - luma).mean() < 0.6  # the luma of the file, not that of its clipped colours


def test_a_turned_jpeg_is_decoded_in_full():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(make_chest(800, 640), "JPEG", quality=95, exif=exif)
    image = read_radiograph(data, least_size={"longest_edge": 60})
    assert image.size == (640, 800) and image.info == {"original_size": (640, 800), "reduction": 1}
    damaged = bytearray(encode(make_chest(80, 64), "JPEG", exif=exif))
    at = damaged.index(b"Exif\0\0") + 6
    damaged[at : at + 12] = b"\xff" * 12
    assert read_radiograph(bytes(damaged)).size == (80, 64)  # no camera, but pixels


def test_a_reduced_jpeg_stays_in_its_place():
    """The centre of a disc, in pixels of the 60 that are left, is where it is in the whole picture."""
    y, x = np.mgrid[:803, :641]
    disc = Image.fromarray(np.uint8(200 * ((x - 300) ** 2 + (y - 410) ** 2 < 90**2)))
    reduced = read_radiograph(encode(disc, "JPEG", quality=95), least_size={"longest_edge": 60})
    assert reduced.info["reduction"] == 8
    centres = []
    for image in (disc, reduced):
        small = np.asarray(resize(image, (48, 60), Image.Resampling.BICUBIC), dtype=float)
        centres.append([(small * axis).sum() / small.sum() for axis in np.mgrid[:60, :48]])
    np.testing.assert_allclose(*centres, atol=0.01)


def test_only_jpeg_is_reduced():
    full = make_chest(501, 403)
    for kind in ("JPEG2000", "PNG", "TIFF"):
        image = read_radiograph(encode(full, kind), least_size={"longest_edge": 20})
        assert image.info == {"original_size": (501, 403), "reduction": 1}


def test_nothing_of_the_header_stays_but_what_is_said(tmp_path):
    comment = encode(Image.fromarray(RAMP), "JPEG", comment=b"DOE^JANE", dpi=(300, 300))
    assert read_radiograph(comment).info == {"original_size": (16, 16), "reduction": 1}
    text = PngInfo()
    for key in ("original_size", "reduction", "pixel_spacing", "Patient"):
        text.add_text(key, "DOE^JANE")
    data = encode(Image.fromarray(RAMP), pnginfo=text)
    opened = Image.open(io.BytesIO(data))
    opened.load()
    for source in (data, opened):
        assert read_radiograph(source).info == {"original_size": (16, 16), "reduction": 1}
    assert original_size(opened) == (16, 16)
    assert opened.info["Patient"] == "DOE^JANE"  # the caller's own stays as it is


def test_real_dicom(shared_data):
    chest = np.asarray(read_radiograph(shared_data / "dicom" / "RG1_J2KI.dcm")).astype(float)
    assert chest.shape == (1955, 1841)
    # Spine and abdomen are bright, both lungs darker, the air beside the neck darkest
    spine, abdomen = chest[900:1100, 880:960].mean(), chest[1700:1900, 300:600].mean()
    lungs = [chest[500:620, 500:700].mean(), chest[500:620, 1150:1350].mean()]
    assert max(lungs) + 50 < min(spine, abdomen)
    assert chest[120:200, 20:60].mean() < min(lungs)
    leg = np.asarray(read_radiograph(shared_data / "dicom" / "RG3_J2KI.dcm")).astype(float)
    assert leg.shape == (1760, 1760)
    assert leg[600, 500:560].mean() < 40 < 120 < leg[600:700, 880:900].mean()  # air, tibia


def test_real_jpeg_equals_the_stored_pixels(shared_data):
    path = sorted((shared_data / "iu_cxr" / "validation").glob("*.jpg"))[0]
    np.testing.assert_array_equal(np.asarray(read_radiograph(path)), np.asarray(Image.open(path).convert("L")))
