"""Models of OpenCLIP by its own library. support/make_references.py wrote what that computes without this code."""

import html
import json
import math
import re
import sys
from pathlib import Path

import pytest
import torch
from eval_command import PHANTOM, fails, run, save_two_models
from huggingface_hub import constants
from open_clip_library import needs_open_clip
from safetensors.torch import load_file, save_file
from seeded_checkpoints import (
    OPEN_CLIP_BERT,
    OPEN_CLIP_SETTINGS,
    TEXTS,
    reference,
    sample_pixels,
    seeded_state,
    write_biomedclip,
    write_open_clip,
    write_pictures,
    write_vocabulary,
)
from torch.nn import functional as F
from transformers import AutoTokenizer, BertConfig, BertModel

from evaluation_tier.models.adapters import AdapterName
from evaluation_tier.models.loading import load_model
from evaluation_tier.models.openclip import check_settings, find_text_config, folder_of_file
from evaluation_tier.predict.loading import load_pipeline

TOLERANCE = 1e-5


@pytest.fixture(params=OPEN_CLIP_SETTINGS)
def name(request) -> str:
    return request.param


@pytest.fixture
def text_config(tmp_path, monkeypatch):
    """The config of the text tower in the cache of the Hub, as one that was downloaded."""
    repository = tmp_path / "cache" / "models--made--tiny-bert"
    commit = "0123456789abcdef0123456789abcdef01234567"
    BertConfig(**OPEN_CLIP_BERT).save_pretrained(repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return repository / "snapshots" / commit / "config.json"


# Without the library
def test_the_package_is_named_where_it_is_missing(tmp_path, capsys, monkeypatch, name):
    write_open_clip(tmp_path / "model", name)
    monkeypatch.setitem(sys.modules, "open_clip", None)
    assert fails(tmp_path / "model", "--data", PHANTOM, "--output_dir", tmp_path / "o", capsys=capsys) == (
        f"The model {tmp_path}/model is OpenCLIP's and needs the package open_clip: pip install "
        "'tier-clip[open_clip]'. If its towers are plain ones, tier-convert makes a model of it that does not."
    )
    assert not (tmp_path / "o").exists()


def test_pickled_weights_are_refused(tmp_path, capsys):
    write_biomedclip(tmp_path / "model")
    told = fails(tmp_path / "model", "--data", PHANTOM, capsys=capsys)
    assert told.startswith(
        f"The OpenCLIP model {tmp_path}/model has no weights as safetensors (open_clip_model.safetensors): pickled "
        "weights are never read here. If its towers are plain ones, tier-convert reads them; else docs/openclip.m"
    )


def test_a_folder_that_is_also_a_model_of_transformers_is_read_as_that(tmp_path, capsys):
    model = save_two_models(tmp_path)[0]
    (model / "open_clip_config.json").write_text("{}")
    assert type(load_model(model)[0]).__name__ == "TierCLIPModel"


@pytest.mark.parametrize(
    "part, key, value, message",
    [
        ("vision_cfg", "timm_model_name", "hf-hub:owner/name", "asks for the image tower 'hf-hub:owner/name', which"),
        ("vision_cfg", "timm_model_name", "local-dir:x", "asks for the image tower 'local-dir:x', which is not"),
        ("text_cfg", "tokenizer_kwargs", {"trust_remote_code": True}, "gives its tokenizer the option 'trust_rem"),
        ("text_cfg", "tokenizer_kwargs", {"reduction_mask": "random"}, "gives its tokenizer the option 'reduction_m"),
    ],
)
def test_settings_that_would_run_code_or_download_are_refused(name, part, key, value, message):
    settings = json.loads(json.dumps(OPEN_CLIP_SETTINGS[name]))
    settings["model_cfg"][part][key] = value
    with pytest.raises(ValueError) as error:
        check_settings("x", settings)
    assert str(error.value).startswith(f"open_clip_config.json of x {message}")
    with pytest.raises(ValueError, match="of x lacks a model_cfg with a vision_cfg and a text_cfg"):
        check_settings("x", {"model_cfg": {"vision_cfg": {}}})


def test_the_config_of_a_text_tower_comes_from_the_cache_alone(text_config):
    found = find_text_config("x", "made/tiny-bert", may_download=False)
    assert found == str(text_config.parent)
    with pytest.raises(ValueError, match="the architecture of made/other, whose config.json is not on this machine: "):
        find_text_config("x", "made/other", may_download=False)
    for outside in ("../../etc", "/etc", 3):
        with pytest.raises(ValueError, match="not a name on the Hub"):
            find_text_config("x", outside, may_download=False)
    text_config.write_text(json.dumps({"model_type": "bert", "auto_map": {"AutoModel": "x.Y"}}))
    with pytest.raises(ValueError, match="made/tiny-bert of x needs code of its own, which is not run"):
        find_text_config("x", "made/tiny-bert", may_download=False)


def test_the_texts_of_the_reference_by_another_implementation(tmp_path):
    """Cleaned of punctuation, in lower case, cut to 16 tokens; the mean of the tokens; the head of two layers."""
    content = reference("open_clip_timm")
    write_vocabulary(tmp_path, lower_case=True)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, config=BertConfig(**OPEN_CLIP_BERT))
    texts = [re.sub(r"[^\w\s]|_", "", html.unescape(html.unescape(text)).lower()) for text in TEXTS]
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=16, return_tensors="pt")
    assert [ids[ids != 0].tolist() for ids in inputs["input_ids"]] == content["input_ids"]
    shapes = {key: shape for key, shape in content["tensors"].items() if key.startswith("text.")}
    state = {key: tensor.float() for key, tensor in seeded_state(shapes).items()}
    tower = BertModel(BertConfig(**OPEN_CLIP_BERT), add_pooling_layer=False).eval()
    prefix = "text.transformer."
    tower.load_state_dict({key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)})
    mask = inputs["attention_mask"][..., None]
    with torch.no_grad():
        hidden = tower(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
        mean = (hidden * mask).sum(1) / mask.sum(1)
        embeds = F.gelu(mean @ state["text.proj.0.weight"].T) @ state["text.proj.2.weight"].T
    assert (F.normalize(embeds, dim=-1) - torch.tensor(content["text_embeds"])).abs().max() < TOLERANCE


# With the library
def check_embeddings(model, content, tmp_path) -> None:
    """Texts, pixels and images, together and alone."""
    pictures = write_pictures(tmp_path / "pictures")
    with torch.no_grad():
        texts = torch.tensor(content["text_embeds"])
        assert (model.embed_texts(TEXTS) - texts).abs().max() < TOLERANCE
        assert (model.embed_texts(TEXTS, batch_size=1) - texts).abs().max() < TOLERANCE
        pixels = {key: model.preprocess(model.read_image(str(path))) for key, path in pictures.items()}
        for key in ("wide", "high"):
            assert (sample_pixels(pixels[key]) - torch.tensor(content["pixels"][key])).abs().max() < 1e-6
        images = torch.tensor([content["image_embeds"][key] for key in ("wide", "high")])
        together = model.embed_images(torch.cat([pixels["wide"], pixels["high"]]))
        assert (together - images).abs().max() < TOLERANCE
        assert (model.embed_images(pixels["high"]) - images[1]).abs().max() < TOLERANCE
        # The owner's code cuts a grey file of 16 bits to white; here it keeps its levels
        deep = model.embed_images(pixels["deep"])[0]
    assert (deep - images[0]).norm() < 0.5 * (images[1] - images[0]).norm()


@needs_open_clip
def test_the_embeddings_are_those_of_the_library(tmp_path, text_config, name):
    content = write_open_clip(tmp_path / "model", name)
    model, processor = load_model(tmp_path / "model")
    assert processor is None and not model.training
    check_embeddings(model, content, tmp_path)


@needs_open_clip
def test_a_model_that_tier_convert_reads_has_the_same_embeddings(tmp_path, text_config, monkeypatch):
    """Its reference is that of tests/test_convert_published.py."""
    from timm.models import register_model
    from timm.models.vision_transformer import VisionTransformer

    def vit_tiny_patch16_64(pretrained=False, **options):
        options = {key: value for key, value in options.items() if key in ("global_pool", "num_classes")}
        model = VisionTransformer(img_size=64, patch_size=16, embed_dim=128, depth=2, num_heads=2, **options)
        model.default_cfg = {}
        return model

    monkeypatch.setattr(sys.modules[__name__], "__all__", [], raising=False)
    register_model(vit_tiny_patch16_64)
    content = write_biomedclip(tmp_path / "model")
    state = torch.load(tmp_path / "model" / "open_clip_pytorch_model.bin", weights_only=True)
    save_file(state, tmp_path / "model" / "open_clip_model.safetensors")
    content["settings"]["model_cfg"]["text_cfg"]["hf_model_name"] = "made/tiny-bert"
    (tmp_path / "model" / "open_clip_config.json").write_text(json.dumps(content["settings"]))
    check_embeddings(load_model(tmp_path / "model")[0], content, tmp_path)


@needs_open_clip
@pytest.mark.parametrize("key", ["visual.head.proj.weight", "text.proj.2.weight", "visual.trunk.conv1.0.weight"])
def test_a_missing_and_a_left_over_tensor_are_named(tmp_path, text_config, key):
    write_open_clip(tmp_path, "open_clip_timm")
    path = tmp_path / "open_clip_model.safetensors"
    tensors = load_file(path)
    for changed, named in (
        ({name: tensor for name, tensor in tensors.items() if name != key}, key),
        ({**tensors, f"{key}_more": torch.ones(1)}, f"{key}_more"),
    ):
        save_file(changed, path)
        with pytest.raises(ValueError) as error:
            load_model(tmp_path)
        assert str(error.value).startswith(f"The OpenCLIP model {tmp_path} does not load (RuntimeError: ")
        assert f'"{named}"' in str(error.value)


@needs_open_clip
def test_another_tokenizer_is_refused(tmp_path, text_config):
    write_open_clip(tmp_path / "empty", "open_clip_timm")
    (tmp_path / "empty" / "vocab.txt").unlink()
    with pytest.raises(ValueError, match="empty has only special tokens: put its vocabulary into the folder"):
        load_model(tmp_path / "empty")
    settings = write_open_clip(tmp_path / "model", "open_clip_timm")["settings"]
    del settings["model_cfg"]["text_cfg"]["hf_tokenizer_name"], settings["model_cfg"]["text_cfg"]["tokenizer_kwargs"]
    (tmp_path / "model" / "open_clip_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="The tokenizer of .*model has 49408 tokens, the model 38: put the tokenizer"):
        load_model(tmp_path / "model")


@needs_open_clip
def test_the_command_scores_it_alone_and_with_others(tmp_path, capsys, text_config):
    folders = [tmp_path / name for name in OPEN_CLIP_SETTINGS]
    for folder in folders:
        write_open_clip(folder, folder.name)
    options = ["--data", PHANTOM, "--min_positives", 5, "--n_bootstrap", 5, "--cache_dir", tmp_path / "c"]
    each = ["--each", *folders, *options, "--analyses", "retrieval", "--output_dir", tmp_path / "each"]
    run(*each, capsys=capsys)
    (path,) = (tmp_path / "each").glob("*timm/metrics.json")
    metrics, shapes = json.loads(path.read_text()), reference("open_clip_timm")["tensors"]
    trained = {key: shape for key, shape in shapes.items() if not re.search("running_|num_batches", key)}
    (sizes,) = metrics["sizes"].values()
    assert sizes == {"parameters": sum(map(math.prod, trained.values())), "image_size": 96} and "retrieval" in metrics
    run(folders[1], save_two_models(tmp_path)[0], *options, "--output_dir", tmp_path / "both", capsys=capsys)
    assert len(json.loads((tmp_path / "both" / "metrics.json").read_text())["models"]) == 2
    told = fails(folders[0], *options, "--analyses", "sparsity", "--output_dir", tmp_path / "d", capsys=capsys)
    assert told.startswith("Sparsity needs embeddings of words and patches, which OpenClip does not offer: evaluate")


# A file in place of its folder
def test_a_file_stands_for_its_folder(tmp_path, name):
    write_open_clip(tmp_path, name)
    path = tmp_path / "open_clip_model.safetensors"
    assert folder_of_file(path) == tmp_path and folder_of_file(str(tmp_path)) == str(tmp_path)
    assert folder_of_file("user/model@main") == "user/model@main"
    pickled = tmp_path / "open_clip_pytorch_model.bin"
    pickled.write_bytes(b"never opened")
    with pytest.raises(ValueError) as error:
        folder_of_file(pickled)
    assert str(error.value) == (
        f"{pickled} is not read, because open_clip_model.safetensors lies beside it: name that file, or the folder "
        f"{tmp_path}."
    )
    path.unlink()
    assert folder_of_file(pickled) == tmp_path  # whose refusal says what to do with pickled weights
    (tmp_path / "open_clip_config.json").unlink()
    with pytest.raises(ValueError, match=r"bin is a file, and only open_clip_config.json beside .*: name the folder"):
        folder_of_file(pickled)


def test_the_commands_answer_to_a_file_as_to_its_folder(tmp_path, capsys):
    write_biomedclip(tmp_path / "model")  # pickled
    told = [
        fails(named, "--data", PHANTOM, capsys=capsys)
        for named in (tmp_path / "model", tmp_path / "model" / "open_clip_pytorch_model.bin")
    ]
    assert told[0] == told[1] and told[0].endswith("docs/openclip.md has the lines that save them so.")
    assert fails(tmp_path / "model", "--data", PHANTOM, "--save_thresholds", capsys=capsys).startswith(
        f"--save_thresholds needs the config.json of a model of transformers, which {tmp_path}/model does not have"
    )
    (tmp_path / "alone.pt").write_bytes(b"never opened")
    assert fails(tmp_path / "alone.pt", "--data", PHANTOM, capsys=capsys).startswith(
        f"The model {tmp_path}/alone.pt is a file, and only open_clip_config.json beside weights of OpenCLIP says"
    )


@needs_open_clip
def test_a_file_and_its_folder_have_the_same_results(tmp_path, capsys, text_config):
    write_open_clip(tmp_path / "model", "open_clip_resnet")
    options = ["--data", PHANTOM, "--min_positives", 5, "--n_bootstrap", 5]
    for named, output in (("model", "folder"), ("model/open_clip_model.safetensors", "file")):
        run(tmp_path / named, *options, "--output_dir", tmp_path / output, capsys=capsys)
    results = [json.loads((tmp_path / output / "metrics.json").read_text()) for output in ("folder", "file")]
    assert results[0] == results[1]
    told = fails(tmp_path / "model", tmp_path / "model" / "open_clip_model.safetensors", *options, capsys=capsys)
    assert told.endswith("is named twice: leave one of the two out.")
    pipe = load_pipeline(tmp_path / "model" / "open_clip_model.safetensors", "cpu")
    picture = write_pictures(tmp_path / "pictures")["wide"]
    [found] = pipe(picture, {"Edema": {"positive": TEXTS[:1], "negative": TEXTS[5:]}})
    content = reference("open_clip_resnet")
    texts, image = torch.tensor(content["text_embeds"]), torch.tensor(content["image_embeds"]["wide"])
    assert found["score"] == pytest.approx(float(torch.sigmoid((texts[0] - texts[5]) @ image)), abs=1e-5)


@needs_open_clip
def test_the_file_of_the_documentation(tmp_path):
    """docs/own_model.md, on a folder that tier-eval reads by itself: the same embeddings."""
    page = (Path(__file__).parents[3] / "docs" / "own_model.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) <= 20
    (tmp_path / "my_file.py").write_text(code)
    write_open_clip(tmp_path / "model", "open_clip_resnet")
    adapted = load_model(AdapterName(f"{tmp_path / 'my_file.py'}:make=local-dir:{tmp_path / 'model'}"))[0]
    loaded = load_model(tmp_path / "model")[0]
    picture = loaded.read_image(str(write_pictures(tmp_path / "pictures")["wide"]))
    with torch.inference_mode():
        assert torch.equal(adapted.embed_texts(TEXTS), loaded.embed_texts(TEXTS))
        images = [model.embed_images(model.preprocess(picture)) for model in (adapted, loaded)]
    assert torch.equal(*images)
