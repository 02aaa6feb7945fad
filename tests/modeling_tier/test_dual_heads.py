"""The choices of heads and poolings of the dual encoder, against formulas written down independently."""

import json

import pytest
import torch
from dual_towers import text_config, vision_config

from modeling_tier import TierDualEncoderConfig, TierDualEncoderForImageClassification, TierDualEncoderModel
from modeling_tier.pooling_tier import pool_text


def project(x, weights, head):
    """A linear layer, or two with the exact GELU between them, from the weights under a name."""
    for i, layer in enumerate((0,) if head == "linear" else (0, 2)):
        x = x * (1 + torch.erf(x / 2**0.5)) / 2 if i else x
        x = x @ weights[f"{layer}.weight"].T + weights.get(f"{layer}.bias", 0)
    return x


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("pooling", ["patch_mean", "cls"])
def test_heads_against_an_independent_formula(make_dual, bert_batch, head, bias, pooling):
    options = {"image_head": head, "text_head": head, "head_bias": bias, "image_pooling": pooling}
    model = make_dual(vision_config("vit"), text_pooling="eos", **options).double()
    bert_batch["pixel_values"] = bert_batch["pixel_values"].double()
    output = model(**bert_batch, return_loss=True)
    weights = {
        name: {
            key.removeprefix(f"{name}."): value for key, value in model.state_dict().items() if key.startswith(name)
        }
        for name in ("visual_projection", "text_projection")
    }
    assert {name.rpartition(".")[2] for name in weights["text_projection"]} == (
        {"weight", "bias"} if bias else {"weight"}
    )
    if head == "mlp":
        assert weights["text_projection"]["0.weight"].shape == ((16 + 24) // 2, 16)

    mask = bert_batch["attention_mask"]
    hidden = model.text_model(bert_batch["input_ids"], mask).last_hidden_state
    last = torch.stack([row[count - 1] for row, count in zip(hidden, mask.sum(1).tolist(), strict=True)])
    texts = project(last, weights["text_projection"], head)
    image = project(
        model.vision_model(bert_batch["pixel_values"]).last_hidden_state, weights["visual_projection"], head
    )
    pooled = image[:, 0] if pooling == "cls" else image[:, 1:].mean(1)
    close = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(output.text_embeds, texts / texts.norm(dim=-1, keepdim=True), **close)
    torch.testing.assert_close(output.image_embeds, pooled / pooled.norm(dim=-1, keepdim=True), **close)
    torch.testing.assert_close(model.get_patch_features(bert_batch["pixel_values"]), image[:, 1:], **close)
    output.loss.backward()
    assert all(
        p.grad.abs().max() > 0 for p in (*model.visual_projection.parameters(), *model.text_projection.parameters())
    )


def test_dropout_before_the_image_head_leaves_out_channels_of_all_patches(make_dual):
    model = make_dual(vision_config("vit"), image_head="linear", image_head_dropout=0.5)
    features = model.run_image_tower(torch.randn(2, 3, 64, 64))[1]
    weight, channels = model.visual_projection[0].weight, features.patches.shape[-1]
    plain = model.project_features(features)[1]
    torch.testing.assert_close(plain.flatten(1, 2), features.patches @ weight.T)
    torch.manual_seed(0)
    kept = torch.nn.functional.dropout(torch.ones(2, channels, 1), 0.5)  # 0 or 2, one draw for each channel
    torch.manual_seed(0)
    pooled, patches = model.train().project_features(features)
    torch.testing.assert_close(patches.flatten(1, 2), (features.patches * kept.mT) @ weight.T)
    torch.testing.assert_close(pooled, patches.mean((1, 2)))


def test_the_last_attended_token_stands_for_a_text():
    hidden = torch.arange(24.0).view(2, 4, 3)
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    assert torch.equal(pool_text("eos", hidden, mask), torch.stack([hidden[0, 2], hidden[1, 0]]))
    assert torch.equal(pool_text("eos", hidden, mask.bool().flip(1)), hidden[:, 3])  # padded on the left
    assert torch.equal(pool_text("cls", hidden, mask), hidden[:, 0])


def test_padding_and_a_missing_mask_change_nothing(make_dual, bert_batch):
    model = make_dual(text_pooling="eos")
    ids, mask = bert_batch["input_ids"], bert_batch["attention_mask"]
    with torch.no_grad():
        together = model.get_text_features(ids, mask).pooler_output
        torch.testing.assert_close(model.get_text_features(ids).pooler_output, together, rtol=0, atol=0)
        for row, count in enumerate(mask.sum(1).tolist()):
            alone = model.get_text_features(ids[row : row + 1, :count]).pooler_output
            torch.testing.assert_close(alone[0], together[row], rtol=0, atol=1e-6)
        first = make_dual().get_text_features(ids, mask).pooler_output
    assert (first - together).abs().max() > 0.01


def test_saved_loaded_and_as_a_classifier(make_dual, bert_batch, tmp_path):
    model = make_dual(
        vision_config("vit"), image_head="linear", text_head="mlp", image_pooling="cls", text_pooling="eos"
    )
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert [stored[name] for name in ("image_head", "text_head", "head_bias", "text_pooling")] == [
        "linear",
        "mlp",
        False,
        "eos",
    ]
    again = TierDualEncoderModel.from_pretrained(tmp_path)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    classifier = TierDualEncoderForImageClassification.from_pretrained(tmp_path, id2label={0: "Edema"}).eval()
    pixels = bert_batch["pixel_values"]
    with torch.no_grad():
        expected = model.get_image_features(pixels).pooler_output
        assert torch.equal(classifier.get_image_features(pixels).pooler_output, expected)
        assert torch.equal(again.eval().get_image_features(pixels).pooler_output, expected)


def test_configurations_from_before_the_choices_mean_what_they_meant(make_dual, bert_batch, tmp_path):
    model = make_dual()
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    stored = json.loads(path.read_text())
    for name in ("image_head", "text_head", "head_bias", "text_pooling"):
        del stored[name]
    path.write_text(json.dumps(stored))
    again = TierDualEncoderModel.from_pretrained(tmp_path)
    with torch.no_grad():
        one, other = (which(**bert_batch, return_loss=True) for which in (model, again))
    assert torch.equal(one.loss, other.loss) and torch.equal(one.logits_per_image, other.logits_per_image)


@pytest.mark.parametrize(
    "name, choices",
    [("image_head", "tier, linear, mlp"), ("text_head", "tier, linear, mlp"), ("text_pooling", "cls, eos, mean")],
)
def test_unknown_choices_are_refused(name, choices):
    with pytest.raises(ValueError, match=f"^{name} must be one of {choices}, not 'attention'.$"):
        TierDualEncoderConfig(text_config=text_config(), vision_config=vision_config(), **{name: "attention"})


def test_a_bias_without_effect_is_told(caplog):
    TierDualEncoderConfig(head_bias=True, text_head="linear")
    assert not caplog.messages
    TierDualEncoderConfig(head_bias=True)
    assert caplog.messages == ['head_bias=True has no effect on heads of the kind "tier".']
