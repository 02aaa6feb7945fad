"""
Answers as HTML: bars, words to click, and layers of colour that `page.js` lays over the radiograph.

Everything that the page needs later is inside this HTML, so that the server forgets the image with the answer.
"""

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from evaluation_tier.app.answers import Answer, ShownFinding, as_json
from evaluation_tier.app.models import ShownModel
from evaluation_tier.app.questions import Upload
from evaluation_tier.app.samples import Sample
from evaluation_tier.predict.files import NOTE
from modeling_tier import HeatMap
from modeling_tier.findings_tier import SIDES, describe_measurement
from modeling_tier.heat_map_tier import OPACITY, fit_edge, map_colours, map_opacity

PICTURE_EDGE = 1024  # pixels along the longer side
LAYER_EDGE = 128  # the browser interpolates between these; models have at most 40 patches a side
THUMBNAIL_EDGE = 96
TEMPLATE_SIGNS = str.maketrans({"{": "&#123;", "}": "&#125;", "$": "&#36;", "`": "&#96;"})  # Gradio's templates


def escaped(text: object) -> str:
    """Text of a visitor, a file or a model as HTML, which Gradio's templates do not read either."""
    return html.escape(str(text)).translate(TEMPLATE_SIGNS)


def data_url(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def colour_layer(heatmap: HeatMap, limit: float) -> Image.Image:
    """The colours of a map, mode "RGBA": transparent where it is 0, opaque from `limit` on."""
    values = heatmap.at_size(fit_edge(heatmap.shape, LAYER_EDGE))
    alpha = 255 * map_opacity(values, limit, 1.0)[..., None]
    return Image.fromarray(np.concatenate([map_colours(values, limit), alpha], axis=-1).round().astype(np.uint8))


def colour_bar() -> Image.Image:
    return Image.fromarray(map_colours(np.linspace(-1, 1, 256)[None].repeat(16, axis=0), 1.0).round().astype(np.uint8))


def layer_button(css: str, key: str, text: str, heatmap: HeatMap, told: tuple[str, float, str]) -> str:
    """
    A button that lays a map over the picture.

    Args:
        key: equal for the same finding or word of both models.
        told: the caption of the map, its limit, and what positive values mean.
    """
    caption, limit, sign = told
    return (
        f'<button type="button" class="{css}" aria-pressed="false" data-key="{escaped(key)}" '
        f'data-caption="{escaped(caption)}" data-limit="{limit:.2g}" data-sign="{sign}" '
        f'data-layer="{data_url(colour_layer(heatmap, limit))}">{escaped(text)}</button>'
    )


def finding_row(model: ShownModel, shown: ShownFinding) -> str:
    """Name, score, bar with threshold, sentence with its words, and calibration of one finding."""
    result, entry = shown.result, shown.entry
    label, score, key = result["label"], result["score"], f"finding {result['label']}"
    title = label if label != shown.sentence else "The whole sentence"
    name = f'<span class="tier-name">{escaped(title)}</span>'
    if shown.heatmap is not None:
        told = (f"Map of: {label}", model.limits["finding"], "the finding")
        name = layer_button("tier-name", key, title, shown.heatmap, told)
    verdict, tick = "", ""
    if "threshold" in result:
        threshold = result["threshold"]
        verdict = f", {'present' if result['present'] else 'absent'} (threshold {threshold:.2f})"
        tick = f'<i class="tier-threshold" style="left:{100 * threshold:.1f}%" title="threshold {threshold:.3f}"></i>'
    kind = "" if result["calibrated"] else " tier-uncalibrated"
    present = " tier-present" if result.get("present") else ""
    return (
        f'<div class="tier-row{kind}{present}" data-row="{escaped(key)}">'
        f'<div class="tier-head">{name}<span class="tier-score">{score:.3f}{verdict}</span></div>'
        f'<div class="tier-bar" role="img" aria-label="score {score:.3f} of 1">'
        f'<b style="width:{100 * score:.1f}%"></b>{tick}</div>'
        f'<p class="tier-sentence">{sentence_words(model, shown)}</p>'
        f'<p class="tier-small">Against: {sides(entry)}<br>{calibration(entry)}</p></div>'
    )


def sides(entry: Mapping[str, Any]) -> str:
    """The first negative sentence, and how many sentences there are where a side has several."""
    numbers = [len(entry[side]) for side in SIDES]
    several = f" ({numbers[0]} sentences for the finding, {numbers[1]} against it)" if max(numbers) > 1 else ""
    return f"“{escaped(entry['negative'][0])}”{several}"


def calibration(entry: Mapping[str, Any]) -> str:
    """On which images calibration and threshold were fitted."""
    images = escaped(describe_measurement(entry.get("measured_on")))
    if "scale" in entry:
        return f"A probability for images like those of its calibration: {images}."
    threshold = f" The threshold comes from {images}." if "threshold" in entry else ""
    return f"Not calibrated: this score ranks images and is not a probability.{threshold}"


def sentence_words(model: ShownModel, shown: ShownFinding) -> str:
    """The sentence, each word a button that shows where the model sees it; punctuation stays text."""
    sentence = shown.sentence
    if not shown.words:
        return escaped(sentence)
    parts, end = [], 0
    for number, word in enumerate(shown.words):
        if not any(sign.isalnum() for sign in word["word"]):
            continue  # a punctuation mark: plain text
        start = sentence.index(word["word"], end)
        parts.append(escaped(sentence[end:start]))
        end = start + len(word["word"])
        told = (f"Word “{word['word']}” of “{sentence}”", model.limits["word"], "the word")
        key = f"word {number} {word['word']} of {shown.result['label']}"
        parts.append(layer_button("tier-word", key, word["word"], word["heatmap"], told))
    return "".join(parts) + escaped(sentence[end:])


def model_pane(given: Answer) -> str:
    """Picture, colour bar and findings of one model."""
    model, picture = given.model, given.picture
    height, width = fit_edge(picture.size[::-1], PICTURE_EDGE)
    small = data_url(picture.resize((width, height), Image.Resampling.LANCZOS))
    layer, legend = "", '<p class="tier-small">This model does not give heat-maps.</p>'
    if model.limits:
        layer = f'<img class="tier-layer" alt="" style="opacity:{OPACITY}">'
        legend = (
            '<p class="tier-caption" aria-live="polite"></p><p class="tier-legend"><span class="tier-low"></span>'
            f'<img class="tier-colours" alt="blue to red" src="{data_url(colour_bar())}">'
            '<span class="tier-high"></span>'
            '</p><p class="tier-small">All images have the same colour scale.</p>'
        )
    rows = "".join(finding_row(model, shown) for shown in given.findings)
    return (
        f'<section class="tier-model"><h3>{escaped(model.title)}</h3><div class="tier-columns"><div class="tier-view">'
        f'<div class="tier-picture"><img class="tier-grey" alt="the radiograph" src="{small}">{layer}</div>{legend}'
        f'<button type="button" class="tier-png">Download PNG</button></div><div class="tier-rows">{rows}</div></div>'
        "</section>"
    )


def answer_html(answers: Sequence[Answer], upload: Upload) -> str:
    """The answers of all models side by side, with their JSON for the download."""
    told = json.dumps(as_json(answers, upload), ensure_ascii=False, allow_nan=False)
    slider = ""
    if any(given.model.limits for given in answers):
        slider = (
            '<label class="tier-opacity">Opacity of the heat-map <input type="range" min="0" max="100" '
            f'value="{100 * OPACITY:.0f}"></label>'
        )
    hint = "Click a finding or a word to see its map." if slider else ""
    return (
        f'<div class="tier-answer" data-note="{escaped(NOTE)}" data-image="{escaped(upload.name)}">'
        f'<div class="tier-tools"><strong>{escaped(upload.name)}</strong><span>{hint}</span>{slider}'
        '<button type="button" class="tier-json">Download JSON</button></div>'
        f'<div class="tier-models">{"".join(map(model_pane, answers))}</div>'
        f'<p class="tier-small">{escaped(NOTE)} A heat-map shows what the score is made of, not where a disease '
        "is.</p>"
        f'<pre class="tier-data" hidden>{escaped(told)}</pre></div>'
    )


def error_html(sentence: str) -> str:
    return f'<div class="tier-error" role="alert">{escaped(sentence)}</div>'


def banner_html() -> str:
    return (
        '<div class="tier-banner" role="note"><strong>Not for clinical use.</strong> Research software, not a medical '
        "device.</div>"
    )


def chooser_html(samples: Sequence[Sample], max_bytes: int) -> str:
    """Where a visitor drops a file, or chooses a synthetic radiograph."""
    thumbnails = []
    for number, sample in enumerate(samples):
        picture = Image.open(io.BytesIO(sample.upload.content))
        picture.thumbnail((THUMBNAIL_EDGE, THUMBNAIL_EDGE))
        shown = " and ".join(map(str.lower, sample.findings)) or "without findings"
        thumbnails.append(
            f'<button type="button" class="tier-sample" aria-pressed="false" data-sample="{number}">'
            f'<img alt="" src="{data_url(picture)}"><span>Synthetic, {escaped(shown)}</span></button>'
        )
    return (
        f'<div class="tier-chooser"><label class="tier-drop" data-max="{max_bytes}"><input type="file" '
        'accept=".dcm,.dicom,.png,.jpg,.jpeg,.jp2,.tif,.tiff,application/dicom,image/png,image/jpeg,image/tiff">'
        "<strong>Drop a radiograph here, or click</strong>"
        f'<span class="tier-file">DICOM, PNG, JPEG or TIFF, at most {max_bytes >> 20} MiB</span></label>'
        '<p class="tier-small">Or choose a <b>synthetic</b> radiograph. A program drew it; it does not show a '
        "patient.</p>"
        f'<div class="tier-samples">{"".join(thumbnails)}</div></div>'
    )
