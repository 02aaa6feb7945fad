"""
tier-convert of BiomedCLIP's, CheXficient's and BioViL-T's layouts: the embeddings of the original code come out, from
texts and image files. support/make_references.py wrote them with that code.
"""

import json
import math

import numpy as np
import pytest
import torch
from convert_checks import load, refuse, run
from safetensors.torch import load_file, save_file
from seeded_checkpoints import (
    TEXTS,
    WRITERS,
    make_picture,
    sample_pixels,
    seeded_tensor,
    write_biomedclip,
    write_chexficient,
    write_pictures,
)

from evaluation_tier.predict.loading import load_pipeline
from modeling_tier.checkpoints.biovil import IMAGE_FILES

TOLERANCE = 1e-5
PIXEL_TOLERANCE = 1e-6  # a grey level of another value would be 0.01


@pytest.fixture(params=WRITERS)
def family(request):
    return request.param


def embed_texts(model, processor, texts):
    encoded = processor(text=texts, return_tensors="pt", padding=True, truncation=True)
    with torch.no_grad():
        features = model.get_text_features(**encoded).pooler_output
    ids = [
        row[mask.bool()].tolist() for row, mask in zip(encoded["input_ids"], encoded["attention_mask"], strict=True)
    ]
    return torch.nn.functional.normalize(features, dim=-1), ids


def embed_images(model, processor, images):
    with torch.no_grad():
        pixels = processor(images=images, return_tensors="pt")["pixel_values"]
        return torch.nn.functional.normalize(model.get_image_features(pixels).pooler_output, dim=-1)


def check_embeddings(folder, content, tmp_path):
    model, processor = load(folder)
    if "max_length" in content["settings"]:  # the small model's, not the 256 of the published one
        processor.tokenizer.model_max_length = content["settings"]["max_length"]
    expected = torch.tensor(content["text_embeds"])
    together, ids = embed_texts(model, processor, TEXTS)
    assert ids == content["input_ids"]
    worst = (together - expected).abs().max().item()
    alone = torch.cat([embed_texts(model, processor, [text])[0] for text in TEXTS])
    assert worst < TOLERANCE and (alone - expected).abs().max() < TOLERANCE  # short and long texts, batched and not
    assert (expected[0] - expected[5]).abs().max() > 0.01  # texts differ

    pictures = write_pictures(tmp_path / "pictures")
    names = ["wide", "high", "deep"] if processor.image_processor.grey_levels == "stretch" else ["wide", "high"]
    expected = torch.tensor([content["image_embeds"][name] for name in names])
    together = embed_images(model, processor, [str(pictures[name]) for name in names])
    alone = embed_images(model, processor, [str(pictures["high"])])
    worst = max(worst, (together - expected).abs().max().item())
    assert worst < TOLERANCE and (alone - expected[1]).abs().max() < TOLERANCE
    assert (expected[0] - expected[1]).abs().max() > 0.01
    for name in names:
        pixels = sample_pixels(processor(images=[str(pictures[name])], return_tensors="pt")["pixel_values"])
        assert (pixels - torch.tensor(content["pixels"][name])).abs().max() < PIXEL_TOLERANCE
    if "deep" not in names:  # the original code cuts a grey file of 16 bits to white; here it keeps its levels
        deep = embed_images(model, processor, [str(pictures["deep"])])[0]
        assert (deep - together[0]).norm() < 0.5 * (together[1] - together[0]).norm()
    return model, processor, worst


def test_published_models(family, tmp_path, capsys, record_property):
    content = WRITERS[family](tmp_path / "original")
    run(capsys, tmp_path / "original", tmp_path / "out")
    model, processor, worst = check_embeddings(tmp_path / "out", content, tmp_path)
    record_property("largest difference", worst)
    assert model.logit_scale.item() == pytest.approx(np.log(1 / 0.07) if family == "biovil_t" else 2.9, abs=1e-6)
    rows = {"biomedclip": 4, "chexficient": 5, "biovil_t": 14}[family]
    encoded = processor(text=TEXTS[:2], images=[make_picture()], return_tensors="pt", padding=True, truncation=True)
    maps = model.get_similarity_map(
        **{name: encoded[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    )
    assert maps.shape == (1, 2, rows, rows)
    asked = {"Effusion": {"positive": TEXTS[5], "negative": TEXTS[0], "score_level": "global"}}
    [found] = load_pipeline(tmp_path / "out", "cpu")(tmp_path / "pictures" / "wide.png", asked, return_heatmaps=True)
    positive, negative, image = (
        torch.tensor(embeds)
        for embeds in (content["text_embeds"][5], content["text_embeds"][0], content["image_embeds"]["wide"])
    )
    assert found["score"] == pytest.approx(torch.sigmoid((positive - negative) @ image).item(), abs=TOLERANCE)
    assert found["heatmap"].patches.shape == (rows, rows)


@pytest.mark.slow
@pytest.mark.parametrize(
    "family, parameters, pixels, tokens",
    [
        ("biomedclip", 195_902_721, 224, 256),
        ("chexficient", 194_596_097, 378, 256),
        ("biovil_t", 132_793_793, 448, 512),
    ],
)
def test_the_published_sizes(tmp_path, capsys, record_property, family, parameters, pixels, tokens):
    content = WRITERS[family](tmp_path / "original", f"{family}_full")
    seeded_tensor.cache_clear()  # 0.8 GB
    run(capsys, tmp_path / "original", tmp_path / "out")
    model, processor = load(tmp_path / "out")
    assert (model.num_parameters(), model.config.image_size) == (parameters, pixels)
    texts, ids = embed_texts(model, processor, TEXTS)
    image = embed_images(model, processor, [make_picture()])[0]
    assert ids == content["input_ids"] and processor.tokenizer.model_max_length == tokens
    every = math.ceil(len(image) / len(content["image_embeds"]["wide"]))
    worst = (texts[:, ::every] - torch.tensor(content["text_embeds"])).abs().max().item()
    worst = max(worst, (image[::every] - torch.tensor(content["image_embeds"]["wide"])).abs().max().item())
    record_property("largest difference", worst)
    assert worst < TOLERANCE


def test_the_other_pooling_and_head_of_openclip(tmp_path, capsys):
    content = write_biomedclip(tmp_path / "original", "biomedclip_avg")
    run(capsys, tmp_path / "original", tmp_path / "out")
    model = check_embeddings(tmp_path / "out", content, tmp_path)[0]
    config = model.config
    assert (config.image_pooling, config.image_head, config.text_head) == ("patch_mean", "linear", "linear")


def test_the_configuration_says_what_the_file_says(family, tmp_path, capsys):
    WRITERS[family](tmp_path / "original")
    run(capsys, tmp_path / "original", tmp_path / "out")
    model, processor = load(tmp_path / "out")
    config, tokenizer, images = model.config, processor.tokenizer, processor.image_processor
    heads = (config.image_head, config.text_head, config.head_bias, config.image_pooling, config.text_pooling)
    if family == "biomedclip":
        assert heads == ("linear", "mlp", False, "cls", "cls") and config.image_size == 64
        assert tokenizer.model_max_length == 24 and images.geometry == "crop"
        assert (config.vision_config.layer_norm_eps, config.text_config.layer_norm_eps) == (1e-6, 1e-12)
    elif family == "chexficient":
        assert heads == ("linear", "linear", True, "cls", "eos") and config.image_size == 70
        assert tokenizer.model_max_length == 40 and tokenizer("No").input_ids != tokenizer("no").input_ids
    else:
        assert heads == ("tier", "tier", False, "patch_mean", "cls") and config.image_size == 448
        assert images.resize_edge == 512 and images.grey_levels == "stretch" and tokenizer.model_max_length == 80
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_folder_and_a_single_file_are_one_model(family, tmp_path, capsys):
    WRITERS[family](tmp_path / "original")
    file = {"biomedclip": "open_clip_pytorch_model.bin", "chexficient": "model.safetensors"}.get(
        family, IMAGE_FILES[0]
    )
    run(capsys, tmp_path / "original", tmp_path / "folder")
    out = run(capsys, tmp_path / "original" / file, tmp_path / "file")
    assert ("comparison with an earlier image is left out" in out) == (family == "biovil_t")
    (model, processor), (other, same) = load(tmp_path / "folder"), load(tmp_path / "file")
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert model.config.to_diff_dict() == other.config.to_diff_dict()
    assert processor.image_processor.to_dict() == same.image_processor.to_dict()
    assert [processor.tokenizer(text).input_ids for text in TEXTS] == [
        same.tokenizer(text).input_ids for text in TEXTS
    ]


def test_chexficient_as_its_training_saves_it(tmp_path, capsys):
    """The file that the authors' README names, with the choice of training data beside the weights."""
    write_chexficient(tmp_path / "original")
    state = load_file(tmp_path / "original" / "model.safetensors")
    (tmp_path / "file").mkdir()
    path = tmp_path / "file" / "pytorch_model.pth"
    torch.save({"model": state, "epoch": 3, "optimizer": {"state": {}}, "subset": [1, 5], "scaler": {}}, path)
    run(capsys, tmp_path / "original", tmp_path / "folder")
    run(capsys, path, tmp_path / "out", "--tokenizer", tmp_path / "original")
    model, other = load(tmp_path / "folder")[0], load(tmp_path / "out")[0]
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_biomedclip_without_its_settings(tmp_path, capsys):
    """The published file says all but the length of texts, the poolings and the pixels; those are assumed and told."""
    content = write_biomedclip(tmp_path / "original")
    (tmp_path / "original" / "open_clip_config.json").unlink()
    out = run(capsys, tmp_path / "original" / "open_clip_pytorch_model.bin", tmp_path / "out")
    assert "Note: open_clip_config.json is missing, so its settings are assumed to be BiomedCLIP's" in out
    model, processor = load(tmp_path / "out")
    assert processor.tokenizer.model_max_length == 40  # of 256, the positions of the small BERT
    processor.tokenizer.model_max_length = 24
    embeds, _ = embed_texts(model, processor, TEXTS)
    assert (embeds - torch.tensor(content["text_embeds"])).abs().max() < TOLERANCE


@pytest.mark.parametrize(
    "family, file, name",
    [
        ("biomedclip", "open_clip_pytorch_model.bin", "visual.head.proj.weight"),
        ("biomedclip", "open_clip_pytorch_model.bin", "visual.trunk.blocks.1.attn.qkv.bias"),
        ("biomedclip", "open_clip_pytorch_model.bin", "text.proj.2.weight"),
        ("chexficient", "model.safetensors", "image_encoder.model.blocks.0.ls2.gamma"),
        ("chexficient", "model.safetensors", "text_projection.projection.bias"),
        ("biovil_t", IMAGE_FILES[0], "encoder.missing_previous_emb"),
        ("biovil_t", IMAGE_FILES[0], "projector.model.1.running_mean"),
        ("biovil_t", "pytorch_model.bin", "cls_projection_head.LayerNorm.weight"),
    ],
)
def test_missing_and_surplus_tensors_are_named(tmp_path, capsys, family, file, name):
    WRITERS[family](tmp_path)
    is_safe = file.endswith("safetensors")
    state = load_file(tmp_path / file) if is_safe else torch.load(tmp_path / file, weights_only=True)
    tensor, write = state.pop(name), save_file if is_safe else torch.save
    write(state, tmp_path / file)
    assert f"lacks tensors: {name}." in refuse(capsys, tmp_path, tmp_path / "out")
    write({**state, name: tensor, "surplus.weight": torch.zeros(2)}, tmp_path / file)
    assert "has unknown tensors: surplus.weight." in refuse(capsys, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "part, key, value, sentence",
    [
        (
            "vision_cfg",
            "timm_proj",
            "mlp",
            "timm_proj='mlp', which TierDualEncoderModel does not have (it has 'linear')",
        ),
        ("vision_cfg", "timm_pool", "map", "timm_pool='map', which"),
        ("vision_cfg", "timm_model_name", "vit_base_patch16_clip_224", "timm_model_name='vit_base_patch16_clip_224'"),
        ("text_cfg", "hf_pooler_type", "mean_pooler", "hf_pooler_type='mean_pooler', which"),
        ("text_cfg", "hf_proj_type", None, "hf_proj_type=None, which"),
        ("text_cfg", "tokenizer_mode", "clips", "tokenizer_mode='clips', which"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, capsys, part, key, value, sentence):
    settings = write_biomedclip(tmp_path)["settings"]
    settings["model_cfg"][part][key] = value
    (tmp_path / "open_clip_config.json").write_text(json.dumps(settings))
    assert sentence in refuse(capsys, tmp_path, tmp_path / "out")


def test_a_roberta_under_the_names_of_a_bert_is_refused(tmp_path, capsys):
    write_biomedclip(tmp_path)
    path = tmp_path / "open_clip_pytorch_model.bin"
    state, name = torch.load(path, weights_only=True), "text.transformer.embeddings.token_type_embeddings.weight"
    torch.save(state | {name: state[name][:1].clone()}, path)
    assert "has 1 token types, as a RoBERTa" in refuse(capsys, tmp_path, tmp_path / "out")


def test_what_the_processor_file_of_chexficient_says(tmp_path, capsys):
    """It comes before the authors' script, whatever the class; a file that asks for other sizes is refused."""
    write_chexficient(tmp_path / "original")
    path = tmp_path / "original" / "processor_config.json"
    stored = {"image_processor_type": "CheXficientImageProcessor", "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    stored |= {"do_center_crop": False, "size": {"height": 70, "width": 70}, "resample": 2}
    path.write_text(json.dumps({"image_processor": stored, "processor_class": "CheXficientProcessor"}))
    run(capsys, tmp_path / "original", tmp_path / "out")
    images = load(tmp_path / "out")[1].image_processor
    assert (images.geometry, images.resample, *images.image_mean) == ("squash", 2, 0.5, 0.5, 0.5)
    path.write_text(json.dumps({"image_processor": {"do_center_crop": True, "crop_size": 64, "size": 64}}))
    assert "does not make squares of 70 pixels" in refuse(capsys, tmp_path / "original", tmp_path / "again")


def rewrite(file, change):
    """Changes the tensors of a file in place."""
    is_safe = file.suffix == ".safetensors"
    state = load_file(file) if is_safe else torch.load(file, weights_only=True)
    change(state)
    (save_file if is_safe else torch.save)(state, file)


WEIGHTS = {
    "biomedclip": "open_clip_pytorch_model.bin",
    "chexficient": "model.safetensors",
    "biovil_t": IMAGE_FILES[0],
}


def test_a_tokenizer_without_its_vocabulary_is_refused(family, tmp_path, capsys):
    """BERT's class makes an empty vocabulary, in which every word is [UNK]."""
    WRITERS[family](tmp_path / "original")
    (tmp_path / "original" / "vocab.txt").unlink()
    message = refuse(capsys, tmp_path / "original", tmp_path / "out")
    assert "has only special tokens: its vocabulary is missing" in message and not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_named(family, tmp_path, capsys, value):
    WRITERS[family](tmp_path)
    name = {"biomedclip": "visual.head.proj.weight", "chexficient": "text_projection.projection.bias"}.get(
        family, "projector.model.3.bias"
    )
    rewrite(tmp_path / WEIGHTS[family], lambda state: state[name].view(-1)[1:2].fill_(value))
    assert f"The tensor {name} of the checkpoint holds numbers that are not finite" in refuse(
        capsys, tmp_path, tmp_path / "out"
    )


def test_a_pointer_or_a_part_of_the_weights_is_called_so(family, tmp_path, capsys):
    WRITERS[family](tmp_path)
    path = tmp_path / WEIGHTS[family]
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "is damaged" in refuse(capsys, tmp_path, tmp_path / "out")
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    assert f"{path.name} is a Git LFS pointer" in refuse(capsys, tmp_path, tmp_path / "out")


@pytest.mark.parametrize("family, file", [("biomedclip", "open_clip_pytorch_model.bin"), ("biovil_t", IMAGE_FILES[0])])
def test_weights_of_another_kind_in_a_folder_are_refused(tmp_path, capsys, family, file):
    """The tokenizer beside them, and the pixels, would be the other model's."""
    WRITERS[family](tmp_path / "folder")
    other = "biovil_t" if family == "biomedclip" else "biomedclip"
    WRITERS[other](tmp_path / "other")
    (tmp_path / "folder" / file).write_bytes((tmp_path / "other" / WEIGHTS[other]).read_bytes())
    assert f"{file} holds a model of the kind '{other}'" in refuse(capsys, tmp_path / "folder", tmp_path / "out")


def test_chexficient_in_a_pickle_is_the_same_model(tmp_path, capsys):
    write_chexficient(tmp_path / "original")
    write_chexficient(tmp_path / "pickled")
    torch.save(load_file(tmp_path / "pickled" / "model.safetensors"), tmp_path / "pickled" / "pytorch_model.bin")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    for name in ("original", "pickled"):
        run(capsys, tmp_path / name, tmp_path / f"{name}_out")
    states = [load(tmp_path / f"{name}_out")[0].state_dict() for name in ("original", "pickled")]
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
