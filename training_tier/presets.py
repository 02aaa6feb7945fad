"""Sizes of models that start from random weights."""

from transformers import PreTrainedTokenizerBase

from modeling_tier import TierCLIPConfig

# CLIP's (Radford et al. 2021, Table 20)
VIT_B = {
    "projection_dim": 512,
    "text_config": {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8},
    "vision_config": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224},
}
# The first three are own choices for small data and few cores.
PRESETS = {
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
}


def preset_config(
    name: str, tokenizer: PreTrainedTokenizerBase, image_size: int | None = None, **overrides
) -> TierCLIPConfig:
    """
    Configuration of a preset for one tokenizer.

    Args:
        name (`str`): a key of `PRESETS`.
        tokenizer ([`PreTrainedTokenizerBase`]): gives the vocabulary, the special tokens and the text length.
        image_size (`int`, *optional*): edge of the image in pixels instead of the preset's; a multiple of its patch.
        overrides: fields of [`TierCLIPConfig`]. `image_pooling` is `"patch_mean"` unless it is given.

    Raises:
        `ValueError`: an image_size that the patches do not fill, or what the configuration itself refuses.
    """
    preset = PRESETS[name]
    vision = {**preset["vision_config"]}
    vision["image_size"] = image_size or vision["image_size"]
    if vision["image_size"] < vision["patch_size"] or vision["image_size"] % vision["patch_size"]:
        raise ValueError(
            f"image_size={image_size} is no multiple of the {vision['patch_size']}-pixel patches of {name!r}; "
            f"use for example {max(1, round(image_size / vision['patch_size'])) * vision['patch_size']}."
        )
    text = {
        **preset["text_config"],
        "vocab_size": len(tokenizer),
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    for tower in (vision, text):
        tower["intermediate_size"] = 4 * tower["hidden_size"]
    return TierCLIPConfig(
        projection_dim=preset["projection_dim"],
        text_config=text,
        vision_config=vision,
        **{"image_pooling": "patch_mean", **overrides},
    )
