"""Checkpoints that do not fit their layout are refused, and the message names what is wrong."""

import json

import pytest
import torch
from layout_checks import load, saved
from original_clip import CHEXZERO_FILE, DIM, make_clip, openclip_folder
from original_dual import text_state, tier_checkpoint
from safetensors.torch import save_file
from transformers import ViTConfig, ViTModel

from modeling_tier import TierCLIPConfig
from modeling_tier.checkpoints import open_source


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("visual.ln_post.bias"), "lacks tensors: visual.ln_post.bias"),
        (lambda s: s.pop("visual.proj"), "lacks tensors: visual.proj"),
        (lambda s: s.pop("text_projection"), "lacks tensors: text_projection"),
        (
            lambda s: s.pop("transformer.resblocks.0.mlp.c_fc.weight"),
            "lacks tensors: transformer.resblocks.0.mlp.c_fc",
        ),
        (lambda s: s.update(logit_bias=torch.zeros(())), "has unknown tensors: logit_bias"),
        (lambda s: s.update({"visual.extra": torch.zeros(2)}), "has unknown tensors: visual.extra"),
        (lambda s: s.update({"visual.proj": torch.zeros(64, DIM)}), "visual.proj .* has the shape .64, 48."),
        (lambda s: s.update({"visual.positional_embedding": torch.zeros(16, 128)}), "has 16 positions"),
        (lambda s: s.update({"visual.positional_embedding": torch.zeros(16)}), "not one of 2 dimensions"),
        (
            lambda s: s.update({"ln_final.bias": torch.zeros(64, dtype=torch.int8)}),
            "ln_final.bias .* holds torch.int8",
        ),
        (
            lambda s: s.update({k.replace("blocks.2", "blocks.7"): s.pop(k) for k in list(s) if "blocks.2" in k}),
            "lacks tensors: visual.transformer.resblocks.2",
        ),
        (lambda s: s.update({"visual.layer1.0.conv1.weight": torch.zeros(2)}), "with a ResNet as image tower"),
    ],
)
def test_missing_extra_and_wrong_tensors_are_named(tmp_path, change, message):
    state = make_clip().flat_state()
    change(state)
    with pytest.raises(ValueError, match=message):
        load(saved(tmp_path / CHEXZERO_FILE, state))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("cnn.projector.model.3.bias"), "lacks tensors: cnn.projector.model.3.bias"),
        (lambda s: s.pop("logit_scale"), "lacks tensors: logit_scale"),
        (
            lambda s: s.update({"cnn.classifier.fc_0.model.0.weight": torch.zeros(2)}),
            "unknown tensors: cnn.classifier",
        ),
        (lambda s: s["cls_projection_head.LayerNorm.bias"].add_(1), "cls_projection_head.LayerNorm.bias .* differ"),
        (
            lambda s: s.update({"cnn.encoder.encoder.layer2.1.bn2.bias": torch.zeros(5)}),
            "layer2.1.bn2.bias .* has the shape .5,.",
        ),
    ],
)
def test_missing_extra_and_wrong_tensors_of_tier_are_named(tmp_path, tier_state, change, message):
    change(tier_state)
    with pytest.raises(ValueError, match=message):
        load(saved(tmp_path / "best_model.pt", tier_checkpoint(tier_state)))


def test_biovil_needs_cxr_bert(biovil, tmp_path, cxr_bert):
    path, _, folder = biovil
    with pytest.raises(ValueError, match="--text_model"):
        load(path)
    with pytest.raises(ValueError, match="must be a folder with the config.json"):
        load(path, text_folder=tmp_path)
    state = text_state(cxr_bert)
    del state["cls_projection_head.LayerNorm.weight"]
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="lacks tensors: cls_projection_head.LayerNorm.weight"):
        load(path, text_folder=folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match="'bert', not 'cxr-bert'"):
        load(path, text_folder=folder)


def test_kinds_that_cannot_be_told_apart_are_asked_for(tmp_path):
    path = saved(tmp_path / "checkpoint.pt", make_clip().flat_state())
    with pytest.raises(ValueError, match="--kind openai, --kind chexzero or --kind openclip"):
        open_source(path)
    assert open_source(path, "chexzero").kind == "chexzero"
    with pytest.raises(ValueError, match="kind openai or chexzero or openclip, not tier"):
        open_source(path, "tier")
    with pytest.raises(ValueError, match="leave --activation out"):
        load(path, kind="openai", activation="gelu")
    with pytest.raises(ValueError, match="--text_model does not apply"):
        load(path, kind="openai", text_folder=tmp_path)


def test_other_architectures_and_wrong_folders(tmp_path, clip):
    with pytest.raises(ValueError, match="^The file or folder .* does not exist"):
        open_source(tmp_path / "absent.pt")
    with pytest.raises(ValueError, match="Its first tensors are a, b"):
        open_source(saved(tmp_path / "a.pt", {"a": torch.zeros(2), "b": torch.zeros(2)}))
    with pytest.raises(ValueError, match="does not hold a model"):
        open_source(tmp_path)
    clip.save_pretrained(tmp_path / "clip")
    with pytest.raises(ValueError, match="name its folder instead"):
        open_source(tmp_path / "clip" / "model.safetensors")
    vit = ViTModel(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))
    vit.save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match="type 'vit', which cannot be converted"):
        open_source(tmp_path / "vit")
    with pytest.raises(ValueError, match="of the kind 'clip', not 'openai'"):
        open_source(tmp_path / "clip", "openai")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("visual_projection.weight"), "lacks tensors: visual_projection.weight"),
        (lambda s: s.update(surplus=torch.zeros(2)), "has unknown tensors: surplus"),
        (lambda s: s.update({"text_projection.weight": torch.zeros(3, 3)}), "other shapes .* text_projection.weight"),
    ],
)
def test_clip_folders_that_do_not_fit(tmp_path, clip, change, message):
    clip.save_pretrained(tmp_path)
    state = {name: tensor.clone() for name, tensor in clip.state_dict().items()}
    change(state)
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"text_cfg__pool_type": "last"}, "pool_type='last'"),
        ({"text_cfg__no_causal_mask": True}, "no_causal_mask=True"),
        ({"vision_cfg__timm_model_name": "resnet50"}, "with the image tower resnet50 of timm"),
        ({"vision_cfg__head_width": "64"}, "head_width='64'"),
        ({"text_cfg__norm_kwargs": {"eps": 1e-6, "bias": False}}, "norm_kwargs="),
        ({"text_cfg": None}, "lacks a model_cfg with a vision_cfg and a text_cfg"),
        ({"text_cfg__heads": 5}, "64 cannot be divided among 5 heads"),
        ({"vision_cfg__head_width": 256}, "128 cannot be divided among 0 heads"),
    ],
)
def test_settings_of_openclip_that_clip_has_not(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        load(openclip_folder(tmp_path / "a", make_clip().flat_state(), **changes))


def test_a_truncated_clip_folder(tmp_path, clip):
    clip.save_pretrained(tmp_path)
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:-100])
    with pytest.raises(ValueError, match="cannot be loaded as a CLIP model"):
        load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="cannot be loaded as a CLIP model"):
        load(tmp_path)


def test_no_tensor_of_the_configuration_is_left_as_it_was_made(tmp_path):
    """Every parameter comes from the file: two models made under different seeds are equal."""
    path = saved(tmp_path / CHEXZERO_FILE, make_clip().flat_state())
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(load(path)[1].state_dict())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert isinstance(load(path)[1].config, TierCLIPConfig)
