"""Answers are what the pipeline says of the same image; samples and colour scales of the page."""

import json
from pathlib import Path

import numpy as np
import pytest
from pipeline_checks import encode, make_dicom, make_image
from tiny_models import save_tiny_clip
from tiny_radzero import Parts
from transformers import AutoProcessor

from evaluation_tier.app.answers import answer, as_json
from evaluation_tier.app.models import load_shown_models
from evaluation_tier.app.questions import Upload, read_sentences
from evaluation_tier.app.samples import NUM_SAMPLES
from evaluation_tier.models.adapters import AdapterName
from evaluation_tier.predict.files import NOTE
from modeling_tier import TierCLIPModel

ROOT = Path(__file__).parents[3]
OWN = read_sentences("No pneumothorax. | The heart is enlarged.")


def test_samples_are_synthetic_and_differ(samples):
    assert len(samples) == NUM_SAMPLES and samples[0].findings == ()
    assert all(sample.upload.name.startswith("synthetic-test-") for sample in samples)
    assert len({name for sample in samples for name in sample.findings}) == 6


@pytest.mark.parametrize("kind", ["dicom", "png"])
def test_answers_are_those_of_the_pipeline(model, kind):
    pixels = np.random.default_rng(0).integers(0, 4096, (60, 50))
    content = make_dicom(pixels) if kind == "dicom" else encode(make_image(50, 60))
    given = answer(model, Upload("chest", content), ["Pleural Effusion", "Edema"], OWN)
    assert [shown.result["label"] for shown in given.findings] == ["No pneumothorax.", "Pleural Effusion", "Edema"]
    assert given.picture.mode == "L" and given.picture.size == (50, 60)
    expected = model.pipe(content, {**model.findings, **OWN}, return_heatmaps=True)
    by_label = {finding.pop("label"): finding for finding in expected}
    for shown in given.findings:
        other = dict(by_label[shown.result["label"]])
        np.testing.assert_array_equal(shown.heatmap.array, other.pop("heatmap").array)
        assert {name: value for name, value in shown.result.items() if name != "label"} == pytest.approx(other)
        words = model.pipe.word_maps(content, shown.sentence)
        assert [word["word"] for word in shown.words] == [word["word"] for word in words]
        for word, alone in zip(shown.words, words, strict=True):
            np.testing.assert_allclose(word["heatmap"].array, alone["heatmap"].array, rtol=0, atol=1e-6)
    assert given.findings[1].result["calibrated"] and given.findings[1].result["threshold"] == 0.4


def test_the_json_holds_scores_sentences_maps_and_the_note(model):
    upload = Upload("chest.png", encode(make_image(50, 60)))
    told = json.loads(json.dumps(as_json([answer(model, upload, ["Pleural Effusion"], OWN)] * 2, upload)))
    assert (told["note"], told["image"], len(told["models"])) == (NOTE, "chest.png", 2) and "torch" in told["versions"]
    first = told["models"][0]
    assert first["findings"]["Pleural Effusion"]["measured_on"]["images"] == 300
    assert first["findings"]["No pneumothorax."]["negative"] == ["The heart is enlarged."]
    assert first["findings"]["Pleural Effusion"]["overlay_limit"] == model.limits["finding"]
    (own, effusion) = first["results"]
    assert effusion["heatmap"]["height"] == 60 and [word["word"] for word in own["words"]][:2] == [
        "No",
        "pneumothorax",
    ]


def test_the_colour_scale_is_that_of_the_samples(model, samples):
    scored = [model.pipe(sample.upload.content, model.findings, return_heatmaps=True) for sample in samples]
    assert model.limits["finding"] == max(finding["heatmap"].limit for image in scored for finding in image)
    maps = [model.pipe.word_maps(sample.upload.content, sample.impression) for sample in samples]
    assert model.limits["word"] == max(word["heatmap"].limit for words in maps for word in words)


def test_a_bad_file_is_named_by_the_visitors_name_alone(model):
    with pytest.raises(ValueError, match="^notes.txt: the file is text, not an image; name the image file.$"):
        answer(model, Upload("notes.txt", b"some text\n" * 20), ["Edema"], {})
    with pytest.raises(ValueError, match="^Choose a finding, or write a sentence.$"):
        answer(model, Upload("a.png", encode(make_image(50, 60))), [], {})


def test_a_model_without_maps_has_scores(samples, tmp_path):
    folder = save_tiny_clip(tmp_path / "tier", 0)
    TierCLIPModel.from_pretrained(folder).to_clip().save_pretrained(tmp_path / "clip")
    AutoProcessor.from_pretrained(folder).save_pretrained(tmp_path / "clip")
    (plain,) = load_shown_models([str(tmp_path / "clip")], "cpu", samples)
    upload = Upload("a.png", encode(make_image(50, 60)))
    given = answer(plain, upload, ["Edema"], {})
    assert plain.limits == {} and given.findings[0].heatmap is None and not given.findings[0].words
    assert given.picture.size == (50, 60) and "heatmap" not in as_json([given], upload)["models"][0]["results"][0]


def test_radzero_has_maps_of_findings_and_not_of_words(samples, tmp_path):
    Parts().save(tmp_path / "radzero")
    (model,) = load_shown_models([str(tmp_path / "radzero")], "cpu", samples)
    assert set(model.limits) == {"finding"} and model.limits["finding"] > 0
    upload = Upload("a.png", encode(make_image(50, 60)))
    given = answer(model, upload, ["Edema"], {})
    [found] = as_json([given], upload)["models"][0]["results"]
    assert found["label"] == "Edema" and not found["words"] and found["heatmap"]["height"] == 60
    assert given.picture.size == (50, 60)


def test_the_model_of_a_file(samples, tmp_path):
    """examples/own_model.py, which has maps."""
    name = AdapterName(f"{ROOT / 'examples' / 'own_model.py'}:make")
    (model,) = load_shown_models([name], "cpu", samples)
    upload = Upload("a.png", encode(make_image(50, 60)))
    head = as_json([answer(model, upload, ["Edema"], {})], upload)["models"][0]
    assert model.title == head["model"] == "own_model.py:make" and head["adapter"]["file"] == "own_model.py"
    assert head["results"][0]["heatmap"]["width"] == 50
