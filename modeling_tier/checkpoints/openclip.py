"""OpenCLIP (src/open_clip/model.py of mlfoundations/open_clip): reading its settings, and writing models for it."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import CLIPModel, CLIPTextConfig, CLIPVisionConfig

from .layout import to_layout
from .openai import clip_names

ACTIVATIONS = ("gelu", "quick_gelu")
OPENCLIP_CONFIG = "open_clip_config.json"
OPENCLIP_WEIGHTS = "open_clip_model.safetensors"
CLIP_VOCABULARY = 49408  # tokens of the tokenizer in the open_clip package
# In the order in which OpenCLIP's factory.py prefers them.
WEIGHT_FILES = (
    OPENCLIP_WEIGHTS,
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
)
# OpenCLIP's vision towers whose heads are not 64 wide (src/open_clip/model_configs: H, g, bigG and e), by width.
HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104, 1792: 112}
# Keys of OpenCLIP's vision_cfg and text_cfg that are read below or from the tensors, or do not change an embedding.
OPENCLIP_KEYS = {
    *("layers", "width", "head_width", "heads", "mlp_ratio", "patch_size", "image_size", "context_length"),
    *("vocab_size", "norm_kwargs", "hf_tokenizer_name", "pad_id", "eos_id", "patch_dropout", "output_tokens"),
    *("attn_pooler_queries", "attn_pooler_heads", "hf_model_pretrained"),
}
OPENCLIP_VALUES = {  # of these keys, CLIP's choices
    "pool_type": ("tok", "argmax"),
    "proj_type": ("linear",),
    "pos_embed_type": ("learnable", "sin_cos_2d"),
    "block_type": ("default",),
}


def openclip_settings(settings: dict) -> tuple[dict, dict, bool]:
    """
    `vision_cfg`, `text_cfg` and `quick_gelu` of `open_clip_config.json`.

    Raises:
        ValueError: They ask for something that CLIP does not have.
    """
    model = settings.get("model_cfg")
    parts = [model.get(name) for name in ("vision_cfg", "text_cfg")] if isinstance(model, dict) else [None]
    if not all(isinstance(part, dict) for part in parts):
        raise ValueError(
            f"{OPENCLIP_CONFIG} lacks a model_cfg with a vision_cfg and a text_cfg, so OpenCLIP did not write it."
        )
    for part in parts:
        for key, value in part.items():
            known = key in OPENCLIP_KEYS or value in OPENCLIP_VALUES.get(key, ())
            sound = key not in ("heads", "head_width") or isinstance(value, int) and value > 0
            sound = sound and (key != "norm_kwargs" or not value or isinstance(value, dict) and {"eps"} >= set(value))
            if value and not (known and sound):
                raise ValueError(f"{OPENCLIP_CONFIG} asks for {key}={value!r}, which CLIP does not have.")
    return parts[0], parts[1], bool(model.get("quick_gelu"))


def to_openclip(model: CLIPModel) -> tuple[dict[str, torch.Tensor], dict]:
    """
    A CLIP model in OpenCLIP's layout.

    Args:
        model (`CLIPModel`): Plain CLIP; see [`TierCLIPModel.to_clip`].

    Returns:
        `tuple`: the state dict of `open_clip.CLIP`, and the `model_cfg` of its `open_clip_config.json`.

    Raises:
        ValueError: OpenCLIP's CLIP does not support this model.
    """
    vision, text = model.config.vision_config, model.config.text_config
    if vision.hidden_act != text.hidden_act or text.hidden_act not in ACTIVATIONS:
        raise ValueError(
            f"OpenCLIP supports gelu or quick_gelu in both towers, not {vision.hidden_act} and {text.hidden_act}."
        )
    if text.eos_token_id not in (2, text.vocab_size - 1):  # 2: an old configuration, pooled as OpenCLIP does
        raise ValueError(
            f"OpenCLIP pools a text at its highest token id, but this model ends a text with the token "
            f"{text.eos_token_id} of a vocabulary of {text.vocab_size}."
        )

    def tower(config: CLIPTextConfig | CLIPVisionConfig) -> dict[str, Any]:
        ratio = config.intermediate_size / config.hidden_size
        if int(config.hidden_size * ratio) != config.intermediate_size:  # OpenCLIP rounds down
            ratio = (config.intermediate_size + 0.5) / config.hidden_size
        cfg = {"width": config.hidden_size, "layers": config.num_hidden_layers, "mlp_ratio": ratio}
        return cfg if config.layer_norm_eps == 1e-5 else {**cfg, "norm_kwargs": {"eps": config.layer_norm_eps}}

    model_cfg = {
        "embed_dim": model.config.projection_dim,
        "quick_gelu": text.hidden_act == "quick_gelu",
        "vision_cfg": {
            **tower(vision),
            "image_size": vision.image_size,
            "patch_size": vision.patch_size,
            "head_width": vision.hidden_size // vision.num_attention_heads,
        },
        "text_cfg": {
            **tower(text),
            "context_length": text.max_position_embeddings,
            "vocab_size": text.vocab_size,
            "heads": text.num_attention_heads,
        },
    }
    names = clip_names(vision.num_hidden_layers, text.num_hidden_layers)
    return to_layout(model.state_dict(), names), model_cfg


def write_openclip(folder: Path, model: CLIPModel, preprocess_cfg: dict, tokenizer_name: str) -> bool:
    """
    Writes the weights and the configuration that `open_clip.create_model("local-dir:...")` loads.

    Args:
        folder (`Path`): An existing folder, which also gets the tokenizer (from the caller).
        model (`CLIPModel`): Plain CLIP.
        preprocess_cfg (`dict`): OpenCLIP's description of the pixels.
        tokenizer_name (`str`): Written for a tokenizer that is not CLIP's. OpenCLIP ignores it in a local folder.

    Returns:
        `bool`: Whether `tokenizer_name` was written; after an upload it must name the repository.
    """
    tensors, model_cfg = to_openclip(model)
    has_own_tokenizer = model_cfg["text_cfg"]["vocab_size"] != CLIP_VOCABULARY
    if has_own_tokenizer:
        model_cfg["text_cfg"]["hf_tokenizer_name"] = tokenizer_name
    save_file(tensors, folder / OPENCLIP_WEIGHTS, metadata={"format": "pt"})
    config = json.dumps({"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}, indent=2)
    (folder / OPENCLIP_CONFIG).write_text(config + "\n", encoding="utf-8")
    return has_own_tokenizer
