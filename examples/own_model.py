"""A model of your own in `tier-eval` (docs/own_model.md). Two plain torch modules, untrained: put yours instead.

tier-eval --adapter examples/own_model.py:make --data phantom --split test
"""

import numpy as np
import torch
from PIL import Image
from torch import nn


class OwnModel:
    # Optional: maps, for --analyses grounding. embed_patches returns the patches row by row
    map_geometry = {"geometry": "squash", "image_size": 128, "patch_size": 16}
    identity = "untrained, seed 0"  # whenever weights or preprocessing change, change this text: the cache goes by it

    def __init__(self, device: torch.device):
        torch.manual_seed(0)
        self.device = device
        self.image_tower = nn.Sequential(nn.Conv2d(1, 32, kernel_size=16, stride=16), nn.GELU()).to(device)
        self.text_tower = nn.EmbeddingBag(1000, 32).to(device)

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        """The pixels of one radiograph, a PIL image of mode "RGB" and of any size."""
        small = image.convert("L").resize((128, 128), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.asarray(small, dtype=np.float32))[None] / 255

    def embed_images(self, pixels: torch.Tensor) -> torch.Tensor:
        """(batch, dim) of a batch of pixels."""
        return self.image_tower(pixels).mean(dim=(2, 3))

    def embed_patches(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Optional: images and (batch, patches, dim), which give the score levels of patches."""
        patches = self.image_tower(pixels).flatten(2).mT
        return patches.mean(dim=1), patches

    def embed_texts(self, texts: list[str]) -> torch.Tensor:
        """(texts, dim)."""
        words = [[sum(word.encode()) % 1000 for word in text.lower().split()] for text in texts]
        return torch.stack([self.text_tower(torch.tensor([ids], device=self.device))[0] for ids in words])


def make(device: torch.device) -> OwnModel:
    return OwnModel(device)
