"""Hidden states of a frozen tower in place of its inputs: the same outputs, loss and gradients of what is on top."""

import pytest
import torch
from dual_towers import BACKBONES, ENCODERS, VIT, text_config, vision_config
from tiny_siglip import siglip_sizes

from modeling_tier import (
    TierCLIPConfig,
    TierCLIPModel,
    TierDualEncoderConfig,
    TierDualEncoderModel,
    TierSiglipConfig,
    TierSiglipModel,
)

OUTPUTS = ("loss", "contrastive_loss", "token_entropy", "patch_entropy", "evidence_entropy")
OUTPUTS += ("image_embeds", "text_embeds", "token_embeds", "patch_embeds", "logits_per_text")


def make_dual(vision="vit", text="bert", image_pooling="patch_mean", **options):
    torch.manual_seed(0)
    towers = {"vision_config": vision_config(vision), "text_config": text_config(text)}
    if vision == "swin":
        towers["vision_config"]["drop_path_rate"] = 0.0
    options |= weights_for(image_pooling)
    return freeze(TierDualEncoderModel(TierDualEncoderConfig(**towers, image_size=64, **options)))


def make_clip(eos_token_id=3, image_pooling="patch_mean"):
    torch.manual_seed(0)
    towers = {"vision_config": VIT, "text_config": text_config("clip_text_model", eos_token_id=eos_token_id)}
    return freeze(TierCLIPModel(TierCLIPConfig(**towers, **weights_for(image_pooling))))


def make_siglip():
    torch.manual_seed(0)
    sizes = siglip_sizes(image_size=64, patch_size=16)
    sizes["text_config"] |= {"vocab_size": 50, "eos_token_id": 3, "pad_token_id": 0}
    model = TierSiglipModel(TierSiglipConfig(**sizes, token_entropy_weight=0.5, patch_entropy_weight=0.3))
    model.logit_scale.data.fill_(2.0)
    model.logit_bias.data.fill_(-3.0)
    freeze(model)
    for tower in (model.vision_model, model.text_model):
        tower.head.requires_grad_(True)
    return model


def weights_for(image_pooling):
    evidence = {} if image_pooling == "cls" else {"evidence_entropy_weight": 0.2}
    return {"token_entropy_weight": 0.5, "patch_entropy_weight": 0.3, "image_pooling": image_pooling, **evidence}


def freeze(model):
    for tower in (model.vision_model, model.text_model):
        tower.requires_grad_(False)
    return model.eval()


def make_batch():
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(5, 50, (4, 9), generator=generator)
    input_ids[:, 0] = 2
    mask = torch.arange(9) < torch.tensor([9, 5, 3, 7])[:, None]
    input_ids[~mask] = 0
    ends = mask.sum(1) - 1
    input_ids[torch.arange(4), ends] = 3
    pixels = torch.randn(4, 3, 64, 64, generator=generator)
    return {"input_ids": input_ids, "attention_mask": mask.long(), "pixel_values": pixels}


def with_hidden_states(model, batch):
    """The batch without pixels, but with what the towers give."""
    with torch.no_grad():
        images = model.encode_images(batch["pixel_values"])[0].last_hidden_state
        texts = model.get_text_features(batch["input_ids"], batch["attention_mask"]).last_hidden_state
    inputs = {name: value for name, value in batch.items() if name != "pixel_values"}
    return {**inputs, "vision_hidden_state": images, "text_hidden_state": texts}


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(model, inputs, others):
    for mode in (False, True):  # in training, the batch norms of the heads see the batch
        model.train(mode)
        start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        results = []
        for given in (inputs, others):
            model.load_state_dict(start)
            output = model(**given, return_loss=True)
            of_heads = gradients(model, output.loss)
            statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
            results.append(({name: output[name] for name in OUTPUTS if name in output}, of_heads, statistics))
        for one, other in zip(*results, strict=True):
            assert one.keys() == other.keys() and len(one) > 0
            assert all(torch.equal(other[name], tensor) for name, tensor in one.items())


MAKERS = [make_clip, make_dual, make_siglip]
CASES = [
    *((vision, "bert", {}) for vision in BACKBONES),
    *(("resnet", text, {}) for text in ENCODERS),
    ("vit", "bert", {"image_pooling": "cls", "text_pooling": "eos", "image_head": "linear", "text_head": "mlp"}),
]


@pytest.mark.parametrize(("vision", "text", "options"), CASES, ids=lambda case: str(case))
def test_the_dual_encoder_gives_the_same_to_the_last_bit(vision, text, options):
    model = make_dual(vision, text, **options)
    for dropout in (module for module in model.modules() if isinstance(module, torch.nn.Dropout)):
        dropout.p = 0.0
    for name in ("attention_probs_dropout_prob", "attention_dropout"):
        if hasattr(model.config.text_config, name):
            setattr(model.config.text_config, name, 0.0)
    batch = make_batch()
    assert_same(model, batch, with_hidden_states(model, batch))


@pytest.mark.parametrize("vision", ["resnet", "dinov2_with_registers"])
def test_adapter_layers_run_on_top_of_hidden_states(vision):
    model, batch = make_dual(vision, adapter_layers=2), make_batch()
    for parameter in model.image_adapter.parameters():  # which start as if they were not there
        torch.nn.init.normal_(parameter, std=0.3)
    for dropout in (module for module in model.modules() if isinstance(module, torch.nn.Dropout)):
        dropout.p = 0.0
    model.config.text_config.attention_probs_dropout_prob = 0.0
    assert_same(model, batch, with_hidden_states(model, batch))
    assert all(parameter.grad.abs().max() > 0 for parameter in model.image_adapter.parameters())


@pytest.mark.parametrize("pooling", ["cls", "patch_mean"])
@pytest.mark.parametrize("eos", [2, 3])
def test_clip_gives_the_same_to_the_last_bit(pooling, eos):
    model, batch = make_clip(eos, image_pooling=pooling), make_batch()
    assert_same(model, batch, with_hidden_states(model, batch))


def test_siglip_gives_the_same_to_the_last_bit():
    model, batch = make_siglip(), make_batch()
    assert_same(model, batch, with_hidden_states(model, batch))


@pytest.mark.parametrize("make", MAKERS)
def test_each_tower_alone(make):
    model, batch = make(), make_batch()
    hidden = with_hidden_states(model, batch)
    expected = model(**batch, return_loss=True).loss
    images = {**batch, "vision_hidden_state": hidden["vision_hidden_state"]}
    del images["pixel_values"]
    texts = {**batch, "text_hidden_state": hidden["text_hidden_state"]}
    assert model(**images, return_loss=True).loss == expected == model(**texts, return_loss=True).loss


@pytest.mark.parametrize("make", MAKERS)
def test_features_and_grid_from_hidden_states(make):
    model, batch = make(), make_batch()
    hidden = with_hidden_states(model, batch)["vision_hidden_state"]
    outputs, grid = model.encode_images(vision_hidden_state=hidden)
    expected, expected_grid = model.encode_images(batch["pixel_values"])
    assert torch.equal(grid, expected_grid) and grid.shape[1:3] == (4, 4)
    assert torch.equal(outputs.pooler_output, expected.pooler_output)
    features = model.get_image_features(vision_hidden_state=hidden)
    assert torch.equal(features.pooler_output, expected.pooler_output)


@pytest.mark.parametrize("make", MAKERS)
def test_float16_becomes_the_type_of_the_heads(make):
    model, batch = make(), make_batch()
    hidden = with_hidden_states(model, batch)
    half = {name: value.half() if value.is_floating_point() else value for name, value in hidden.items()}
    output = model(**half, return_loss=True)
    assert output.loss.dtype == output.image_embeds.dtype == torch.float32
    torch.testing.assert_close(output.loss, model(**hidden, return_loss=True).loss, rtol=2e-3, atol=0)


@pytest.mark.parametrize("make", [make_clip, make_dual])
def test_the_rows_of_padding_do_not_count(make):
    model, batch = make(), make_batch()
    hidden = with_hidden_states(model, batch)
    expected = model(**hidden, return_loss=True).loss
    padding = batch["attention_mask"].eq(0)[..., None]
    hidden["text_hidden_state"] = hidden["text_hidden_state"].masked_fill(padding, 7.0)
    assert model(**hidden, return_loss=True).loss == expected


@pytest.mark.parametrize("make", MAKERS)
def test_neither_pixels_nor_hidden_states(make):
    batch = make_batch()
    del batch["pixel_values"]
    with pytest.raises(ValueError, match="^pixel_values are missing"):
        make()(**batch, return_loss=True)
