"""`--bf16`, and the memory layout of convolutional towers."""

import json

import numpy as np
import pytest
import torch
from eval_command import PHANTOM, fails, run, save_two_models
from tiny_models import save_tiny_clip

from evaluation_tier.models.cache import hash_weights
from evaluation_tier.models.loading import load_model
from evaluation_tier.options import ANALYSES
from modeling_tier import TierDualEncoderModel
from processing_tier import TierImageProcessor, TierProcessor, train_tokenizer
from training_tier.start.presets import preset_config

OPTIONS = ["--data", PHANTOM, "--min_positives", 5, "--n_bootstrap", 5]


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """A saved dual encoder with a convolutional tower of random weights."""
    folder = tmp_path_factory.mktemp("resnet")
    tokenizer = train_tokenizer(["No acute disease. Small left effusion."])
    torch.manual_seed(0)
    TierDualEncoderModel(preset_config("resnet-fine", tokenizer, image_size=64)).eval().save_pretrained(folder)
    TierProcessor(TierImageProcessor(size=64), tokenizer).save_pretrained(folder)
    return folder


def test_a_convolutional_tower_is_channels_last_with_the_same_embeddings_and_hash(resnet):
    model, _ = load_model(resnet)
    plain = TierDualEncoderModel.from_pretrained(resnet).eval()
    layouts = [parameter.is_contiguous() for parameter in model.vision_model.parameters() if parameter.ndim == 4]
    assert not all(layouts)
    pixels = torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        found, expected = (one.get_image_features(pixel_values=pixels).pooler_output for one in (model, plain))
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert hash_weights(model) == hash_weights(plain)


def test_patches_stay_as_they_are(tmp_path):
    model, _ = load_model(save_tiny_clip(tmp_path, 0))
    assert all(parameter.is_contiguous() for parameter in model.parameters())


def test_bf16_is_not_for_a_model_of_the_user(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "class Mine(torch.nn.Module):\n"
        "    identity = 'mine'\n"
        "    def embed_images(self, images): return torch.ones(len(images), 2)\n"
        "    def embed_texts(self, texts): return torch.ones(len(texts), 2)\n"
        "    def preprocess(self, image): return torch.zeros(1)\n"
        "def make(): return Mine()\n"
    )
    message = fails("--adapter", f"{tmp_path}/mine.py:make", *OPTIONS, "--bf16", capsys=capsys)
    assert message.startswith("--bf16 is for models of transformers, but ") and "leave --bf16 out" in message


@pytest.mark.slow
@pytest.mark.parametrize("tower", ["vit", "resnet"])
def test_every_analysis_in_bf16(tower, resnet, tmp_path, capsys):
    model = resnet if tower == "resnet" else save_two_models(tmp_path)[0]
    results = {}
    for name, more in (("float32", []), ("bfloat16", ["--bf16", "--cache_dir", tmp_path / "cache"])):
        arguments = [model, *OPTIONS, "--analyses", *ANALYSES, *more, "--output_dir", tmp_path / name]
        run(*arguments, capsys=capsys)
        results[name] = json.loads((tmp_path / name / "metrics.json").read_text())
        assert json.loads((tmp_path / name / "speed.json").read_text())
    assert "dtype" not in results["float32"] and results["bfloat16"]["dtype"] == "bfloat16"
    for finding, exact in results["float32"]["findings"].items():
        assert np.isclose(results["bfloat16"]["findings"][finding]["auroc"], exact["auroc"], atol=0.1)
    for name in ANALYSES:
        assert results["bfloat16"][name].keys() == results["float32"][name].keys()
