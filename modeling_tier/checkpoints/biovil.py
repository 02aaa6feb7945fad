"""Loads BioViL (hi-ml-multimodal/.../image/model of microsoft/hi-ml). Its image tower has torchvision's names."""

import re
from pathlib import Path

import torch

from ..configuration_tier import TierDualEncoderConfig
from ..modeling_dual_tier import TierDualEncoderModel
from ..towers_tier import cxr_bert_config
from .layout import fill, shape_of
from .openclip import WEIGHT_FILES
from .tensor_files import read_json, read_tensors
from .tier import dual_names, resnet_config

# Tensors that the original code saves although its embeddings do not depend on them
UNUSED = re.compile(r"encoder\.encoder\.fc\.\w+|cls\.predictions\..+|bert\.embeddings\.position_ids")


def load_biovil(tensors: dict[str, torch.Tensor], text_folder: Path) -> TierDualEncoderModel:
    """BioViL's image tower and CXR-BERT. Neither has a logit scale, so it gets TIER's initial value."""
    weights = next((text_folder / name for name in WEIGHT_FILES if (text_folder / name).is_file()), None)
    if weights is None or not (text_folder / "config.json").is_file():
        raise ValueError(f"{text_folder} must be a folder with the config.json and the weights of CXR-BERT.")
    settings = read_json(text_folder / "config.json")
    if settings.get("model_type") != "cxr-bert":
        raise ValueError(f"{text_folder} holds a model of type {settings.get('model_type')!r}, not 'cxr-bert'.")
    config = TierDualEncoderConfig(
        vision_config=resnet_config(tensors, "encoder.encoder."),
        text_config=cxr_bert_config(settings),
        projection_dim=shape_of(tensors, "projector.model.0.weight", 4)[0],
        image_size=480,  # hi-ml, image/inference_engine
        pixel_mean=[0.0] * 3,
        pixel_std=[1.0] * 3,
    )
    return fill(
        lambda: TierDualEncoderModel(config),
        {**tensors, **read_tensors(weights)[0]},
        lambda ours: dual_names(ours, "", ""),
        UNUSED,
    )
