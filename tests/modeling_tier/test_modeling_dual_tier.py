"""TierDualEncoderModel against formulas written down independently: heads, loss, padding, pixels, attention."""

import math

import pytest
import torch
from dual_towers import CLS, RESNET, SEP, text_config, vision_config
from model_checks import TERMS
from torch.nn import functional as F
from transformers import BertConfig, PreTrainedConfig, ResNetConfig

from modeling_tier import TierCLIPOutput, TierDualEncoderConfig, TierDualEncoderModel
from modeling_tier.contrastive_loss_tier import contrastive_loss
from modeling_tier.losses_tier import token_and_patch_entropy, token_patch_similarity


@pytest.mark.parametrize("pooling", ["patch_mean", "cls"])
@pytest.mark.parametrize("backbone", ["resnet", "vit"])
def test_heads_against_an_independent_formula(make_dual, bert_batch, backbone, pooling):
    """The heads of the authors' code (see the class), in plain torch on the outputs of the towers."""
    if (backbone, pooling) == ("resnet", "cls"):
        pytest.skip("a ResNet has no class token")
    model = make_dual(vision_config(backbone), image_pooling=pooling).double()
    bert_batch["pixel_values"] = bert_batch["pixel_values"].double()
    output = model(**bert_batch, return_loss=True)
    weights = dict(model.state_dict())

    hidden = model.text_model(bert_batch["input_ids"], bert_batch["attention_mask"]).last_hidden_state
    w, b = weights["text_projection.0.weight"], weights["text_projection.0.bias"]
    x = hidden @ w.T + b
    x = x * (1 + torch.erf(x / math.sqrt(2))) / 2
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-12).sqrt()
    x = x * weights["text_projection.2.weight"] + weights["text_projection.2.bias"]
    tokens = x @ weights["text_projection.3.weight"].T + weights["text_projection.3.bias"]

    hidden = model.vision_model(bert_batch["pixel_values"]).last_hidden_state
    if backbone == "resnet":
        hidden = torch.cat([torch.zeros_like(hidden[:, :, 0, :1]), hidden.flatten(2)], dim=2).mT
    v = hidden @ weights["visual_projection.0.weight"][:, :, 0, 0].T
    deviation = (weights["visual_projection.1.running_var"] + 1e-5).sqrt()
    v = (v - weights["visual_projection.1.running_mean"]) / deviation
    v = (v * weights["visual_projection.1.weight"] + weights["visual_projection.1.bias"]).clamp(min=0)
    v = v @ weights["visual_projection.3.weight"][:, :, 0, 0].T + weights["visual_projection.3.bias"]
    image = v[:, 0] if pooling == "cls" else v[:, 1:].mean(1)

    def unit(x):
        return x / x.norm(dim=-1, keepdim=True)

    close = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(output.text_embeds, unit(tokens[:, 0]), **close)
    torch.testing.assert_close(output.image_embeds, unit(image), **close)
    scale = weights["logit_scale"].exp()
    torch.testing.assert_close(output.logits_per_image, scale * unit(image) @ unit(tokens[:, 0]).T, rtol=0, atol=1e-10)
    torch.testing.assert_close(output.token_embeds, unit(tokens).float(), rtol=0, atol=1e-6)
    torch.testing.assert_close(output.patch_embeds, unit(v[:, 1:]).float(), rtol=0, atol=1e-6)
    torch.testing.assert_close(model.get_patch_features(bert_batch["pixel_values"]), v[:, 1:], **close)
    assert output.token_embeds.dtype == output.patch_embeds.dtype == torch.float32


def test_defaults_are_the_papers():
    config = TierDualEncoderConfig()
    assert (config.projection_dim, config.image_size, config.image_pooling) == (128, 224, "patch_mean")
    assert config.logit_scale_init_value == pytest.approx(math.log(1 / 0.07))
    assert config.vision_config.to_dict() == ResNetConfig().to_dict()
    assert config.text_config.to_dict() == BertConfig().to_dict()
    with torch.device("meta"):
        model = TierDualEncoderModel(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if "projection" in name}
    assert shapes == {
        "visual_projection.0.weight": (128, 2048, 1, 1),
        "visual_projection.1.weight": (128,),
        "visual_projection.1.bias": (128,),
        "visual_projection.1.running_mean": (128,),
        "visual_projection.1.running_var": (128,),
        "visual_projection.1.num_batches_tracked": (),
        "visual_projection.3.weight": (128, 128, 1, 1),
        "visual_projection.3.bias": (128,),
        "text_projection.0.weight": (128, 768),
        "text_projection.0.bias": (128,),
        "text_projection.2.weight": (128,),
        "text_projection.2.bias": (128,),
        "text_projection.3.weight": (128, 128),
        "text_projection.3.bias": (128,),
    }


def test_random_weights_start_where_they_should():
    torch.manual_seed(0)
    model = TierDualEncoderModel(TierDualEncoderConfig(vision_config=RESNET, text_config=text_config()))
    assert model.logit_scale.exp().item() == pytest.approx(1 / 0.07)
    for layer, inputs in ((model.visual_projection[3], 128), (model.text_projection[3], 128)):
        assert layer.weight.abs().max().item() == pytest.approx(1 / math.sqrt(inputs), rel=0.01)  # torch's own
        assert not layer.bias.any()
    assert model.text_model.embeddings.word_embeddings.weight.std().item() == pytest.approx(0.02, rel=0.1)  # BERT's


def test_one_forward_of_each_tower_per_step(make_dual, bert_batch):
    model = make_dual().train()
    calls = []
    for name in ("vision_model", "text_model", "visual_projection"):
        getattr(model, name).register_forward_hook(lambda *_, name=name: calls.append(name))
    model(**bert_batch, return_loss=True).loss.backward()
    assert sorted(calls) == ["text_model", "vision_model", "visual_projection"]
    assert model.visual_projection[1].num_batches_tracked == 1


def test_train_and_eval(make_dual, bert_batch):
    model = make_dual()
    assert torch.equal(model(**bert_batch).logits_per_image, model(**bert_batch).logits_per_image)
    model.train()
    mean = model.visual_projection[1].running_mean.clone()
    assert not torch.equal(model(**bert_batch).text_embeds, model(**bert_batch).text_embeds)  # dropout
    assert not torch.equal(model.visual_projection[1].running_mean, mean)


def test_token_and_text_embedding_are_one_pass_with_one_dropout(make_dual, bert_batch):
    """The authors ran the text encoder twice, with different dropout (CLIP_Embedding.py:84-88)."""
    output = make_dual().train()(**bert_batch, return_loss=True)
    torch.testing.assert_close(output.token_embeds[:, 0], output.text_embeds, rtol=0, atol=1e-6)


@pytest.mark.parametrize("entropy_tokens", ["words", "attended", "all"])
def test_loss_is_that_of_the_loss_functions(make_dual, bert_batch, entropy_tokens):
    weights = {"token_entropy_weight": 0.3, "patch_entropy_weight": 0.7}
    model = make_dual(entropy_tokens=entropy_tokens, entropy_temperature=0.5, **weights)
    output = model(**bert_batch, return_loss=True)
    assert isinstance(output, TierCLIPOutput)
    counted = {
        "words": [[0] + [1] * n + [0] * (7 - n) for n in (5, 3, 1, 0)],
        "attended": [[1] * (n + 2) + [0] * (6 - n) for n in (5, 3, 1, 0)],
        "all": [[1] * 8] * 4,
    }[entropy_tokens]
    similarity = token_patch_similarity(output.token_embeds, output.patch_embeds, 0.5)
    eps = 1e-7 if entropy_tokens == "all" else 0.0
    token_entropy, patch_entropy = token_and_patch_entropy(similarity, torch.tensor(counted).bool(), eps=eps)
    expected = contrastive_loss(output.image_embeds, output.text_embeds, model.logit_scale)
    assert torch.equal(output.token_entropy, token_entropy) and torch.equal(output.patch_entropy, patch_entropy)
    assert torch.equal(output.contrastive_loss, expected)
    torch.testing.assert_close(output.loss, expected + 0.3 * token_entropy + 0.7 * patch_entropy, rtol=1e-6, atol=0)
    logits = output.logits_per_text
    target = torch.arange(4)
    by_hand = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(output.contrastive_loss, by_hand, rtol=1e-6, atol=0)


def test_soft_targets(make_dual, bert_batch):
    output = make_dual()(**bert_batch, return_loss=True, text_groups=torch.tensor([3, -1, 4, -1]))
    target = torch.eye(4)
    target[1] = target[3] = torch.tensor([0, 0.5, 0, 0.5])
    logits = output.logits_per_text
    by_hand = -((target * logits.log_softmax(1)).sum() + (target * logits.log_softmax(0)).sum()) / 8
    torch.testing.assert_close(output.contrastive_loss, by_hand, rtol=1e-6, atol=0)


def test_without_return_loss_any_numbers_of_texts_and_images(make_dual, bert_batch):
    texts = {key: bert_batch[key][:3] for key in ("input_ids", "attention_mask", "token_type_ids")}
    output = make_dual()(**texts, pixel_values=bert_batch["pixel_values"])
    assert output.logits_per_image.shape == (4, 3)
    assert [name for name in ("loss", *TERMS) if name in output] == []
    with pytest.raises(ValueError, match="^A loss needs one text per image, but there are 4 images and 3 texts"):
        make_dual()(**texts, pixel_values=bert_batch["pixel_values"], return_loss=True)


@pytest.mark.parametrize("mask_given", [True, False])
def test_padding_changes_nothing(make_dual, bert_batch, mask_given):
    model = make_dual(token_entropy_weight=1, patch_entropy_weight=1)
    expected = model(**bert_batch, return_loss=True)
    longer = {key: F.pad(bert_batch[key], (0, 5)) for key in ("input_ids", "attention_mask", "token_type_ids")}
    if not mask_given:
        del longer["attention_mask"]
    computed = model(**longer, pixel_values=bert_batch["pixel_values"], return_loss=True)
    for name in ("loss", "logits_per_image", *TERMS):
        torch.testing.assert_close(computed[name], expected[name], rtol=1e-5, atol=1e-6)


def test_padding_that_is_the_end_token_again(make_dual, bert_batch):
    """A CLIP tokenizer under a BERT: the first end token belongs to the text, the others pad."""
    ids = {"bos_token_id": CLS, "eos_token_id": SEP, "pad_token_id": SEP}
    model = make_dual(text=text_config(**ids))
    bert_batch["input_ids"] = bert_batch["input_ids"].where(bert_batch["attention_mask"].bool(), SEP)
    expected = model(**bert_batch, return_loss=True)
    del bert_batch["attention_mask"]
    computed = model(**bert_batch, return_loss=True)
    for name in ("loss", "logits_per_image", *TERMS):
        torch.testing.assert_close(computed[name], expected[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mask_given", [True, False])
def test_the_end_token_stands_for_a_text_that_clip_reads(make_dual, bert_batch, mask_given):
    model = make_dual(text=text_config("clip_text_model", pad_token_id=SEP), entropy_tokens="words")
    bert_batch["input_ids"] = bert_batch["input_ids"].where(bert_batch["attention_mask"].bool(), SEP)
    mask = bert_batch.pop("attention_mask")
    output = model(**bert_batch, **({"attention_mask": mask} if mask_given else {}), return_loss=True)
    ends = mask.sum(-1) - 1
    torch.testing.assert_close(output.text_embeds, output.token_embeds[range(4), ends], rtol=0, atol=1e-6)
    similarity = token_patch_similarity(output.token_embeds, output.patch_embeds)
    words = torch.tensor([[0] + [1] * n + [0] * (7 - n) for n in (5, 3, 1, 0)]).bool()
    assert torch.equal(output.token_entropy, token_and_patch_entropy(similarity, words)[0])


def test_token_types_of_zero_change_nothing(make_dual, bert_batch):
    model = make_dual()
    expected = model(**bert_batch).logits_per_image
    del bert_batch["token_type_ids"]
    assert torch.equal(model(**bert_batch).logits_per_image, expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_pixels_are_what_the_image_processor_makes_of_them(make_dual, bert_batch, channels):
    grey = torch.randint(0, 256, (4, 1, 64, 64), dtype=torch.uint8)
    mean, std = ([0.4] * 3, [0.3] * 3) if channels == 1 else ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
    model = make_dual(vision_config(num_channels=channels), pixel_mean=mean, pixel_std=std)
    normalised = (grey / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(
        model.get_image_features(grey).pooler_output, model.get_image_features(normalised).pooler_output
    )
    assert model.vision_model.embedder.embedder.convolution.weight.shape[1] == channels


def test_images_of_other_sizes(make_dual, bert_batch):
    grey = torch.randint(0, 256, (2, 1, 96, 48), dtype=torch.uint8)
    ids = bert_batch["input_ids"]
    assert make_dual().get_similarity_map(ids, grey).shape == (2, 4, 12, 6)
    model = make_dual(vision_config("vit"))
    with pytest.raises(ValueError, match="doesn't match model"):
        model.get_similarity_map(ids, grey)
    expected = model.get_similarity_map(ids, grey, interpolate_pos_encoding=True)
    assert expected.shape == (2, 4, 6, 3)
    assert torch.equal(make_dual(vision_config("vit"), image_size=96).get_similarity_map(ids, grey), expected)
    assert make_dual().get_similarity_map(ids, grey, interpolate_pos_encoding=True).shape == (2, 4, 12, 6)


@pytest.mark.parametrize("per_token", [False, True])
def test_similarity_map(make_dual, bert_batch, per_token):
    model = make_dual()
    output = model(**bert_batch, return_loss=True)
    texts = {key: bert_batch[key] for key in ("input_ids", "attention_mask")}
    maps = model.get_similarity_map(**texts, pixel_values=bert_batch["pixel_values"], per_token=per_token)
    embeds = output.token_embeds if per_token else output.text_embeds
    expected = torch.stack([embeds @ patches.T for patches in output.patch_embeds]).unflatten(-1, (8, 8))
    torch.testing.assert_close(maps, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(make_dual, bert_batch, use_reentrant):
    gradients = []
    for checkpointing in (False, True):
        model = make_dual(
            vision_config("vit"),
            text_config(hidden_dropout_prob=0, attention_probs_dropout_prob=0),
            frozen_text_layers=1,
            token_entropy_weight=1,
        ).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            assert model.is_gradient_checkpointing
            layers = [*model.text_model.encoder.layer, *model.vision_model.layers]
            assert all(layer.gradient_checkpointing for layer in layers)
        model(**bert_batch, return_loss=True).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert (gradient is None) == (gradients[1][name] is None), name
        if gradient is not None:
            torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_the_implementation_of_attention_is_chosen_for_the_towers_that_have_it(make_dual, bert_batch, tmp_path):
    model = make_dual()
    model.save_pretrained(tmp_path)
    expected = model(**bert_batch).logits_per_image
    for implementation in ("eager", "sdpa"):
        loaded = TierDualEncoderModel.from_pretrained(tmp_path, attn_implementation=implementation)
        assert loaded.text_model.config._attn_implementation == implementation
        torch.testing.assert_close(loaded(**bert_batch).logits_per_image, expected, rtol=1e-5, atol=1e-5)
        model.set_attn_implementation(implementation)
        assert model.text_model.config._attn_implementation == implementation
    outputs = make_dual(vision_config("vit"))(**bert_batch, output_hidden_states=True)
    assert len(outputs.text_model_output.hidden_states) == 4
    assert len(outputs.vision_model_output.hidden_states) == 2


def test_half_precision(make_dual, bert_batch):
    model = make_dual().bfloat16()
    output = model(**bert_batch, return_loss=True)  # float32 pixels
    assert output.logits_per_image.dtype == torch.bfloat16 and output.token_entropy.dtype == torch.float32
    assert math.isfinite(output.loss.item())


def test_configuration_round_trip(tmp_path):
    config = TierDualEncoderConfig(
        vision_config=vision_config("vit"),
        text_config=BertConfig(num_hidden_layers=3),
        frozen_text_layers=2,
        entropy_tokens="all",
        image_pooling="cls",
        pixel_mean=(0.5, 0.5, 0.5),
    )
    config.save_pretrained(tmp_path)
    loaded = TierDualEncoderConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert isinstance(loaded.vision_config, PreTrainedConfig) and loaded.vision_config.patch_size == 16
    assert TierDualEncoderConfig.from_pretrained(tmp_path, frozen_text_layers=1).frozen_text_layers == 1
    with pytest.raises(ValueError, match="frozen_text_layers must lie between"):
        TierDualEncoderConfig.from_pretrained(tmp_path, frozen_text_layers=5)
    with pytest.raises(ValueError, match="has no option 'frozen_layers'; the nearest one is 'frozen_text_layers'."):
        TierDualEncoderConfig.from_pretrained(tmp_path, frozen_layers=2)


def test_saved_and_loaded_it_is_the_same_and_still_frozen(make_dual, bert_batch, tmp_path):
    model = make_dual(frozen_text_layers=2, token_entropy_weight=0.1)
    model.save_pretrained(tmp_path)
    loaded, info = TierDualEncoderModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    expected, computed = model(**bert_batch, return_loss=True), loaded(**bert_batch, return_loss=True)
    assert torch.equal(computed.loss, expected.loss) and torch.equal(computed.token_embeds, expected.token_embeds)
    trained = [parameter.requires_grad for parameter in model.parameters()]
    assert [parameter.requires_grad for parameter in loaded.parameters()] == trained
    assert all(
        p.requires_grad for p in TierDualEncoderModel.from_pretrained(tmp_path, frozen_text_layers=0).parameters()
    )
