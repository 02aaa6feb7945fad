import json
import os
import shutil

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, CLIPModel

from evaluation_tier.models.cache import hash_weights
from evaluation_tier.models.clip import takes_uint8
from evaluation_tier.models.embedding import embed_images
from evaluation_tier.models.loading import check_members_differ, choose_device, load_model, short_names
from evaluation_tier.scoring.zeroshot import evaluate_zero_shot
from evaluation_tier.statistics.resampling import Resampling
from training_tier.options.model import ModelArguments
from training_tier.start.initialization import make_model


def test_an_ensemble_of_copies_is_refused(make_tier_model):
    weights = {name: hash_weights(make_tier_model(seed)[0]) for name, seed in (("a", 0), ("b", 1), ("c", 0))}
    check_members_differ({name: weights[name] for name in "ab"})
    with pytest.raises(ValueError, match="a and c have identical weights"):
        check_members_differ(weights)


@pytest.fixture
def folder(tmp_path, tier_model):
    for part in tier_model:
        part.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_saved_model_embeds_as_before(folder, tier_model, phantom):
    model, processor = load_model(folder)
    assert not model.training and model.dtype == torch.float32
    np.testing.assert_array_equal(embed_images(model, processor, phantom), embed_images(*tier_model, phantom))


def test_a_plain_clip_model_is_evaluated_too(make_tier_model, phantom, tmp_path):
    model, processor = make_tier_model(0)
    model.config.image_pooling = "cls"
    clip = model.to_clip()
    assert type(clip) is CLIPModel
    clip.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, loaded_processor = load_model(tmp_path)
    assert type(loaded) is CLIPModel and not takes_uint8(loaded, loaded_processor)
    options = {"findings": ["Cardiomegaly"], "min_positives": 1, "resampling": Resampling(10)}
    as_clip, _ = evaluate_zero_shot({"m": (loaded, loaded_processor)}, phantom, **options)
    as_tier, _ = evaluate_zero_shot({"m": (model, processor)}, phantom, **options)
    model.config.image_pooling = "patch_mean"
    assert as_clip["mean"]["auroc"] == pytest.approx(as_tier["mean"]["auroc"], abs=1e-9)


def test_what_is_no_model_folder_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="The model folder .*nowhere is not on this disk"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"config.json is missing\): did you mean .*model"):
        load_model(tmp_path)
    (folder / "model.safetensors").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="does not hold weights"):
        load_model(folder)
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ValueError, match="does not hold weights .*pickled weights .* tier-convert reads"):
        load_model(folder)


def test_a_model_that_is_converted_first_is_told(tmp_path):
    for kind, family in (("chexficient", "CheXficient"), ("cxr-bert", "BioViL")):
        folder = tmp_path / kind
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model_type": kind, "auto_map": {"AutoModel": "x.Y"}}))
        (folder / "model.safetensors").write_bytes(b"")
        with pytest.raises(ValueError) as error:
            load_model(folder)
        assert str(error.value) == (
            f"The model {folder} is {family}'s: `tier-convert {folder} FOLDER` reads it without its owner's code; "
            "then name that FOLDER."
        )


def test_an_adapter_alone_is_to_be_merged_first(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    message = (
        f"The folder {tmp_path} holds only a LoRA adapter (adapter_config.json). Merge it into its model "
        "(peft's merge_and_unload, then save_pretrained), and pass the folder of the merged model."
    )
    for load in (load_model, lambda folder: make_model(ModelArguments(model=str(folder)), [])):
        with pytest.raises(ValueError) as error:
            load(tmp_path)
        assert str(error.value) == message


def test_damaged_folders_are_refused(folder, tmp_path):
    for name, content in {
        "model.safetensors": (folder / "model.safetensors").read_bytes()[:-1000],
        "config.json": b"{",
    }.items():
        broken = tmp_path / f"broken_{name}"
        shutil.copytree(folder, broken)
        (broken / name).write_bytes(content)
        with pytest.raises(ValueError, match="does not load"):
            load_model(broken)
    without_processor = tmp_path / "without"
    shutil.copytree(folder, without_processor)
    for path in without_processor.glob("*[rt][_o]*.json"):
        if path.name != "config.json":
            path.unlink()
    with pytest.raises(ValueError, match="does not load|processor"):
        load_model(without_processor)


def test_a_text_of_a_model_has_a_bound(folder):
    os.truncate(folder / "config.json", 64 * 2**20 + 1)  # takes no space on the disk
    with pytest.raises(ValueError) as error:
        load_model(folder)
    assert str(error.value) == f"{folder / 'config.json'} is larger than 64 MiB; download it again."


def test_weights_that_do_not_fill_the_model_are_refused(folder):
    """Silence here would evaluate random weights (TIER's strict=False did)."""
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] += 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="lack 16 of the model's tensors, for example vision_model"):
        load_model(folder)


def test_weights_that_the_model_does_not_use_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] -= 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"^The weights of {folder} hold 16 tensors .* for example vision_model"):
        load_model(folder)


def test_weights_of_other_shapes_are_refused(folder, capfd):
    config = json.loads((folder / "config.json").read_text())
    text = config["text_config"]
    words, width = text["vocab_size"], text["hidden_size"]
    text["vocab_size"] += 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError) as error:
        load_model(folder)
    assert str(error.value) == (
        f"The weights of {folder} hold 1 tensors of other shapes than the model's, for example "
        f"text_model.embeddings.token_embedding.weight, {(words, width)} in place of {(words + 1, width)}: "
        "config.json belongs to another model."
    )
    assert "REPORT" not in capfd.readouterr().err  # of the library


def test_a_model_of_another_kind_is_refused(folder, tmp_path):
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=20)
    shutil.copytree(folder, tmp_path / "bert")
    BertModel(config).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="BertModel, which does not embed images and texts"):
        load_model(tmp_path / "bert")


def test_devices():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device().type in ("cpu", "cuda")
    for name in ("gpu", "cuda:99"):
        with pytest.raises(ValueError, match=f"'{name}' cannot be used here"):
            choose_device(name)


def test_models_are_called_without_the_folders_of_this_machine(tmp_path, monkeypatch):
    for folder in ("a/runs/x", "b/runs/x", "a/runs/y"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a")

    def shown(*names) -> list[str]:
        assert list(short_names(names)) == list(names)
        return list(short_names(names).values())

    assert shown(str(tmp_path / "a/runs/x"), "runs/y", "owner/name") == ["runs/x", "runs/y", "owner/name"]
    assert shown("./runs/x/") == shown("../a/runs/x") == ["runs/x"]
    assert shown(str(tmp_path / "a/runs/x"), str(tmp_path / "b/runs/x")) == ["a/runs/x", "b/runs/x"]
    monkeypatch.chdir(tmp_path / "a" / "runs" / "x")
    assert shown(".") == ["runs/x"]
    with pytest.raises(ValueError, match="^../y and ../y/ name the same model: leave one of the two out.$"):
        short_names(["../y", "../y/"])
