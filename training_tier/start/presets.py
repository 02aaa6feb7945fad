"""Presets: sizes of models that start from random weights."""

from typing import Any

from transformers import PreTrainedTokenizerBase

from modeling_tier import TierCLIPConfig, TierDualEncoderConfig

# CLIP's (Radford et al. 2021, Table 20)
VIT_B = {
    "projection_dim": 512,
    "text_config": {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8},
    "vision_config": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224},
}

# The first three are our choices for small data and few CPU cores.
PRESETS: dict[str, dict[str, Any]] = {
    "nano": {
        "projection_dim": 128,
        "text_config": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
        "vision_config": {
            "hidden_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": 112,
            "patch_size": 16,
        },
    },
    "tiny": {
        "projection_dim": 128,
        "text_config": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2},
        "vision_config": {
            "hidden_size": 192,
            "num_hidden_layers": 4,
            "num_attention_heads": 3,
            "image_size": 112,
            "patch_size": 16,
        },
    },
    "small": {
        "projection_dim": 256,
        "text_config": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4},
        "vision_config": {
            "hidden_size": 384,
            "num_hidden_layers": 8,
            "num_attention_heads": 6,
            "image_size": 224,
            "patch_size": 16,
        },
    },
    "vit-b-32": {**VIT_B, "vision_config": {**VIT_B["vision_config"], "patch_size": 32}},
    "vit-b-16": {**VIT_B, "vision_config": {**VIT_B["vision_config"], "patch_size": 16}},
    # Towers with a model_type make a dual encoder. This one is the paper's, the next our choice: from random weights
    # and few reports, CLIP's text encoder learns, and a BERT of the same size hardly does.
    "resnet-50-bert": {
        "projection_dim": 128,
        "image_size": 224,
        "text_config": {
            "model_type": "bert",
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
        },
        "vision_config": {"model_type": "resnet"},
    },
    "resnet-tiny": {
        "projection_dim": 128,
        "image_size": 112,
        "text_config": {
            "model_type": "clip_text_model",
            "hidden_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        },
        "vision_config": {
            "model_type": "resnet",
            "num_channels": 1,
            "embedding_size": 32,
            "hidden_sizes": [32, 64, 128],  # three stages: 7 x 7 patches of 112 pixels, as many as the paper's
            "depths": [1, 1, 2],
            "layer_type": "basic",
        },
        "pixel_mean": [0.45] * 3,  # ImageNet's, over the channels
        "pixel_std": [0.225] * 3,
    },
}
PRESETS["resnet-fine"] = {
    **PRESETS["resnet-tiny"],
    "vision_config": {
        **PRESETS["resnet-tiny"]["vision_config"],
        "hidden_sizes": [32, 96],  # two stages: 14 x 14 patches of 112 pixels, each of which sees 83 x 83 pixels
        "depths": [1, 2],
    },
}


def preset_config(
    name: str, tokenizer: PreTrainedTokenizerBase, image_size: int | None = None, **overrides: Any
) -> TierCLIPConfig | TierDualEncoderConfig:
    """
    Configuration of a preset for one tokenizer.

    Args:
        name (`str`): a key of `PRESETS`.
        tokenizer ([`PreTrainedTokenizerBase`]): provides the vocabulary, the special tokens and the text length.
        image_size (`int`, *optional*):
            edge of the image in pixels, instead of the preset's. With patches, a multiple of their edge.
        overrides: fields of the configuration. `image_pooling` defaults to `"patch_mean"`.

    Raises:
        `ValueError`: the patches do not fill image_size, or the configuration refuses a value.
    """
    preset = {key: value for key, value in PRESETS[name].items() if key not in ("text_config", "vision_config")}
    vision = {**PRESETS[name]["vision_config"]}
    text = {
        **PRESETS[name]["text_config"],
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text["intermediate_size"] = 4 * text["hidden_size"]
    if "model_type" in vision:
        config_class = TierDualEncoderConfig
        preset["image_size"] = image_size or preset["image_size"]
    else:
        config_class = TierCLIPConfig
        preset["image_pooling"] = "patch_mean"
        vision["image_size"] = image_size or vision["image_size"]
        vision["intermediate_size"] = 4 * vision["hidden_size"]
        if misfit := misfit_of_patches(name, image_size):
            raise ValueError(misfit)
    return config_class(text_config=text, vision_config=vision, **{**preset, **overrides})


def misfit_of_patches(name: str, image_size: int | None) -> str | None:
    """The fault of an image size for the patches of a preset; None if they fill it, or the preset has no patches."""
    patch = PRESETS[name]["vision_config"].get("patch_size")
    if image_size is None or patch is None or image_size >= patch and image_size % patch == 0:
        return None
    return (
        f"image_size={image_size} is not a multiple of the {patch}-pixel patches of {name!r}; use for example "
        f"{max(1, round(image_size / patch)) * patch}."
    )
