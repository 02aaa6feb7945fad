"""The class token and the patches of an image tower, without registers."""

import pytest
import torch
from dual_towers import VIT, vision_config

from modeling_tier.tower_features_tier import patch_grid

REGISTERS = {"model_type": "dinov2_with_registers", **VIT, "mlp_ratio": 1, "num_register_tokens": 4}


def test_patch_grid():
    assert patch_grid(197, 224, 224, 16) == (14, 14)
    assert patch_grid(5 + 12, 48, 64, 16) == (3, 4)
    assert patch_grid(49, 224, 224, 4) == (7, 7)  # Swin
    assert patch_grid(16, 112, 112, 4) == (4, 4)  # Swin pads 7 x 7 to 8 x 8 before it merges by twos


@pytest.mark.parametrize(
    ("vision", "kept"),
    [
        (vision_config("vit"), list(range(17))),
        (vision_config("deit"), [0, *range(2, 18)]),  # a distillation token comes second
        (REGISTERS, [0, *range(5, 21)]),
        (vision_config("swin"), list(range(64))),  # neither class token nor registers
    ],
    ids=["vit", "deit", "dinov2 with registers", "swin"],
)
def test_registers_are_left_out(make_dual, bert_batch, vision, kept):
    model = make_dual(vision)
    outputs, features = model.run_image_tower(bert_batch["pixel_values"])
    assert torch.equal(features.tokens, outputs.last_hidden_state[:, kept])
    side = 8 if vision["model_type"] == "swin" else 4
    assert (features.rows, features.columns) == (side, side)
    assert torch.equal(features.patches, outputs.last_hidden_state[:, -side * side :])


def test_a_map_becomes_a_sequence_row_by_row(make_dual, bert_batch):
    model = make_dual()
    outputs, features = model.run_image_tower(bert_batch["pixel_values"])
    assert torch.equal(features.tokens.transpose(1, 2).unflatten(2, (8, 8)), outputs.last_hidden_state)


def test_the_batch_norm_of_the_head_does_not_see_registers(make_dual, bert_batch):
    model = make_dual(REGISTERS, image_pooling="cls").train()
    norm, seen = model.visual_projection[1], []
    norm.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    model(**bert_batch, return_loss=True)
    assert seen == [(4, 24, 17, 1)]  # the class token and 16 patches
