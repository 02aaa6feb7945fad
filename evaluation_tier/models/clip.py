"""The family of TIER's models, CLIP's, and all that embed as these do: pixels through the processor beside the
weights, texts through `modeling_tier/texts_tier.py`, which knows how each kind was trained to read them.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor

from evaluation_tier.models.cache import hash_weights
from evaluation_tier.models.contract import WINDOW, PatchEmbeds, Pixels, check_finite, to_unit_length
from modeling_tier import TierCLIPModel
from modeling_tier.maps_tier import patch_weights
from modeling_tier.pooling_tier import ADDS_UP
from modeling_tier.texts_tier import embed_texts
from processing_tier.image_processing_tier import READ_OPTIONS
from processing_tier.radiograph_tier import read_radiograph

NOT_OF_THE_NUMBERS = ("_name_or_path", "zero_shot_findings", "transformers_version")  # of a config


class ClipFamily:
    """
    A model of transformers as an [`EvaluatedModel`]; a classifier too, as far as its images go.

    Args:
        model: whether it normalises the pixels itself decides their type, see `takes_uint8`.
        processor: reads and resizes the images; a `ProcessorMixin` or an image processor. Only reading and texts
            need it.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin | BaseImageProcessor | None = None):
        self.model, self.processor = model, processor
        self.image_processor = getattr(processor, "image_processor", processor)
        self.options = {"output_dtype": "uint8"} if takes_uint8(model, processor) else {}

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def decoding(self) -> str:
        if not hasattr(self.image_processor, "read"):
            return WINDOW
        options = {name: getattr(self.image_processor, name) for name in READ_OPTIONS}
        reduced = options["do_resize"] and options["reduced_decoding"]
        return json.dumps(options, default=str) if reduced else options["grey_levels"]

    @property
    def preprocessing(self) -> str:
        if not hasattr(self.image_processor, "to_dict"):
            return str(id(self.image_processor))
        parts = type(self).__name__, self.image_processor.to_dict(), self.options
        return json.dumps(parts, sort_keys=True, default=str)

    @property
    def identity(self) -> str:
        config = {key: value for key, value in self.model.config.to_dict().items() if key not in NOT_OF_THE_NUMBERS}
        parts = {
            "weights": hash_weights(self.model),
            "config": config,
            "preprocessing": self.image_processor.to_dict(),
        }
        return json.dumps(parts, sort_keys=True, default=str)

    def read_image(self, image: Any) -> Image.Image:
        read = getattr(self.image_processor, "read", read_radiograph)  # CLIP's own does not read files
        return read(image)

    def preprocess(self, image: Image.Image) -> Pixels:
        if needs_rgb(self.image_processor):
            image = image.convert("RGB")
        return self.image_processor(images=[image], return_tensors="pt", **self.options)["pixel_values"]

    def embed_images(self, pixels: Pixels) -> torch.Tensor:
        return to_unit_length(self.model.get_image_features(pixel_values=pixels).pooler_output)

    def embed_texts(self, texts: Sequence[str], batch_size: int = 64) -> torch.Tensor:
        return check_finite(embed_texts(self.model, self.processor.tokenizer, texts, batch_size))

    def embed_patches(self, pixels: Pixels) -> PatchEmbeds:
        pooled, patches, weights = project_patches(self.model, pixels)
        return PatchEmbeds(to_unit_length(pooled), to_unit_length(patches), weights)


def project_patches(model: PreTrainedModel, pixels: Pixels) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """
    Image (batch, dim) and patches (batch, patches, dim), not normalised, and the `weights` of `PatchEmbeds`. `pixels`
    may also be what TIER's models take in place of pixels, by its name.
    """
    weights = None
    if hasattr(model, "encode_images"):
        inputs = pixels if isinstance(pixels, Mapping) else {"pixel_values": pixels}
        outputs, grid = model.encode_images(**inputs)  # grid (images, rows, columns, dim)
        patch_features = grid.flatten(1, 2)
        if model.config.image_pooling in ADDS_UP:
            weights = patch_weights(grid).flatten(1)
    else:  # CLIP itself has all that it takes
        outputs = model.get_image_features(pixel_values=pixels)
        patch_features = TierCLIPModel.project_patches(model, outputs.last_hidden_state)
    return outputs.pooler_output, patch_features, weights


def needs_rgb(image_processor: Any) -> bool:
    """Whether grey pictures must be converted first: SigLIP's processors as released make one channel of them."""
    return isinstance(image_processor, BaseImageProcessor) and not hasattr(image_processor, "read")  # TIER's has it


def takes_uint8(model: PreTrainedModel, processor: ProcessorMixin | BaseImageProcessor) -> bool:
    """Whether the model normalises 8-bit pixels itself: the same numbers, a twelfth of the bytes to move."""
    image_processor, config = getattr(processor, "image_processor", processor), model.config
    if not hasattr(config, "pixel_mean") or not hasattr(image_processor, "output_dtype"):
        return False
    same = np.allclose(config.pixel_mean, image_processor.image_mean) and np.allclose(
        config.pixel_std, image_processor.image_std
    )
    resampled_after_normalising = (
        image_processor.geometry == "pad" and image_processor.resize_edge
    )  # CheXzero's pixels
    return same and not resampled_after_normalising
