from pathlib import Path

import pytest
import torch

from evaluation_tier.models.exposure import find_published
from modeling_tier.checkpoints.published import TITLES, published_name
from modeling_tier.checkpoints.source import Source

OPENAI = {"input_resolution": torch.tensor(224)}


@pytest.mark.parametrize(
    ("path", "kind", "tensors", "name"),
    [
        ("best_64_5e-05_original_22000_0.864.pt", "chexzero", {}, "CheXzero"),
        ("checkpoint_9000.pt", "chexzero", {}, "checkpoint_9000.pt"),  # trained with CheXzero's code
        ("ViT-B-32.pt", "openai", OPENAI, "OpenAI CLIP"),
        ("mine.pt", "openai", {}, "mine.pt"),
        ("best_model.pt", "tier", {}, "TIER"),
        ("biovil_image_resnet50_proj_size_128.pt", "biovil", {}, "BioViL"),
        ("CLIP-ViT-B-32-laion2B-s34B-b79K", "openclip", {}, "CLIP-ViT-B-32-laion2B-s34B-b79K"),
    ],
)
def test_names(tmp_path, path, kind, tensors, name):
    (tmp_path / path).touch()
    assert published_name(Source(tmp_path / path, kind, tensors), str(tmp_path / path)) == name


def test_a_name_on_the_hub_stays():
    source = Source(Path("cache", "0123abc"), "clip")
    assert published_name(source, "openai/clip-vit-base-patch32@main") == "openai/clip-vit-base-patch32"


def test_the_table_of_published_models_knows_every_title():
    assert all(find_published(title) for title in (*TITLES.values(), "CheXzero", "OpenAI CLIP"))
