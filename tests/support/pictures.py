"""Pictures and image files, and the pixels that an image processor makes of them."""

import io

import numpy as np
import torch
from PIL import Image

from processing_tier import TierImageProcessor


def make_image(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8))


def pixels(processor: TierImageProcessor, images, **kwargs) -> torch.Tensor:
    return processor(images, return_tensors="pt", **kwargs)["pixel_values"]


def png(grey: int) -> bytes:
    """A small file with one grey level."""
    buffer = io.BytesIO()
    Image.new("L", (6, 5), grey).save(buffer, "PNG")
    return buffer.getvalue()
