"""The cards in `model_cards/`: they are what the template makes of the numbers beside them, of runs of the recipes."""

import json
import re
import shutil

import pytest
import render_cards

from evaluation_tier.output.metrics_file import read_metrics, write_metrics
from evaluation_tier.output.model_card import CARD_FOLDER, CARD_TEMPLATE
from processing_tier.yaml_files import read_yaml

ROOT = CARD_FOLDER.parent
cards = pytest.mark.parametrize("name", render_cards.RECIPES)


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A copy of `model_cards/` in place of it."""
    shutil.copytree(CARD_FOLDER, tmp_path / "model_cards")
    monkeypatch.setattr(render_cards, "CARD_FOLDER", tmp_path / "model_cards")
    return tmp_path / "model_cards"


def test_rendering_again_changes_nothing(copied):
    before = {path: path.read_bytes() for path in sorted(copied.rglob("*")) if path.is_file()}
    for name in render_cards.RECIPES:
        (copied / name / "README.md").unlink()
    render_cards.main([])
    after = {path: path.read_bytes() for path in sorted(copied.rglob("*")) if path.is_file()}
    assert after == before, "a card is not what the template makes: run python examples/render_cards.py"


@cards
def test_the_card_has_the_sections_of_the_template_and_nothing_unfilled(name):
    card = (CARD_FOLDER / name / "README.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)$", CARD_TEMPLATE.read_text(encoding="utf-8"), re.MULTILINE)
    assert re.findall(r"^## (.*)$", card, re.MULTILINE) == headings
    assert not re.search(r"\{[{%]|/work|/tmp|/home|seed-0", card)


@cards
def test_the_card_is_of_a_run_of_the_recipe(name):
    recipe = read_yaml(ROOT / render_cards.RECIPES[name])
    config, facts = (
        json.loads((CARD_FOLDER / name / file).read_text()) for file in ("config.json", "training_facts.json")
    )
    for weight in ("token_entropy_weight", "patch_entropy_weight"):
        assert config[weight] == recipe[weight]
    assert facts["epochs"] == recipe["num_train_epochs"] and facts["learning_rate"] == float(recipe["learning_rate"])
    assert (
        facts["batch_size"] == recipe["per_device_train_batch_size"] and recipe["model"] in facts["initialized_from"]
    )


def test_a_new_run_takes_the_place_of_the_old_one(copied, tmp_path):
    model, evaluation = tmp_path / "model", tmp_path / "evaluation"
    shutil.copytree(CARD_FOLDER / "phantom", model)
    metrics = read_metrics(CARD_FOLDER / "phantom")
    metrics["n_images"], metrics["models"] = 299, ["somewhere/else"]
    sparsity = metrics["sparsity"]["models"]
    sparsity["somewhere/else"] = sparsity.pop("tier-phantom") | {"ranked": {}}
    evaluation.mkdir()
    write_metrics(evaluation / "metrics.json", metrics)
    render_cards.main(["--phantom", str(model), str(evaluation)])
    card = (copied / "phantom" / "README.md").read_text(encoding="utf-8")
    assert "299 images" in card and "somewhere" not in card
    kept = read_metrics(copied / "phantom")
    assert kept["models"] == list(kept["sparsity"]["models"]) == ["tier-phantom"]
    assert (copied / "indiana" / "README.md").read_bytes() == (CARD_FOLDER / "indiana" / "README.md").read_bytes()
