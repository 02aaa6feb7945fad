"""
Loads BioViL and, for single images, BioViL-T (hi-ml-multimodal/.../image/model of microsoft/hi-ml, version 0.2.2).
Their image towers have torchvision's names.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from ..configuration_tier import TierDualEncoderConfig
from ..modeling_dual_tier import TierDualEncoderModel
from ..towers_tier import cxr_bert_config
from .layout import fill, shape_of
from .openclip import WEIGHT_FILES
from .refusals import refuse_file
from .tensor_files import read_json, read_tensors
from .tier import dual_names, resnet_config

# Tensors that the original code saves although its embeddings do not depend on them
UNUSED = re.compile(
    r"encoder\.encoder\.fc\.\w+|encoder\.vit_pooler\..+|cls\.predictions\..+|bert\.embeddings\.position_ids"
)
CXR_BERT_TYPE = "cxr-bert"  # model_type of the text towers
IMAGE_FILES = ("biovil_t_image_model_proj_size_128.pt", "biovil_image_resnet50_proj_size_128.pt")
IMAGE_SIZES = {"biovil": 480, "biovil_t": 448}  # of the centre crop (image/utils.py:37-44)


def load_biovil(kind: str, tensors: dict[str, torch.Tensor], text_folder: Path) -> TierDualEncoderModel:
    """BioViL's or BioViL-T's image tower and its CXR-BERT. No file has a logit scale; it gets TIER's initial value."""
    if kind == "biovil_t":
        tensors = without_earlier_image(tensors)
    weights = next((text_folder / name for name in WEIGHT_FILES if (text_folder / name).is_file()), None)
    if weights is None or not (text_folder / "config.json").is_file():
        raise ValueError(f"{text_folder} must be a folder with the config.json and the weights of CXR-BERT.")
    settings = read_json(text_folder / "config.json")
    if settings.get("model_type") != CXR_BERT_TYPE:
        raise ValueError(f"{text_folder} holds a model of type {settings.get('model_type')!r}, not '{CXR_BERT_TYPE}'.")
    refuse_file(weights)
    config = TierDualEncoderConfig(
        vision_config=resnet_config(tensors, "encoder.encoder."),
        text_config=cxr_bert_config(settings),
        projection_dim=shape_of(tensors, "projector.model.0.weight", 4)[0],
        image_size=IMAGE_SIZES[kind],
        pixel_mean=[0.0] * 3,
        pixel_std=[1.0] * 3,
    )
    return fill(
        lambda: TierDualEncoderModel(config),
        {**tensors, **read_tensors(weights)[0]},
        lambda ours: dual_names(ours, "", ""),
        UNUSED,
    )


def without_earlier_image(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    BioViL-T's tensors as those of a BioViL with the same embeddings of single images.

    Without an earlier image, BioViL-T appends a learned constant to its reduced channels, where its transformer would
    compare the two (MultiImageEncoder.forward in encoder.py). The projector begins with a 1x1 convolution. So it and
    the reduction are one convolution, and what the constant adds moves into the mean of the batch norm behind.

    Raises:
        ValueError: A tensor is missing, or the shapes do not fit.
    """
    reduce, missing = "encoder.backbone_to_vit.weight", "encoder.missing_previous_emb"
    first, mean = "projector.model.0.weight", "projector.model.1.running_mean"
    channels = shape_of(tensors, reduce, 4)[0]
    shape_of(tensors, mean, 1)
    for name, shape in ((missing, (1, channels, 1, 1)), (first, (shape_of(tensors, first, 4)[0], 2 * channels, 1, 1))):
        if shape_of(tensors, name, 4) != shape:
            raise ValueError(
                f"The tensor {name} of the checkpoint has the shape {tuple(tensors[name].shape)}, but the other "
                f"tensors imply {shape}."
            )
    seen, constant = tensors[first].double().flatten(1).chunk(2, dim=1)
    projection = seen @ tensors[reduce].double().flatten(1)  # (dim, channels of the ResNet)
    shift = constant @ tensors[missing].double().flatten()
    return {name: tensor for name, tensor in tensors.items() if name not in (reduce, missing)} | {
        first: projection[..., None, None].to(tensors[first].dtype),
        mean: (tensors[mean].double() - shift).to(tensors[mean].dtype),
    }
