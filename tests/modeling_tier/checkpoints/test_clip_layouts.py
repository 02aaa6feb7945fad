"""Checkpoints of the CLIP family give the embeddings of the original model, written in original_clip.py."""

import argparse
import json

import pytest
import torch
from layout_checks import TOLERANCE, difference, load
from original_clip import (
    CHEXZERO_FILE,
    CONTEXT,
    DIM,
    OPENCLIP_CONFIG,
    VOCAB,
    FlatClip,
    chexzero_shapes,
    make_clip,
    openclip_folder,
    save_torchscript,
)
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel

from modeling_tier import TierCLIPModel
from modeling_tier.checkpoints import Source, open_source, to_openclip
from modeling_tier.checkpoints.clip import clip_config
from modeling_tier.checkpoints.layout import to_layout
from modeling_tier.checkpoints.openai import clip_names
from modeling_tier.checkpoints.source import detect_kind


@pytest.mark.parametrize("kind", ["openai", "chexzero"])
def test_a_bare_state_dict_of_openai_and_of_chexzero(tmp_path, batch, kind, record_property):
    original = make_clip()
    name = CHEXZERO_FILE if kind == "chexzero" else "ViT.pt"
    torch.save(original.flat_state(), tmp_path / name)
    found, model = load(tmp_path / name, kind=None if kind == "chexzero" else kind)
    assert found == kind
    assert type(model) is TierCLIPModel and not model.training and model.dtype == torch.float32
    assert model.logit_scale.item() == original.logit_scale.item()
    with torch.no_grad():
        worst = difference(original(*batch), model, *batch)
    record_property("largest difference", worst)
    assert worst < TOLERANCE

    vision, text = model.config.vision_config, model.config.text_config
    assert (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads) == (128, 3, 2)
    assert (vision.intermediate_size, vision.patch_size, vision.image_size) == (512, 8, 32)
    assert (text.hidden_size, text.num_hidden_layers, text.num_attention_heads) == (64, 2, 1)
    assert (text.vocab_size, text.max_position_embeddings, text.eos_token_id) == (VOCAB, CONTEXT, VOCAB - 1)
    assert vision.hidden_act == text.hidden_act == "quick_gelu" and model.config.projection_dim == DIM


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_torchscript_archive_of_openai(tmp_path, batch, record_property):
    original = FlatClip(make_clip())
    path = tmp_path / "ViT-B-32.pt"
    save_torchscript(original, path, batch)
    kind, model = load(path)
    assert kind == "openai"
    with torch.no_grad():
        worst = difference(original(*batch), model, *batch)
    record_property("largest difference", worst)
    assert worst < TOLERANCE


def test_half_precision_is_widened(tmp_path):
    state = {name: tensor.half() for name, tensor in make_clip().flat_state().items()}
    torch.save(state, tmp_path / CHEXZERO_FILE)
    model = load(tmp_path / CHEXZERO_FILE)[1]
    assert model.dtype == torch.float32
    assert torch.equal(model.visual_projection.weight, state["visual.proj"].t().float())


@pytest.mark.parametrize("layout", ["flat", "custom_text"])
@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("container", ["bin", "safetensors", "training"])
def test_openclip(tmp_path, batch, layout, activation, container, record_property):
    original = make_clip(activation)
    state = original.flat_state() if layout == "flat" else original.state_dict()
    path = tmp_path / f"weights.{'bin' if container == 'training' else container}"
    if container == "safetensors":
        save_file(state, path)
    elif container == "training":
        torch.save({"epoch": 3, "name": "x", "state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    else:
        torch.save(state, path)
    kind, model = load(path, kind="openclip", activation=None if activation == "gelu" else activation)
    with torch.no_grad():
        worst = difference(original(*batch), model, *batch)
    record_property("largest difference", worst)
    assert kind == "openclip" and worst < TOLERANCE


def test_a_folder_of_openclip_tells_the_activation_and_the_heads(tmp_path, batch):
    original = make_clip("quick_gelu")
    folder = openclip_folder(tmp_path / "a", original.flat_state())
    assert open_source(folder).kind == open_source(folder / "open_clip_model.safetensors").kind == "openclip"
    with torch.no_grad():
        for path in (folder, folder / "open_clip_model.safetensors"):
            assert difference(original(*batch), load(path)[1], *batch) < TOLERANCE
    folder = openclip_folder(
        tmp_path / "b",
        original.flat_state(),
        quick_gelu=False,
        vision_cfg__head_width=32,
        text_cfg__heads=2,
        text_cfg__norm_kwargs={"eps": 1e-6},
        text_cfg__pool_type="argmax",
    )
    config = load(folder)[1].config
    assert config.vision_config.num_attention_heads == 4 and config.text_config.num_attention_heads == 2
    assert config.text_config.hidden_act == config.vision_config.hidden_act == "gelu"
    assert config.text_config.layer_norm_eps == 1e-6 and config.vision_config.layer_norm_eps == 1e-5
    folder = openclip_folder(tmp_path / "c", original.flat_state(), vision_cfg__head_width=None, text_cfg__heads=None)
    config = load(folder)[1].config  # null is the default
    assert config.vision_config.num_attention_heads == 2 and config.text_config.num_attention_heads == 8


@pytest.mark.parametrize("width, heads", [(768, 12), (1024, 16), (1280, 16), (1408, 16), (1664, 16), (1792, 16)])
def test_heads_of_the_large_openclip_models(width, heads):
    with torch.device("meta"):
        config = CLIPConfig(
            vision_config={"hidden_size": width, "num_hidden_layers": 1, "num_attention_heads": heads},
            text_config={"num_hidden_layers": 1},
        )
        tensors = to_layout(CLIPModel(config).state_dict(), clip_names(1, 1))
    source = Source(None, "openclip", tensors)
    assert clip_config(source, "", None).vision_config.num_attention_heads == heads


def test_clip_to_tier_to_openclip_and_back_is_exact(tmp_path, clip, batch):
    clip.save_pretrained(tmp_path / "clip")
    kind, tier = load(tmp_path / "clip")
    assert kind == "clip" and type(tier) is TierCLIPModel
    tensors, model_cfg = to_openclip(tier.to_clip())
    folder = tmp_path / "openclip"
    folder.mkdir()
    save_file(tensors, folder / "open_clip_model.safetensors")
    (folder / OPENCLIP_CONFIG).write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": {}}))
    kind, again = load(folder)
    assert kind == "openclip"
    assert list(again.state_dict()) == list(clip.state_dict())
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in clip.state_dict().items())
    ids = batch[1] % 97
    ids[:, -1] = 98
    for one, other in zip(clip(ids, batch[0])[:2], again(ids, batch[0])[:2], strict=True):
        assert torch.equal(one, other)
    for part in ("vision_config", "text_config"):
        before, after = getattr(clip.config, part).to_dict(), getattr(again.config, part).to_dict()
        ours = {"projection_dim", "dtype", "bos_token_id", "pad_token_id"}
        assert {k: v for k, v in after.items() if k not in ours} == {k: v for k, v in before.items() if k not in ours}


def test_what_openclip_has_not_is_refused(make_tier):
    with pytest.raises(ValueError, match="image_pooling"):
        to_openclip(make_tier(image_pooling="patch_mean").to_clip())
    model = make_tier().to_clip()
    model.config.text_config.eos_token_id = 5
    with pytest.raises(ValueError, match="highest token id, but this model ends a text with the token 5"):
        to_openclip(model)
    model = make_tier().to_clip()
    model.config.vision_config.hidden_act = "gelu"
    with pytest.raises(ValueError, match="gelu and quick_gelu"):
        to_openclip(model)


@pytest.mark.parametrize("hidden, inner", [(1664, 8192), (1408, 6144), (32, 37), (1792, 15360), (768, 3072)])
def test_openclip_rounds_the_mlp_ratio_to_the_same_width(hidden, inner):
    with torch.device("meta"):
        sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = CLIPModel(CLIPConfig(vision_config=sizes, text_config={"num_hidden_layers": 1}))
    assert int(hidden * to_openclip(model)[1]["vision_cfg"]["mlp_ratio"]) == inner


def test_a_clip_folder_in_half_precision_a_pickled_one_and_one_of_ours(tmp_path, clip, make_tier):
    clip.save_pretrained(tmp_path / "old")
    (tmp_path / "old" / "model.safetensors").unlink()
    position_ids = {"text_model.embeddings.position_ids": torch.arange(20)[None]}  # of transformers before 4.31
    torch.save(clip.state_dict() | position_ids, tmp_path / "old" / "pytorch_model.bin")
    state = load(tmp_path / "old")[1].state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in clip.state_dict().items())
    torch.save(argparse.Namespace(), tmp_path / "old" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be loaded as a CLIP model: Weights only load failed"):
        load(tmp_path / "old")
    clip.half().save_pretrained(tmp_path / "half")
    assert load(tmp_path / "half")[1].dtype == torch.float32
    ours = make_tier(image_pooling="patch_mean", token_entropy_weight=0.2)
    ours.save_pretrained(tmp_path / "ours")
    kind, again = load(tmp_path / "ours")
    assert kind == "clip" and again.config.image_pooling == "patch_mean" and again.config.token_entropy_weight == 0.2


@pytest.mark.parametrize("dim, image, patch, count", [(512, 224, 32, 151_277_313), (768, 320, 16, None)])
def test_the_published_sizes_of_chexzero(dim, image, patch, count):
    shapes = chexzero_shapes(dim, image, patch)
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    assert detect_kind("weights.pt", tensors, "bare", False) == ("chexzero" if image == 320 else None)
    assert detect_kind(CHEXZERO_FILE, tensors, "bare", False) == "chexzero"
    config = clip_config(Source(None, "chexzero", tensors), "", None)
    assert (config.vision_config.image_size, config.vision_config.patch_size) == (image, patch)
    assert (config.vision_config.num_attention_heads, config.text_config.num_attention_heads) == (12, 8)
    assert (config.text_config.bos_token_id, config.text_config.eos_token_id) == (49406, 49407)
    with torch.device("meta"):
        model = TierCLIPModel(config)
    expected = to_layout(model.state_dict(), clip_names(12, 12))
    assert {name: tuple(tensor.shape) for name, tensor in expected.items()} == shapes
    assert len(shapes) == 302
    if count:
        assert model.num_parameters() == count
