import pytest
import torch

from training_tier.options import training
from training_tier.options.data import DataArguments
from training_tier.options.model import ModelArguments
from training_tier.options.parsing import parse_arguments
from training_tier.options.training import TierTrainingArguments

TYPES = (ModelArguments, DataArguments, TierTrainingArguments)


def parse(*argv):
    return parse_arguments(argv, TYPES, "train_tier.py")


def test_a_recipe_gives_values_and_the_command_line_overrides_them(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: small\nlearning_rate: 5e-5\nsample_sentences: true\nfindings: [Edema, Fracture]\n")
    model, data, training = parse(str(recipe), "--model", "tiny", "--output_dir", str(tmp_path / "run"))
    assert (model.model, data.sample_sentences, data.findings) == ("tiny", True, ["Edema", "Fracture"])
    assert training.learning_rate == 5e-5  # YAML 1.1 reads 5e-5 as text


def test_defaults_that_differ_from_transformers(tmp_path):
    training = parse("--output_dir", str(tmp_path))[2]
    assert training.metric_for_best_model == "eval_auroc" and training.load_best_model_at_end
    assert training.hub_private_repo is True and training.remove_unused_columns is False
    assert training.adam_beta2 == 0.98 and training.lr_scheduler_type == "cosine"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--deidentified", "drop"], "deidentified='drop' is not known; choose one of keep, remove, replace."),
        (
            ["--sample_sentences", "--deidentified", "replace"],
            "deidentified='replace' has no effect with sample_sentences, which removes the marks; leave it out.",
        ),
        (["--lerning_rate", "1"], "^Unknown option '--lerning_rate'; did you mean 'learning_rate'\\?$"),
        (
            ["none.yaml"],
            "^The recipe none.yaml is not known; name a YAML file, or one of ceiling-phantom, chexzero, demo, ",
        ),
        (["--text", "history"], "^text='history' is not known; choose one of impression, findings, both.$"),
        (["--geometry", "stretch"], "^geometry='stretch' is not known; choose one of pad, crop, squash.$"),
        (["--eval_fraction", "1.5"], "^eval_fraction=1.5 must be above 0 and below 1.$"),
        (["--columns", "image"], "^--columns takes NAME=COLUMN, for example image=Path, but got 'image'.$"),
        (
            ["--columns", "image=Path", "image=File"],
            "^--columns gives 'image' two columns, 'Path' and 'File'; keep one.$",
        ),
        (
            ["--lr_scheduler_kwargs", "{num_cycles: 1}"],
            "^lr_scheduler_kwargs='{num_cycles: 1}' is not valid JSON .Expec",
        ),
        (["--output_dir", ""], "^output_dir is empty; name a new folder.$"),
        (["--max_train_images", "1"], "^max_train_images=1 must be at least 2.$"),
        (["--vision_model", "x"], "^vision_model and text_model go together; name both, or a --model.$"),
        (
            ["--vision_model", "x", "--text_model", "y", "--model", "small"],
            "^model has no effect with vision_model and text_model; leave it out.$",
        ),
        (
            ["--vision_model", "x", "--text_model", "y", "--text_warmup_epochs", "1"],
            "^text_warmup_epochs has no effect with vision_model and text_model; leave it out.$",
        ),
        (
            ["--model", "resnet-50-bert", "--frozen_text_layers", "8"],
            "^frozen_text_layers=8 would freeze the random weights of 'resnet-50-bert'; it is for pretrained",
        ),
        (["--pad_to_multiple_of", "0"], "^pad_to_multiple_of=0 must be at least 1.$"),
        (["--remove_unused_columns", "true"], "^remove_unused_columns=True would remove the images; leave it out.$"),
    ],
)
def test_bad_options_are_refused(argv, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        parse(*argv)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modell: tiny\n", "unknown option 'modell'; did you mean 'model'\\?$"),
        ("- a\n", "does not hold options; write one `name: value` a line.$"),
        (
            "a: [\n",
            "the file is not valid YAML .line 2: expected the node content, but found '<stream end>'.; fix it.$",
        ),
    ],
)
def test_bad_recipes_are_refused(text, message, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    with pytest.raises(ValueError, match=message):
        parse(str(recipe))


def test_workers_and_precision_are_those_of_the_machine_unless_given(tmp_path, monkeypatch):
    def chosen(*argv):
        training = parse("--output_dir", str(tmp_path), "--use_cpu", "true", *argv)[2]
        return training.dataloader_num_workers, training.bf16, training.pad_to_multiple_of

    assert chosen() == (0, False, None)
    assert chosen("--dataloader_num_workers", "3", "--bf16", "true", "--pad_to_multiple_of", "8") == (3, True, 8)
    assert chosen("--torch_compile", "true")[2] == 16

    monkeypatch.setattr(training, "usable_cores", lambda: 16)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: not including_emulation)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert training.choose_workers(use_cpu=False) == 15 and training.choose_workers(use_cpu=True) == 0
    assert training.choose_bf16(use_cpu=False) and not training.choose_bf16(use_cpu=True)
    for processes, workers in (("4", 3), ("16", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        assert training.choose_workers(use_cpu=False) == workers
    monkeypatch.setattr(training, "usable_cores", lambda: 96)
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert training.choose_workers(use_cpu=False) == 16


def test_columns_of_a_table():
    assert DataArguments(columns=["image=Path", "Edema=edema=x"]).table_options().columns == {
        "image": "Path",
        "Edema": "edema=x",
    }
    assert DataArguments().table_options().columns is None


def test_an_output_folder_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").touch()
    for name in ("file", "file/run"):
        with pytest.raises(ValueError, match=f"^output_dir '.*{name}' cannot be written; choose another.$"):
            TierTrainingArguments(output_dir=str(tmp_path / name), use_cpu=True).check_output_dir()


def test_a_finished_run_is_not_overwritten(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="already holds a run; choose another, or resume that run with"):
        TierTrainingArguments(output_dir=str(tmp_path), use_cpu=True).check_output_dir()
    TierTrainingArguments(output_dir=str(tmp_path), use_cpu=True, resume_from_checkpoint="last").check_output_dir()
    TierTrainingArguments(output_dir=str(tmp_path / "new"), use_cpu=True).check_output_dir()
