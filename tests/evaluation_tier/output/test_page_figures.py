import base64
import io
import logging

import numpy as np
import pytest
from PIL import Image

from evaluation_tier.output import page_figures
from evaluation_tier.output.page import render_evaluation
from evaluation_tier.output.page_figures import read_figure, read_figures
from evaluation_tier.output.result_tables import evaluation_tables


def save_noise(path, width: int, height: int, seed: int = 0):
    """A picture that does not compress."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def decode(figure) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(figure.base64)))


def test_curves_keep_every_pixel_and_transparency_becomes_white(tmp_path):
    picture = Image.new("RGBA", (40, 30), (0, 0, 0, 0))
    picture.paste((0, 114, 178, 255), (5, 5, 20, 8))
    picture.save(tmp_path / "a.png")
    figure = read_figure(tmp_path / "a.png", "alt", "caption")
    with decode(figure) as found:
        assert found.format == "WEBP" and found.size == (figure.width, figure.height) == (40, 30)
        pixels = np.asarray(found.convert("RGB"))
    assert (pixels[6, 10] == (0, 114, 178)).all() and (pixels[20, 20] == 255).all()


def test_wide_figures_are_made_smaller(tmp_path):
    figure = read_figure(save_noise(tmp_path / "a.png", 1700, 100), "alt", "caption")
    assert (figure.width, figure.height) == (1600, 94)


def test_a_figure_of_too_many_pixels_is_left_out(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(page_figures, "MAX_FIGURE_PIXELS", 99)
    assert read_figure(save_noise(tmp_path / "a.png", 10, 10), "alt", "caption") is None
    assert "leaves out a.png: it has more than 99 pixels" in caplog.text


def test_figures_shrink_and_then_the_last_ones_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(page_figures, "SIZES", ((200, 82), (100, 55)))
    paths = [save_noise(tmp_path / f"similarity_{i}.png", 200, 100, seed=i) for i in range(3)]
    metrics = {"findings": {}}
    figures, left_out = read_figures(paths, metrics, 10**9)
    assert [figure.width for figure in figures.values()] == [200, 200, 200] and not left_out
    large = sum(len(figure.base64) for figure in figures.values())
    figures, left_out = read_figures(paths, metrics, large - 1)
    assert [figure.width for figure in figures.values()] == [100, 100, 100] and not left_out
    sizes = [len(figure.base64) for figure in figures.values()]
    figures, left_out = read_figures(paths, metrics, sum(sizes) - 1)
    assert list(figures) == paths[:2] and left_out == paths[2:]


@pytest.mark.parametrize("max_bytes", [60_000, 100_000])
def test_the_page_stays_below_its_size_and_names_what_it_lacks(metrics, tmp_path, monkeypatch, caplog, max_bytes):
    monkeypatch.setattr("evaluation_tier.output.page.MAX_PAGE_BYTES", max_bytes)
    monkeypatch.setattr(page_figures, "SIZES", ((200, 82),))
    for i in range(8):
        save_noise(tmp_path / f"similarity_{i}.png", 200, 100, seed=i)
    with caplog.at_level(logging.WARNING):
        text = render_evaluation(tmp_path, metrics, evaluation_tables(metrics))
    assert 0.5 * max_bytes < len(text.encode()) < max_bytes
    assert "in the folder of the evaluation: similarity_" in text and "similarity_7.png." in text
    assert "leaves out similarity_7.png: it would exceed" in caplog.text
