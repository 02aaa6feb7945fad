"""Adapter layers on the image tower: identity at first, trained on a frozen tower, saved, in maps and classifiers."""

import pytest
import torch
from dual_towers import VIT, vision_config
from torch.nn import functional as F

from modeling_tier import TierDualEncoderConfig, TierDualEncoderForImageClassification, TierDualEncoderModel
from modeling_tier.adapter_layers_tier import AdapterLayer
from training_tier.memory.gradient_caching import backward_in_chunks

VISION = {"model_type": "vit", **VIT, "hidden_size": 128}
ENTROPIES = {"token_entropy_weight": 0.3, "patch_entropy_weight": 0.2}


def make_model(**options) -> TierDualEncoderModel:
    torch.manual_seed(0)
    config = TierDualEncoderConfig(
        vision_config=options.pop("vision", VISION),
        text_config={"model_type": "bert", **VIT, "vocab_size": 50},
        **{"projection_dim": 24, "image_size": 64, **ENTROPIES, **options},
    )
    return TierDualEncoderModel(config).eval()


def trained(model: TierDualEncoderModel) -> TierDualEncoderModel:
    """With adapters that do something."""
    with torch.no_grad():
        for parameter in model.image_adapter.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("pooling", ["cls", "patch_mean"])
@pytest.mark.parametrize("vision", [VISION, vision_config("resnet")], ids=["vit", "resnet"])
def test_at_the_start_they_change_nothing(bert_batch, pooling, vision):
    if vision["model_type"] == "resnet" and pooling == "cls":
        return
    fresh = TierDualEncoderForImageClassification(make_model(vision=vision, adapter_layers=1).config)
    assert not fresh.image_adapter[0].mlp_output.weight.any()
    plain, model = (make_model(vision=vision, image_pooling=pooling, adapter_layers=count) for count in (0, 2))
    assert plain.image_adapter is None and not any("adapter" in name for name in plain.state_dict())
    model.load_state_dict(plain.state_dict(), strict=False)
    expected, computed = (m(**bert_batch, return_loss=True) for m in (plain, model))
    assert torch.equal(computed.loss, expected.loss)
    assert torch.equal(computed.image_embeds, expected.image_embeds)
    assert torch.equal(computed.patch_embeds, expected.patch_embeds)


def test_a_layer_is_that_of_a_vision_transformer():
    torch.manual_seed(0)
    layer = AdapterLayer(128).double()
    assert layer.heads == 2
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    owner = torch.nn.TransformerEncoderLayer(
        128, 2, 512, dropout=0, activation="gelu", batch_first=True, norm_first=True, dtype=torch.float64
    )
    names = {
        "self_attn.in_proj_": "query_key_value.",
        "self_attn.out_proj.": "attention_output.",
        "linear1.": "mlp_input.",
        "linear2.": "mlp_output.",
        "norm1.": "attention_norm.",
        "norm2.": "mlp_norm.",
    }
    state = layer.state_dict()
    owner.load_state_dict({a + kind: state[b + kind] for a, b in names.items() for kind in ("weight", "bias")})
    tokens = torch.randn(3, 17, 128, dtype=torch.float64)
    torch.testing.assert_close(layer(tokens), owner(tokens))


@pytest.mark.parametrize(("width", "heads"), [(16, 1), (96, 1), (384, 6), (768, 12), (2048, 32), (80 * 2, 2)])
def test_heads_divide_the_width(width, heads):
    assert AdapterLayer(width).heads == heads


@pytest.mark.parametrize("pooling", ["cls", "patch_mean"])
def test_they_train_while_the_tower_is_frozen(bert_batch, pooling):
    model = make_model(image_pooling=pooling, adapter_layers=2).train()
    model.vision_model.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):  # in the first step, only the zeros before the shortcuts have gradients
        optimizer.zero_grad()
        model(**bert_batch, return_loss=True).loss.backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        if name.startswith("vision_model."):
            assert torch.equal(parameter, before[name])
        elif name.startswith("image_adapter."):
            # a constant added to all keys changes no attention
            assert not torch.equal(parameter, before[name]), name


def test_a_saved_model_keeps_them(tmp_path, bert_batch):
    model = trained(make_model(adapter_layers=1))
    model.save_pretrained(tmp_path)
    loaded = TierDualEncoderModel.from_pretrained(tmp_path)
    assert torch.equal(loaded(**bert_batch).image_embeds, model(**bert_batch).image_embeds)
    assert loaded.config.adapter_layers == 1


def test_the_class_token_sees_the_patches_and_maps_add_up(bert_batch):
    model = trained(make_model(adapter_layers=1))
    pixels = bert_batch["pixel_values"]
    features = model.run_image_tower(pixels)[1]
    adapted = model.image_adapter(features.tokens)
    pooled, patches = model.project_features(features)
    expected = model.visual_projection(adapted[:, 1:].transpose(1, 2).unsqueeze(-1)).squeeze(-1)
    assert torch.equal(patches.flatten(1, 2).transpose(1, 2), expected)
    texts = {name: bert_batch[name][:2] for name in ("input_ids", "attention_mask")}
    maps = model.get_similarity_map(**texts, pixel_values=pixels, kind="contribution")
    outputs = model(**texts, pixel_values=pixels)
    cosines = outputs.image_embeds @ outputs.text_embeds.T
    torch.testing.assert_close(maps.sum(dim=(-2, -1)), cosines, rtol=0, atol=1e-5)
    assert model.patch_centers == (8, 16)


def test_cached_outputs_of_the_tower_give_the_same(bert_batch):
    model = trained(make_model(adapter_layers=2, image_pooling="cls"))
    images = model.get_image_features(bert_batch["pixel_values"])
    cached = model.get_image_features(vision_hidden_state=images.last_hidden_state)
    assert torch.equal(cached.pooler_output, images.pooler_output)


def test_gradient_caching_gives_their_gradients(bert_batch):
    model = trained(make_model(adapter_layers=2))
    model.vision_model.requires_grad_(False)
    model(**bert_batch, return_loss=True).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    backward_in_chunks(model, {**bert_batch, "return_loss": True}, 2, torch.Tensor.backward)
    assert any(name.startswith("image_adapter.") for name in expected)
    for name, parameter in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-5, msg=name)


def test_a_classifier_has_them(bert_batch):
    model = trained(make_model(adapter_layers=1))
    classifier = TierDualEncoderForImageClassification.from_image_tower(model, ["Edema"])
    pixels = bert_batch["pixel_values"]
    expected = model.get_image_features(pixels).pooler_output
    assert torch.equal(classifier.get_image_features(pixels).pooler_output, expected)
    classifier.freeze_image_tower()
    free = {name for name, parameter in classifier.named_parameters() if parameter.requires_grad}
    assert free == {"classifier.weight", "classifier.bias"}
    assert F.cosine_similarity(expected[0], expected[1], dim=0) < 1


def test_a_negative_number_is_refused():
    with pytest.raises(ValueError, match=r"^adapter_layers must be at least 0 \(none\), not -1.$"):
        make_model(adapter_layers=-1)
