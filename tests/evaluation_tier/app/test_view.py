"""The HTML of the page: colours, bars, thresholds, calibration, and that nothing of a visitor becomes markup."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from pipeline_checks import encode, make_image

from evaluation_tier.app.answers import answer
from evaluation_tier.app.questions import Upload, read_sentences
from evaluation_tier.app.view import answer_html, banner_html, chooser_html, colour_layer, error_html, escaped

UPLOAD = Upload("<b>${x}{{y}}`.png", encode(make_image(50, 60)))
SENTENCES = read_sentences("<img src=x onerror=alert(1)> ${1} {{value}}")


class Elements(HTMLParser):
    """All start tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data

    def named(self, css: str) -> list[dict[str, str | None]]:
        return [told for _, told in self.tags if css in (told.get("class") or "").split()]


@pytest.fixture(scope="module")
def page(model) -> str:
    return answer_html([answer(model, UPLOAD, ["Pleural Effusion", "Edema"], SENTENCES)] * 2, UPLOAD)


def test_nothing_of_a_visitor_is_markup_or_a_template(page):
    elements = Elements(page)
    assert {tag for tag, _ in elements.tags} <= {
        *("div", "strong", "span", "label", "input", "button", "section", "h3", "img", "p", "b", "i", "br", "pre")
    }
    assert not [name for _, told in elements.tags for name in told if name.startswith("on")]
    assert not re.search(r"[{}$`]", page)
    assert UPLOAD.name in elements.text and "<img src=x onerror=alert(1)> ${1} {{value}}" in elements.text
    assert escaped("<a href='{x}'>") == "&lt;a href=&#x27;&#123;x&#125;&#x27;&gt;"
    assert error_html("<script>").count("<") == 2
    sources = [told["src"] for tag, told in elements.tags if tag == "img" and "src" in told]
    assert len(sources) == 4 and all(source.startswith("data:image/png;base64,") for source in sources)


def test_bars_thresholds_and_calibration(page):
    elements = Elements(page)
    rows = elements.named("tier-row")
    assert ["tier-uncalibrated" in row["class"] for row in rows] == [True, False, True] * 2
    ticks = elements.named("tier-threshold")
    assert [tick["style"] for tick in ticks] == ["left:40.0%"] * 2
    assert "(threshold 0.40)" in elements.text
    assert (
        "A probability for images like those of its calibration: 300 images of phantom, split 'validation', "
        "2026-01-02." in elements.text
    )
    assert "Not calibrated: this score ranks images and is not a probability." in elements.text
    assert "“No edema.” (2 sentences for the finding, 1 against it)" in elements.text
    assert elements.text.count("Research software, not a medical device: not for clinical use.") >= 1
    assert "Not for clinical use." in Elements(banner_html()).text


def test_every_word_is_a_button_and_the_sentence_stays_whole(page, model):
    elements = Elements(page)
    words = elements.named("tier-word")
    captions = [
        told["data-caption"] for told in words if told["data-caption"].endswith("of “Small left pleural effusion.”")
    ]
    assert (
        captions
        == [f"Word “{word}” of “Small left pleural effusion.”" for word in "Small left pleural effusion".split()] * 2
    )
    assert len({told["data-key"] for told in words}) == len(words) // 2  # equal in both models
    assert {told["data-limit"] for told in words} == {f"{model.limits['word']:.2g}"}
    assert "Small left pleural effusion." in elements.text


def test_the_layer_over_the_picture_is_the_overlay(model):
    content = encode(make_image(100, 80))
    [finding] = model.pipe(content, ["Edema"], return_heatmaps=True)
    limit = 0.5 * finding["heatmap"].limit
    layer = colour_layer(finding["heatmap"], limit)
    assert (layer.mode, layer.size) == ("RGBA", (100, 80))
    rgba = np.asarray(layer, dtype=float)
    grey = np.asarray(finding["heatmap"].picture.image, dtype=float)[..., None]
    alpha = 0.4 * rgba[..., 3:] / 255
    blended = (1 - alpha) * grey + alpha * rgba[..., :3]
    expected = np.asarray(finding["heatmap"].overlay(limit=limit, opacity=0.4), dtype=float)
    np.testing.assert_allclose(blended, expected, rtol=0, atol=1.01)
    large = model.pipe(encode(make_image(1000, 800)), ["Edema"], return_heatmaps=True)[0]["heatmap"]
    assert colour_layer(large, limit).size == (128, 102)


def test_the_chooser_says_that_samples_are_synthetic(samples):
    elements = Elements(chooser_html(samples, 40 * 2**20))
    assert elements.text.count("Synthetic, ") == len(samples) and "at most 40 MiB" in elements.text
    assert [told["data-sample"] for told in elements.named("tier-sample")] == ["0", "1", "2", "3"]
    [first, *_] = [told["src"] for tag, told in elements.tags if tag == "img"]
    with Image.open(io.BytesIO(base64.b64decode(first.partition(",")[2]))) as thumbnail:
        assert thumbnail.size == (96, 96)
