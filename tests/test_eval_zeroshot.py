import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from eval_command import PHANTOM, fails, run, save_two_models

from eval_zeroshot import main


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[Path]:
    return save_two_models(tmp_path_factory.mktemp("models"))


def test_options_may_come_first(models, tmp_path, capsys):
    run(
        "--data", PHANTOM, "--min_positives", 5, "--n_bootstrap", 5, "--output_dir", tmp_path, models[0], capsys=capsys
    )
    assert (tmp_path / "metrics.json").is_file()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["m", "--datta", "phantom"], "unknown option --datta: did you mean --data?"),
        (["m", "--output-dir", "x"], "unknown option --output-dir: did you mean --output_dir?"),
        (["m", "--data", "phantom", "--zzz=3"], "unknown option --zzz=3: see eval_zeroshot.py --help."),
        (["m", "--data", "phantom", "--find", "Edema"], "unknown option --find: did you mean --findings?"),
        (
            ["--data", "phantom"],
            "the model is missing: give the folder that tier-train wrote, or a name on the Hub.",
        ),
        (["m", "m", "--data", "phantom"], "the model m is named twice: leave one of the two out."),
        (["m", "m", "--each", "--data", "phantom"], "the model m is named twice: leave one of the two out."),
        (["m"], '--data is missing: give "phantom", a folder, or a table.'),
        (["m", "--data", "phantom", "--n_bootstrap", "0"], "--n_bootstrap must be at least 1, but is 0."),
        (["m", "--data", "phantom", "--batch_size", "-2"], "--batch_size must be at least 1, but is -2."),
        (["m", "--data", "phantom", "--seed", "x"], "argument --seed: invalid int value: 'x'"),
        (["m", "--data", "phantom", "--seed", "-1"], "--seed must not be negative, but is -1."),
        (
            ["m", "--data", "phantom", "--columns", "image=A", "image=B"],
            "--columns gives 'image' two columns, 'A' and 'B'; keep one.",
        ),
        (["m", "--data", "phantom", "--split", ""], "--split is empty: leave it out, or give a value."),
        (["m", "--data", "phantom", "--output_dir", ""], "--output_dir is empty: leave it out, or give a value."),
        (
            ["m", "--data", "phantom", "--batch_size", "9" * 30],
            "--batch_size must be at most 2,147,483,647, but is 999",
        ),
        (
            ["m", "--data", "phantom", "--output_dir", "/proc/x"],
            "the folder /proc/x cannot be written: choose another",
        ),
        (["m", "--data", "phantom", "--columns", "Path"], "--columns takes NAME=COLUMN, for example image=Path, but"),
        (["a", "b", "--data", "phantom", "--model_card"], "--model_card is for one model: evaluate an"),
        (["a", "b", "--data", "phantom", "--save_thresholds"], "--save_thresholds is for one model: evaluate an"),
        (
            ["a", "--data", "phantom", "--save_thresholds"],
            "--save_thresholds writes into a model folder, but a is not a folder",
        ),
        (
            ["m", "--data", "phantom", "--split", "test", "--threshold_split", "test"],
            "--threshold_split is the evaluated split",
        ),
        (["m", "--data", "phantom", "--scoring", "sum"], "argument --scoring: invalid choice: 'sum'"),
        (
            ["m", "--data", "phantom", "--protocol", "chexzro"],
            "The protocol 'chexzro' is not known: did you mean 'chexzero'?",
        ),
        (
            ["m", "--data", "phantom", "--benchmark", "siim2"],
            "The benchmark 'siim2' is not known: did you mean 'siim'?",
        ),
        (
            ["m", "--data", "phantom", "--score_level", "patch"],
            "The score level must be one of auto, global, patches-max, patches-topk, patches-lse, both-max, "
            "both-topk, both-lse, but is 'patch'.",
        ),
        (
            ["m", "--data", "phantom", "--cache_dir", "/dev/null/x"],
            "/dev/null/x cannot be written: choose another --ca",
        ),
        (["m", "--data", "phantom", "--output_dir", "/dev/null/x"], "the folder /dev/null/x cannot be written"),
        (["nowhere", "--data", "phantom"], "The model folder nowhere does not exist"),
        (["m", "--data", "phantom", "--device", "gpu"], "The device 'gpu' cannot be used here"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    assert message in fails(*arguments, capsys=capsys)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--data", "nowhere"], "nowhere: the folder does not exist"),
        (["--data", "nowhere.csv"], "nowhere.csv: the file does not exist"),
        (["--data", PHANTOM, "--split", "dev"], "split is 'dev'"),
        (
            ["--data", PHANTOM, "--findings", "Cardiomegalia"],
            "no finding 'Cardiomegalia': did you mean 'Cardiomegaly'",
        ),
        (["--data", PHANTOM, "--min_positives", "41"], "No finding has 41 positives"),
        (["--data", "phantom:num_images=2,image_size=64", "--findings", "Edema"], "'Edema' has no positive image"),
        (["--data", PHANTOM, "--min_positives", "5", "--prompts", "poetry"], "prompts 'poetry' are not known"),
        (["--data", PHANTOM, "--image_root", "."], "image_root have no effect"),
    ],
)
def test_bad_data(models, options, message, tmp_path, capsys):
    output = tmp_path / "output"
    assert message in fails(models[0], *options, "--output_dir", output, capsys=capsys)
    assert not output.exists()


def test_bad_models(models, tmp_path, capsys):
    copy = shutil.copytree(models[0], tmp_path / "copy")
    arguments = ["--data", PHANTOM, "--min_positives", 5, "--output_dir", tmp_path / "output"]
    assert "have identical weights" in fails(models[0], copy, *arguments, capsys=capsys)
    (copy / "model.safetensors").unlink()
    assert "does not hold weights" in fails(copy, *arguments, capsys=capsys)
    assert not (tmp_path / "output").exists()


def test_unreadable_images_stop_the_command(models, tmp_path, capsys):
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(b"no image")
    table = {"image": [f"{i}.png" for i in range(4)], "patient_id": list("abcd"), "Mass": [1, 0, 1, 0]}
    pd.DataFrame(table).to_csv(tmp_path / "labels.csv", index=False)
    arguments = [
        models[0],
        "--data",
        tmp_path / "labels.csv",
        "--min_positives",
        1,
        "--output_dir",
        tmp_path / "output",
    ]
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    assert exit_.value.code == 2
    assert "of 4 images do not decode, more than 1 %" in capsys.readouterr().err
    assert not (tmp_path / "output").exists()


def test_figures_without_matplotlib_fail_before_any_work(models, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    message = fails("nowhere", "--data", "phantom", "--figures", capsys=capsys)
    assert message == "Figures need matplotlib: install it with pip install matplotlib."


def test_as_a_command(models, tmp_path):
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, root / "eval_zeroshot.py"]
    help_ = subprocess.run([*command, "--help"], capture_output=True, text=True, cwd=tmp_path)
    assert help_.returncode == 0 and "--threshold_split" in help_.stdout
    bad = subprocess.run([*command, models[0], "--nope"], capture_output=True, text=True, cwd=tmp_path)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == "eval_zeroshot.py: error: unknown option --nope: see eval_zeroshot.py --help.\n"
    assert os.listdir(tmp_path) == []
