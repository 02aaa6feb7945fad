"""What transformers expects of any model: kernels, precisions, devices and image sizes."""

import pytest
import torch
from model_checks import BERT, MODELS, RESNET, TERMS, VIT, assert_equal_outputs, gradients
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from transformers import AutoModel, CLIPModel
from transformers.utils import is_flash_attn_2_available

from modeling_tier import (
    TierCLIPForImageClassification,
    TierDualEncoderConfig,
    TierDualEncoderForImageClassification,
    TierDualEncoderModel,
)

# attention


def test_eager_and_sdpa_are_equal(model, batch):
    model.set_attn_implementation("eager")
    expected, expected_gradients = model(**batch, return_loss=True), gradients(model, batch)
    model.set_attn_implementation("sdpa")
    assert model.text_model.config._attn_implementation == "sdpa"
    assert_equal_outputs(model(**batch, return_loss=True), expected, atol=1e-5)
    for name, gradient in gradients(model, batch).items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-3, atol=1e-5)


@pytest.mark.skipif(
    not (torch.cuda.is_available() and is_flash_attn_2_available()), reason="no GPU with flash attention here"
)
def test_flash_attention_is_equal(model, batch):
    model = model.to("cuda", torch.bfloat16)
    batch = {name: tensor.cuda() for name, tensor in batch.items()}
    expected = model(**batch, return_loss=True)
    model.set_attn_implementation("flash_attention_2")
    assert_equal_outputs(model(**batch, return_loss=True), expected, atol=4e-2)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_changes_no_gradient(model, batch, use_reentrant):
    model.train()
    torch.manual_seed(0)
    expected = gradients(model, batch)
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    assert model.is_gradient_checkpointing
    torch.manual_seed(0)  # of dropout
    computed = gradients(model, batch)
    assert computed.keys() == expected.keys()
    for name, gradient in computed.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-7)


def test_hidden_states_and_attentions_through_the_forward(model, batch):
    model.set_attn_implementation("eager")
    output = model(**batch, return_loss=True, output_hidden_states=True, output_attentions=True)
    texts = model.text_model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        output_hidden_states=True,
        output_attentions=True,
    )
    images = model.vision_model(batch["pixel_values"], output_hidden_states=True)
    assert len(output.text_model_output.hidden_states) == 3 and len(output.text_model_output.attentions) == 2
    for tower, expected in ((output.text_model_output, texts), (output.vision_model_output, images)):
        assert len(tower.hidden_states) == len(expected.hidden_states)
        for state, expected_state in zip(tower.hidden_states, expected.hidden_states, strict=True):
            assert torch.equal(state, expected_state)
    for weights, expected_weights in zip(output.text_model_output.attentions, texts.attentions, strict=True):
        assert torch.equal(weights, expected_weights)
        torch.testing.assert_close(weights.sum(-1), torch.ones(4, 4, 8))
    assert model(**batch).text_model_output.hidden_states is None


def test_features_are_those_of_the_forward(model, batch):
    output = model(**batch)
    texts = {name: batch[name] for name in ("input_ids", "attention_mask")}
    as_tuple = model.get_text_features(**texts, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[1], model.get_text_features(**texts).pooler_output)
    torch.testing.assert_close(F.normalize(as_tuple[1], dim=-1), output.text_embeds)
    as_tuple = model.get_image_features(batch["pixel_values"], return_dict=False)
    assert torch.equal(as_tuple[1], model.get_image_features(batch["pixel_values"]).pooler_output)
    torch.testing.assert_close(F.normalize(as_tuple[1], dim=-1), output.image_embeds)


# precisions


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_keeps_the_entropies_in_float32(model, batch, dtype, autocast, tmp_path):
    expected = model(**batch, return_loss=True)
    if autocast:
        with torch.autocast("cpu", dtype=dtype):
            output = model(**batch, return_loss=True)
    else:
        model.save_pretrained(tmp_path)
        model = type(model).from_pretrained(tmp_path, dtype=dtype)
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}
        output = model(**batch, return_loss=True)
    assert output.logits_per_image.dtype in (dtype, torch.float32)
    for name in ("token_entropy", "patch_entropy", "token_embeds", "patch_embeds"):
        assert output[name].dtype == torch.float32, name
    for name in TERMS:
        assert output[name].item() == pytest.approx(expected[name].item(), rel=0.05), name
    model.zero_grad()
    output.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


# devices


@pytest.mark.parametrize("device_map", ["cpu", "auto", "towers"])
def test_device_map(make_model, batch, tmp_path, device_map):
    for name in MODELS:
        model, folder = make_model(name), tmp_path / name
        model.save_pretrained(folder)
        options = {}
        if device_map == "towers":  # the text tower is read from disk whenever it is used
            devices = {child: "cpu" for child, _ in model.named_children()} | {"logit_scale": "cpu"}
            options = {"device_map": {**devices, "text_model": "disk"}, "offload_folder": tmp_path / "offload"}
        loaded = type(model).from_pretrained(folder, **{"device_map": device_map, **options})
        if device_map == "towers":
            assert {p.device.type for p in loaded.text_model.parameters()} == {"meta"}
            assert {p.device.type for p in loaded.vision_model.parameters()} == {"cpu"}
        with torch.no_grad():
            expected, computed = model(**batch, return_loss=True), loaded(**batch, return_loss=True)
            assert_equal_outputs(computed, expected, atol=0)
            texts = {key: batch[key] for key in ("input_ids", "attention_mask")}
            maps = loaded.get_similarity_map(**texts, pixel_values=batch["pixel_values"])
            assert torch.equal(maps, model.get_similarity_map(**texts, pixel_values=batch["pixel_values"]))


def place(module: nn.Module, device: str) -> None:
    """Replaces the tensors of a module by empty ones on a device, which under FakeTensorMode need not exist."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
                    tensors[name] = nn.Parameter(empty) if tensors is part._parameters else empty


def test_each_tower_on_a_device_of_its_own(model):
    """As device_map="auto" places them over two GPUs; fake tensors know devices, and refuse to mix them, anywhere."""
    texts, images = "cpu", "meta"
    with FakeTensorMode(), torch.no_grad():
        place(model, images)
        place(model.text_model, texts)
        place(model.text_projection, texts)
        input_ids = torch.zeros(4, 8, dtype=torch.long, device=texts)
        pixel_values = torch.zeros(4, 3, 32, 32, device=images)
        with pytest.raises((RuntimeError, TypeError), match="[Dd]evice"):
            input_ids + torch.zeros(4, 8, device=images)
        mask = torch.ones_like(input_ids)
        output = model(input_ids=input_ids, attention_mask=mask, pixel_values=pixel_values, return_loss=True)
        assert {output[name].device.type for name in ("loss", *TERMS, "logits_per_image")} == {texts}
        assert output.image_embeds.device.type == images
        maps = model.get_similarity_map(input_ids=input_ids, attention_mask=mask, pixel_values=pixel_values)
        assert maps.device.type == texts and maps.shape[:2] == (4, 4)


def test_layers_that_a_device_map_must_not_split(model):
    kept = model._no_split_modules
    classes = {type(module).__name__ for module in model.modules()}
    assert {"CLIPEncoderLayer", "BertLayer"} & set(kept) & classes


# other image sizes


@pytest.mark.parametrize("size", [16, 48, 64])
@pytest.mark.parametrize("name", MODELS)
def test_resized_positions_are_the_interpolated_ones(make_model, batch, tmp_path, name, size):
    model = make_model(name)
    batch = {**batch, "pixel_values": torch.randn(4, 3, size, size)}
    expected = model(**batch, return_loss=True, interpolate_pos_encoding=True)
    names = list(model.state_dict())
    model.save_pretrained(tmp_path / "before")
    model.vision_model.requires_grad_(False)
    model.resize_image_positions(size)
    assert list(model.state_dict()) == names
    assert not any(parameter.requires_grad for parameter in model.vision_model.parameters())
    assert_equal_outputs(model(**batch, return_loss=True), expected, atol=0)

    model.save_pretrained(tmp_path / "after")
    for loaded in (
        type(model).from_pretrained(tmp_path / "after"),
        type(model).from_pretrained(tmp_path / "before", image_size=size),
    ):
        assert getattr(loaded.config, "image_size", size) == size
        assert getattr(loaded.config.vision_config, "image_size", size) == size
        assert_equal_outputs(loaded(**batch, return_loss=True), expected, atol=0)


def test_image_size_by_the_auto_class(clip, make_model, batch, tmp_path):
    model = make_model("patch_mean")
    model.save_pretrained(tmp_path)
    loaded, info = AutoModel.from_pretrained(tmp_path, image_size=48, output_loading_info=True)
    assert type(loaded).__name__ == "TierCLIPModel" and not info["missing_keys"]
    assert loaded.vision_model.embeddings.position_embedding.weight.shape == (37, 32)


@pytest.mark.parametrize("name", ["cls", "patch_mean", "vit"])
def test_image_size_of_a_classifier(make_model, tmp_path, name):
    model, pixels = make_model(name), torch.randn(2, 3, 48, 48)
    kind = TierDualEncoderForImageClassification if name == "vit" else TierCLIPForImageClassification
    classifier = kind.from_image_tower(model, ["Edema", "Nodule"])
    nn.init.normal_(classifier.classifier.weight)
    expected = classifier(pixels, interpolate_pos_encoding=True).logits
    classifier.save_pretrained(tmp_path)
    loaded = kind.from_pretrained(tmp_path, image_size=48)
    assert loaded.config.vision_config.image_size == 48
    assert torch.equal(loaded(pixels).logits, expected)


def test_resizing_follows_clips_own_interpolation(clip, make_model):
    """Bicubic, class position untouched; the same pixels through CLIPModel with interpolate_pos_encoding."""
    model, pixels = make_model("cls"), torch.randn(2, 3, 64, 64)
    model.resize_image_positions(64)
    expected = clip.get_image_features(pixel_values=pixels, interpolate_pos_encoding=True).pooler_output
    assert torch.equal(model.get_image_features(pixels).pooler_output, expected)
    before, after = (m.vision_model.embeddings.position_embedding.weight for m in (clip, model))
    assert torch.equal(before[0], after[0])
    grid = before[1:].T.reshape(1, 32, 4, 4)
    bicubic = F.interpolate(grid, size=(8, 8), mode="bicubic", align_corners=False)[0].flatten(1).T
    assert torch.equal(after[1:], bicubic)
    plain = model.to_clip()
    assert type(plain) is CLIPModel
    assert torch.equal(plain.get_image_features(pixel_values=pixels).pooler_output, expected)


def test_the_same_size_changes_nothing(model, batch):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.resize_image_positions(32)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model(**batch)


def test_a_size_that_patches_do_not_fill_is_refused(make_model):
    for name, size, nearest in (("cls", 50, 48), ("vit", 0, 8), ("resnet", 0, 1)):
        with pytest.raises(ValueError, match=f"^image_size={size} is not a multiple of .* example {nearest}.$"):
            make_model(name).resize_image_positions(size)


def test_a_tower_that_cannot_interpolate_is_refused(make_model):
    config = make_model("vit").config
    vision_config = {**VIT, "model_type": "beit", "use_relative_position_bias": True}
    model = TierDualEncoderModel(TierDualEncoderConfig(text_config=config.text_config, vision_config=vision_config))
    with pytest.raises(ValueError, match="^image_size=48: BeitModel cannot interpolate its layers.0.*; keep 32 pix"):
        model.resize_image_positions(48)


# bad input


@pytest.mark.parametrize(
    "pixel_values, message",
    [
        (None, "^pixel_values are missing"),
        (
            torch.zeros(3, 32, 32),
            r"^pixel_values must be float of shape \(batch, 3, .* not \(3, 32, 32\) of torch.float",
        ),
        (
            torch.zeros(1, 2, 32, 32),
            r"not \(1, 2, 32, 32\) of torch.float32. The image processor returns ",
        ),
        (torch.zeros(1, 2, 32, 32, dtype=torch.uint8), r"uint8 of shape \(batch, 1, height, width\), not \(1, 2,"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.long), r"not \(1, 3, 32, 32\) of torch.int64"),
    ],
)
def test_pixels_of_another_shape_are_refused(model, batch, pixel_values, message):
    with pytest.raises(ValueError, match=message):
        model(**{**batch, "pixel_values": pixel_values})
    with pytest.raises(ValueError, match=message):
        model.get_image_features(pixel_values)


def test_pixels_of_another_size_are_refused(make_model, batch):
    model = make_model("cls")
    for pixel_values in (torch.zeros(4, 3, 48, 64), torch.zeros(4, 1, 48, 64, dtype=torch.uint8)):
        with pytest.raises(
            ValueError, match="^pixel_values of 48x64 pixels do not fit this model, which takes 32x32. Use its image "
        ):
            model(**{**batch, "pixel_values": pixel_values})
        assert (
            model(**{**batch, "pixel_values": pixel_values}, interpolate_pos_encoding=True)
            .logits_per_image.isfinite()
            .all()
        )
    with pytest.raises(
        ValueError, match="^pixel_values of 1x1 pixels are smaller than one 8x8 patch of this model. Enl"
    ):
        model.get_image_features(torch.zeros(1, 3, 1, 1), interpolate_pos_encoding=True)


def test_texts_longer_than_the_context_are_refused(model, batch):
    message = (
        "^Texts of 21 tokens are longer than the 20 that this model reads; tokenize them with truncation=True, max"
    )
    longer = torch.zeros(4, 21, dtype=torch.long)
    for call in (model.get_text_features, lambda **texts: model(**texts, pixel_values=batch["pixel_values"])):
        with pytest.raises(ValueError, match=message):
            call(input_ids=longer)
        with pytest.raises(ValueError, match=message):
            call(input_ids=longer, attention_mask=torch.ones_like(longer))
        with pytest.raises(ValueError, match="^input_ids are missing"):
            call(input_ids=None)
    longest = torch.zeros(4, 20, dtype=torch.long)
    assert model.get_text_features(longest).pooler_output.isfinite().all()


def test_texts_as_long_as_roberta_reads(make_model):
    """Its first position is that after the padding's."""
    text_config = {**BERT, "model_type": "roberta", "pad_token_id": 1}
    config = TierDualEncoderConfig(text_config=text_config, vision_config=dict(RESNET), image_size=32)
    model = TierDualEncoderModel(config).eval()
    assert model.get_text_features(torch.full((1, 18), 5)).pooler_output.isfinite().all()
    with pytest.raises(ValueError, match="^Texts of 19 tokens are longer than the 18 that this model reads"):
        model.get_text_features(torch.full((1, 19), 5))
