"""The pixels that a model takes, as 8-bit grey levels and back: what analyses that change images work on."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from evaluation_tier.models.clip import needs_rgb, takes_uint8


class GreyLevels:
    """
    Converts between a model's input and grey levels 0 to 255.

    Pixels are linear in the grey level, for any normalisation of the processor: a black and a white image show how.

    Args:
        model: of images and texts.
        processor: the model's; it makes square images.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin):
        image_processor = getattr(processor, "image_processor", processor)
        options = {"output_dtype": "uint8"} if takes_uint8(model, processor) else {}
        mode = "RGB" if needs_rgb(image_processor) else "L"
        squares = [Image.new("L", (64, 64), level) for level in (0, 255)]
        for square, other in zip(squares, (255, 0), strict=True):
            square.putpixel((63, 63), other)  # the log would call an image of one level blank
        squares = [square.convert(mode) for square in squares]
        ends = image_processor(images=squares, return_tensors="pt", **options)["pixel_values"].to(model.device)
        self.pixel_dtype, ends = ends.dtype, ends.float()
        self.black, self.contrast = ends[0, :, :1, :1], (ends[1] - ends[0])[:, :1, :1]  # (channels, 1, 1)

    def of_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """(batch, channels, height, width) as the model takes them, to uint8 (batch, height, width)."""
        levels = ((pixels - self.black) / self.contrast * 255).mean(dim=1).round().clamp(0, 255)
        return levels.to(torch.uint8)

    def to_pixels(self, levels: Sequence[np.ndarray | Image.Image]) -> torch.Tensor:
        """Grey images of one size, to the (images, channels, height, width) that the model takes."""
        stacked = torch.from_numpy(np.stack([np.asarray(image) for image in levels])).to(self.black.device)
        return (self.black + stacked[:, None] / 255 * self.contrast).to(self.pixel_dtype)
