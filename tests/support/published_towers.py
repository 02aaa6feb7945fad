"""
Small copies of published image towers: `config.json`, `preprocessor_config.json` and the class that saved the weights
are as on the pages of huggingface.co that the keys name, but the sizes are small.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
CLIP = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
RAD_DINO = {"image_mean": [0.5307] * 3, "image_std": [0.2583] * 3}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VIT = {**SMALL, "intermediate_size": 64}
DINO_V2 = {**SMALL, "mlp_ratio": 2, "image_size": 518, "patch_size": 14, "use_swiglu_ffn": False}
TEXT = {**VIT, "vocab_size": 50, "bos_token_id": 48, "eos_token_id": 49, "pad_token_id": 49}


def bit(crop: int, edge: int, numbers: dict) -> dict:
    """The settings of a `BitImageProcessor`, which CLIP's has too."""
    return {
        "crop_size": {"height": crop, "width": crop},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_processor_type": "BitImageProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": edge},
        **numbers,
    }


class Published(NamedTuple):
    """A published tower, and what must come of it."""

    saved_by: str  # a class of transformers
    config: dict
    pixels: dict  # preprocessor_config.json
    size: int
    side: int  # rows, and columns, of patches
    centers: tuple[float, float]
    resample: int = 3
    has_class_token: bool = True


TOWERS = {
    # RAD-DINO is a DINOv2 that takes 518 pixels; DINOv2 itself was made at 518, but its processor says 224.
    "microsoft/rad-dino": Published(
        "Dinov2Model", DINO_V2, bit(518, 518, RAD_DINO), size=518, side=37, centers=(7, 14)
    ),
    "facebook/dinov2-base": Published(
        "Dinov2Model", DINO_V2, bit(224, 256, IMAGENET), size=224, side=16, centers=(7, 14)
    ),
    "facebook/dinov2-with-registers-base": Published(
        "Dinov2WithRegistersModel",
        {**DINO_V2, "num_register_tokens": 4},
        bit(224, 256, IMAGENET),
        size=224,
        side=16,
        centers=(7, 14),
    ),
    "facebook/dinov3-vitb16-pretrain-lvd1689m": Published(
        "DINOv3ViTModel",
        {**VIT, "image_size": 224, "patch_size": 16, "num_register_tokens": 4, "key_bias": False, "rope_theta": 100.0},
        {
            "crop_size": None,
            "default_to_square": True,
            "do_center_crop": None,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_processor_type": "DINOv3ViTImageProcessorFast",  # needs torchvision
            "resample": 2,
            "rescale_factor": 1 / 255,
            "size": {"height": 224, "width": 224},
            **IMAGENET,
        },
        size=224,
        side=14,
        centers=(8, 16),
        resample=2,
    ),
    "facebook/dinov3-convnext-tiny-pretrain-lvd1689m": Published(
        "DINOv3ConvNextModel",
        {"hidden_sizes": [8, 8, 16, 32], "depths": [1, 1, 1, 1], "image_size": 224},
        {"image_processor_type": "DINOv3ViTImageProcessorFast", "resample": 2, "size": {"height": 224, "width": 224}}
        | IMAGENET,
        size=224,
        side=7,
        centers=(16, 32),
        resample=2,
        has_class_token=False,
    ),
    "openai/clip-vit-base-patch16": Published(
        "CLIPModel",
        {"projection_dim": 8, "text_config": TEXT, "vision_config": {**VIT, "image_size": 224, "patch_size": 16}},
        {
            "crop_size": 224,
            "do_center_crop": True,
            "do_normalize": True,
            "do_resize": True,
            "feature_extractor_type": "CLIPFeatureExtractor",
            "resample": 3,
            "size": 224,
            **CLIP,
        },
        size=224,
        side=14,
        centers=(8, 16),
    ),
    "google/siglip-base-patch16-224": Published(
        "SiglipModel",
        {
            "text_config": {**VIT, "vocab_size": 50, "projection_size": 32},
            "vision_config": {**VIT, "image_size": 224, "patch_size": 16},
        },
        {
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_processor_type": "SiglipImageProcessor",
            "resample": 3,
            "rescale_factor": 0.00392156862745098,
            "size": {"height": 224, "width": 224},
            **HALF,
        },
        size=224,
        side=14,
        centers=(8, 16),
        has_class_token=False,
    ),
    "facebook/convnext-tiny-224": Published(
        "ConvNextForImageClassification",
        {"hidden_sizes": [8, 8, 16, 32], "depths": [1, 1, 1, 1], "image_size": 224},
        {
            "crop_pct": 0.875,
            "do_normalize": True,
            "do_resize": True,
            "feature_extractor_type": "ConvNextFeatureExtractor",
            "resample": 3,
            "size": 224,
            **IMAGENET,
        },
        size=224,
        side=7,
        centers=(16, 32),
        has_class_token=False,
    ),
    "microsoft/swin-tiny-patch4-window7-224": Published(
        "SwinForImageClassification",
        {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": 7, "image_size": 224},
        {
            "do_normalize": True,
            "do_resize": True,
            "feature_extractor_type": "ViTFeatureExtractor",
            "resample": 3,
            "size": 224,
            **IMAGENET,
        },
        size=224,
        side=7,
        centers=(16, 32),
        has_class_token=False,
    ),
    "microsoft/resnet-50": Published(
        "ResNetForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 32], "depths": [1, 1, 1, 1]},
        {
            "crop_pct": 0.875,
            "do_normalize": True,
            "do_resize": True,
            "feature_extractor_type": "ConvNextFeatureExtractor",
            "resample": 3,
            "size": 224,
            **IMAGENET,
        },
        size=224,
        side=7,
        centers=(0.5, 32),
        has_class_token=False,
    ),
    "google/vit-base-patch16-224-in21k": Published(
        "ViTModel",
        {**VIT, "image_size": 224, "patch_size": 16},
        {
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_processor_type": "ViTImageProcessor",
            "resample": 2,
            "rescale_factor": 1 / 255,
            "size": {"height": 224, "width": 224},
            **HALF,
        },
        size=224,
        side=14,
        centers=(8, 16),
        resample=2,
    ),
}


def write_tower(name: str, folder: Path) -> torch.nn.Module:
    """Writes a tower with random weights as its owner would, and returns it."""
    published = TOWERS[name]
    torch.manual_seed(0)
    model_class: Any = getattr(transformers, published.saved_by)
    model = model_class(model_class.config_class(**published.config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # initial norms and biases are all ones and zeros
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(published.pixels))
    return model
