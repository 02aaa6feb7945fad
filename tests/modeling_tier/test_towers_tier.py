"""Towers of the dual encoder: any backbone and encoder, pretrained ones, frozen layers, and what is refused."""

import json

import pytest
import torch
from dual_towers import BACKBONES, ENCODERS, RESNET, TOWER, VIT, text_config, vision_config
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    CLIPConfig,
    CLIPModel,
    ResNetConfig,
    ResNetForImageClassification,
    ResNetModel,
)

from modeling_tier import TierDualEncoderConfig, TierDualEncoderForImageClassification, TierDualEncoderModel


@pytest.mark.parametrize("backbone", BACKBONES)
def test_any_backbone(make_dual, bert_batch, backbone):
    options, side = BACKBONES[backbone]
    model = make_dual(vision_config(backbone))
    output = model(**bert_batch, return_loss=True)
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
def test_any_text_encoder(make_dual, bert_batch, encoder):
    model = make_dual(text=text_config(encoder), frozen_text_layers=2)
    output = model(**bert_batch, return_loss=True)
    assert output.text_embeds.shape == (4, 24) and output.token_embeds.shape == (4, 8, 24)
    assert "pooler" not in " ".join(model.state_dict())


def test_frozen_layers_get_no_gradient_and_stay_put(make_dual, bert_batch):
    model = make_dual(frozen_text_layers=2).train()
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    prefixes = ("text_model.embeddings.", "text_model.encoder.layer.0.", "text_model.encoder.layer.1.")
    assert frozen == {name for name in model.state_dict() if name.startswith(prefixes)}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    model(**bert_batch, return_loss=True).loss.backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (name in frozen), name
        assert torch.equal(parameter, before[name]) == (name in frozen), name


def test_nothing_is_frozen_by_default(make_dual):
    assert all(parameter.requires_grad for parameter in make_dual().parameters())


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


def test_pretrained_towers_are_joined(tower_folders, bert_batch):
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
    assert model(**bert_batch).logits_per_image.isfinite().all()


def test_the_image_tower_of_a_clip_checkpoint(tower_folders, tmp_path):
    text = {**TOWER, "vocab_size": 50, "bos_token_id": 48, "eos_token_id": 49, "pad_token_id": 49}
    clip = CLIPModel(CLIPConfig(vision_config=VIT, text_config=text, projection_dim=8))
    clip.save_pretrained(tmp_path / "clip")
    model = TierDualEncoderModel.from_vision_text_pretrained(str(tmp_path / "clip"), str(tower_folders[1]))
    expected = clip.vision_model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.vision_model.state_dict().items())
    assert model.config.image_size == 64


@pytest.mark.parametrize("backbone", ["resnet", "vit"])
def test_the_image_tower_of_a_classifier(tower_folders, tmp_path, backbone):
    """Its weights and the running statistics of its batch norms, to the last bit; never its adapter layers."""
    config = TierDualEncoderConfig(text_config=text_config(), vision_config=vision_config(backbone))
    classifier = TierDualEncoderForImageClassification.from_image_tower(TierDualEncoderModel(config), ["Edema"])
    for buffer in classifier.buffers():
        buffer.add_(1)
    classifier.save_pretrained(tmp_path / "classifier")
    model = TierDualEncoderModel.from_vision_text_pretrained(str(tmp_path / "classifier"), str(tower_folders[1]))
    expected, state = classifier.vision_model.state_dict(), model.vision_model.state_dict()
    assert expected.keys() == state.keys() and all(torch.equal(expected[name], state[name]) for name in state)
    settings = json.loads((tmp_path / "classifier" / "config.json").read_text())
    (tmp_path / "classifier" / "config.json").write_text(json.dumps(settings | {"adapter_layers": 2}))
    with pytest.raises(ValueError, match="has 2 adapter layers on it, which would be lost"):
        TierDualEncoderModel.from_vision_text_pretrained(str(tmp_path / "classifier"), str(tower_folders[1]))


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frozen_text_layers": 4}, "frozen_text_layers must lie between 0 (nothing frozen) and the 3 layers of the"),
        ({"frozen_text_layers": -1}, "frozen_text_layers must lie between 0 (nothing frozen) and the 3 layers of the"),
        ({"projection_dim": 0}, "projection_dim must be at least 1, not 0."),
        ({"image_size": -1}, "image_size must be at least 1, not -1."),
        ({"vision": vision_config(num_channels=4)}, "The image backbone must have 1 or 3 channels (num_channels), no"),
        ({"vision": vision_config(num_channels=1)}, "A backbone with one channel needs three equal numbers in pixel_"),
        (
            {"vision": {"model_type": "resnet50"}},
            "transformers does not know the model_type 'resnet50'. Name one that",
        ),
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
