"""TierCLIPModel: equality with CLIPModel, one forward pass, pooling, loading."""

import pytest
import torch
from model_checks import TERMS, WEIGHTS
from torch.nn import functional as F
from transformers import CLIPModel

from modeling_tier import TierCLIPConfig, TierCLIPModel


def test_state_dict_is_clips(make_tier, clip):
    assert list(make_tier().state_dict()) == list(clip.state_dict())
    assert make_tier().load_state_dict(clip.state_dict(), strict=True)


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_zero_weights_are_bit_equal_to_clip(make_tier, clip, batch, attn_implementation):
    tier = make_tier()
    tier.set_attn_implementation(attn_implementation)
    clip.set_attn_implementation(attn_implementation)
    expected, computed = clip(**batch, return_loss=True), tier(**batch, return_loss=True)
    for name in ("loss", "logits_per_image", "logits_per_text", "image_embeds", "text_embeds"):
        assert torch.equal(computed[name], expected[name]), name
    assert torch.equal(computed.contrastive_loss, expected.loss)

    expected.loss.backward()
    computed.loss.backward()
    for (name, parameter), other in zip(tier.named_parameters(), clip.parameters(), strict=True):
        assert torch.equal(parameter.grad, other.grad), name


def test_zero_weights_are_bit_equal_to_clip_under_autocast(make_tier, clip, batch):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, computed = clip(**batch, return_loss=True), make_tier()(**batch, return_loss=True)
    assert torch.equal(computed.loss, expected.loss)
    assert torch.equal(computed.logits_per_image, expected.logits_per_image)


def test_inference_is_clips(make_tier, clip, batch):
    texts = {key: batch[key][:3] for key in ("input_ids", "attention_mask")}
    computed = make_tier(**WEIGHTS)(**texts, pixel_values=batch["pixel_values"])
    expected = clip(**texts, pixel_values=batch["pixel_values"])
    assert computed.logits_per_image.shape == (4, 3)
    assert torch.equal(computed.logits_per_image, expected.logits_per_image)
    assert [computed[name] for name in ("loss", *TERMS) if name in computed] == []


def test_to_clip_has_identical_logits(make_tier, batch, tmp_path):
    tier = make_tier(**WEIGHTS)
    plain = tier.to_clip()
    assert type(plain) is CLIPModel
    assert torch.equal(plain(**batch).logits_per_image, tier(**batch).logits_per_image)
    plain.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    assert torch.equal(CLIPModel.from_pretrained(tmp_path)(**batch).logits_per_image, tier(**batch).logits_per_image)
    plain.logit_scale.data.zero_()
    assert tier.logit_scale.item() != 0  # a copy


def test_to_clip_refuses_patch_mean(make_tier):
    with pytest.raises(ValueError, match='image_pooling="patch_mean" cannot become a CLIPModel with identical'):
        make_tier(image_pooling="patch_mean").to_clip()


def test_every_parameter_gets_a_gradient(make_tier, batch):
    for image_pooling in ("cls", "patch_mean"):
        model = make_tier(image_pooling=image_pooling, **WEIGHTS)
        model(**batch, return_loss=True).loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert model.logit_scale.grad.abs() > 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_entropies_in_float32(make_tier, batch, dtype):
    model = make_tier(image_pooling="patch_mean", entropy_temperature=1e-3, **WEIGHTS)
    with torch.autocast("cpu", dtype=dtype):
        output = model(**batch, return_loss=True)
    for name in ("token_entropy", "patch_entropy", "token_embeds", "patch_embeds"):
        assert output[name].dtype == torch.float32, name
    output.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_half_precision_weights(make_tier, batch):
    model = make_tier(**WEIGHTS).to(torch.bfloat16)
    output = model(**batch, return_loss=True)
    assert output.token_entropy.dtype == torch.float32
    assert output.loss.isfinite()


def test_one_forward_of_each_tower(make_tier, batch):
    for image_pooling in ("cls", "patch_mean"):
        model = make_tier(image_pooling=image_pooling, **WEIGHTS)
        calls = []
        model.vision_model.register_forward_hook(lambda *_: calls.append("vision"))  # noqa: B023
        model.text_model.register_forward_hook(lambda *_: calls.append("text"))  # noqa: B023
        model(**batch, return_loss=True)
        assert sorted(calls) == ["text", "vision"]


def test_return_dict_false(make_tier, batch):
    model = make_tier(**WEIGHTS)
    output = model(**batch, return_loss=True)
    as_tuple = model(**batch, return_loss=True, return_dict=False)
    assert isinstance(as_tuple, tuple) and len(as_tuple) == len(output)
    assert torch.equal(as_tuple[0], output.loss)
    assert torch.equal(as_tuple[1], output.logits_per_image)
    assert torch.equal(as_tuple[-1], output.patch_embeds)
    features = model.get_image_features(batch["pixel_values"], return_dict=False)
    assert torch.equal(features[1], model.get_image_features(batch["pixel_values"]).pooler_output)


def test_gradient_accumulation_is_left_to_the_trainer():
    assert TierCLIPModel.accepts_loss_kwargs is False


def test_patch_features_are_normed_and_projected_like_the_class_token(make_tier, batch):
    model = make_tier()
    vision = model.vision_model(batch["pixel_values"]).last_hidden_state
    expected = model.visual_projection(model.vision_model.post_layernorm(vision))
    torch.testing.assert_close(model.get_patch_features(batch["pixel_values"]), expected[:, 1:])
    pooled = model.get_image_features(batch["pixel_values"]).pooler_output
    torch.testing.assert_close(pooled, expected[:, 0])
    output = model(**batch, return_loss=True)
    torch.testing.assert_close(output.patch_embeds, F.normalize(expected[:, 1:], dim=-1))
    tokens = model.text_projection(model.text_model(**{k: batch[k] for k in ("input_ids", "attention_mask")})[0])
    torch.testing.assert_close(output.token_embeds, F.normalize(tokens, dim=-1))


def test_patch_mean_is_the_mean_of_the_projected_patches(make_tier, batch):
    model = make_tier(image_pooling="patch_mean")
    mean = model.get_patch_features(batch["pixel_values"]).mean(dim=1)
    pooled = model.get_image_features(batch["pixel_values"]).pooler_output
    torch.testing.assert_close(pooled, mean, rtol=1e-5, atol=1e-6)
    output = model(**batch, return_loss=True)
    torch.testing.assert_close(output.image_embeds, F.normalize(mean, dim=-1), rtol=1e-5, atol=1e-6)
    assert torch.equal(output.vision_model_output.pooler_output, pooled)
    assert not torch.allclose(pooled, make_tier().get_image_features(batch["pixel_values"]).pooler_output, atol=0.1)


def test_a_plain_clip_checkpoint_loads(clip, batch, tmp_path):
    clip.save_pretrained(tmp_path)
    tier, info = TierCLIPModel.from_pretrained(tmp_path, output_loading_info=True, token_entropy_weight=0.5)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert tier.config.token_entropy_weight == 0.5
    assert torch.equal(tier(**batch).logits_per_image, clip(**batch).logits_per_image)


def test_a_misspelt_option_does_not_load(clip, tmp_path):
    clip.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no option 'tokn_entropy_weight'; the nearest one is 'token_entropy_weight'"):
        TierCLIPModel.from_pretrained(tmp_path, tokn_entropy_weight=0.5)


def test_default_configuration_is_vit_b_32():
    config = TierCLIPConfig()
    assert (config.vision_config.patch_size, config.vision_config.image_size) == (32, 224)
