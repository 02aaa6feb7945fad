"""The file of a user's own model, which several tests extend."""

import pytest

# Brightness against the first letter of a text
GOOD = """
import torch

class Model:
    def preprocess(self, image):
        assert image.mode == "RGB"
        return torch.tensor([float(image.convert("L").resize((1, 1)).getpixel((0, 0)))])
    def embed_images(self, pixels):
        return torch.cat([pixels, torch.full_like(pixels, 100)], dim=1)
    def embed_texts(self, texts):
        return torch.tensor([[0.0, 1.0] if text.startswith("No") else [1.0, 0.0] for text in texts])
"""


@pytest.fixture
def write(tmp_path):
    def write(code: str, end: str = "def make():\n    return Model()\n", name: str = "mine.py") -> str:
        (tmp_path / name).write_text(GOOD + code + end)
        return f"{tmp_path / name}:make"

    return write
