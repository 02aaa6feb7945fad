"""Loads CLIP models with a plain vision transformer: OpenAI's, CheXzero's, OpenCLIP's, and those of transformers."""

import math
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ..configuration_tier import TierCLIPConfig
from ..modeling_tier import TierCLIPModel
from .layout import count_parts, fill, refuse_tensors, shape_of
from .model_folder import check_model_folder
from .openai import clip_names
from .openclip import HEAD_WIDTHS, openclip_settings
from .source import Source

# Tensors that the original code saves although its embeddings do not depend on them
UNUSED = re.compile(r"input_resolution|context_length|vocab_size|(.+\.)?attn_mask")


def load_clip(source: Source, activation: str | None) -> TierCLIPModel:
    """The model of an OpenAI, CheXzero or OpenCLIP checkpoint."""
    tensors, text = source.tensors, "text." if any(name.startswith("text.") for name in source.tensors) else ""
    config = clip_config(source, text, activation)

    def name_of(_: list[str]) -> dict[str, tuple[str, ...]]:
        return clip_names(config.vision_config.num_hidden_layers, config.text_config.num_hidden_layers, text)

    return fill(lambda: TierCLIPModel(config), tensors, name_of, UNUSED)


def clip_config(source: Source, text: str, activation: str | None) -> TierCLIPConfig:
    """Sizes come from the tensors (as in `build_model` of OpenAI's clip/model.py), the rest from the kind."""
    tensors = source.tensors
    width, _, patch, _ = shape_of(tensors, "visual.conv1.weight", 4)
    positions, _ = shape_of(tensors, "visual.positional_embedding", 2)
    grid = math.isqrt(positions - 1)
    if not grid or grid**2 != positions - 1:
        raise ValueError(
            f"The tensor visual.positional_embedding has {positions} positions, not one more than a square number."
        )
    vocab_size, text_width = shape_of(tensors, f"{text}token_embedding.weight", 2)
    _, dim = shape_of(tensors, f"{text}text_projection", 2)

    heads, text_heads = width // 64, text_width // 64
    vision_cfg: dict[str, Any] = {}
    text_cfg: dict[str, Any] = {}
    quick_gelu = True
    if source.settings:
        vision_cfg, text_cfg, quick_gelu = openclip_settings(source.settings)
        heads, text_heads = width // (vision_cfg.get("head_width") or 64), text_cfg.get("heads") or 8
    elif source.kind == "openclip":
        heads, quick_gelu = width // HEAD_WIDTHS.get(width, 64), activation == "quick_gelu"

    def tower(prefix: str, hidden: int, heads: int, cfg: dict) -> dict[str, Any]:
        if not heads or hidden % heads:
            raise ValueError(
                f"A width of {hidden} cannot be divided among {heads} heads, so this is not a CLIP checkpoint."
            )
        return {
            "hidden_size": hidden,
            "intermediate_size": shape_of(tensors, f"{prefix}0.mlp.c_fc.weight", 2)[0],
            "num_hidden_layers": count_parts(tensors, prefix),
            "num_attention_heads": heads,
            "hidden_act": "quick_gelu" if quick_gelu else "gelu",
            "layer_norm_eps": (cfg.get("norm_kwargs") or {}).get("eps", 1e-5),
            "projection_dim": dim,
        }

    return TierCLIPConfig(
        projection_dim=dim,
        vision_config={
            **tower("visual.transformer.resblocks.", width, heads, vision_cfg),
            "patch_size": patch,
            "image_size": patch * grid,
        },
        text_config={
            **tower(f"{text}transformer.resblocks.", text_width, text_heads, text_cfg),
            "vocab_size": vocab_size,
            "max_position_embeddings": shape_of(tensors, f"{text}positional_embedding", 2)[0],
            # The vocabulary ends with begin and end of text (simple_tokenizer.py), and the original pools the text at
            # its highest id, so the start of the padding does not matter.
            "bos_token_id": vocab_size - 2,
            "eos_token_id": vocab_size - 1,
            "pad_token_id": vocab_size - 1,
        },
    )


def load_clip_folder(path: Path) -> TierCLIPModel:
    """The model of a folder that `save_pretrained` wrote, of a CLIP model of transformers or of this package."""
    check_model_folder(path)
    try:
        model, info = TierCLIPModel.from_pretrained(
            path, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (OSError, EOFError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} cannot be loaded as a CLIP model: {str(error).splitlines()[0]}") from None
    for key, problem in (
        ("missing_keys", "lacks"),
        ("unexpected_keys", "has unknown"),
        ("mismatched_keys", "has other shapes than config.json says for"),
    ):
        names = sorted(str(name[0]) if isinstance(name, tuple) else str(name) for name in info[key])
        names = [name for name in names if not name.endswith("position_ids")]  # saved by transformers before 4.31
        refuse_tensors(problem, names)
    return model.eval()
