"""A recipe gives values of the types that the options have; the command line's model decides which of them fit."""

import logging
from pathlib import Path

import pytest

from training_tier.options.data import DataArguments
from training_tier.options.model import ModelArguments
from training_tier.options.parsing import parse_arguments
from training_tier.options.recipes import RECIPE_FOLDER, find_recipe, list_recipes
from training_tier.options.task import TaskArguments
from training_tier.options.training import TierTrainingArguments

KINDS = (TaskArguments, ModelArguments, DataArguments, TierTrainingArguments)


@pytest.fixture
def parse(tmp_path):
    def parse(text, *argv):
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(text)
        words = [str(recipe), "--output_dir", str(tmp_path / "run"), "--use_cpu", "--report_to", "none", *argv]
        values = {}
        for group in parse_arguments(words, KINDS, "train_tier.py"):
            values |= {name: getattr(group, name) for name in group.__dataclass_fields__}
        return values

    return parse


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("learning_rate: 5e-5", "learning_rate", 5e-5),
        ("num_train_epochs: 3", "num_train_epochs", 3),
        ("per_device_train_batch_size: 1e1", "per_device_train_batch_size", 10),
        ("max_steps: 7.0", "max_steps", 7),
        ("findings: [Edema, 'No Finding']", "findings", ["Edema", "No Finding"]),
        ("findings: null", "findings", None),
        ("sample_sentences: yes", "sample_sentences", True),
        ("bf16: false", "bf16", False),
        ("lr_scheduler_kwargs: {num_cycles: 0.4}", "lr_scheduler_kwargs", {"num_cycles": 0.4}),
        ("image_size: 96", "image_size", 96),
        ("model: 'no'", "model", "no"),
    ],
)
def test_values_have_the_types_of_the_options(parse, text, name, value):
    read = parse(text)[name]
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("findings: Edema", "findings='Edema' is not a list of texts; write for example [Edema, Cardiomegaly]."),
        ("findings: [no]", "findings=[False] holds False, which is not text; put each item in quotes."),
        ("findings: [Edema, 3]", "findings=['Edema', 3] holds 3, which is not text; put each item in quotes."),
        ("findings: []", "findings=[] is not a list of texts; write for example [Edema, Cardiomegaly]."),
        ("model: 5", "model=5 is not text; put it in quotes."),
        ("model: no", "model=False is not text; put it in quotes."),
        ("model: [tiny]", "model=['tiny'] is not text; put it in quotes."),
        ("model: null", "model=None is not text; put it in quotes."),
        ("eval_split: 1", "eval_split=1 is not text; put it in quotes."),
        ("image_size: big", "image_size='big' is not a whole number; write it in digits."),
        ("image_size: 11.5", "image_size=11.5 is not a whole number; write it in digits."),
        ("image_size: true", "image_size=True is not a whole number; write it in digits."),
        ("seed: 2024-01-02", "seed=datetime.date(2024, 1, 2) is not a whole number; write it in digits."),
        ("seed: .inf", "seed=inf is not a whole number; write it in digits."),
        ("learning_rate: [1]", "learning_rate=[1] is not a number; write it in digits."),
        ("learning_rate: null", None),
        ("num_train_epochs: null", "num_train_epochs=None is not a number; write it in digits."),
        ("sample_sentences: 1", "sample_sentences=1 is not a truth value; write true or false."),
        ("sample_sentences: 'true'", "sample_sentences='true' is not a truth value; write true or false."),
        ("lr_scheduler_kwargs: [1]", "lr_scheduler_kwargs=[1] is not a mapping; write {name: value}."),
        (
            "log_level: loud",
            "log_level='loud' is not known; choose one of detail, debug, info, warning, error, critical, passive.",
        ),
        ("seed: 1\nseed: 2", ": line 2 names 'seed' twice; keep one of them."),
    ],
)
def test_values_of_other_types_are_refused(parse, text, message):
    if message is None:
        assert parse(text)["learning_rate"] == 5e-4
        return
    with pytest.raises(ValueError) as error:
        parse(text)
    assert str(error.value).endswith(message) and "recipe.yaml: " in str(error.value)


def test_ranges_hold_for_a_recipe_too(parse):
    with pytest.raises(ValueError, match="^image_size=0 must be at least 1.$"):
        parse("image_size: 0")
    with pytest.raises(ValueError, match="^learning_rate=1e\\+99 is|^num_train_epochs=inf must be a finite number.$"):
        parse("num_train_epochs: .inf")


@pytest.mark.parametrize(
    ("text", "argv", "note", "left"),
    [
        (
            "text_warmup_epochs: 3\nseed: 7",
            ["--model", "owner/x"],
            "Ignored, because the recipe's option does not fit a checkpoint (--model owner/x): text_warmup_epochs=3.",
            {"text_warmup_epochs": 0, "model": "owner/x", "seed": 7},
        ),
        (
            "model: resnet-tiny\ntext_warmup_epochs: 3\nvocab_size: 600",
            ["--vision_model", "a", "--text_model", "b"],
            "Ignored, because the recipe's options do not fit two towers: model=resnet-tiny, text_warmup_epochs=3, "
            "vocab_size=600.",
            {"text_warmup_epochs": 0, "vision_model": "a", "model": "tiny", "vocab_size": 4000},
        ),
        (
            "model: models/biovil\nfrozen_text_layers: 8",
            ["--model=small"],
            "Ignored, because the recipe's option does not fit random weights (--model small): frozen_text_layers=8.",
            {"frozen_text_layers": None, "model": "small"},
        ),
        ("text_warmup_epochs: 3", ["--model", "small"], None, {"text_warmup_epochs": 3}),
        ("text_warmup_epochs: 3", [], None, {"text_warmup_epochs": 3}),
        ("text_warmup_epochs: 0", ["--model", "owner/name"], None, {"text_warmup_epochs": 0}),
    ],
)
def test_what_does_not_fit_the_command_lines_model_is_left_out_with_a_note(parse, caplog, text, argv, note, left):
    with caplog.at_level(logging.WARNING):
        values = parse(text, *argv)
    assert {name: values[name] for name in left} == left
    assert [record.getMessage() for record in caplog.records] == ([note] if note else [])


def test_what_the_command_line_itself_asks_for_is_still_refused(parse):
    with pytest.raises(ValueError, match="^text_warmup_epochs=2 is for random weights .*; leave it out.$"):
        parse("text_warmup_epochs: 3", "--model", "owner/name", "--text_warmup_epochs", "2")
    with pytest.raises(ValueError, match="^text_warmup_epochs=3 is for random weights .*; leave it out.$"):
        parse("model: owner/name\ntext_warmup_epochs: 3")


def test_a_recipe_comes_first(parse):
    with pytest.raises(ValueError, match="^Unknown word 'indiana'; a recipe comes first: train_tier.py RECIPE --opt"):
        parse("seed: 1", "indiana")


def test_options_are_written_in_full(parse):
    with pytest.raises(ValueError, match="^Unknown option '--text_warm'; did you mean 'text_warmup_epochs'\\?$"):
        parse("seed: 1", "--text_warm", "2")


def test_a_recipe_is_found_by_its_name_or_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = RECIPE_FOLDER / "indiana.yaml"
    assert shipped.is_file() and "indiana" in list_recipes()
    for name in ("indiana", "configs/indiana.yaml", str(shipped)):
        assert find_recipe(name) == shipped
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "indiana.yaml").touch()
    assert find_recipe("configs/indiana.yaml") == Path("configs/indiana.yaml")
    for name in ("indianna", "indiana.yaml", "../configs/indiana", "runs/indiana.yaml"):
        with pytest.raises(ValueError) as error:
            find_recipe(name)
        names = ", ".join(list_recipes())
        assert str(error.value) == f"The recipe {name} is not known; name a YAML file, or one of {names}."


def test_the_first_word_is_a_recipe(tmp_path):
    words = ["demo-phantom", "--output_dir", str(tmp_path / "run"), "--use_cpu", "--report_to", "none"]
    assert parse_arguments(words, KINDS, "tier-train") == parse_arguments(
        [str(RECIPE_FOLDER / "demo-phantom.yaml"), *words[1:]], KINDS, "tier-train"
    )
