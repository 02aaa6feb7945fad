"""A saved folder gives the same model back where this package is; for all other places, see tests/hub/."""

import json

import pytest
import torch
from shipped import CLIP_CODE
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForZeroShotImageClassification,
    CLIPImageProcessorPil,
    CLIPProcessor,
    CLIPTokenizer,
    pipeline,
)

from modeling_tier import TierCLIPConfig, TierCLIPModel

AUTO_MAP = {
    "AutoConfig": "configuration_tier.TierCLIPConfig",
    "AutoModel": "modeling_tier.TierCLIPModel",
    "AutoModelForZeroShotImageClassification": "modeling_tier.TierCLIPModel",
}


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    """CLIP's, with letters for words."""
    letters = "abcdefghijklmnopqrstuvwxyz.,"
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=64)


@pytest.fixture
def saved(tmp_path, tiny_sizes, tokenizer, batch):
    """A folder with a model and its stock processor; the model; a batch."""
    tiny_sizes["text_config"] |= {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 64,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model = TierCLIPModel(TierCLIPConfig(**tiny_sizes, token_entropy_weight=0.25, image_pooling="patch_mean")).eval()
    model.save_pretrained(tmp_path)
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image_processor, tokenizer).save_pretrained(tmp_path)
    texts = tokenizer(["edema.", "no effusion.", "normal", "large effusion"], padding=True, return_tensors="pt")
    batch = {**texts, "pixel_values": batch["pixel_values"]}
    return tmp_path, model, batch


def test_the_saved_folder_has_the_code_and_says_where(saved):
    folder, _, _ = saved
    assert {path.name for path in folder.glob("*.py")} == CLIP_CODE
    config = json.loads((folder / "config.json").read_text())
    assert config["auto_map"] == AUTO_MAP
    assert (config["model_type"], config["architectures"]) == ("tier_clip", ["TierCLIPModel"])


def test_loading_with_the_package_takes_the_package(saved):
    folder, model, batch = saved
    assert type(AutoConfig.from_pretrained(folder)) is TierCLIPConfig
    for auto_class in (AutoModel, AutoModelForZeroShotImageClassification):
        for options in ({}, {"trust_remote_code": True}):
            loaded = auto_class.from_pretrained(folder, **options)
            assert type(loaded) is TierCLIPModel
            assert torch.equal(loaded(**batch).logits_per_image, model(**batch).logits_per_image)
    assert type(pipeline("zero-shot-image-classification", model=str(folder)).model) is TierCLIPModel
