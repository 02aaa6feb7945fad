"""Heat-maps as objects: JSON, arrays, and the picture over the radiograph."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from pipeline_checks import make_image
from transformers import pipeline

from modeling_tier import HeatMap
from modeling_tier.heat_map_tier import COLOURS, OPACITY, map_colours, map_limit, map_opacity
from modeling_tier.pipeline_tier import TASK
from processing_tier import TierImageProcessor, TierProcessor


@pytest.fixture
def heatmap(clip_pipe) -> HeatMap:
    return clip_pipe(make_image(90, 60), "Edema", return_heatmaps=True)[0]["heatmap"]


def test_results_with_heatmaps_are_json(clip_pipe, processor):
    cropped = TierImageProcessor(size={"height": 32, "width": 32}, geometry="crop")
    pipe = pipeline(TASK, model=clip_pipe.model, processor=TierProcessor(cropped, processor.tokenizer), device="cpu")
    results = pipe([make_image(100, 50), make_image(40, 40)], return_heatmaps=True)
    read = json.loads(json.dumps(results, allow_nan=False))
    assert read == results
    told, array = read[0][0]["heatmap"], results[0][0]["heatmap"].array
    assert (told["height"], told["width"]) == array.shape == (50, 100)
    values = np.array(told["values"], dtype=float)
    assert values.shape == (16, 32)
    # the cell in row i covers an even share of the image, and its value is the map's in its middle
    rows, columns = ((np.arange(n) + 0.5) / n * size for n, size in ((16, 50), (32, 100)))
    for row, y in enumerate(rows):
        for column, x in enumerate(columns):
            middle = array[int(y), int(x)]
            assert np.isnan(middle) == np.isnan(values[row, column])
            assert np.isnan(middle) or values[row, column] == pytest.approx(
                middle, abs=0.1 * float(np.nanmax(np.abs(array)))
            )
    assert np.isnan(values).sum() == values.size / 2  # the sides that the crop cuts off
    words = pipe.word_maps(make_image(100, 50), "Edema.")
    assert json.loads(json.dumps(words, allow_nan=False)) == words


def test_numpy_takes_a_heatmap_as_its_array(heatmap):
    assert heatmap.shape == heatmap.array.shape == (60, 90)
    np.testing.assert_array_equal(np.asarray(heatmap), heatmap.array)
    assert np.abs(heatmap).max() == np.abs(heatmap.array).max()
    assert heatmap.array is heatmap.array


def test_the_overlay_is_the_radiograph_tinted_by_the_map(heatmap):
    grey = np.asarray(make_image(90, 60), dtype=np.float32)
    limit = heatmap.limit
    alpha = OPACITY * np.clip(np.abs(heatmap.array) / limit, 0, 1)
    ends = np.where((heatmap.array > 0)[..., None], COLOURS[-1], COLOURS[0])
    strong = np.abs(heatmap.array) >= limit
    assert strong.any()
    drawn = np.asarray(heatmap.overlay(), dtype=np.float32)
    expected = (1 - OPACITY) * grey[..., None] + OPACITY * ends
    np.testing.assert_allclose(drawn[strong], expected[strong], rtol=0, atol=0.51)
    shift = np.abs(drawn - grey[..., None]).max(axis=-1)
    assert (shift <= 255 * alpha + 0.51).all()  # nothing is drawn where the map is 0
    faint = np.asarray(heatmap.overlay(limit=1e6), dtype=np.float32)
    np.testing.assert_allclose(faint, np.repeat(grey[..., None], 3, axis=-1), rtol=0, atol=0.51)
    np.testing.assert_array_equal(heatmap.overlay(opacity=0), np.repeat(grey[..., None], 3, axis=-1))
    np.testing.assert_array_equal(
        Image.open(io.BytesIO(heatmap.to_png(longest_edge=45))), heatmap.overlay(None, OPACITY, 45)
    )
    assert heatmap.overlay(longest_edge=45).size == (45, 30)
    assert heatmap.overlay(longest_edge=4500).size == (90, 60)


def test_the_picture_of_a_file_is_drawn_in_full(clip_pipe, tmp_path):
    large = Image.fromarray(
        np.kron(np.random.default_rng(0).integers(0, 256, (40, 50), np.uint8), np.ones((9, 9), np.uint8))
    )
    large.save(tmp_path / "x.jpg", quality=95)
    assert clip_pipe.image_processor.read(tmp_path / "x.jpg").size < large.size  # what the model needs
    data = (tmp_path / "x.jpg").read_bytes()
    for source in (str(tmp_path / "x.jpg"), data, {"image": {"bytes": data, "path": None}}):
        for batch_size in (1, 2):
            results = clip_pipe([source, source], "Edema", return_heatmaps=True, batch_size=batch_size)
            plain = results[1][0]["heatmap"].overlay(opacity=0)
            np.testing.assert_array_equal(np.asarray(plain)[..., 0], Image.open(tmp_path / "x.jpg").convert("L"))
    kept = clip_pipe(io.BytesIO(data), "Edema", return_heatmaps=True)[0]["heatmap"].overlay(opacity=0)
    assert kept.size == large.size  # from the pixels that the model had, since an open file cannot be read again
    (tmp_path / "x.jpg").unlink()
    results = clip_pipe(iter([str(tmp_path / "x.jpg")]), "Edema", return_heatmaps=True, on_error="skip")
    assert next(iter(results)).keys() == {"error"}


def test_what_the_model_did_not_see_is_not_tinted(clip_pipe):
    clip_pipe.image_processor = TierImageProcessor(size={"height": 32, "width": 32}, geometry="crop")
    overlay = np.asarray(clip_pipe(make_image(100, 50), "Edema", return_heatmaps=True)[0]["heatmap"].overlay())
    assert (overlay[:, :25] == overlay[:, :25, :1]).all() and (overlay[:, 75:] == overlay[:, 75:, :1]).all()
    assert (overlay[:, 25:75] != overlay[:, 25:75, :1]).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "limit must be a number above 0, not 0."),
        ({"opacity": 2}, "opacity must be a number from 0 to 1, not 2."),
        ({"longest_edge": 0}, "longest_edge must be at least 1 pixel, not 0."),
    ],
)
def test_bad_options_of_an_overlay(heatmap, options, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        heatmap.overlay(**options)


def test_colours():
    values = np.array([-2.0, -1, 0, 0.5, 1, np.nan])
    assert map_limit(np.array([[-3.0, 1, np.nan, 0]] * 100)) == 3
    np.testing.assert_allclose(map_opacity(values, 1.0), np.array([1, 1, 0, 0.5, 1, 0]) * OPACITY)
    np.testing.assert_array_equal(map_colours(values, 1.0)[[0, 1, 2, 4]], COLOURS[[0, 0, 8, 16]])
    matplotlib = pytest.importorskip("matplotlib")
    levels = np.linspace(-1, 1, 256)
    scale = matplotlib.colormaps["coolwarm"](np.linspace(0, 1, 256))[:, :3] * 255
    assert np.abs(map_colours(levels, 1.0) - scale).max() < 8
