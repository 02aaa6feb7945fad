import io
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BatchEncoding

from modeling_tier import TierCLIPConfig, TierCLIPModel
from processing_tier import TierImageProcessor, TierProcessor, train_tokenizer
from processing_tier.phantom.dataset import make_phantom

SIZE = 32


@pytest.fixture(scope="session")
def phantom() -> datasets.Dataset:
    return make_phantom(60, seed=5, image_size=64, split="validation")


@pytest.fixture(scope="session")
def make_tier_model(phantom):
    """Tiny TIER models with random weights, by seed, and their processor."""
    tokenizer = train_tokenizer(phantom["report"][:], vocab_size=600)
    processor = TierProcessor(TierImageProcessor(size={"height": SIZE, "width": SIZE}), tokenizer)

    def make(seed: int = 0, **settings):
        torch.manual_seed(seed)
        tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        config = TierCLIPConfig(
            text_config={**tower, **special, "vocab_size": len(tokenizer), "max_position_embeddings": 77},
            vision_config={**tower, "image_size": SIZE, "patch_size": 8},
            projection_dim=16,
            image_pooling="patch_mean",
            **settings,
        )
        return TierCLIPModel(config).eval(), processor

    return make


@pytest.fixture(scope="session")
def tier_model(make_tier_model):
    return make_tier_model(0)


class BrightnessModel(torch.nn.Module):
    """
    A stand-in whose answers are known: an image of grey level g lies at the angle g / 255 * 90 degrees, a sentence
    that begins with "No" at 0 and any other at 90 degrees. The brighter an image, the higher every finding scores.
    """

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(projection_dim=2, text_config=SimpleNamespace(max_position_embeddings=8))
        self.scale = torch.nn.Parameter(torch.tensor(3.0))  # embeddings come without unit length
        self.device = torch.device("cpu")
        self.num_images = self.num_sentences = 0

    def get_image_features(self, pixel_values):
        assert not self.training and not torch.is_grad_enabled()
        self.num_images += len(pixel_values)
        angle = pixel_values.mean(dim=(1, 2, 3)) * torch.pi / 2
        return SimpleNamespace(pooler_output=self.scale * torch.stack([angle.cos(), angle.sin()], dim=1))

    def get_text_features(self, input_ids, attention_mask):
        self.num_sentences += len(input_ids)
        present = input_ids[:, 0].float()
        return SimpleNamespace(pooler_output=self.scale * torch.stack([1 - present, present], dim=1))


@pytest.fixture
def brightness():
    """The stand-in model and a processor for it."""

    def image_processor(images, return_tensors):
        pixels = torch.stack([torch.from_numpy(np.asarray(image) / np.float32(255)) for image in images])
        return {"pixel_values": pixels[:, None]}

    def tokenizer(texts, **options):
        present = torch.tensor([[0 if text.startswith("No") else 1] for text in texts])
        return BatchEncoding({"input_ids": present, "attention_mask": torch.ones_like(present)})

    tokenizer.model_max_length = 8
    return BrightnessModel(), SimpleNamespace(image_processor=image_processor, tokenizer=tokenizer)


@pytest.fixture
def make_grey_dataset():
    """Images of one grey level each, with labels of the finding "Bright" and a patient per image."""

    def make(levels, labels, patients=None, **columns) -> datasets.Dataset:
        images = []
        for level in levels:
            file = io.BytesIO()
            Image.new("L", (4, 4), level).save(file, format="PNG")
            images.append({"bytes": file.getvalue(), "path": None})
        names = [f"image{i}" for i in range(len(levels))]
        data = {"image": images, "image_id": names, "patient_id": patients or names, "Bright": labels, **columns}
        features = {"image": datasets.Image(decode=False), "image_id": datasets.Value("string")}
        features |= {"patient_id": datasets.Value("string")}
        features |= {name: datasets.Value("float32") for name in data if name not in features}
        return datasets.Dataset.from_dict(data, features=datasets.Features(features))

    return make
