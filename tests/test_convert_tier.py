"""tier-convert of CLIP's kin: the same numbers and the same pixels come out, and bad input leaves nothing behind."""

import json

import numpy as np
import pytest
import torch
from convert_checks import load, pixels_of, refuse, run, save_openai
from PIL import Image
from safetensors.torch import load_file, save_file
from seeded_checkpoints import make_picture
from torch.nn import functional as F
from transformers import AutoModel, AutoProcessor, CLIPImageProcessorPil, CLIPModel, CLIPProcessor

import convert_tier
from modeling_tier import TierCLIPConfig, TierCLIPModel
from modeling_tier.checkpoints import KINDS, to_openclip
from processing_tier import TierProcessor, train_tokenizer
from processing_tier.records.identities import TrainedOn, read_trained_on

CHEXZERO_FILE = "best_128_5e-05_original_22000_0.855.pt"
CONTEXT = 12
LONG = "small left pleural effusion and no acute disease of the chest " * 3


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["no acute disease of the chest", "small left pleural effusion"] * 2, model_max_length=77)


@pytest.fixture
def tokenizer_folder(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return str(tmp_path / "tokenizer")


@pytest.fixture
def make_clip(tokenizer):
    """Function that makes a small TIER model of random weights; modeling_tier/checkpoints tests each layout."""

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
def test_chexzero(tmp_path, capsys, make_clip, tokenizer, tokenizer_folder, size, patch):
    picture = make_picture()
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
    assert read_trained_on(tmp_path / "models" / "chexzero" / "trained_on.json") == TrainedOn((), ("CheXzero",))


def test_openai(tmp_path, capsys, make_clip, tokenizer_folder):
    picture = make_picture()
    path = save_openai(make_clip(), tmp_path / "ViT.pt")
    run(capsys, path, tmp_path / "out", "--kind", "openai", "--tokenizer", tokenizer_folder)
    processor = load(tmp_path / "out")[1]
    # fine-tuned with OpenAI's code, for all that the tensors show
    assert read_trained_on(tmp_path / "out" / "trained_on.json").unlisted == ("ViT.pt",)
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
def test_a_clip_folder_there_and_back(tmp_path, capsys, make_clip, tokenizer, crop):
    picture = make_picture()
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


def test_bad_input_leaves_nothing(tmp_path, capsys, make_clip, tokenizer, tokenizer_folder):
    path = save_openai(make_clip(), tmp_path / CHEXZERO_FILE)
    out = tmp_path / "out"
    assert "does not exist; name a checkpoint" in refuse(capsys, tmp_path / "absent.pt", out)
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
    for part in (
        "best_64_5e-05",
        "--to",
        "--kind",
        "--activation",
        "--tokenizer",
        "--text_model",
        "microsoft/BiomedCLIP",
    ):
        assert part in text
    with pytest.raises(SystemExit) as error:
        convert_tier.main(["a", "b", "--to", "onnx"])
    assert error.value.code == 2
