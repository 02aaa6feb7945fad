"""Radiographs with marked squares, and a model whose maps are known, for the tests of grounding."""

import io
from types import SimpleNamespace

import datasets
import numpy as np
import torch
from PIL import Image

from processing_tier.prompts.loader import Prompts
from processing_tier.records.annotations import BOXES, MASKS
from processing_tier.records.masks import encode_mask

ASK = {"A": Prompts(["a"], ["No a"]), "B": Prompts(["b"], ["No b"])}


def box(finding, x, y, w, h, phrase=""):
    return {"finding": finding, "phrase": phrase, "x": float(x), "y": float(y), "w": float(w), "h": float(h)}


def as_mask(finding, mask):
    return {"finding": finding, "height": mask.shape[0], "width": mask.shape[1], "counts": encode_mask(mask)}


def png(array) -> dict:
    file = io.BytesIO()
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(file, format="PNG")
    return {"bytes": file.getvalue(), "path": None}


def make_dataset(images, boxes=None, masks=None, patients=None) -> datasets.Dataset:
    data = {
        "image": [png(image) for image in images],
        "image_id": [f"image{i}" for i in range(len(images))],
        "patient_id": patients or [f"patient{i}" for i in range(len(images))],
    }
    features = {"image": datasets.Image(decode=False)}
    features |= {name: datasets.Value("string") for name in ("image_id", "patient_id")}
    for name, values, feature in (("boxes", boxes, BOXES), ("masks", masks, MASKS)):
        if values is not None:
            data[name], features[name] = values, feature
    return datasets.Dataset.from_dict(data, features=datasets.Features(features))


def scene(height, width, top, left, side):
    """A dark image with a white square, and the square as mask."""
    image = np.full((height, width), 20, dtype=np.uint8)
    image[top : top + side, left : left + side] = 250
    return image, image == 250


def many_scenes(seed: int, count: int = 12):
    generator = np.random.default_rng(seed)
    scenes = [scene(64, 64, *generator.integers(40, size=2), 16) for _ in range(count)]
    images, masks = zip(*scenes, strict=True)
    findings = ["A" if i % 3 else "B" for i in range(count)]
    marks = [[as_mask(finding, mask)] for finding, mask in zip(findings, masks, strict=True)]
    return images, marks, [f"{seed}-{i // 2}" for i in range(count)]


class BrightPatches(torch.nn.Module):
    """A patch of brightness b (0..1) lies at b * 90 degrees, "No ..." at 0 and any other sentence at 90."""

    def __init__(self, patch: int = 4):
        super().__init__()
        self.config = SimpleNamespace(
            projection_dim=2,
            image_pooling="patch_mean",
            model_type="bright",
            text_config=SimpleNamespace(max_position_embeddings=8),
        )
        self.device, self.patch, self.num_images = torch.device("cpu"), patch, 0
        self.patch_centers = (patch / 2, patch)

    def encode_images(self, pixel_values):
        assert not self.training and not torch.is_grad_enabled()
        self.num_images += len(pixel_values)
        angle = torch.nn.functional.avg_pool2d(pixel_values[:, 0], self.patch) * torch.pi / 2
        grid = 5 * torch.stack([angle.cos(), angle.sin()], dim=-1)  # without unit length
        return SimpleNamespace(pooler_output=grid.mean(dim=(1, 2))), grid

    def get_patch_map(self, pixel_values):
        return self.encode_images(pixel_values)[1]

    def get_patch_features(self, pixel_values):
        return self.get_patch_map(pixel_values).flatten(1, 2)

    def get_text_features(self, input_ids, attention_mask):
        present = input_ids[:, 0].float()
        return SimpleNamespace(pooler_output=torch.stack([1 - present, present], dim=1))
