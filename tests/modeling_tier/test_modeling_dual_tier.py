import json
import math

import pytest
import torch
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    CLIPConfig,
    CLIPModel,
    PreTrainedConfig,
    ResNetConfig,
    ResNetForImageClassification,
    ResNetModel,
)

from modeling_tier import TierCLIPOutput, TierDualEncoderConfig, TierDualEncoderModel
from modeling_tier.losses_tier import contrastive_loss, token_and_patch_entropy, token_patch_similarity
from modeling_tier.towers_tier import patch_grid

CLS, SEP, PAD = 2, 3, 0
TOWER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
VIT = {**TOWER, "image_size": 64, "patch_size": 16}
STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1]}
RESNET = {"model_type": "resnet", "embedding_size": 8, "layer_type": "basic", **STAGES}
BACKBONES = {  # and the grid of patches that each makes of 64 x 64 pixels
    "resnet": ({"embedding_size": 8, "layer_type": "basic", **STAGES}, 8),
    "convnext": ({**STAGES, "num_stages": 2, "patch_size": 4}, 8),
    "vit": (VIT, 4),
    "deit": (VIT, 4),  # a second token before the patches
    "dinov2_with_registers": ({**VIT, "mlp_ratio": 1, "num_register_tokens": 4}, 4),
    "swin": ({"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "image_size": 64}, 8),
    "clip_vision_model": (VIT, 4),
}
ENCODERS = {
    "bert": {},
    "roberta": {"type_vocab_size": 1},
    "distilbert": {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 16},  # knows no token types
    "clip_text_model": {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3},
    "modernbert": {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3},
}
TERMS = ("contrastive_loss", "token_entropy", "patch_entropy")


def text_config(model_type: str = "bert", **options) -> dict:
    sizes = {**TOWER, "num_hidden_layers": 3, "vocab_size": 50, "max_position_embeddings": 24}
    return {"model_type": model_type, **sizes, **ENCODERS.get(model_type, {}), **options}


def vision_config(model_type: str = "resnet", **options) -> dict:
    return {"model_type": model_type, **BACKBONES[model_type][0], **options}


@pytest.fixture
def make_dual():
    """Function that makes a tiny dual encoder, always of the same weights, from its options."""

    def make(vision=None, text=None, **options) -> TierDualEncoderModel:
        torch.manual_seed(0)
        config = TierDualEncoderConfig(
            vision_config=vision or vision_config(),
            text_config=text or text_config(),
            **{"projection_dim": 24, "image_size": 64, **options},
        )
        model = TierDualEncoderModel(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():  # initial norms and biases are all ones and zeros
                parameter.add_(0.1 * torch.randn_like(parameter))
            for name, buffer in model.named_buffers():
                if name.endswith(("running_mean", "running_var")):
                    buffer.add_(0.1 * torch.rand_like(buffer))
        return model

    return make


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Four pairs; texts of 5, 3, 1 and 0 words, as a BERT tokenizer pads them to 8 positions."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.full((4, 8), PAD)
    for row, words in enumerate((5, 3, 1, 0)):
        input_ids[row, 0], input_ids[row, words + 1] = CLS, SEP
        input_ids[row, 1 : 1 + words] = torch.randint(4, 50, (words,), generator=generator)
    return {
        "input_ids": input_ids,
        "attention_mask": (input_ids != PAD).long(),
        "token_type_ids": torch.zeros_like(input_ids),
        "pixel_values": torch.randn(4, 3, 64, 64, generator=generator),
    }


# towers and heads


@pytest.mark.parametrize("pooling", ["patch_mean", "cls"])
@pytest.mark.parametrize("backbone", ["resnet", "vit"])
def test_heads_against_an_independent_formula(make_dual, batch, backbone, pooling):
    """The heads of the authors' code (see the class), in plain torch on the outputs of the towers."""
    if (backbone, pooling) == ("resnet", "cls"):
        pytest.skip("a ResNet has no class token")
    model = make_dual(vision_config(backbone), image_pooling=pooling).double()
    batch["pixel_values"] = batch["pixel_values"].double()
    output = model(**batch, return_loss=True)
    weights = dict(model.state_dict())

    hidden = model.text_model(batch["input_ids"], batch["attention_mask"]).last_hidden_state
    w, b = weights["text_projection.0.weight"], weights["text_projection.0.bias"]
    x = hidden @ w.T + b
    x = x * (1 + torch.erf(x / math.sqrt(2))) / 2
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-12).sqrt()
    x = x * weights["text_projection.2.weight"] + weights["text_projection.2.bias"]
    tokens = x @ weights["text_projection.3.weight"].T + weights["text_projection.3.bias"]

    hidden = model.vision_model(batch["pixel_values"]).last_hidden_state
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
    torch.testing.assert_close(model.get_patch_features(batch["pixel_values"]), v[:, 1:], **close)
    assert output.token_embeds.dtype == output.patch_embeds.dtype == torch.float32


@pytest.mark.parametrize("backbone", BACKBONES)
def test_any_backbone(make_dual, batch, backbone):
    options, side = BACKBONES[backbone]
    model = make_dual(vision_config(backbone))
    output = model(**batch, return_loss=True)
    assert output.patch_embeds.shape == (4, side * side, 24)
    output.loss.backward()
    for tower in (model.vision_model, model.text_model):
        assert any(parameter.grad is not None and parameter.grad.any() for parameter in tower.parameters())
    # the map is of the image's own rows and columns: a bright lower left corner changes that corner most
    dark, bright = torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 64, 64)
    bright[..., 48:, :16] = 3
    with torch.no_grad():
        change = (model.get_patch_map(bright) - model.get_patch_map(dark)).norm(dim=-1)[0]  # (rows, columns)
    assert change.shape == (side, side)
    row, column = divmod(change.argmax().item(), side)
    assert row >= side / 2 and column < side / 2


@pytest.mark.parametrize("encoder", ENCODERS)
def test_any_text_encoder(make_dual, batch, encoder):
    model = make_dual(text=text_config(encoder), frozen_text_layers=2)
    output = model(**batch, return_loss=True)
    assert output.text_embeds.shape == (4, 24) and output.token_embeds.shape == (4, 8, 24)
    assert "pooler" not in " ".join(model.state_dict())


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


def test_patch_grid():
    assert patch_grid(197, 224, 224, 16) == (14, 14)
    assert patch_grid(5 + 12, 48, 64, 16) == (3, 4)
    assert patch_grid(49, 224, 224, 4) == (7, 7)  # Swin
    assert patch_grid(16, 112, 112, 4) == (4, 4)  # Swin pads 7 x 7 to 8 x 8 before it merges by twos


# one pass


def test_one_forward_of_each_tower_per_step(make_dual, batch):
    model = make_dual().train()
    calls = []
    for name in ("vision_model", "text_model", "visual_projection"):
        getattr(model, name).register_forward_hook(lambda *_, name=name: calls.append(name))
    model(**batch, return_loss=True).loss.backward()
    assert sorted(calls) == ["text_model", "vision_model", "visual_projection"]
    assert model.visual_projection[1].num_batches_tracked == 1


def test_train_and_eval(make_dual, batch):
    model = make_dual()
    assert torch.equal(model(**batch).logits_per_image, model(**batch).logits_per_image)
    model.train()
    mean = model.visual_projection[1].running_mean.clone()
    assert not torch.equal(model(**batch).text_embeds, model(**batch).text_embeds)  # dropout
    assert not torch.equal(model.visual_projection[1].running_mean, mean)


def test_token_and_text_embedding_are_one_pass_with_one_dropout(make_dual, batch):
    """The authors ran the text encoder twice, with different dropout (CLIP_Embedding.py:84-88)."""
    output = make_dual().train()(**batch, return_loss=True)
    torch.testing.assert_close(output.token_embeds[:, 0], output.text_embeds, rtol=0, atol=1e-6)


# the loss


@pytest.mark.parametrize("entropy_tokens", ["words", "attended", "all"])
def test_loss_is_that_of_the_loss_functions(make_dual, batch, entropy_tokens):
    weights = {"token_entropy_weight": 0.3, "patch_entropy_weight": 0.7}
    model = make_dual(entropy_tokens=entropy_tokens, entropy_temperature=0.5, **weights)
    output = model(**batch, return_loss=True)
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


def test_soft_targets(make_dual, batch):
    output = make_dual()(**batch, return_loss=True, text_groups=torch.tensor([3, -1, 4, -1]))
    target = torch.eye(4)
    target[1] = target[3] = torch.tensor([0, 0.5, 0, 0.5])
    logits = output.logits_per_text
    by_hand = -((target * logits.log_softmax(1)).sum() + (target * logits.log_softmax(0)).sum()) / 8
    torch.testing.assert_close(output.contrastive_loss, by_hand, rtol=1e-6, atol=0)


def test_without_return_loss_any_numbers_of_texts_and_images(make_dual, batch):
    texts = {key: batch[key][:3] for key in ("input_ids", "attention_mask", "token_type_ids")}
    output = make_dual()(**texts, pixel_values=batch["pixel_values"])
    assert output.logits_per_image.shape == (4, 3)
    assert [name for name in ("loss", *TERMS) if name in output] == []
    with pytest.raises(ValueError, match="^A loss needs one text per image, but there are 4 images and 3 texts"):
        make_dual()(**texts, pixel_values=batch["pixel_values"], return_loss=True)


@pytest.mark.parametrize("mask_given", [True, False])
def test_padding_changes_nothing(make_dual, batch, mask_given):
    model = make_dual(token_entropy_weight=1, patch_entropy_weight=1)
    expected = model(**batch, return_loss=True)
    longer = {key: F.pad(batch[key], (0, 5)) for key in ("input_ids", "attention_mask", "token_type_ids")}
    if not mask_given:
        del longer["attention_mask"]
    computed = model(**longer, pixel_values=batch["pixel_values"], return_loss=True)
    for name in ("loss", "logits_per_image", *TERMS):
        torch.testing.assert_close(computed[name], expected[name], rtol=1e-5, atol=1e-6)


def test_padding_that_is_the_end_token_again(make_dual, batch):
    """A CLIP tokenizer under a BERT: the first end token belongs to the text, the others pad."""
    ids = {"bos_token_id": CLS, "eos_token_id": SEP, "pad_token_id": SEP}
    model = make_dual(text=text_config(**ids))
    batch["input_ids"] = batch["input_ids"].where(batch["attention_mask"].bool(), SEP)
    expected = model(**batch, return_loss=True)
    del batch["attention_mask"]
    computed = model(**batch, return_loss=True)
    for name in ("loss", "logits_per_image", *TERMS):
        torch.testing.assert_close(computed[name], expected[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mask_given", [True, False])
def test_the_end_token_stands_for_a_text_that_clip_reads(make_dual, batch, mask_given):
    model = make_dual(text=text_config("clip_text_model", pad_token_id=SEP), entropy_tokens="words")
    batch["input_ids"] = batch["input_ids"].where(batch["attention_mask"].bool(), SEP)
    mask = batch.pop("attention_mask")
    output = model(**batch, **({"attention_mask": mask} if mask_given else {}), return_loss=True)
    ends = mask.sum(-1) - 1
    torch.testing.assert_close(output.text_embeds, output.token_embeds[range(4), ends], rtol=0, atol=1e-6)
    similarity = token_patch_similarity(output.token_embeds, output.patch_embeds)
    words = torch.tensor([[0] + [1] * n + [0] * (7 - n) for n in (5, 3, 1, 0)]).bool()
    assert torch.equal(output.token_entropy, token_and_patch_entropy(similarity, words)[0])


def test_token_types_of_zero_change_nothing(make_dual, batch):
    model = make_dual()
    expected = model(**batch).logits_per_image
    del batch["token_type_ids"]
    assert torch.equal(model(**batch).logits_per_image, expected)


# pixels


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_pixels_are_what_the_image_processor_makes_of_them(make_dual, batch, channels):
    grey = torch.randint(0, 256, (4, 1, 64, 64), dtype=torch.uint8)
    mean, std = ([0.4] * 3, [0.3] * 3) if channels == 1 else ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
    model = make_dual(vision_config(num_channels=channels), pixel_mean=mean, pixel_std=std)
    normalised = (grey / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(
        model.get_image_features(grey).pooler_output, model.get_image_features(normalised).pooler_output
    )
    assert model.vision_model.embedder.embedder.convolution.weight.shape[1] == channels


def test_images_of_other_sizes(make_dual, batch):
    grey = torch.randint(0, 256, (2, 1, 96, 48), dtype=torch.uint8)
    ids = batch["input_ids"]
    assert make_dual().get_similarity_map(ids, grey).shape == (2, 4, 12, 6)
    model = make_dual(vision_config("vit"))
    with pytest.raises(ValueError, match="doesn't match model"):
        model.get_similarity_map(ids, grey)
    expected = model.get_similarity_map(ids, grey, interpolate_pos_encoding=True)
    assert expected.shape == (2, 4, 6, 3)
    assert torch.equal(make_dual(vision_config("vit"), image_size=96).get_similarity_map(ids, grey), expected)
    assert make_dual().get_similarity_map(ids, grey, interpolate_pos_encoding=True).shape == (2, 4, 12, 6)


@pytest.mark.parametrize("per_token", [False, True])
def test_similarity_map(make_dual, batch, per_token):
    model = make_dual()
    output = model(**batch, return_loss=True)
    texts = {key: batch[key] for key in ("input_ids", "attention_mask")}
    maps = model.get_similarity_map(**texts, pixel_values=batch["pixel_values"], per_token=per_token)
    embeds = output.token_embeds if per_token else output.text_embeds
    expected = torch.stack([embeds @ patches.T for patches in output.patch_embeds]).unflatten(-1, (8, 8))
    torch.testing.assert_close(maps, expected, rtol=0, atol=1e-6)


# frozen layers


def test_frozen_layers_get_no_gradient_and_stay_put(make_dual, batch):
    model = make_dual(frozen_text_layers=2).train()
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    prefixes = ("text_model.embeddings.", "text_model.encoder.layer.0.", "text_model.encoder.layer.1.")
    assert frozen == {name for name in model.state_dict() if name.startswith(prefixes)}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    model(**batch, return_loss=True).loss.backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (name in frozen), name
        assert torch.equal(parameter, before[name]) == (name in frozen), name


def test_nothing_is_frozen_by_default(make_dual):
    assert all(parameter.requires_grad for parameter in make_dual().parameters())


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same_gradients(make_dual, batch, use_reentrant):
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
        model(**batch, return_loss=True).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert (gradient is None) == (gradients[1][name] is None), name
        if gradient is not None:
            torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


# attention


def test_the_implementation_of_attention_is_chosen_for_the_towers_that_have_it(make_dual, batch, tmp_path):
    model = make_dual()
    model.save_pretrained(tmp_path)
    expected = model(**batch).logits_per_image
    for implementation in ("eager", "sdpa"):
        loaded = TierDualEncoderModel.from_pretrained(tmp_path, attn_implementation=implementation)
        assert loaded.text_model.config._attn_implementation == implementation
        torch.testing.assert_close(loaded(**batch).logits_per_image, expected, rtol=1e-5, atol=1e-5)
        model.set_attn_implementation(implementation)
        assert model.text_model.config._attn_implementation == implementation
    outputs = make_dual(vision_config("vit"))(**batch, output_hidden_states=True)
    assert len(outputs.text_model_output.hidden_states) == 4
    assert len(outputs.vision_model_output.hidden_states) == 2


def test_half_precision(make_dual, batch):
    model = make_dual().bfloat16()
    output = model(**batch, return_loss=True)  # float32 pixels
    assert output.logits_per_image.dtype == torch.bfloat16 and output.token_entropy.dtype == torch.float32
    assert math.isfinite(output.loss.item())


# pretrained towers


@pytest.fixture
def tower_folders(tmp_path):
    """A classifier of images and a masked language model, as their own libraries save them."""
    torch.manual_seed(0)
    options = {key: value for key, value in RESNET.items() if key != "model_type"}
    vision = ResNetForImageClassification(ResNetConfig(**options)).half()
    text = BertForMaskedLM(BertConfig(**{key: value for key, value in text_config().items() if key != "model_type"}))
    vision.save_pretrained(tmp_path / "vision")
    text.save_pretrained(tmp_path / "text")
    return tmp_path / "vision", tmp_path / "text", vision, text


def test_pretrained_towers_are_joined(tower_folders, batch):
    vision_folder, text_folder, vision, text = tower_folders
    model = TierDualEncoderModel.from_vision_text_pretrained(
        str(vision_folder), str(text_folder), frozen_text_layers=2, projection_dim=24, image_size=96
    )
    assert isinstance(model.vision_model, ResNetModel) and isinstance(model.text_model, BertModel)
    assert not model.training and {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert (model.config.image_size, model.config.frozen_text_layers, model.config.projection_dim) == (96, 2, 24)
    assert model.config.vision_config is model.vision_model.config
    for tower, original in ((model.vision_model, vision.resnet), (model.text_model, text.bert)):
        expected = original.float().state_dict()
        assert tower.state_dict().keys() == expected.keys()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in tower.state_dict().items())
    assert not model.text_model.encoder.layer[1].output.dense.weight.requires_grad
    assert model(**batch).logits_per_image.isfinite().all()


def test_the_image_tower_of_a_clip_checkpoint(tower_folders, tmp_path):
    text = {**TOWER, "vocab_size": 50, "bos_token_id": 48, "eos_token_id": 49, "pad_token_id": 49}
    clip = CLIPModel(CLIPConfig(vision_config=VIT, text_config=text, projection_dim=8))
    clip.save_pretrained(tmp_path / "clip")
    model = TierDualEncoderModel.from_vision_text_pretrained(str(tmp_path / "clip"), str(tower_folders[1]))
    expected = clip.vision_model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.vision_model.state_dict().items())
    assert model.config.image_size == 64


def test_cxr_bert_is_read_without_its_remote_code(tower_folders):
    _, folder, _, text = tower_folders
    config = json.loads((folder / "config.json").read_text())
    remote = {"AutoConfig": "configuration_cxrbert.CXRBertConfig", "AutoModel": "modeling_cxrbert.CXRBertModel"}
    config |= {"model_type": "cxr-bert", "architectures": ["CXRBertModel"], "projection_size": 128, "auto_map": remote}
    (folder / "config.json").write_text(json.dumps(config))
    model = TierDualEncoderModel.from_vision_text_pretrained(str(tower_folders[0]), str(folder))
    assert type(model.text_model) is BertModel
    weight = model.text_model.encoder.layer[2].output.dense.weight
    assert torch.equal(weight, text.bert.encoder.layer[2].output.dense.weight)


def test_towers_that_do_not_load_are_refused(tower_folders, tmp_path):
    from safetensors.torch import load_file, save_file

    vision, text = map(str, tower_folders[:2])
    join = TierDualEncoderModel.from_vision_text_pretrained
    with pytest.raises(ValueError, match="^The vision model './nowhere' cannot be loaded: "):
        join("./nowhere", text)
    with pytest.raises(ValueError, match="^vision_config describes a BertModel, which does not take pixel_val"):
        join(text, text)
    with pytest.raises(
        ValueError, match="^text_config describes a ResNetModel, which is not a bidirectional text encod"
    ):
        join(vision, vision)
    weights, name = tower_folders[1] / "model.safetensors", "bert.encoder.layer.1.output.dense.weight"
    tensors = load_file(weights)
    message = f"lacks 1 of the tensors of BertModel, for example {name.removeprefix('bert.')}; it is"
    for wrong in ({name: torch.zeros(2, 2)}, {}):
        others = {key: tensor for key, tensor in tensors.items() if key != name}
        save_file(others | wrong, weights, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=message):
            join(vision, text)
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"^The text model '{text}' cannot be loaded: "):
        join(vision, text)


# refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frozen_text_layers": 4}, "frozen_text_layers must lie between 0 (nothing frozen) and the 3 layers of the"),
        ({"frozen_text_layers": -1}, "frozen_text_layers must lie between 0 (nothing frozen) and the 3 layers of the"),
        ({"projection_dim": 0}, "projection_dim must be at least 1, not 0."),
        ({"image_size": -1}, "image_size must be at least 1, not -1."),
        ({"vision": vision_config(num_channels=4)}, "The image backbone must have 1 or 3 channels (num_channels), no"),
        ({"vision": vision_config(num_channels=1)}, "A backbone with one channel needs three equal numbers in pixel_"),
        ({"vision": {"model_type": "resnet50"}}, "transformers has no model_type 'resnet50'; name one of its own for"),
        ({"vision": {"model_type": "mobilenet_v2"}}, "The configuration of 'mobilenet_v2' does not give the width of"),
        (
            {"vision": text_config()},
            "vision_config describes a BertModel, which does not take pixel_values; choose an imag",
        ),
        (
            {"vision": {"model_type": "vit_mae", **VIT, "decoder_num_hidden_layers": 1}},
            "vision_config describes a ViTMAEModel, which hides patches at random; choose a backbone that shows them",
        ),
        (
            {"text": {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 50}},
            "text_config describes a GPT2Model, which is not a bidirectional text encoder; choose one like BERT or R",
        ),
        (
            {"text": text_config("albert", embedding_size=8), "frozen_text_layers": 1},
            "AlbertModel does not list its layers, so they cannot be told apart.",
        ),
        (
            {"image_pooling": "cls"},
            'image_pooling="cls" needs a class token, which ResNetModel does not have',
        ),
        ({"image_pooling": "mean"}, "image_pooling must be one of cls, patch_mean, not 'mean'."),
        ({"token_entropy_weight": -1}, "token_entropy_weight must be a finite number of at least 0"),
        ({"projection": 8}, "TierDualEncoderConfig has no option 'projection'; the nearest one is 'projection_dim'."),
    ],
)
def test_bad_configurations_are_refused(make_dual, options, message):
    with pytest.raises(ValueError) as error:
        make_dual(**options)
    assert str(error.value).startswith(message)


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


def test_saved_and_loaded_it_is_the_same_and_still_frozen(make_dual, batch, tmp_path):
    model = make_dual(frozen_text_layers=2, token_entropy_weight=0.1)
    model.save_pretrained(tmp_path)
    loaded, info = TierDualEncoderModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    expected, computed = model(**batch, return_loss=True), loaded(**batch, return_loss=True)
    assert torch.equal(computed.loss, expected.loss) and torch.equal(computed.token_embeds, expected.token_embeds)
    trained = [parameter.requires_grad for parameter in model.parameters()]
    assert [parameter.requires_grad for parameter in loaded.parameters()] == trained
    assert all(
        p.requires_grad for p in TierDualEncoderModel.from_pretrained(tmp_path, frozen_text_layers=0).parameters()
    )
