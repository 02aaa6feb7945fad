import numpy as np
from PIL import Image, ImageFont

from evaluation_tier.figures.captions import LEAST_EDGE, add_caption, break_line


def test_the_picture_stays_above_its_caption():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 800, 3), dtype=np.uint8))
    page = np.asarray(add_caption(picture, ["Edema", "A note"], 0.02))
    np.testing.assert_array_equal(page[:600], np.asarray(picture))
    strip = page[600:]
    assert 50 < len(strip) < 150 and (strip[:, -1] == 255).all()
    assert (strip == [180, 4, 38]).all(axis=-1).any() and (strip == [59, 76, 192]).all(axis=-1).any()  # the scale
    assert add_caption(Image.new("RGB", (256, 128)), ["Edema"], 1.0).width == LEAST_EDGE


def test_long_lines_are_broken():
    font = ImageFont.load_default(size=14)
    words = "a finding with a name of very many words in it " * 4
    lines = break_line(words, font, 200)
    assert " ".join(lines) == words.strip() and len(lines) > 3
    assert all(font.getlength(line) <= 200 for line in lines)
