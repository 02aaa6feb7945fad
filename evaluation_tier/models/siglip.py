"""The family of SigLIP 2's models that take images of any shape (NaFlex, `model_type` "siglip2").

SigLIP's other models take square images and are of the family in `clip.py`. The texts of all of them are padded to one
length and not masked, see `modeling_tier/texts_tier.py`.
"""

import torch
from PIL import Image

from evaluation_tier.models.clip import ClipFamily
from evaluation_tier.models.contract import Pixels, to_unit_length


class Siglip2Family(ClipFamily):
    """SigLIP 2 as an [`EvaluatedModel`]: its processor makes patches, their mask and the shapes of the images."""

    def preprocess(self, image: Image.Image) -> Pixels:
        inputs = self.image_processor(images=[image.convert("RGB")], return_tensors="pt")  # takes grey for one channel
        return {name: inputs[name] for name in self.image_processor.model_input_names}

    def embed_images(self, pixels: Pixels) -> torch.Tensor:
        return to_unit_length(self.model.get_image_features(**pixels).pooler_output)
