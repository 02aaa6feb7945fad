"""tier-convert: a file of another code base in, a folder with the same numbers and the same pixels out."""

import argparse
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoProcessor,
    BertConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    ResNetConfig,
)

import convert_tier
from modeling_tier import TierCLIPConfig, TierCLIPModel, TierDualEncoderConfig, TierDualEncoderModel
from modeling_tier.checkpoints import KINDS, to_openclip
from modeling_tier.checkpoints.layout import to_layout
from modeling_tier.checkpoints.tier import dual_names
from processing_tier import TierProcessor, train_tokenizer

CHEXZERO_FILE = "best_128_5e-05_original_22000_0.855.pt"
CONTEXT = 12
LONG = "small left pleural effusion and no acute disease of the chest " * 3
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no", "acute", "disease", "small", "effusion"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["no acute disease of the chest", "small left pleural effusion"] * 2, model_max_length=77)


@pytest.fixture
def tokenizer_folder(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


@pytest.fixture
def make_clip(tokenizer):
    """Function that makes a small TIER model of random weights; a test of each layout is in test_layouts.py."""

    def make(image_size=64, patch_size=32, **options):
        torch.manual_seed(0)
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 1}
        text = {"vocab_size": len(tokenizer), "max_position_embeddings": CONTEXT, **sizes}
        for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
            text[token] = getattr(tokenizer, token)
        config = TierCLIPConfig(
            vision_config={"image_size": image_size, "patch_size": patch_size, **sizes},
            text_config=text,
            projection_dim=16,
            **options,
        )
        return TierCLIPModel(config).eval()

    return make


@pytest.fixture
def picture():
    """A grey radiograph with structure, wider than high."""
    rows, columns = np.mgrid[:401, :523]
    waves = np.sin(rows / 7) * np.cos(columns / 11) + 0.4 * np.sin(rows * columns / 900)
    return Image.fromarray(np.uint8(128 + 80 * waves.clip(-1.5, 1.5)))


def run(capsys, *arguments):
    convert_tier.main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def refuse(capsys, *arguments):
    with pytest.raises(SystemExit) as error:
        convert_tier.main([str(argument) for argument in arguments])
    assert error.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("convert_tier.py: error: ") and message.count("\n") == 1
    return message


def load(folder):
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    config, image_processor = model.config, processor.image_processor
    assert isinstance(processor, TierProcessor)
    assert (config.pixel_mean, config.pixel_std) == (list(image_processor.image_mean), list(image_processor.image_std))
    assert {path.name for path in folder.parent.iterdir() if "partial" in path.name} == set()
    return model.eval(), processor


def save_openai(model, path):
    torch.save(to_openclip(model.to_clip())[0], path)
    return path


def pixels_of(processor, picture, **options):
    return processor.image_processor(picture, return_tensors="pt", **options)["pixel_values"]


def chexzero_pixels(picture, size):
    """CheXzero data_process.py:31-64 and train.py:69-87, written down once more."""
    ratio = 320 / max(picture.size)
    small = picture.convert("RGB").resize([int(side * ratio) for side in picture.size], Image.Resampling.LANCZOS)
    square = Image.new("L", (320, 320))
    square.paste(small, ((320 - small.width) // 2, (320 - small.height) // 2))
    image = (torch.from_numpy(np.array(square)).float() - 101.48761) / 83.43944
    image = image.expand(1, 3, 320, 320)
    if size == 320:
        return image
    return F.interpolate(image, size=(size, size), mode="bicubic", align_corners=False, antialias=False)


@pytest.mark.parametrize("size, patch", [(224, 112), (320, 160)])
def test_chexzero(tmp_path, capsys, make_clip, tokenizer, tokenizer_folder, picture, size, patch):
    original = make_clip(size, patch)
    path = save_openai(original, tmp_path / CHEXZERO_FILE)
    out = run(capsys, path, tmp_path / "models" / "chexzero", "--tokenizer", tokenizer_folder)
    assert f"Reading {path}: CheXzero" in out and "TierCLIPModel" in out
    model, processor = load(tmp_path / "models" / "chexzero")

    pixels = pixels_of(processor, picture)
    reference = chexzero_pixels(picture, size)
    assert pixels.shape == reference.shape == (1, 3, size, size)
    assert (pixels - reference).abs().max() < 1e-5
    if size == 320:  # nothing is resampled after the normalisation, so bytes will do
        raw = pixels_of(processor, picture, output_dtype="uint8")
        assert (model.normalize_pixels(raw) - reference).abs().max() < 1e-5

    # Truncated as CheXzero does: cut to the context, and the last token made the end token (train.py:169-173).
    ids = [tokenizer.bos_token_id, *tokenizer(LONG, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    assert len(ids) > CONTEXT
    cut = ids[: CONTEXT - 1] + [tokenizer.eos_token_id]
    encoded = processor(text=[LONG, "effusion"], images=[picture] * 2, return_tensors="pt")
    assert encoded["input_ids"][0].tolist() == cut

    with torch.no_grad():
        logits = original(input_ids=torch.tensor([cut]), pixel_values=reference).logits_per_image
        assert (model(**encoded).logits_per_image[0, 0] - logits).abs().max() < 1e-4  # of numbers around 1
    assert model.config.vision_config.hidden_act == "quick_gelu"


def test_openai(tmp_path, capsys, make_clip, tokenizer_folder, picture):
    path = save_openai(make_clip(), tmp_path / "ViT.pt")
    run(capsys, path, tmp_path / "out", "--kind", "openai", "--tokenizer", tokenizer_folder)
    processor = load(tmp_path / "out")[1]
    # clip.py:79-86 of OpenAI: Resize (bicubic) and CenterCrop of torchvision, then CLIP's mean and deviation
    small = picture.convert("RGB").resize((int(64 * 523 / 401), 64), Image.Resampling.BICUBIC)
    left = round((small.width - 64) / 2)
    crop = torch.from_numpy(np.array(small)[:, left : left + 64]).permute(2, 0, 1) / 255
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    assert (pixels_of(processor, picture)[0] - (crop - mean) / std).abs().max() < 1e-5


def test_openclip_settings_become_those_of_the_processor(tmp_path, capsys, make_clip, tokenizer):
    tensors, model_cfg = to_openclip(make_clip().to_clip())
    folder = tmp_path / "openclip"
    tokenizer.save_pretrained(folder)
    save_file(tensors, folder / "open_clip_model.safetensors")
    preprocess = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear", "resize_mode": "longest"}
    settings = folder / "open_clip_config.json"
    settings.write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": preprocess}))
    assert "Note" not in run(capsys, folder, tmp_path / "out")
    image_processor = load(tmp_path / "out")[1].image_processor
    assert image_processor.geometry == "pad" and image_processor.resample == Image.Resampling.BILINEAR
    assert list(image_processor.image_mean) == [0.5] * 3 and list(image_processor.image_std) == [0.25] * 3
    preprocess["interpolation"] = "random"
    settings.write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": preprocess}))
    assert "interpolation='random'" in refuse(capsys, folder, tmp_path / "other")


def test_an_openclip_file_without_settings_says_what_was_taken(tmp_path, capsys, make_clip, tokenizer_folder):
    path = tmp_path / "weights.safetensors"
    save_file(to_openclip(make_clip().to_clip())[0], path)
    out = run(capsys, path, tmp_path / "a", "--tokenizer", tokenizer_folder)
    assert "Note: open_clip_config.json is missing, so the activation is assumed to be gelu." in out
    out = run(capsys, path, tmp_path / "b", "--tokenizer", tokenizer_folder, "--activation", "quick_gelu")
    assert "Note" not in out
    activations = [load(tmp_path / name)[0].config.text_config.hidden_act for name in "ab"]
    assert activations == ["gelu", "quick_gelu"]


@pytest.mark.parametrize("crop", [True, False])
def test_a_clip_folder_there_and_back(tmp_path, capsys, make_clip, tokenizer, picture, crop):
    clip = make_clip().to_clip()
    size = {"height": 64, "width": 64}
    options = {"size": {"shortest_edge": 80}, "crop_size": size} if crop else {"size": size, "do_center_crop": False}
    # The margins of the crop are even: of odd ones, transformers and torchvision round the half differently.
    stock = CLIPProcessor(CLIPImageProcessorPil(**options, image_mean=[0.4] * 3), tokenizer)
    clip.save_pretrained(tmp_path / "clip")
    stock.save_pretrained(tmp_path / "clip")

    run(capsys, tmp_path / "clip", tmp_path / "tier")
    model, processor = load(tmp_path / "tier")
    run(capsys, tmp_path / "tier", tmp_path / "back", "--to", "clip")
    assert json.loads((tmp_path / "back" / "config.json").read_text())["model_type"] == "clip"
    assert not list((tmp_path / "back").glob("*.py"))
    back, again = CLIPModel.from_pretrained(tmp_path / "back"), CLIPProcessor.from_pretrained(tmp_path / "back")

    batch = stock(text=["small effusion"], images=picture.convert("RGB"), return_tensors="pt")
    for one in (processor, again):
        other = one(text=["small effusion"], images=picture.convert("RGB"), return_tensors="pt")
        assert torch.equal(other["input_ids"], batch["input_ids"])
        assert (other["pixel_values"] - batch["pixel_values"]).abs().max() < 1e-6
    with torch.no_grad():
        for one in (model, back):
            assert all(torch.equal(tensor, one.state_dict()[name]) for name, tensor in clip.state_dict().items())
            assert (one(**batch).logits_per_image - clip(**batch).logits_per_image).abs().max() < 1e-6


def test_a_clip_folder_without_a_processor_takes_the_pixels_of_clip(tmp_path, capsys, make_clip, tokenizer):
    make_clip().to_clip().save_pretrained(tmp_path / "clip")
    tokenizer.save_pretrained(tmp_path / "clip")
    run(capsys, tmp_path / "clip", tmp_path / "tier")
    assert load(tmp_path / "tier")[1].image_processor.geometry == "crop"


def test_pixels_that_clip_cannot_make_stay_with_their_processor(tmp_path, capsys, make_clip, tokenizer_folder):
    path = save_openai(make_clip(224, 112), tmp_path / CHEXZERO_FILE)
    out = run(capsys, path, tmp_path / "clip", "--to", "clip", "--tokenizer", tokenizer_folder)
    assert "Note: CLIP's own image processor cannot make this model's pixels" in out
    assert isinstance(AutoProcessor.from_pretrained(tmp_path / "clip"), TierProcessor)
    assert type(AutoModel.from_pretrained(tmp_path / "clip")) is CLIPModel


def test_to_openclip(tmp_path, capsys, make_clip, tokenizer_folder):
    original = make_clip(224, 112)
    path = save_openai(original, tmp_path / CHEXZERO_FILE)
    out = run(capsys, path, tmp_path / "openclip", "--to", "openclip", "--tokenizer", tokenizer_folder)
    assert "TierImageProcessor makes them" in out and "hf_tokenizer_name" in out
    tensors = load_file(tmp_path / "openclip" / "open_clip_model.safetensors")
    expected = torch.load(path, weights_only=True)
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    settings = json.loads((tmp_path / "openclip" / "open_clip_config.json").read_text())
    assert settings["model_cfg"]["quick_gelu"] is True and settings["model_cfg"]["embed_dim"] == 16
    assert settings["model_cfg"]["text_cfg"]["hf_tokenizer_name"] == "openclip"
    assert settings["preprocess_cfg"]["resize_mode"] == "longest"
    assert settings["preprocess_cfg"]["mean"] == pytest.approx([101.48761 / 255] * 3)
    run(capsys, tmp_path / "openclip", tmp_path / "again")
    again = load(tmp_path / "again")[0].state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in original.state_dict().items())


# TIER and BioViL


def make_dual():
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64, "max_position_embeddings": 150}
    return TierDualEncoderModel(
        TierDualEncoderConfig(
            vision_config=ResNetConfig(embedding_size=8, hidden_sizes=[32, 64, 128, 256], depths=[1, 1, 1, 1]),
            text_config=BertConfig(vocab_size=len(WORDS), num_attention_heads=1, **sizes),
            projection_dim=16,
        )
    ).eval()


@pytest.fixture
def cxr_bert_folder(tmp_path):
    """The folder of CXR-BERT's tokenizer, whose class is code of its own."""
    folder = tmp_path / "cxr_bert"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    settings = {"tokenizer_class": "CXRBertTokenizer", "do_lower_case": True}
    settings["auto_map"] = {"AutoTokenizer": ["configuration_cxrbert.CXRBertTokenizer", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_tier(tmp_path, capsys, cxr_bert_folder, picture):
    original = make_dual()
    state = original.state_dict()
    names = {"logit_scale": ("logit_scale",), **dual_names(list(state), "cnn.", "transformer.")}
    path = tmp_path / "best_model.pt"
    torch.save({"model_state_dict": to_layout(state, names), "args": argparse.Namespace(lam_words=0.1)}, path)
    out = run(capsys, path, tmp_path / "tier", "--tokenizer", cxr_bert_folder)
    assert "TIER, as its authors save it" in out and "TierDualEncoderModel" in out
    assert "Note: the checkpoint was trained with token_entropy_weight=0.1 (lam_words), patch_entropy_weight=0" in out
    model, processor = load(tmp_path / "tier")

    # Shortest side to 256 (bilinear), the centre 224, ImageNet's mean and deviation (MedCLIP_Datasets.py:46-52)
    small = picture.convert("RGB").resize((int(256 * 523 / 401), 256), Image.Resampling.BILINEAR)
    left, top = round((small.width - 224) / 2), 16
    crop = torch.from_numpy(np.array(small)[top : top + 224, left : left + 224]).permute(2, 0, 1) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (crop - mean[:, None, None]) / std[:, None, None]
    assert (pixels_of(processor, picture)[0] - expected).abs().max() < 1e-5

    encoded = processor(text=["No acute DISEASE " * 60, "small effusion"], images=[picture] * 2, return_tensors="pt")
    ids = encoded["input_ids"]
    assert ids.shape == (2, 128)  # the authors' longest text
    assert ids[0, :4].tolist() == [2, 5, 6, 7] and ids[0, -1] == 3 and ids[1, :5].tolist() == [2, 8, 9, 3, 0]
    with torch.no_grad():
        for name in ("image_embeds", "text_embeds"):
            one, other = (getattr(which(**encoded), name) for which in (original, model))
            assert (one - other).abs().max() < 1e-6


def test_biovil(tmp_path, capsys, cxr_bert_folder, picture):
    state = make_dual().state_dict()
    tensors = to_layout(state, dual_names(list(state), "", ""))
    path = tmp_path / "biovil_image_resnet50_proj_size_128.pt"
    text = {name: tensor for name, tensor in tensors.items() if name.startswith(("bert.", "cls_projection_head."))}
    torch.save({name: tensor for name, tensor in tensors.items() if name not in text}, path)
    torch.save(text, cxr_bert_folder / "pytorch_model.bin")
    settings = make_dual().config.text_config.to_dict() | {"model_type": "cxr-bert", "projection_size": 16}
    (cxr_bert_folder / "config.json").write_text(json.dumps(settings, default=str))
    run(capsys, path, tmp_path / "biovil", "--text_model", cxr_bert_folder)
    model, processor = load(tmp_path / "biovil")
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in state.items())
    pixels = pixels_of(processor, picture)
    assert pixels.shape == (1, 3, 480, 480) and 0 <= pixels.min() < 0.3 and 0.7 < pixels.max() <= 1
    assert processor.image_processor.resize_edge == 512 and processor.tokenizer.model_max_length == 150
    message = refuse(capsys, path, tmp_path / "x", "--text_model", cxr_bert_folder, "--to", "clip")
    assert "--to clip needs a CLIP model" in message


# What is refused, and what is left behind


def test_bad_input_leaves_nothing(tmp_path, capsys, make_clip, tokenizer, tokenizer_folder):
    path = save_openai(make_clip(), tmp_path / CHEXZERO_FILE)
    out = tmp_path / "out"
    assert "no file or folder" in refuse(capsys, tmp_path / "absent.pt", out)
    whole = path.read_bytes()
    path.write_bytes(whole[:-2000])
    assert "damaged, cut short" in refuse(capsys, path, out)
    path.write_bytes(whole)
    assert "the tokenizer 'openai/clip-vit-base-patch32' cannot be loaded" in refuse(capsys, path, out)
    (tmp_path / "empty").mkdir()
    assert "cannot be loaded (" in refuse(capsys, path, out, "--tokenizer", tmp_path / "empty")
    larger = train_tokenizer(["no acute disease of the chest", "small left pleural effusion, atelectasis"] * 2)
    larger.save_pretrained(tmp_path / "larger")
    assert len(larger) > len(tokenizer)
    assert f"has {len(larger)} tokens, the model {len(tokenizer)}" in refuse(
        capsys, path, out, "--tokenizer", tmp_path / "larger"
    )
    smaller = train_tokenizer(["a a b b"])
    smaller.save_pretrained(tmp_path / "smaller")
    message = refuse(capsys, path, out, "--tokenizer", tmp_path / "smaller")
    assert f"ends a text with the token {smaller.eos_token_id}, the model with {tokenizer.eos_token_id}" in message
    assert not out.exists()

    out.mkdir()
    (out / "kept.txt").write_text("mine")
    assert "is not an empty folder" in refuse(capsys, path, out, "--tokenizer", tokenizer_folder)
    assert [file.name for file in out.iterdir()] == ["kept.txt"]
    assert "is not an empty folder" in refuse(capsys, path, path, "--tokenizer", tokenizer_folder)
    assert "cannot be written" in refuse(capsys, path, path / "inside", "--tokenizer", tokenizer_folder)
    (out / "kept.txt").unlink()
    run(capsys, path, out, "--tokenizer", tokenizer_folder)  # an empty folder will do
    assert (out / "config.json").is_file()


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("preprocessor_config.json", "[1]", "the image processor of"),
        ("preprocessor_config.json", "[" * 10**5, "the image processor of"),
        ("preprocessor_config.json", '{"crop_size": null, "size": []}', "the image processor of"),
        ("processor_config.json", "null", "the image processor of"),
        ("tokenizer_config.json", "null", "cannot be loaded ("),
        ("tokenizer.json", '{"a": 1}', "cannot be loaded ("),
        ("tokenizer.json", "[" * 10**5, "cannot be loaded ("),
        ("special_tokens_map.json", "[1]", "cannot be loaded ("),
    ],
)
def test_damaged_files_beside_the_weights(tmp_path, capsys, make_clip, tokenizer, name, content, message):
    make_clip().to_clip().save_pretrained(tmp_path / "clip")
    tokenizer.save_pretrained(tmp_path / "clip")
    (tmp_path / "clip" / name).write_text(content)
    capsys.readouterr()  # the bar of saving
    assert message in refuse(capsys, tmp_path / "clip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_failure_in_the_middle_of_writing_leaves_nothing(tmp_path, capsys, monkeypatch, make_clip, tokenizer_folder):
    path = save_openai(make_clip(), tmp_path / CHEXZERO_FILE)

    def full(*_, **__):
        assert any(child.name.endswith(".partial") for child in tmp_path.iterdir())
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(TierProcessor, "save_pretrained", full)
    before = sorted(tmp_path.iterdir())
    assert "No space left" in refuse(capsys, path, tmp_path / "out", "--tokenizer", tokenizer_folder)
    assert sorted(tmp_path.iterdir()) == before


def test_a_model_that_clip_cannot_be(tmp_path, capsys, make_clip, tokenizer):
    make_clip(image_pooling="patch_mean").save_pretrained(tmp_path / "tier")
    tokenizer.save_pretrained(tmp_path / "tier")
    for target in ("clip", "openclip"):
        assert "patch_mean" in refuse(capsys, tmp_path / "tier", tmp_path / "out", "--to", target)
    assert not (tmp_path / "out").exists()


def test_help(capsys):
    assert tuple(convert_tier.KIND_NAMES) == KINDS  # written down twice, so that --help need not import torch
    with pytest.raises(SystemExit) as error:
        convert_tier.main(["--help"])
    text = capsys.readouterr().out
    assert error.value.code == 0
    for part in ("best_64_5e-05", "--to", "--kind", "--activation", "--tokenizer", "--text_model", "openai/clip-vit"):
        assert part in text
    with pytest.raises(SystemExit) as error:
        convert_tier.main(["a", "b", "--to", "onnx"])
    assert error.value.code == 2
