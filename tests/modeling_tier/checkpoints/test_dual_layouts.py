"""Checkpoints of TIER and BioViL give the embeddings of the original model, written in original_dual.py."""

import argparse
import math

import pytest
import torch
from layout_checks import TOLERANCE, difference, load
from original_dual import DEPTHS, HEAD, project_image, resnet_forward, resnet_tensors, text_state, tier_checkpoint
from safetensors.torch import save_file

from modeling_tier import TierDualEncoderConfig, TierDualEncoderModel
from modeling_tier.checkpoints.layout import from_layout, to_layout
from modeling_tier.checkpoints.openai import clip_names
from modeling_tier.checkpoints.tier import dual_names, resnet_config


def check_dual(model, image_tensors, prefix, cxr_bert, dual_batch):
    """The largest difference of global, patch and token embeddings."""
    pixels, ids, mask = dual_batch
    trunk = f"{prefix}encoder.encoder."
    resnet = {k.removeprefix(trunk): v for k, v in image_tensors.items() if k.startswith(trunk)}
    projector = {k: v for k, v in image_tensors.items() if "projector" in k}
    with torch.no_grad():
        patches = project_image(projector, resnet_forward(resnet, pixels, DEPTHS))  # (batch, dim, rows, columns)
        tokens = cxr_bert.embed(ids, mask)
        ours = model.get_patch_features(pixels)
        assert patches.shape == (3, HEAD, 3, 3) and ours.shape == (3, 9, HEAD)
        local = (patches.flatten(2).transpose(1, 2) - ours).abs().max().item()
        hidden = model.get_text_features(input_ids=ids, attention_mask=mask).last_hidden_state
        local = max(local, ((model.text_projection(hidden) - tokens) * mask[..., None]).abs().max().item())
    return max(local, difference((patches.mean((2, 3)), tokens[:, 0]), model, pixels, ids, mask))


def test_tier(tmp_path, tier_state, cxr_bert, dual_batch, record_property):
    path = tmp_path / "best_model.pt"
    torch.save(tier_checkpoint(tier_state), path)
    kind, model = load(path)
    assert kind == "tier" and type(model) is TierDualEncoderModel and not model.training
    worst = check_dual(model, tier_state, "cnn.", cxr_bert, dual_batch)
    record_property("largest difference", worst)
    assert worst < TOLERANCE
    assert model.logit_scale.item() == pytest.approx(2.9)
    assert model.config.image_size == 224 and model.config.image_pooling == "patch_mean"
    assert model.config.projection_dim == HEAD and model.config.frozen_text_layers == 2
    assert model.visual_projection[1].num_batches_tracked == 7


def test_the_weights_of_tier_become_those_of_the_config(tmp_path, tier_state, dual_batch):
    """Each multiplies the entropy that it multiplies in the authors' code, whose comment says the opposite."""
    checkpoint = tier_checkpoint(tier_state)
    checkpoint["args"] = argparse.Namespace(lam_words=0.125, lam_patches=0.5, model_path="/x")
    torch.save(checkpoint, tmp_path / "best_model.pt")
    model = load(tmp_path / "best_model.pt")[1]
    assert (model.config.token_entropy_weight, model.config.patch_entropy_weight) == (0.125, 0.5)
    pixels, ids, mask = dual_batch
    with torch.no_grad():
        outputs = model(pixel_values=pixels, input_ids=ids, attention_mask=mask, return_loss=True)
    similarity = outputs.token_embeds @ outputs.patch_embeds.transpose(1, 2)  # (pairs, tokens, patches)
    words, patches = (similarity.softmax(dim).clamp(min=1e-7) for dim in (2, 1))
    penalty = 0.125 * -(words * words.log()).sum(2).mean() + 0.5 * -(patches * patches.log()).sum(1).mean()
    assert (outputs.loss - outputs.contrastive_loss).item() == pytest.approx(penalty.item(), abs=1e-4)

    del checkpoint["args"]
    torch.save(checkpoint, tmp_path / "without.pt")
    config = load(tmp_path / "without.pt")[1].config
    assert (config.token_entropy_weight, config.patch_entropy_weight) == (0.0, 0.0)
    assert config.entropy_tokens == "words"
    for value in (-1.0, float("nan"), "0.1", True):
        checkpoint["args"] = argparse.Namespace(lam_words=value)
        torch.save(checkpoint, tmp_path / "bad.pt")
        with pytest.raises(ValueError, match="lam_words=.*, not a number of at least 0"):
            load(tmp_path / "bad.pt")


def test_biovil_with_cxr_bert_beside_it(biovil, cxr_bert, dual_batch, record_property):
    path, state, folder = biovil
    kind, model = load(path, text_folder=folder)
    worst = check_dual(model, state, "", cxr_bert, dual_batch)
    record_property("largest difference", worst)
    assert kind == "biovil" and worst < TOLERANCE
    assert model.config.image_size == 480
    assert model.logit_scale.item() == pytest.approx(math.log(1 / 0.07))  # in neither file
    save_file(text_state(cxr_bert), folder / "model.safetensors")
    (folder / "pytorch_model.bin").unlink()
    again = load(path, text_folder=folder)[1]
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_layouts_invert_each_other(make_tier, tier_state, tmp_path):
    state = make_tier().state_dict()
    names = clip_names(2, 2, "text.")
    again = from_layout(to_layout(state, names), names)
    assert again.keys() == state.keys() and all(torch.equal(again[name], state[name]) for name in state)
    torch.save(tier_checkpoint(tier_state), tmp_path / "best_model.pt")
    state = load(tmp_path / "best_model.pt")[1].state_dict()
    back = to_layout(state, {"logit_scale": ("logit_scale",), **dual_names(list(state), "cnn.", "transformer.")})
    assert all(torch.equal(tensor, tier_state[name]) for name, tensor in back.items())


def test_the_published_sizes_of_biovil():
    with torch.device("meta"):
        tensors = resnet_tensors((3, 4, 6, 3), 64, "encoder.encoder.", 1000, torch.empty)
        config = resnet_config(tensors, "encoder.encoder.")
        model = TierDualEncoderModel(TierDualEncoderConfig(vision_config=config))
    assert (
        sum(t.numel() for name, t in tensors.items() if "running" not in name and "batches" not in name) == 25_557_032
    )
    own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("vision_model.")}
    expected = to_layout(own, dual_names(list(own), "", ""))
    trunk = {name: tensor for name, tensor in tensors.items() if ".fc." not in name}
    assert {n: t.shape for n, t in expected.items()} == {n: t.shape for n, t in trunk.items()}
    assert (config.depths, config.hidden_sizes) == ([3, 4, 6, 3], [256, 512, 1024, 2048])
