"""The file of a user's model, for `--adapter`: its scores are of the brightness, and it gives no maps."""

OWN = """
import torch

class Model:
    def preprocess(self, image):
        return torch.tensor([float(image.convert("L").resize((1, 1)).getpixel((0, 0)))])
    def embed_images(self, pixels):
        return torch.cat([pixels, torch.full_like(pixels, 100)], dim=1)
    def embed_texts(self, texts):
        return torch.tensor([[0.0, 1.0] if "no " in text.lower() else [1.0, 0.0] for text in texts])

def make(name="x"):
    return Model()
"""
