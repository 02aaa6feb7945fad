"""The recipes in configs/: each is accepted, and those of the references say where each value comes from."""

import json
from enum import Enum

import pytest
import torch
import yaml
from safetensors.torch import load_file
from training_runs import QUICK, run

from training_tier.options.parsing import parse_options
from training_tier.options.recipes import RECIPE_FOLDER

RECIPES = sorted(path.name for path in RECIPE_FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_accepted(name, tmp_path):
    recipe = RECIPE_FOLDER / name
    words = [str(recipe), "--output_dir", str(tmp_path / "run"), "--use_cpu", "--report_to", "none"]
    parsed = parse_options(words, "train_tier.py")
    values = yaml.safe_load(recipe.read_text())
    given = {name: getattr(group, name) for group in parsed for name in group.__dataclass_fields__ if name in values}
    assert given.keys() == values.keys()
    for name, value in values.items():
        read = given[name].value if isinstance(given[name], Enum) else given[name]
        assert read == type(read)(value), name  # YAML 1.1 reads 5e-5 as text


@pytest.mark.parametrize("name", ["chexzero.yaml", "tier.yaml", "tier-vit.yaml"])
def test_every_line_of_a_references_recipe_says_where_it_comes_from(name):
    lines = (RECIPE_FOLDER / name).read_text().splitlines()
    options = [line for line in lines if not line.startswith("#")]
    marks = ("[field]", "[paper]", "[guess]") if name == "tier-vit.yaml" else ("[code]", "[runs]", "[ours]")
    assert len(options) > 20
    for line in options:
        assert any(mark in line.partition("#")[2] for mark in marks), line


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chexzero.yaml", "tier.yaml", "tier-vit.yaml"])
def test_the_references_recipes_train_a_small_stand_in(name, tmp_path):
    base = tmp_path / "base"
    few = ["--max_steps", "2", "--logging_steps", "1", "--num_train_epochs", "1"]
    few += ["--eval_strategy", "steps", "--eval_steps", "1", "--save_strategy", "steps", "--save_steps", "1"]
    preset = "resnet-tiny" if name == "tier.yaml" else "tiny"
    run(*QUICK, *few, "--model", preset, "--output_dir", base, "--learning_rate", "1e-3")
    options = [word for word in QUICK if word not in ("--num_train_epochs", "1")] + few
    options += ["--model", base, "--findings", "Consolidation", "Pleural Effusion", "--bf16", "false"]
    if name == "tier.yaml":
        options += ["--frozen_text_layers", "1"]  # of 2
    run(RECIPE_FOLDER / name, *options, "--output_dir", tmp_path / "run")
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "run"))
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    frozen = {key for key in before if key.startswith(("text_model.embeddings.", "text_model.encoder.layers.0."))}
    assert "visual_projection.weight" in moved or "visual_projection.0.weight" in moved
    assert (not moved & frozen) == (name == "tier.yaml")
    settings = json.loads((tmp_path / "run" / "training_args.json").read_text())
    assert settings["optim"] == {"chexzero.yaml": "sgd"}.get(name, settings["optim"])
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["image_pooling"] == ("cls" if name == "chexzero.yaml" else "patch_mean")
