"""A folder as `tier-export` writes it, but with two graphs written by hand, whose numbers are easy to compute."""

from argparse import Namespace
from pathlib import Path

import numpy as np
import torch
from tiny_models import save_tiny_clip

from evaluation_tier.export.run import write_config
from evaluation_tier.models.loading import load_model

IMAGE = """<ir_version: 8, opset_import: ["" : 18]>
image (float[batch, 3, 32, 32] pixel_values) => (float[batch, 3] image_embeds, float[batch, 4, 4, 3] patches) {
    pooled = AveragePool <kernel_shape = [8, 8], strides = [8, 8]> (pixel_values)
    patches = Transpose <perm = [0, 2, 3, 1]> (pooled)
    axes = Constant <value = int64[2] {1, 2}> ()
    image_embeds = ReduceMean <keepdims = 0> (patches, axes)
}"""
TEXT = """<ir_version: 8, opset_import: ["" : 18]>
text (int64[texts, length] input_ids, int64[texts, length] attention_mask)
    => (float[texts, 3] text_embeds, float[texts, length, 3] tokens) {
    one = Constant <value = int64[1] {1}> ()
    last = Constant <value = int64[1] {-1}> ()
    ids = Cast <to = 1> (input_ids)
    mask = Cast <to = 1> (attention_mask)
    a = Sin (ids)
    b = Cos (ids)
    c = Mul (a, b)
    ua = Unsqueeze (a, last)
    ub = Unsqueeze (b, last)
    uc = Unsqueeze (c, last)
    um = Unsqueeze (mask, last)
    together = Concat <axis = -1> (ua, ub, uc)
    tokens = Mul (together, um)
    text_embeds = ReduceSum <keepdims = 0> (tokens, one)
}"""


def save_exported(folder: Path, image: str = IMAGE, **changes) -> Path:
    """Saves the two graphs with the configuration and the processor of a tiny model, whose `changes` are given."""
    import onnx

    model, processor = load_model(save_tiny_clip(folder / "model", 0, image_pooling="patch_mean", **changes))
    out = folder / "exported"
    out.mkdir()
    for tower, graph in (("image", image), ("text", TEXT)):
        onnx.save(onnx.parser.parse_model(graph), out / f"{tower}.onnx")
    write_config(out, model, Namespace(to="onnx", int8=False), ["input_ids", "attention_mask"], {})
    processor.save_pretrained(out)
    return out


def patches_of(pixels: torch.Tensor) -> np.ndarray:
    """What the image graph gives for pixels (batch, 3, 32, 32): (batch, 4, 4, 3)."""
    return pixels.unflatten(3, (4, 8)).unflatten(2, (4, 8)).mean(dim=(3, 5)).permute(0, 2, 3, 1).numpy()
