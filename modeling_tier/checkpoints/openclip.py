"""OpenCLIP (src/open_clip/model.py of mlfoundations/open_clip): what its settings say, and models written in it."""

from typing import Any

import torch
from transformers import CLIPModel

from .layout import to_layout
from .openai import clip_names

ACTIVATIONS = ("gelu", "quick_gelu")
OPENCLIP_CONFIG = "open_clip_config.json"
OPENCLIP_WEIGHTS = "open_clip_model.safetensors"
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
# Keys of OpenCLIP's vision_cfg and text_cfg that the tensors tell, that are read below, or that change no embedding.
OPENCLIP_KEYS = {
    *("layers", "width", "head_width", "heads", "mlp_ratio", "patch_size", "image_size", "context_length"),
    *("vocab_size", "norm_kwargs", "hf_tokenizer_name", "pad_id", "eos_id", "patch_dropout", "output_tokens"),
    *("attn_pooler_queries", "attn_pooler_heads", "hf_model_pretrained"),
}
OPENCLIP_VALUES = {  # the choices among others that are CLIP's
    "pool_type": ("tok", "argmax"),
    "proj_type": ("linear",),
    "pos_embed_type": ("learnable", "sin_cos_2d"),
    "block_type": ("default",),
}


def openclip_settings(settings: dict) -> tuple[dict, dict, bool]:
    """
    `vision_cfg`, `text_cfg` and `quick_gelu` of `open_clip_config.json`.

    Raises:
        ValueError: it asks for something that CLIP has not.
    """
    model = settings.get("model_cfg")
    parts = [model.get(name) for name in ("vision_cfg", "text_cfg")] if isinstance(model, dict) else [None]
    if not all(isinstance(part, dict) for part in parts):
        raise ValueError(
            f"{OPENCLIP_CONFIG} has no model_cfg with a vision_cfg and a text_cfg; it is none of OpenCLIP's."
        )
    for part in parts:
        for key, value in part.items():
            known = key in OPENCLIP_KEYS or value in OPENCLIP_VALUES.get(key, ())
            sound = key not in ("heads", "head_width") or isinstance(value, int) and value > 0
            sound = sound and (key != "norm_kwargs" or not value or isinstance(value, dict) and {"eps"} >= set(value))
            if value and not (known and sound):
                raise ValueError(f"{OPENCLIP_CONFIG} asks for {key}={value!r}, which CLIP has not.")
    return parts[0], parts[1], bool(model.get("quick_gelu"))


def to_openclip(model: CLIPModel) -> tuple[dict[str, torch.Tensor], dict]:
    """
    A CLIP model as OpenCLIP has it.

    Args:
        model (`CLIPModel`): Plain CLIP; see [`TierCLIPModel.to_clip`].

    Returns:
        `tuple`: the state dict of `open_clip.CLIP`, and the `model_cfg` of its `open_clip_config.json`.

    Raises:
        ValueError: something that OpenCLIP's CLIP has not.
    """
    vision, text = model.config.vision_config, model.config.text_config
    if vision.hidden_act != text.hidden_act or text.hidden_act not in ACTIVATIONS:
        raise ValueError(
            f"OpenCLIP has gelu or quick_gelu in both towers, not {vision.hidden_act} and {text.hidden_act}."
        )
    if text.eos_token_id not in (2, text.vocab_size - 1):  # 2: an old configuration, pooled as OpenCLIP does
        raise ValueError(
            f"OpenCLIP pools a text at its highest token id, which the end token {text.eos_token_id} of this model "
            f"with a vocabulary of {text.vocab_size} is not."
        )

    def tower(config) -> dict[str, Any]:
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
