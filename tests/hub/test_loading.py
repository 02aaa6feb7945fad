"""What was saved or pushed loads by transformers alone, gives the same numbers, and holds the shipped code."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from shipped import PROCESSOR_CODE
from transformers import AutoModelForImageClassification, pipeline
from transformers.models.auto.image_processing_auto import AutoImageProcessor

from evaluation_tier.models.loading import load_model
from hub.contract import (
    FINDINGS,
    MODEL_CODE,
    SENTENCES,
    STEPS,
    assert_same,
    code_in,
    expected_logits,
)


def essence(config):
    """What is left of a configuration when transformers loads and saves it."""
    if not isinstance(config, dict):
        return config
    return {key: essence(value) for key, value in config.items() if key not in ("dtype", "use_cache")}


@pytest.mark.slow
@pytest.mark.parametrize("source", ["folder", "trainer", "parts", "own"])
@pytest.mark.parametrize("name", ["clip", "dual"])
def test_remote_code_gives_the_same_numbers(clean, runs, name, source):
    result, folder = clean
    seen = result[f"{name}-{source}"]
    expected = expected_logits(runs[name], folder)
    for logits in seen["logits"]:  # of AutoModel and of AutoModelForZeroShotImageClassification
        assert_same(logits, expected)
    model_class, config_class = {
        "clip": ("TierCLIPModel", "TierCLIPConfig"),
        "dual": ("TierDualEncoderModel", "TierDualEncoderConfig"),
    }[name]
    assert seen["same_ids"] and seen["same_pixels"]
    assert seen["classes"] == [config_class, model_class, "TierProcessor", "TierImageProcessor"]
    assert seen["modules"] == ["transformers_modules"] * 4


@pytest.mark.slow
@pytest.mark.parametrize("source", ["folder", "trainer", "parts", "stock", "own"])
@pytest.mark.parametrize("name", ["clip", "dual"])
def test_both_pipelines_give_the_same_numbers(clean, runs, name, source):
    result, folder = clean
    seen = result[f"{name}-{source}"]
    expected = expected_logits(runs[name], folder)[0].softmax(-1).tolist()
    assert seen["stock"] == pytest.approx(dict(zip(SENTENCES, expected, strict=True)), abs=1e-6)

    task, module, scores = seen["own"]
    assert (task, module) == ("cxr-zero-shot-classification", "transformers_modules")
    model, processor = load_model(runs[name])
    here = pipeline(task, model=model, processor=processor)(Image.open(folder / "image.png"), findings=FINDINGS)
    assert [score["label"] for score in scores] == FINDINGS
    assert [score["score"] for score in scores] == pytest.approx([score["score"] for score in here], abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["folder", "parts"])
@pytest.mark.parametrize("name", ["clip", "dual"])
def test_what_came_as_remote_code_can_be_saved_and_pushed_again(clean, hub, runs, name, source):
    result, folder = clean
    expected = expected_logits(runs[name], folder)
    for again in ("saved again", "pushed again"):
        assert_same(result[f"{name}-{source}"][again], expected)
    saved = folder / "again" / f"{name}-{source}"
    repo = hub.repos[f"user/again-{name}-{source}"]
    files = repo.commits[-1].files
    assert code_in(path.name for path in saved.iterdir()) == code_in(files) == MODEL_CODE[name] | PROCESSOR_CODE
    assert repo.private
    for path in ("config.json", "processor_config.json", "tokenizer_config.json"):
        for text in ((saved / path).read_text(), files[path].decode()):
            assert "--" not in text  # no class that lies in another repository
            if path != "tokenizer_config.json":
                assert essence(json.loads(text)) == essence(json.loads((runs[name] / path).read_text()))


@pytest.mark.parametrize("name", ["clip", "dual"])
def test_exactly_the_shipped_files_are_copied(hub, runs, pushed, tmp_path, name):
    pushed[name].save_pretrained(tmp_path)
    assert code_in(path.name for path in tmp_path.iterdir()) == MODEL_CODE[name]
    folders = [runs[name], *runs[name].glob("checkpoint-*")]
    listings = [[path.name for path in folder.iterdir()] for folder in folders]
    for listing in [*listings, hub.repos[f"user/{name}-parts"].commits[-1].files]:
        assert code_in(listing) == MODEL_CODE[name] | PROCESSOR_CODE
    config = json.loads((runs[name] / "config.json").read_text())
    module = "modeling_dual_tier" if name == "dual" else "modeling_tier"
    model_class = f"{module}.{config['architectures'][0]}"
    assert config["auto_map"] == {
        "AutoConfig": f"configuration_tier.{config['architectures'][0].replace('Model', 'Config')}",
        "AutoModel": model_class,
        "AutoModelForZeroShotImageClassification": model_class,
    }


@pytest.mark.slow
@pytest.mark.parametrize("source", ["clip-last-checkpoint", "dual-checkpoint-3", "dual-checkpoint-6"])
def test_a_checkpoint_in_a_folder_of_its_own_loads_and_can_be_resumed(clean, hub, runs, source):
    result, folder = clean
    name, subfolder = source.split("-", 1)
    checkpoint = runs[name] / ("checkpoint-6" if subfolder == "last-checkpoint" else subfolder)
    for logits in result[source]["logits"]:
        assert_same(logits, expected_logits(checkpoint, folder))
    files = hub.repos[f"user/{name}"].commits[-1].files
    assert {path.name for path in checkpoint.iterdir()} <= {Path(path).name for path in files if subfolder in path}
    assert f"{subfolder}/optimizer.pt" in files


@pytest.mark.slow
@pytest.mark.parametrize("source", ["trainer", "step"])
def test_a_classifier_loads_by_name_as_well(clean, hub, classifier, source):
    result, folder = clean
    where = classifier if source == "trainer" else classifier / f"checkpoint-{STEPS[0]}"
    model = AutoModelForImageClassification.from_pretrained(where)
    pixels = AutoImageProcessor.from_pretrained(where)(Image.open(folder / "image.png"), return_tensors="pt")
    with torch.no_grad():
        expected = model.eval()(**pixels).logits
    for logits in result[f"classifier-{source}"].values():
        assert_same(logits, expected)
    files = hub.repos[f"user/again-classifier-{source}"].commits[-1].files
    assert code_in(files) == MODEL_CODE["classifier"] | PROCESSOR_CODE - {"processing_tier.py"}
    assert code_in(files) == code_in(path.name for path in where.iterdir())


@pytest.mark.slow
def test_the_hub_was_asked_for_nothing_it_does_not_have(hub, clean):
    assert hub.unknown == []
