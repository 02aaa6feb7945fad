"""Published image towers by name: weights, pixels, patches, places of the patches, a step, and a saved model."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from published_towers import IMAGENET, TOWERS, write_tower
from transformers import AutoModel, BertConfig, BertModel, BertTokenizer

from modeling_tier import TierDualEncoderModel
from training_tier.options.model import ModelArguments
from training_tier.start.initialization import make_model
from training_tier.start.pretrained_towers import TowerPixels, pixels_of_settings, read_pixels


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no", "pleural", "effusion", ".", "clear", "lungs"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=TOWERS)
def joined(request, tmp_path_factory, text_folder):
    folder = tmp_path_factory.mktemp("tower")
    owner = write_tower(request.param, folder)
    model, processor = make_model(ModelArguments(vision_model=str(folder), text_model=text_folder), [])
    return TOWERS[request.param], owner, model.eval(), processor


def owners_tower(owner):
    """The image tower inside of what its owner published."""
    if hasattr(owner, "vision_model"):
        return owner.vision_model
    return getattr(owner, owner.base_model_prefix) if "Classification" in type(owner).__name__ else owner


def test_weights_and_hidden_states_are_the_owners(joined):
    published, owner, model, _ = joined
    pixels = torch.randn(2, 3, published.size, published.size)
    tower = owners_tower(owner)
    state = tower.state_dict()
    for name, tensor in model.vision_model.state_dict().items():
        if name in state and state[name].shape == tensor.shape:
            assert torch.equal(tensor, state[name]), name
        else:  # of another image size
            assert name == "embeddings.position_embeddings" and published.size != owner.config.image_size
    options = {"interpolate_pos_encoding": True} if published.saved_by == "CLIPModel" else {}
    with torch.no_grad():
        expected = tower(pixels, **options).last_hidden_state
        outputs, features = model.run_image_tower(pixels)
    torch.testing.assert_close(outputs.last_hidden_state, expected, rtol=0, atol=1e-4)
    side = published.side
    assert (features.rows, features.columns) == (side, side)
    assert features.tokens.shape == (
        2,
        side * side + published.has_class_token,
        model.visual_projection[0].in_channels,
    )
    if expected.ndim == 3:
        assert torch.equal(features.patches, outputs.last_hidden_state[:, -side * side :])
        if published.has_class_token:
            assert torch.equal(features.tokens[:, 0], outputs.last_hidden_state[:, 0])


def test_pixels_are_the_owners(joined):
    published, _, model, processor = joined
    images = processor.image_processor
    for config, stored in ((model.config.pixel_mean, "image_mean"), (model.config.pixel_std, "image_std")):
        assert config == list(getattr(images, stored)) == pytest.approx(published.pixels[stored], abs=1e-7)
    assert images.size == {"height": published.size, "width": published.size}
    assert (model.config.image_size, int(images.resample)) == (published.size, published.resample)
    assert (images.geometry, images.resize_edge) == ("pad", None)
    grey = np.random.default_rng(0).integers(0, 256, (published.size, published.size), dtype=np.uint8)
    pixels = processor(images=Image.fromarray(grey), return_tensors="pt")["pixel_values"]
    mean, std = (torch.tensor(published.pixels[key])[:, None, None] for key in ("image_mean", "image_std"))
    torch.testing.assert_close(pixels[0], (torch.from_numpy(grey) / 255 - mean) / std, rtol=0, atol=1e-5)


def test_patches_look_at_their_places(joined):
    published, _, model, _ = joined
    assert model.patch_centers == published.centers


def test_a_step_trains_and_a_saved_model_is_the_same(joined, tmp_path):
    published, _, model, processor = joined
    model.train()
    words = processor.tokenizer(["no effusion.", "clear lungs"], padding=True, return_tensors="pt")
    batch = {**words, "pixel_values": torch.randn(2, 3, published.size, published.size)}
    before = {name: tensor.clone() for name, tensor in model.vision_model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    model(**batch, return_loss=True).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    moved = [name for name, tensor in model.vision_model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert len(moved) > len(before) / 2

    model.eval()
    model.save_pretrained(tmp_path)
    again, info = TierDualEncoderModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    with torch.no_grad():
        expected, computed = model(**batch), again.eval()(**batch)
        assert torch.equal(AutoModel.from_pretrained(tmp_path).eval()(**batch).image_embeds, expected.image_embeds)
    assert torch.equal(computed.logits_per_image, expected.logits_per_image)
    assert again.patch_centers == published.centers


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, TowerPixels(IMAGENET["image_mean"], IMAGENET["image_std"], None, 3)),
        ({"do_normalize": False, "size": 96, "resample": 0}, TowerPixels([0] * 3, [1] * 3, 96, 0)),
        ({"image_mean": 0.5, "image_std": [0.25] * 3, "size": [96]}, None),
        # to -1..1 in one step, and pixels of 0..255 as they are
        (
            {"image_mean": [1] * 3, "image_std": [1] * 3, "rescale_factor": 1 / 127.5},
            TowerPixels([0.5] * 3, [0.5] * 3, None, 3),
        ),
        (
            {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [51] * 3},
            TowerPixels([0.5] * 3, [0.2] * 3, None, 3),
        ),
    ],
)
def test_settings_of_any_image_processor(settings, expected):
    if expected is None:
        with pytest.raises(TypeError):
            pixels_of_settings(settings)
        return
    computed = pixels_of_settings(settings)
    assert computed.mean == pytest.approx(expected.mean) and computed.std == pytest.approx(expected.std)
    assert computed[2:] == expected[2:]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "^The image processor of .* cannot be loaded: It looks like the config file"),
        (json.dumps({"size": {"height": 224, "width": 336}}), "it does not make squares .*; pass --image_size.$"),
        (json.dumps({"size": "large"}), "^The image processor of .* cannot be used: invalid literal for int"),
        (
            json.dumps({"size": 224, "image_mean": ["a"] * 3}),
            "^The image processor of .* cannot be used: could not conv",
        ),
    ],
)
def test_a_damaged_image_processor_is_refused(tmp_path, content, message):
    write_tower("microsoft/resnet-50", tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_pixels(str(tmp_path))


def test_a_joined_tower_keeps_its_implementation_of_attention(joined):
    _, _, model, _ = joined
    expected = "sdpa" if type(model.vision_model)._supports_sdpa else "eager"
    assert model.config.vision_config._attn_implementation == expected
    assert model.config.text_config._attn_implementation == "sdpa"
