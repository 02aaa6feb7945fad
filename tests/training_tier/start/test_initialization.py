import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertTokenizer,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    PreTrainedTokenizerBase,
    ResNetConfig,
)

from modeling_tier import TierCLIPModel, TierDualEncoderModel
from modeling_tier.score_levels_tier import default_level
from processing_tier import TierProcessor
from training_tier.options.model import ModelArguments
from training_tier.start.initialization import make_model, set_sine_positions
from training_tier.start.presets import preset_config


@pytest.fixture
def clip_folder(tmp_path, processor):
    """A plain CLIP checkpoint, as its own library saves it."""
    tokenizer: PreTrainedTokenizerBase = processor.tokenizer
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**tower, "vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id}
    text |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = CLIPConfig(
        text_config=text, vision_config={**tower, "image_size": 32, "patch_size": 16}, projection_dim=8
    )
    model = CLIPModel(config).half()
    model.save_pretrained(tmp_path / "clip")
    image_processor = CLIPImageProcessorPil(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    CLIPProcessor(image_processor, tokenizer).save_pretrained(tmp_path / "clip")
    return tmp_path / "clip", model


@pytest.mark.parametrize("name", ["nano", "tiny", "small", "vit-b-32", "vit-b-16"])
def test_presets_fit_their_tokenizer(name, processor):
    config = preset_config(name, processor.tokenizer)
    assert config.image_pooling == "patch_mean"
    assert config.text_config.vocab_size == len(processor.tokenizer)
    assert config.text_config.eos_token_id == processor.tokenizer.eos_token_id != 2  # 2 means another pooling
    assert config.text_config.max_position_embeddings == 77
    for tower in (config.text_config, config.vision_config):
        assert tower.hidden_size % tower.num_attention_heads == 0
        assert tower.intermediate_size == 4 * tower.hidden_size


def test_the_large_presets_are_clips_own_sizes(processor):
    config = preset_config("vit-b-32", processor.tokenizer)
    clip = CLIPConfig()
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        assert getattr(config.vision_config, key) == getattr(clip.vision_config, key)
        assert getattr(config.text_config, key) == getattr(clip.text_config, key)
    assert config.projection_dim == clip.projection_dim


@pytest.mark.parametrize("name", ["resnet-50-bert", "resnet-tiny", "resnet-fine"])
def test_presets_of_dual_encoders_fit_their_tokenizer(name, processor):
    config = preset_config(name, processor.tokenizer, image_size=100, token_entropy_weight=0.1)
    assert (config.image_pooling, config.image_size, config.token_entropy_weight) == ("patch_mean", 100, 0.1)
    assert config.projection_dim == 128 and config.frozen_text_layers == 0
    assert config.text_config.vocab_size == len(processor.tokenizer)
    assert config.text_config.max_position_embeddings == 77
    assert config.text_config.eos_token_id == config.text_config.pad_token_id == processor.tokenizer.eos_token_id
    assert config.text_config.intermediate_size == 4 * config.text_config.hidden_size


def test_the_papers_preset_has_its_sizes(processor):
    config = preset_config("resnet-50-bert", processor.tokenizer)
    assert config.vision_config.to_dict() == ResNetConfig().to_dict()
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        assert getattr(config.text_config, key) == getattr(BertConfig(), key)


@pytest.mark.parametrize(("name", "side", "step"), [("resnet-tiny", 7, 16), ("resnet-fine", 14, 8)])
def test_the_small_residual_networks_differ_in_their_patches(name, side, step, processor):
    model = TierDualEncoderModel(preset_config(name, processor.tokenizer)).eval()
    assert model.patch_centers == (0.5, step)
    pixels = torch.zeros(1, 3, 112, 112)
    assert model.get_patch_map(pixels).shape == (1, side, side, 128)


def test_an_image_size_that_patches_do_not_fill_is_refused(processor):
    with pytest.raises(
        ValueError, match="^image_size=100 is not a multiple of the 16-pixel patches of 'vit-b-16'; use"
    ):
        preset_config("vit-b-16", processor.tokenizer, image_size=100)


def test_positions_start_as_waves_of_row_and_column(processor):
    model = TierCLIPModel(preset_config("tiniest", processor.tokenizer, image_size=64))
    class_position = model.vision_model.embeddings.position_embedding.weight[0].clone()
    set_sine_positions(model)
    embedding = model.vision_model.embeddings.position_embedding.weight
    assert torch.equal(embedding[0], class_position)
    grid = embedding[1:].unflatten(0, (4, 4))
    assert torch.allclose(grid.norm(dim=-1), grid.norm(dim=-1)[0, 0].expand(4, 4))  # sin^2 + cos^2
    assert torch.equal(grid[0, :, :8], grid[0, :1, :8].expand(4, 8))  # a row shares its first half,
    assert torch.equal(grid[:, 0, 8:], grid[:1, 0, 8:].expand(4, 8))  # a column its second
    assert len(torch.unique(grid.flatten(0, 1), dim=0)) == 16


def test_random_weights_train_a_tokenizer_on_the_reports():
    model, processor = make_model(ModelArguments(model="tiniest"), ["The lungs are clear."] * 3)
    assert processor.tokenizer.tokenize("lungs") == ["lungs</w>"]
    assert model.config.text_config.vocab_size == len(processor.tokenizer)
    assert processor.image_processor.size == {"height": 32, "width": 32}
    assert list(processor.image_processor.image_mean) == model.config.pixel_mean


@pytest.mark.parametrize(
    "options",
    [
        {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}, "resample": 2},
        {"size": {"height": 32, "width": 32}, "do_center_crop": False},
    ],
    ids=["resize, then crop", "squash"],
)
def test_a_clip_checkpoint_keeps_its_own_pixels(clip_folder, options):
    folder, _ = clip_folder
    stock = CLIPImageProcessorPil(**options)
    stock.save_pretrained(folder)
    (folder / "processor_config.json").unlink()
    _, processor = make_model(ModelArguments(model=str(folder)), [])
    grey = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 50), dtype=np.uint8))
    pixels = processor.image_processor(grey, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(
        pixels, stock(grey.convert("RGB"), return_tensors="pt")["pixel_values"], rtol=0, atol=1e-5
    )
    _, processor = make_model(ModelArguments(model=str(folder), geometry="pad"), [])
    assert (processor.image_processor.geometry, processor.image_processor.resize_edge) == ("pad", None)


def test_an_image_processor_that_makes_no_squares_is_refused(clip_folder):
    folder, _ = clip_folder
    CLIPImageProcessorPil(do_center_crop=False).save_pretrained(folder)
    (folder / "processor_config.json").unlink()
    with pytest.raises(ValueError, match="^The CLIPImageProcessorPil does not make squares"):
        make_model(ModelArguments(model=str(folder)), [])


def test_a_clip_checkpoint_gives_the_same_embeddings_in_float32(clip_folder):
    folder, clip = clip_folder
    model, processor = make_model(ModelArguments(model=str(folder), token_entropy_weight=0.5), [])
    assert model.dtype == torch.float32 and model.config.token_entropy_weight == 0.5
    assert model.config.image_pooling == "cls"
    assert model.config.pixel_mean == list(processor.image_processor.image_mean) == [0.1, 0.2, 0.3]
    assert processor.image_processor.geometry == "crop"  # what CLIP's own processor does
    pixels = torch.randn(2, 3, 32, 32)
    expected = clip.float().eval().get_image_features(pixel_values=pixels).pooler_output
    assert torch.allclose(model.eval().get_image_features(pixel_values=pixels).pooler_output, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("visual_projection.weight"), "1 missing keys, for example visual_projection.we"),
        (lambda tensors: tensors.update(surplus=torch.zeros(1)), "1 unexpected keys, for example surplus"),
        (lambda tensors: tensors.update(logit_scale=torch.zeros(2)), "1 mismatched keys, for example .*logit_scale"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(change, message, clip_folder):
    folder, _ = clip_folder
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"does not fit a TierCLIPModel: {message}"):
        make_model(ModelArguments(model=str(folder)), [])


def test_a_damaged_checkpoint_is_one_sentence(clip_folder):
    folder, _ = clip_folder
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="nor a checkpoint that can be loaded: "):
        make_model(ModelArguments(model=str(folder)), [])


def test_a_checkpoint_of_another_kind_is_refused(clip_folder):
    folder, _ = clip_folder
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "siglip2"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="has the model_type 'siglip2'; name a CLIP, SigLIP or TIER checkpoint"):
        make_model(ModelArguments(model=str(folder)), [])


def test_a_checkpoint_without_an_image_processor_is_refused(clip_folder):
    folder, _ = clip_folder
    for path in folder.glob("*processor_config.json"):
        path.unlink()
    with pytest.raises(ValueError, match="The image processor of .* cannot be loaded"):
        make_model(ModelArguments(model=str(folder)), [])


def test_the_calibration_of_a_checkpoint_is_not_that_of_the_model_trained_from_it(clip_folder, processor, tmp_path):
    folder, _ = clip_folder
    model, processor = make_model(ModelArguments(model=str(folder)), [])
    sentences = {"positive": ["Edema."], "negative": ["Dry."]}
    measured = {"scale": 30.0, "bias": -2.0, "threshold": 0.4, "measured_on": {"dataset": "padchest", "images": 40}}
    model.config.zero_shot_findings = {"Edema": sentences | measured}
    model.save_pretrained(tmp_path / "calibrated")
    processor.save_pretrained(tmp_path / "calibrated")
    again, _ = make_model(ModelArguments(model=str(tmp_path / "calibrated")), [])
    assert again.config.zero_shot_findings == {"Edema": sentences | {"score_level": default_level(again)}}


def test_options_without_effect_on_a_checkpoint_are_refused(clip_folder):
    with pytest.raises(
        ValueError, match="^tokenizer has no effect on the checkpoint .*, which has one; leave it out.$"
    ):
        make_model(ModelArguments(model=str(clip_folder[0]), tokenizer="elsewhere"), [])


def test_image_size_on_a_checkpoint_interpolates_its_positions(clip_folder, tmp_path):
    folder, clip = clip_folder
    model, processor = make_model(ModelArguments(model=str(folder), image_size=64), [])
    pixels = torch.randn(2, 3, 64, 64)
    expected = clip.float().eval().get_image_features(pixel_values=pixels, interpolate_pos_encoding=True).pooler_output
    assert torch.allclose(model.eval().get_image_features(pixel_values=pixels).pooler_output, expected, atol=1e-6)
    assert processor(images=torch.zeros(90, 70).numpy(), return_tensors="pt").pixel_values.shape == (1, 3, 64, 64)

    processor.image_processor.resize_edge = 80  # a picture of 80 of which the model sees 64 in the middle
    model.save_pretrained(tmp_path / "tier")
    processor.save_pretrained(tmp_path / "tier")
    model, processor = make_model(ModelArguments(model=str(tmp_path / "tier"), image_size=32), [])
    assert model.config.vision_config.image_size == 32
    assert dict(processor.image_processor.size) == {"height": 32, "width": 32}
    assert processor.image_processor.resize_edge == 40
    processor.save_pretrained(tmp_path / "again")
    assert TierProcessor.from_pretrained(tmp_path / "again").image_processor.size["height"] == 32
    assert processor(images=torch.zeros(90, 70).numpy(), return_tensors="pt").pixel_values.shape == (1, 3, 32, 32)

    with pytest.raises(ValueError, match="^image_size=100 is not a multiple of this model's 16-pixel patches; use"):
        make_model(ModelArguments(model=str(folder), image_size=100), [])


def test_pretrained_towers_are_joined_with_their_tokenizer_and_pixels(tower_folders):
    vision, text = map(str, tower_folders)
    options = {"vision_model": vision, "text_model": text, "frozen_text_layers": 2, "token_entropy_weight": 0.1}
    model, processor = make_model(ModelArguments(**options, image_size=64), [])
    assert isinstance(model, TierDualEncoderModel) and model.dtype == torch.float32
    config = model.config
    assert (config.image_size, config.frozen_text_layers, config.token_entropy_weight) == (64, 2, 0.1)
    assert config.pixel_mean == list(processor.image_processor.image_mean) == [0.1, 0.2, 0.3]
    assert config.pixel_std == list(processor.image_processor.image_std) == [0.4, 0.5, 0.6]
    assert processor.image_processor.size == {"height": 64, "width": 64}
    assert isinstance(processor.tokenizer, BertTokenizer) and processor.tokenizer.model_max_length == 128
    long_text = processor(text=["effusion " * 100], images=torch.zeros(3, 64, 64), return_tensors="pt")
    assert long_text["input_ids"].shape == (1, 128) and "token_type_ids" in long_text
    assert model(**long_text).logits_per_image.isfinite().all()

    # saved, it is a checkpoint like any other, and what is frozen may be changed
    folder = tower_folders[0].parent / "joined"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    again, _ = make_model(ModelArguments(model=str(folder), frozen_text_layers=1), [])
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert [layer.output.dense.weight.requires_grad for layer in again.text_model.encoder.layer] == [False, True, True]


def test_towers_without_an_image_processor_get_imagenets_pixels(tower_folders, tmp_path):
    shutil.copytree(tower_folders[0], tmp_path / "resnet", ignore=shutil.ignore_patterns("preprocessor_config.json"))
    arguments = ModelArguments(vision_model=str(tmp_path / "resnet"), text_model=str(tower_folders[1]))
    model, processor = make_model(arguments, [])
    assert model.config.pixel_mean == list(processor.image_processor.image_mean) == [0.485, 0.456, 0.406]
    assert processor.image_processor.size == {"height": 224, "width": 224}


def test_cxr_bert_with_its_tokenizer_is_read_without_remote_code(tower_folders, tmp_path):
    folder = tmp_path / "cxr-bert"
    shutil.copytree(tower_folders[1], folder)
    for file, changes in (
        ("config.json", {"model_type": "cxr-bert", "auto_map": {"AutoModel": "modeling_cxrbert.CXRBertModel"}}),
        (
            "tokenizer_config.json",
            {
                "tokenizer_class": "CXRBertTokenizer",
                "auto_map": {"AutoTokenizer": ["configuration_cxrbert.CXRBertTokenizer", None]},
            },
        ),
    ):
        content = json.loads((folder / file).read_text()) | changes
        (folder / file).write_text(json.dumps(content))
    vision, text = map(str, tower_folders)
    model, processor = make_model(ModelArguments(vision_model=vision, text_model=str(folder)), [])
    expected, expected_processor = make_model(ModelArguments(vision_model=vision, text_model=text), [])
    for name, tensor in model.text_model.state_dict().items():
        assert torch.equal(tensor, expected.text_model.state_dict()[name]), name
    texts = ["No pleural effusion."]
    assert processor.tokenizer(texts)["input_ids"] == expected_processor.tokenizer(texts)["input_ids"]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("preprocessor_config.json", "[" * 10**5, "The image processor of .* cannot be loaded: RecursionError"),
        ("tokenizer.json", '{"a": 1}', "The tokenizer of .* cannot be loaded: KeyError: 'added_tokens'"),
        ("tokenizer_config.json", "null", "The tokenizer of .* cannot be loaded: (Attribute|Type)Error"),
    ],
)
def test_damaged_files_beside_the_weights_of_a_checkpoint(tmp_path, name, content, message):
    model, processor = make_model(ModelArguments(model="nano", image_size=32), ["no acute disease of the chest"] * 4)
    model.save_pretrained(tmp_path)
    processor.tokenizer.save_pretrained(tmp_path)
    processor.image_processor.save_pretrained(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        make_model(ModelArguments(model=str(tmp_path)), [])
