"""Predictions of models that the pipeline of transformers does not take: the numbers of an evaluation."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pipeline_checks import encode, make_image
from tiny_models import save_tiny_clip
from tiny_radzero import TEXTS, Parts
from tiny_siglip import save_siglip
from transformers import pipeline

from evaluation_tier.models.adapters import AdapterName
from evaluation_tier.models.loading import load_model
from evaluation_tier.predict.contract_pipeline import ContractPipeline
from evaluation_tier.predict.inputs import ImageFiles
from evaluation_tier.predict.loading import load_pipeline
from modeling_tier import CxrZeroShotClassificationPipeline
from modeling_tier.pipeline_tier import TASK

# An image by its mean grey level and 100, a text by whether it begins with "No"; patch i lies at the angle i / 4
CODE = """
import torch

class Model:
    map_geometry = {"geometry": "squash", "image_size": 32, "patch_size": 16}
    def preprocess(self, image):
        return torch.tensor([float(image.convert("L").resize((1, 1)).getpixel((0, 0)))])
    def embed_images(self, pixels):
        raise RuntimeError("embed_patches replaces it")
    def embed_patches(self, pixels):
        angle = torch.arange(4.0).repeat(len(pixels), 1) / 4
        return torch.cat([pixels, torch.full_like(pixels, 100)], 1), torch.stack([angle.cos(), angle.sin()], -1)
    def embed_texts(self, texts):
        return torch.tensor([[0.0, 1.0] if text.startswith("No") else [1.0, 0.0] for text in texts])

def make():
    return Model()

class Plain:
    preprocess, embed_texts = Model.preprocess, Model.embed_texts
    def embed_images(self, pixels):
        return torch.cat([pixels, torch.full_like(pixels, 100)], 1)

def plain():
    return Plain()
"""


def sigmoid(difference):
    return 1 / (1 + np.exp(-np.asarray(difference)))


@pytest.fixture
def file(tmp_path):
    (tmp_path / "mine.py").write_text(CODE)
    return tmp_path / "mine.py"


@pytest.fixture
def flat(tmp_path):
    """Pictures of one grey level each."""
    for level in (50, 200):
        Image.new("L", (60, 40), level).save(tmp_path / f"{level}.png")
    return [tmp_path / "50.png", tmp_path / "200.png"]


def difference(level: float) -> float:
    return (level - 100) / np.hypot(level, 100)


def test_a_users_model_scores_and_maps(file, flat):
    pipe = load_pipeline(AdapterName(f"{file}:make"), "cpu")
    assert isinstance(pipe, ContractPipeline)
    results = pipe(flat, ["Edema"], return_heatmaps=True, batch_size=2)
    for level, [finding] in zip((50, 200), results, strict=True):
        assert finding["label"] == "Edema" and finding["calibrated"] is False and "threshold" not in finding
        assert finding["score"] == pytest.approx(sigmoid(difference(level)), abs=1e-6)
        heatmap, angle = finding["heatmap"], np.arange(4) / 4
        assert heatmap.shape == (40, 60) and heatmap.overlay().size == (60, 40)
        np.testing.assert_allclose(heatmap.patches, (np.cos(angle) - np.sin(angle)).reshape(2, 2), atol=1e-6)
        assert heatmap.array[0, 0] == pytest.approx(1, abs=1e-6)  # the corner has the value of its patch
    [alone] = pipe(flat[1], ["Edema"])
    assert alone == {key: value for key, value in results[1][0].items() if key != "heatmap"}
    assert json.loads(json.dumps(results))[0][0]["heatmap"]["height"] == 40
    for picture in (flat[1].read_bytes(), Image.open(flat[1]), {"image": str(flat[1])}):
        assert pipe(picture, ["Edema"], return_heatmaps=True)[0]["heatmap"].overlay().size == (60, 40)
    stored = {"positive": ["It."], "negative": ["No."], "scale": 3.0, "bias": 0.5, "threshold": 0.4}
    for level, score_level in ((difference(200), "global"), (1.0, "patches-max")):
        [told] = pipe(flat[1], {"Edema": {**stored, "score_level": score_level}})
        assert told["score"] == pytest.approx(sigmoid(3 * level + 0.5), abs=1e-6)
        assert told["calibrated"] and told["threshold"] == 0.4 and told["present"] is True


def test_the_pipeline_of_transformers_names_what_takes_any_model(file, tmp_path):
    """It takes models of transformers: another one, or one without a TierImageProcessor, is told what to do."""
    told = "evaluation_tier.predict.loading.load_pipeline of tier-clip scores any model in the same way.$"
    model, _ = load_model(AdapterName(f"{file}:make"))
    with pytest.raises(
        ValueError, match=f"^The pipeline {TASK} takes models of transformers, not a UserModel. {told}"
    ):
        CxrZeroShotClassificationPipeline(model)  # `pipeline` of older versions asks the model for its config before
    save_siglip(tmp_path / "siglip")
    with pytest.raises(
        ValueError, match=f"^The pipeline {TASK} needs a tokenizer and a TierImageProcessor, .* {told}"
    ):
        pipeline(TASK, model=str(tmp_path / "siglip"))


def test_a_backend_is_refused_for_a_users_file(file):
    """The file runs its model itself."""
    with pytest.raises(ValueError, match=f"^--backend has no effect on --adapter {file}:make, whose file runs"):
        load_pipeline(AdapterName(f"{file}:make"), "cpu", backend="torch")


def test_several_images_and_bad_ones(file, flat, tmp_path):
    pipe = load_pipeline(AdapterName(f"{file}:plain"), "cpu")
    (tmp_path / "bad.png").write_text("text")
    paths = [flat[0], tmp_path / "bad.png", flat[1]]
    expected = [result[0]["score"] for result in pipe(flat, ["Edema"])]
    results = pipe(ImageFiles(paths), ["Edema"], on_error="skip", batch_size=2)
    assert iter(results) is results  # one by one, as a folder of images asks
    good, bad, last = results
    assert [good[0]["score"], last[0]["score"]] == pytest.approx(expected, abs=1e-7)
    assert bad == {"error": "bad.png: the file is text, not an image; name the image file."}
    assert pipe(iter(flat), ["Edema"]) is not None and pipe([], ["Edema"]) == []
    with pytest.raises(ValueError, match="^image 2 of 3: bad.png: the file is text"):
        pipe(paths, ["Edema"])
    with pytest.raises(ValueError, match="^UserModel does not give heat-maps"):
        pipe(flat, ["Edema"], return_heatmaps=True)
    with pytest.raises(ValueError, match="^UserModel does not give maps of words"):
        pipe.word_maps(flat[0], "Edema.")
    assert pipe.image_processor.read(flat[0]).info["original_size"] == (60, 40)
    with pytest.raises(
        ValueError, match="score_level 'patches-max' of 'Edema' needs embeddings of patches, which UserModel"
    ):
        pipe(flat, {"Edema": {"score_level": "patches-max"}})
    with pytest.raises(ValueError, match="return_heatmaps False or True, not 'skip' and 'lists'"):
        pipe(flat, ["Edema"], on_error="skip", return_heatmaps="lists")


def test_radzero_scores_by_its_own_pooling(tmp_path):
    parts = Parts()
    folder = parts.save(tmp_path / "radzero")
    images = [encode(make_image(40, 50, seed)) for seed in range(3)]
    pipe = load_pipeline(folder, "cpu")
    expected, queries, tokens = parts.scores(images, TEXTS, pipe.model.tokenizer)
    asked = {"Edema": {"positive": TEXTS[:1], "negative": TEXTS[1:2]}}
    results = pipe(images, asked, return_heatmaps=True, batch_size=2)
    assert [found[0]["score"] for found in results] == pytest.approx(
        sigmoid(expected[:, 0] - expected[:, 1]), abs=1e-5
    )
    for found, of_image in zip(results, tokens, strict=True):
        cosines = (of_image[1:] @ (queries[0] - queries[1])).reshape(4, 4)
        np.testing.assert_allclose(found[0]["heatmap"].patches, cosines, rtol=0, atol=1e-5)
    # what tier-eval --save_thresholds keeps in config.json
    config = json.loads((folder / "config.json").read_text())
    config["zero_shot_findings"] = {"Edema": {**asked["Edema"], "scale": 2.0, "bias": 1.0, "threshold": 0.6}}
    (folder / "config.json").write_text(json.dumps(config))
    [stored] = load_pipeline(folder, "cpu")(images[0])
    assert stored["score"] == pytest.approx(sigmoid(2 * (expected[0, 0] - expected[0, 1]) + 1), abs=1e-5)
    assert stored["calibrated"] and stored["threshold"] == 0.6


def test_models_of_transformers_get_the_pipeline_of_transformers(tmp_path):
    siglip = save_siglip(tmp_path / "siglip")
    for folder in (tmp_path / "siglip", save_tiny_clip(tmp_path / "tiny", 0)):
        assert isinstance(load_pipeline(folder, "cpu"), CxrZeroShotClassificationPipeline)
    pipe = load_pipeline(tmp_path / "siglip", "cpu")
    inputs = {"positive": "edema.", "negative": "no edema."}
    [found] = pipe(make_image(40, 50), {"Edema": inputs})
    pixels = pipe.image_processor(images=[make_image(40, 50)], return_tensors="pt")["pixel_values"]
    ids = pipe.tokenizer([*inputs.values()], padding="max_length", max_length=64, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        outputs = siglip(input_ids=ids, pixel_values=pixels)
    cosines = (outputs.text_embeds @ outputs.image_embeds.T)[:, 0]
    assert found["score"] == pytest.approx(sigmoid(cosines[0] - cosines[1]), abs=1e-6)
    squares = tmp_path / "siglip" / "processor_config.json"
    config = json.loads(squares.read_text())
    config["image_processor"]["size"] = {"height": 32, "width": 48}  # which TierImageProcessor does not make
    squares.write_text(json.dumps(config))
    assert isinstance(load_pipeline(tmp_path / "siglip", "cpu"), ContractPipeline)
