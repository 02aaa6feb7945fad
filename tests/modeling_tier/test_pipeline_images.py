"""Images of the pipeline: files, URLs, arrays, DICOM, and those that cannot be read."""

import numpy as np
import pytest
from loopback import serve
from pipeline_checks import encode, make_dicom, make_image, scores

from processing_tier import read_radiograph


@pytest.fixture
def server():
    """URL of a loopback web server that has one image, x.png."""
    image = encode(make_image(40, 50))
    with serve(lambda path: (200 if path == "/x.png" else 404, image)) as url:
        yield url


def test_sources_agree(clip_pipe, server, tmp_path):
    image = make_image(40, 50)
    path = tmp_path / "x.png"
    path.write_bytes(encode(image))
    expected = clip_pipe(image)
    sources = [path, str(path), path.read_bytes(), np.asarray(image), np.stack([image] * 3, axis=-1)]
    sources += [image.convert("RGB"), {"bytes": path.read_bytes(), "path": None}, f"{server}/x.png"]
    for source in sources:
        assert clip_pipe(source) == expected
    with open(path, "rb") as file:
        assert clip_pipe([file, path]) == [expected, expected]


def test_dicom_equals_its_pixels(clip_pipe, tmp_path):
    array = np.random.default_rng(0).integers(0, 4096, (60, 50)).astype(np.uint16)
    path = tmp_path / "x.dcm"
    path.write_bytes(make_dicom(array))  # no window: that of the percentiles, as for an array
    assert clip_pipe(path) == clip_pipe(array) == clip_pipe(path.read_bytes())
    inverted = make_dicom(4095 - array, PhotometricInterpretation="MONOCHROME1")
    assert scores(clip_pipe(inverted)) == pytest.approx(scores(clip_pipe(array)), abs=2e-3)


def test_real_dicom_equals_its_array(clip_pipe, shared_data):
    path = shared_data / "dicom" / "RG1_J2KI.dcm"
    array = np.asarray(read_radiograph(path))
    (result,), (expected,) = (clip_pipe(source, "Edema", return_heatmaps=True) for source in (path, array))
    assert result["score"] == expected["score"]
    np.testing.assert_array_equal(result["heatmap"], expected["heatmap"])
    assert result["heatmap"].shape == array.shape == (1955, 1841)


def test_bad_images(clip_pipe, server, tmp_path):
    (tmp_path / "page.png").write_text("<html><body>Not found</body></html>")
    (tmp_path / "cut.png").write_bytes(encode(make_image(64, 64))[:2000])
    (tmp_path / "ct.dcm").write_bytes(make_dicom(np.zeros((20, 20)), Modality="CT"))
    (tmp_path / "report.dcm").write_bytes(bytes(128) + b"DICM" + bytes(300))
    header = encode(make_image(20, 20))[:16] + (20000).to_bytes(4, "big") * 2 + b"\x08\x00\x00\x00\x00"
    (tmp_path / "huge.png").write_bytes(header + encode(make_image(20, 20))[29:])
    huge = np.broadcast_to(np.uint8(0), (20000, 20000))
    cases = [
        (tmp_path / "none.png", "none.png: the image file does not exist; check the path and the image folder."),
        (tmp_path / "page.png", "page.png: the file is a web page, not an image; download it again, logged in."),
        (tmp_path / "cut.png", "cut.png: the file is cut short, its end is missing; copy or download it again."),
        (tmp_path / "ct.dcm", "ct.dcm: a DICOM image of the modality CT is not a radiograph; leave it out."),
        (
            tmp_path / "report.dcm",
            "report.dcm: the DICOM header cannot be read or describes no image; replace the file or leave it out.",
        ),
        (b"", "an image in memory: the file is empty; copy or download it again."),
        (make_image(1, 1), "1x1 pixels are too few for a radiograph; 16x16 is the minimum."),
        (
            huge,
            "an image in memory: 20000x20000 pixels are more than 80,000,000; export it at a smaller size.",
        ),
        (
            f"{server}/y.png",
            "y.png: the URL cannot be fetched (HTTP Error 404: Not Found); check it, or download the file and give "
            "its path.",
        ),
        (
            None,
            "an image cannot be read from a NoneType; give a path, bytes, an open file, a PIL image or an array.",
        ),
    ]
    for source, message in cases:
        with pytest.raises(ValueError) as error:
            clip_pipe(source)
        assert str(error.value) == message
        with pytest.raises(ValueError) as error:  # in a list, the error says which
            clip_pipe([make_image(40, 50), source, make_image(40, 50)], batch_size=3)
        assert str(error.value) == f"image 2 of 3: {message}"
    with pytest.raises(ValueError, match="^huge.png: 20000x20000 pixels are more than 80,000,000"):
        clip_pipe(tmp_path / "huge.png")
