"""The graphs of every kind of model against the model, for other numbers of images and texts than the trace had."""

from argparse import Namespace

import numpy as np
import pytest
import torch
from model_checks import BERT, CLIP_TEXT, RESNET, VISION, VIT
from tiny_siglip import siglip_sizes

from evaluation_tier.export.graphs import check_same, check_size, export_towers, to_openvino
from evaluation_tier.export.run import check_exportable, write_config
from modeling_tier import (
    TierCLIPConfig,
    TierCLIPModel,
    TierDualEncoderConfig,
    TierDualEncoderModel,
    TierExportedModel,
    TierSiglipConfig,
    TierSiglipModel,
)

CLIP_KINDS = ("cls", "patch_mean")
ROBERTA = {**BERT, "model_type": "roberta", "pad_token_id": 1, "max_position_embeddings": 22}
DUAL = {
    "resnet": (RESNET, BERT),
    "vit": (VIT, ROBERTA),
    "dinov2": ({**VISION, "model_type": "dinov2"}, {"model_type": "clip_text_model", **CLIP_TEXT}),
    "swin": (
        {
            "model_type": "swin",
            "image_size": 32,
            "patch_size": 4,
            "embed_dim": 8,
            "depths": [1, 1],
            "num_heads": [1, 2],
            "window_size": 4,
        },
        BERT,
    ),
}


def make(kind: str):
    torch.manual_seed(0)
    if kind in CLIP_KINDS:
        sizes = {"text_config": dict(CLIP_TEXT), "vision_config": dict(VISION), "projection_dim": 24}
        model = TierCLIPModel(TierCLIPConfig(**sizes, image_pooling=kind))
    elif kind == "siglip":
        model = TierSiglipModel(TierSiglipConfig(**siglip_sizes()))
    else:
        vision, text = (dict(config) for config in DUAL[kind])
        config = TierDualEncoderConfig(vision_config=vision, text_config=text, projection_dim=24, image_size=32)
        model = TierDualEncoderModel(config)
    with torch.no_grad():
        for parameter in model.parameters():  # initial norms and biases are all ones and zeros
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*CLIP_KINDS, "siglip", *DUAL])
@pytest.mark.parametrize("graph_format", ["onnx", "openvino"])
def test_graphs_give_what_the_model_gives(kind, graph_format, tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip({"onnx": "onnxruntime"}.get(graph_format, graph_format))
    model = make(kind)
    text_inputs = export_towers(model, tmp_path)
    if graph_format == "openvino":
        to_openvino(model, tmp_path, int8=False)
    assert text_inputs == (["input_ids"] if kind == "siglip" else ["input_ids", "attention_mask"])
    write_config(tmp_path, model, Namespace(to=graph_format, int8=False), text_inputs, {})
    exported = TierExportedModel.from_pretrained(tmp_path)
    assert exported.patch_centers == model.patch_centers
    with torch.no_grad():
        for count, length in ((1, 4), (5, 20)):
            pixels = torch.randn(count, 3, 32, 32)
            length = 64 if kind == "siglip" else length
            inputs = {"input_ids": torch.randint(2, 40, (count, length))}
            if kind != "siglip":
                lengths = torch.randint(2, length + 1, (count, 1))
                inputs["attention_mask"] = (torch.arange(length) < lengths).long()
            computed, expected = exported(**inputs, pixel_values=pixels), model(**inputs, pixel_values=pixels)
            for name in ("logits_per_image", "image_embeds", "text_embeds"):
                torch.testing.assert_close(computed[name], expected[name], rtol=0, atol=2e-5)
            per_token = [
                one.get_similarity_map(**inputs, pixel_values=pixels, per_token=True) for one in (exported, model)
            ]
            torch.testing.assert_close(*per_token, rtol=0, atol=2e-5)
            if kind == "cls":
                maps = exported.get_direct_map(pixels), model.get_direct_map(pixels)
                torch.testing.assert_close(*maps, rtol=0, atol=2e-5)
            else:
                with pytest.raises(ValueError, match='does not have kind="direct"'):
                    exported.get_direct_map(pixels)


def test_what_is_not_exported():
    model = make("cls")
    check_exportable("m", model)
    with pytest.raises(ValueError, match="is of the class CLIPModel, which tier-export does not export: name a TIER"):
        check_exportable("m", model.to_clip())
    model.padding = torch.nn.Parameter(torch.empty(2**29, device="meta"))
    with pytest.raises(ValueError, match="has 2.0 GiB of weights, but a file of ONNX holds at most 2"):
        check_size(model)


def test_a_graph_with_other_numbers_is_refused():
    embeds = np.ones((3, 4), dtype=np.float32)
    check_same([embeds], [embeds + 1e-5], 1e-3, "text", "")
    for wrong in (embeds + 0.01, np.full_like(embeds, np.nan)):
        with pytest.raises(
            ValueError, match="The exported text tower gives other embeddings than the model.*: so it is."
        ):
            check_same([embeds], [wrong], 1e-3, "text", "so it is")
