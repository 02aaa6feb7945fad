"""timm's names of a vision transformer (timm/models/vision_transformer.py), which DINOv2's own code shares."""

import math
import re
from collections.abc import Mapping

import torch

from .layout import count_parts, shape_of

EMBEDDINGS = {  # of ViTModel and Dinov2Model of transformers
    "embeddings.cls_token": "cls_token",
    "embeddings.mask_token": "mask_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
}
LAYER = {  # in any version of transformers since 5.15, which renamed some
    "attention.o_proj": "attn.proj",
    "attention.output.dense": "attn.proj",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "norm1": "norm1",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
}
QKV = re.compile(r"attention\.(?:attention\.)?(q|k|v)(?:_proj|uery|ey|alue)")


def vit_names(ours: list[str], tower: str, prefix: str) -> dict[str, tuple[str, ...]]:
    """
    timm's name of each tensor of an image tower, under `prefix`, and our name. timm's tensors with the rows of
    queries, keys and values have three names of ours.
    """
    names: dict[str, tuple[str, ...]] = {}
    for own in ours:
        if not own.startswith(tower):
            continue
        name = own.removeprefix(tower)
        if name in EMBEDDINGS:
            names[prefix + EMBEDDINGS[name]] = (own,)
            continue
        module, _, part = name.rpartition(".")
        layer = re.fullmatch(r"(?:encoder\.)?layers?\.(\d+)\.(.+)", name)
        if layer is None:
            names[f"{prefix}{EMBEDDINGS[module]}.{part}"] = (own,)
            continue
        block, inner = f"{prefix}blocks.{layer[1]}", layer[2]
        module, _, part = inner.rpartition(".")
        if inner in LAYER:
            names[f"{block}.{LAYER[inner]}"] = (own,)
        elif QKV.fullmatch(module):
            fused = f"{block}.attn.qkv.{part}"
            names[fused] = (*names.get(fused, ()), own)
        else:
            names[f"{block}.{LAYER[module]}.{part}"] = (own,)
    return {theirs: tuple(sorted(own, key=row_of)) if len(own) > 1 else own for theirs, own in names.items()}


def row_of(own: str) -> int:
    """Where queries, keys and values lie in timm's fused tensor."""
    return "qkv".index(QKV.search(own)[1])


def vit_sizes(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, int]:
    """
    Fields of the configuration of a plain vision transformer, from its tensors. Heads are 64 wide, as in timm's tiny,
    small, base and large models and in DINOv2.

    Raises:
        ValueError: The tensors are not those of such a transformer with one class token and square images.
    """
    width, channels, patch, _ = shape_of(tensors, f"{prefix}patch_embed.proj.weight", 4)
    positions = shape_of(tensors, f"{prefix}pos_embed", 3)[1]
    grid = math.isqrt(positions - 1)
    if not grid or grid**2 != positions - 1:
        raise ValueError(f"The tensor {prefix}pos_embed has {positions} positions, not one more than a square number.")
    if width % 64:
        raise ValueError(f"A width of {width} cannot be divided into heads of 64, so this is not a timm ViT.")
    return {
        "hidden_size": width,
        "num_channels": channels,
        "patch_size": patch,
        "image_size": patch * grid,
        "num_hidden_layers": count_parts(tensors, f"{prefix}blocks."),
        "num_attention_heads": width // 64,
    }
