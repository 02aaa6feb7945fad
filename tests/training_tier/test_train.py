"""`train`, the function: the same options, checks and results as those of the command."""

import logging
from pathlib import Path

import pytest
from training_runs import QUICK

from tier_clip import train
from training_tier.options.parsing import command_words, make_options, parse_options
from training_tier.options.recipes import RECIPE_FOLDER

SMALL = {
    "data": "phantom:num_images=48,image_size=64",
    "image_size": 32,
    "eval_split": "validation",
    "per_device_train_batch_size": 8,
    "num_train_epochs": 1,
    "min_positives": 2,
    "report_to": "none",
    "use_cpu": True,
    "disable_tqdm": True,
}


def test_a_training_returns_the_best_checkpoint_and_its_metric(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="training_tier")
    result = train(model="tiniest", output_dir=tmp_path / "run", **SMALL)
    assert result.output_dir == tmp_path / "run" and (result.output_dir / "model.safetensors").is_file()
    assert result.metric == "eval_auroc" and result.best_checkpoint == tmp_path / "run" / "checkpoint-6"
    evaluations = [entry for entry in result.log_history if "eval_auroc" in entry]
    assert result.best_metric == evaluations[-1]["eval_auroc"]
    assert result.search == []
    assert f"Best checkpoint: checkpoint-6, eval_auroc {result.best_metric:.4f}." in caplog.text
    told = f"is in {tmp_path / 'run'}. Evaluate it: tier-eval {tmp_path / 'run'} --data {SMALL['data']}"
    assert told in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_train_epoch": 1}, "train(): unknown option 'num_train_epoch'; did you mean 'num_train_epochs'?"),
        ({"num_train_epochs": "many"}, "train(): num_train_epochs='many' is not a number; write it in digits."),
        ({"findings": "Edema"}, "train(): findings='Edema' is not a list of texts; write for example [Edema, "),
        ({"sample_sentences": "yes"}, "train(): sample_sentences='yes' is not a truth value; write true or false."),
        ({"data": 3}, "train(): data=3 is not text; put it in quotes."),
        ({"output_dir": ""}, "output_dir is empty; name a new folder."),
        ({"model": "absent", "output_dir": "run"}, "absent"),
        ({"recipe": "absent"}, "The recipe absent is not known; name a YAML file, or one of "),
    ],
)
def test_what_is_refused(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as error:
        train(**options)
    assert message in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_a_run_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="already holds a run; choose another"):
        train(model="tiniest", output_dir=tmp_path, **SMALL)


def as_dicts(options) -> list[dict]:
    return [
        {name: value for name, value in vars(group).items() if name not in ("logging_dir", "distributed_state")}
        for group in options
    ]


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPE_FOLDER.glob("*.yaml")))
def test_the_options_are_those_of_the_command(recipe):
    given = {"data": "phantom", "use_cpu": True, "min_positives": 3, "columns": {"image": "Path", "Edema": "edema"}}
    words = ["--data", "phantom", "--use_cpu", "--min_positives", "3", "--columns", "image=Path", "Edema=edema"]
    from_python = make_options(recipe, {**given, "output_dir": Path("runs/x"), "findings": ("Edema", "Nodule")})
    words += ["--output_dir", "runs/x", "--findings", "Edema", "Nodule"]
    assert str(as_dicts(from_python)) == str(as_dicts(parse_options([recipe, *words], "tier-train")))
    told = command_words(recipe, {**given, "output_dir": Path("runs/x"), "findings": ("Edema", "Nodule")})
    assert str(as_dicts(from_python)) == str(as_dicts(parse_options(told[1:], "tier-train")))


def test_the_model_replaces_what_does_not_fit_it(caplog):
    options = make_options("tier", {"model": "tiniest", "use_cpu": True})
    assert options.model.vision_model is None and options.model.model == "tiniest"
    assert "Ignored, because the recipe's" in caplog.text
    assert str(as_dicts(options)) == str(as_dicts(parse_options(["tier", "--model", "tiniest", "--use_cpu"], "x")))


@pytest.mark.slow
def test_the_command_is_this_function(tmp_path, capsys):
    """The same weights, bit by bit."""
    import train_tier

    result = train(model="tiniest", output_dir=tmp_path / "python", **SMALL)
    train_tier.main([*QUICK, "--model", "tiniest", "--output_dir", str(tmp_path / "command")])
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("python", "command")]
    assert weights[0] == weights[1] and result.output_dir.name == "python"
