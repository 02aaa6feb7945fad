import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_curve
from transformers import pipeline

from eval_zeroshot import main
from modeling_tier import CxrZeroShotClassificationPipeline, TierCLIPConfig, TierCLIPModel
from processing_tier import TierImageProcessor, TierProcessor, train_tokenizer
from processing_tier.prompts.loader import Prompts
from processing_tier.readers import read_records
from processing_tier.readers.chexpert import CHEXPERT_FINDINGS

PHANTOM = "phantom:num_images=40,image_size=64"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[Path]:
    """Two tiny models with random weights, saved."""
    tokenizer = train_tokenizer(["Small left pleural effusion.", "No pneumothorax. The heart is enlarged."], 600)
    processor = TierProcessor(TierImageProcessor(size={"height": 32, "width": 32}), tokenizer)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = TierCLIPConfig(
        text_config={**tower, **special, "vocab_size": len(tokenizer)},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=8,
        image_pooling="patch_mean",
    )
    folders = []
    for seed in range(2):
        torch.manual_seed(seed)
        folders.append(tmp_path_factory.mktemp("models") / f"model{seed}")
        TierCLIPModel(config).save_pretrained(folders[-1])
        processor.save_pretrained(folders[-1])
    return folders


def run(*arguments, capsys) -> tuple[str, str]:
    main([str(argument) for argument in arguments])
    return capsys.readouterr()


def fails(*arguments, capsys) -> str:
    """The one line that the command fails with; exit code 2."""
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    assert exit_.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    lines = output.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("eval_zeroshot.py: error: "), output.err
    return lines[0].removeprefix("eval_zeroshot.py: error: ")


def test_phantom_evaluation_writes_everything(models, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    model, output = shutil.copytree(models[0], tmp_path / "model"), tmp_path / "deep" / "output"
    arguments = [model, "--data", PHANTOM, "--min_positives", 5, "--n_bootstrap", 50, "--output_dir", output]
    text = run(*arguments, "--figures", "--model_card", capsys=capsys).out
    metrics = json.loads((output / "metrics.json").read_text())
    assert list(metrics) == [
        "dataset",
        "protocol",
        "n_images",
        "models",
        "weights",
        "findings",
        "mean",
        "versions",
        "score_levels",
        "subgroups",
    ]
    assert (
        metrics["dataset"] == PHANTOM and metrics["n_images"] == 40 and metrics["models"] == [f"{tmp_path.name}/model"]
    )
    assert metrics["protocol"]["split"] == "validation" and metrics["protocol"]["n_bootstrap"] == 50
    assert all(result["n_positive"] >= 5 for result in metrics["findings"].values())
    assert len(metrics["findings"]) + len(metrics["protocol"]["findings_left_out"]) == 8

    predictions = pd.read_parquet(output / "predictions.parquet")
    assert len(predictions) == 40
    for finding in metrics["findings"]:
        assert {f"score_{finding}", f"label_{finding}"} < set(predictions.columns)

    names = {path.name for path in output.iterdir()}
    assert {"metrics.json", "predictions.parquet", "roc.png"} < names
    assert sum(name.startswith("similarity_") for name in names) == len(metrics["findings"])
    assert not any("partial" in name for name in names)

    mean = f"{metrics['mean']['auroc']:.3f}"
    assert "(synthetic), split 'validation': 40 images of 30 patients" in text
    assert f"Mean of {len(metrics['findings'])}" in text and mean in text
    assert str(output / "metrics.json") in text and str(model / "README.md") in text
    card = (model / "README.md").read_text()
    assert f"**{mean}**" in card and "synthetic" in card


def test_same_seed_same_files(models, tmp_path, capsys):
    for name in "ab":
        arguments = [models[0], "--data", PHANTOM, "--min_positives", 5, "--n_bootstrap", 20]
        run(*arguments, "--output_dir", tmp_path / name, capsys=capsys)
    assert (tmp_path / "a" / "metrics.json").read_bytes() == (tmp_path / "b" / "metrics.json").read_bytes()


def test_ensemble_thresholds_and_softmax(models, tmp_path, capsys):
    arguments = [*models, "--data", PHANTOM, "--findings", "Cardiomegaly", "Pleural Effusion", "--scoring", "softmax"]
    arguments += ["--threshold_split", "train", "--prompts", "chexzero", "--n_bootstrap", 5, "--output_dir", tmp_path]
    run(*arguments, capsys=capsys)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["models"] == [f"{model.parent.name}/{model.name}" for model in models]
    assert list(metrics["findings"]) == ["Cardiomegaly", "Pleural Effusion"]
    assert metrics["protocol"]["scoring"] == "softmax" and metrics["protocol"]["prompts"] == "chexzero"
    assert metrics["protocol"]["name"] == "report, own prompts, own scoring"
    assert metrics["protocol"]["thresholds"] == "highest MCC on the split 'train'"
    assert 0.3 < metrics["findings"]["Cardiomegaly"]["threshold"] < 0.7


@pytest.mark.parametrize("scoring", ["difference", "softmax"])
def test_saved_thresholds_are_those_of_the_pipeline(models, tmp_path, capsys, scoring):
    model = shutil.copytree(models[0], tmp_path / "model")
    before = (model / "model.safetensors").read_bytes()
    arguments = [model, "--data", PHANTOM, "--min_positives", 5, "--n_bootstrap", 5, "--scoring", scoring]
    text = run(*arguments, "--output_dir", tmp_path, "--save_thresholds", "--model_card", capsys=capsys).out
    assert str(model / "config.json") in text
    assert (model / "model.safetensors").read_bytes() == before and not list(model.glob("*partial*"))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    measured = f"They were measured on 40 images of {metrics['dataset']}, split 'validation', "
    assert measured in (model / "README.md").read_text()
    predictions = pd.read_parquet(tmp_path / "predictions.parquet")
    pipe = pipeline("cxr-zero-shot-classification", model=str(model), pipeline_class=CxrZeroShotClassificationPipeline)
    assert pipe.model.config.zero_shot_findings.keys() == metrics["findings"].keys()
    dataset = read_records(PHANTOM, "validation")
    results = pipe(dataset["image"][:])
    for i, finding in enumerate(sorted(metrics["findings"])):
        result = metrics["findings"][finding]
        kept = pipe.model.config.zero_shot_findings[finding]
        told = kept["measured_on"]
        assert (told["split"], told["images"]) == ("validation", 40) and told["dataset"] == metrics["dataset"]
        assert all(image[i]["calibrated"] == bool(result["scale"]) for image in results)
        assert all(image[i]["threshold"] == kept["threshold"] for image in results)
        present = [image[i]["present"] for image in results]
        assert present == (predictions[f"score_{finding}"] >= result["threshold"]).tolist()
        labels, probabilities = predictions[f"label_{finding}"], np.array([image[i]["score"] for image in results])
        assert [image[i]["label"] for image in results] == [finding] * 40
        if not result["scale"]:  # random weights: ranked upside down
            assert probabilities == pytest.approx(0.5, abs=0.4)
            continue
        likelihood = np.where(labels == 1, probabilities, 1 - probabilities)[labels >= 0]
        prevalence = (labels == 1).sum() / (labels >= 0).sum()
        entropy = -prevalence * np.log(prevalence) - (1 - prevalence) * np.log(1 - prevalence)
        assert -np.log(likelihood).mean() < entropy + 0.01  # no worse than the prevalence alone
        assert probabilities[labels >= 0].mean() == pytest.approx(prevalence, abs=0.02)
    assert any(result["scale"] for result in metrics["findings"].values())


def test_protocol_level_and_cache(models, tmp_path, capsys):
    arguments = [models[0], "--data", PHANTOM, "--min_positives", 5, "--n_bootstrap", 40, "--protocol", "chexzero"]
    arguments += ["--score_level", "patches-max", "--cache_dir", tmp_path / "cache"]
    texts = [run(*arguments, "--output_dir", tmp_path / name, capsys=capsys).out for name in "ab"]
    assert "Mean AUROC by score level (95 % CI): global 0." in texts[0]
    assert (tmp_path / "a" / "metrics.json").read_bytes() == (tmp_path / "b" / "metrics.json").read_bytes()
    protocol = json.loads((tmp_path / "a" / "metrics.json").read_text())["protocol"]
    assert (protocol["name"], protocol["score_level"]) == ("chexzero", "patches-max")
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 40


def test_thresholds_that_the_pipeline_cannot_reproduce_are_not_saved(models, tmp_path, capsys):
    model = shutil.copytree(models[0], tmp_path / "model")
    arguments = [model, "--data", PHANTOM, "--min_positives", 5, "--n_bootstrap", 5, "--output_dir", tmp_path]
    for options in (["--protocol", "plain"], ["--score_level", "both-max"]):
        assert "--save_thresholds is for scores as the pipeline makes them" in fails(
            *arguments, "--save_thresholds", *options, capsys=capsys
        )
    run(*arguments, "--save_thresholds", "--no_finding", "others", capsys=capsys)
    evaluated = json.loads((tmp_path / "metrics.json").read_text())["findings"]
    kept = json.loads((model / "config.json").read_text())["zero_shot_findings"]
    assert set(evaluated) - set(kept) == {"No Finding"} & set(evaluated)


def test_a_benchmark_chooses_findings_images_and_split(models, tmp_path, capsys, caplog):
    frame = read_records(PHANTOM, "validation").remove_columns(["image", "masks"]).to_pandas()
    names = dict(zip(("Cardiomegaly", "Atelectasis", "Edema", "Pneumothorax", "Nodule"), range(5), strict=True))
    for record, name in zip(read_records(PHANTOM, "validation"), frame["image_id"], strict=True):
        (tmp_path / f"{name}.png").write_bytes(record["image"]["bytes"])
    frame["image"], frame["view"] = frame["image_id"] + ".png", "LATERAL"
    table = frame[["image", "patient_id", "view", "split", *names]].rename(
        columns={"Pneumothorax": "Effusion", "Nodule": "Consolidation"}
    )
    table.to_csv(tmp_path / "table.csv", index=False)
    arguments = [models[0], "--benchmark", "chexpert-5", "--data", tmp_path / "table.csv", "--n_bootstrap", 5]
    run(*arguments, "--output_dir", tmp_path / "out", capsys=capsys)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["protocol"]["benchmark"] == "chexpert-5" and metrics["protocol"]["split"] == "validation"
    assert metrics["n_images"] == 40  # laterals too
    found = {*metrics["findings"], *metrics["protocol"]["findings_left_out"]}
    assert found == {"Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"}
    (differs,) = metrics["protocol"]["benchmark_differs"]
    assert differs.startswith("chexpert-5, split validation, has 40 images and not 234") and differs in caplog.text


def test_options_may_come_first(models, tmp_path, capsys):
    run(
        "--data", PHANTOM, "--min_positives", 5, "--n_bootstrap", 5, "--output_dir", tmp_path, models[0], capsys=capsys
    )
    assert (tmp_path / "metrics.json").is_file()


def test_own_table_with_its_own_columns(models, tmp_path, capsys):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(12):
        Image.fromarray(rng.integers(0, 255, (40, 30), dtype=np.uint8)).save(tmp_path / "images" / f"{i}.png")
    table = pd.DataFrame({"Path": [f"{i}.png" for i in range(12)], "Who": range(12), "Mass": [1, 0, -1, None] * 3})
    table.to_csv(tmp_path / "labels.csv", index=False)
    columns = ["--columns", "image=Path", "patient_id=Who", "--image_root", tmp_path / "images"]
    options = ["--min_positives", 3, "--n_bootstrap", 5, "--output_dir", tmp_path / "out"]
    run(models[0], "--data", tmp_path / "labels.csv", *columns, *options, capsys=capsys)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    mass = metrics["findings"]["Mass"]
    assert (mass["n_positive"], mass["n_negative"], mass["n_excluded"]) == (3, 3, 6)
    assert metrics["dataset"] == "labels.csv"


def test_laterals_are_evaluated_only_when_asked_for(models, tmp_path, capsys):
    records = read_records(PHANTOM, "validation")
    for record in records:
        (tmp_path / f"{record['image_id']}.png").write_bytes(record["image"]["bytes"])
    frame = records.remove_columns(["image", "masks"]).to_pandas()
    frame["image"] = frame["image_id"] + ".png"
    frame.loc[:9, "view"] = "LATERAL"
    frame.to_csv(tmp_path / "table.csv", index=False)
    arguments = [models[0], "--data", tmp_path / "table.csv", "--min_positives", 1, "--n_bootstrap", 5]
    for views, count in (("frontal", 30), ("all", 40)):
        run(*arguments, "--views", views, "--output_dir", tmp_path / views, capsys=capsys)
        metrics = json.loads((tmp_path / views / "metrics.json").read_text())
        assert metrics["n_images"] == count and metrics["protocol"]["views"] == views
    frame["view"] = "OTHER"
    frame.to_csv(tmp_path / "table.csv", index=False)
    assert fails(*arguments, "--output_dir", tmp_path / "none", capsys=capsys) == (
        "Split 'validation' has no frontal image; use --views all, or check its views."
    )


def test_real_radiographs(models, shared_data, tmp_path, capsys):
    arguments = [models[0], "--data", shared_data / "iu_cxr", "--max_images", 100, "--n_bootstrap", 20]
    run(*arguments, "--min_positives", 5, "--output_dir", tmp_path, capsys=capsys)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["dataset"] == "iu_cxr" and metrics["n_images"] == 100
    assert "Cardiomegaly" in metrics["findings"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["m", "--datta", "phantom"], "unknown option --datta: did you mean --data?"),
        (["m", "--output-dir", "x"], "unknown option --output-dir: did you mean --output_dir?"),
        (["m", "--data", "phantom", "--zzz=3"], "unknown option --zzz=3: see eval_zeroshot.py --help."),
        (["m", "--data", "phantom", "--find", "Edema"], "unknown option --find: did you mean --findings?"),
        (["--data", "phantom"], "no model is named: give the folder that train_tier.py wrote, or a name on the Hub."),
        (["m", "m", "--data", "phantom"], "a model is named twice: an ensemble needs models that differ."),
        (["m"], 'no data are named: give --data "phantom", a folder, or a table.'),
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
        (["m", "--data", "phantom", "--protocol", "chexzro"], "no protocol 'chexzro': did you mean 'chexzero'?"),
        (["m", "--data", "phantom", "--benchmark", "siim2"], "no benchmark 'siim2': did you mean 'siim'?"),
        (
            ["m", "--data", "phantom", "--cache_dir", "/dev/null/x"],
            "/dev/null/x cannot be written: choose another --ca",
        ),
        (["m", "--data", "phantom", "--output_dir", "/dev/null/x"], "the folder /dev/null/x cannot be written"),
        (["nowhere", "--data", "phantom"], "There is no model folder nowhere"),
        (["m", "--data", "phantom", "--device", "gpu"], "The device 'gpu' cannot be used here"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    assert message in fails(*arguments, capsys=capsys)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--data", "nowhere"], "nowhere: there is no such folder"),
        (["--data", "nowhere.csv"], "nowhere.csv: there is no such file"),
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
    assert "holds no weights" in fails(copy, *arguments, capsys=capsys)
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


def test_a_dataset_smaller_than_max_images_is_taken_whole(models, tmp_path, capsys):
    run(
        *[models[0], "--data", PHANTOM, "--min_positives", 5, "--n_bootstrap", 5, "--max_images", 1000],
        *["--output_dir", tmp_path],
        capsys=capsys,
    )
    assert json.loads((tmp_path / "metrics.json").read_text())["n_images"] == 40


# Files of an earlier evaluation


def evaluated(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.slow
def test_only_what_an_evaluation_wrote_is_removed(models, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    arguments = [models[0], "--data", PHANTOM, "--min_positives", 5, "--n_bootstrap", 5, "--output_dir", tmp_path]
    own = {"grounding_my_figure.png": b"mine", "similarity_of_my_own.png": b"mine", "sparsity.png": b"mine"}
    for name, content in own.items():
        (tmp_path / name).write_bytes(content)
    run(*arguments, capsys=capsys)  # no evaluation lay there
    assert evaluated(tmp_path).items() > own.items()
    run(*arguments, "--analyses", "grounding", "--figures", capsys=capsys)
    first = evaluated(tmp_path)
    assert {"grounding.png", "grounding_regions.parquet", "similarity_cardiomegaly.png", "roc.png"} < first.keys()
    run(*arguments, "--findings", "Cardiomegaly", capsys=capsys)
    left = evaluated(tmp_path)
    assert set(left) == {*own, "metrics.json", "predictions.parquet", "tables.md", "tables.tex", "report.html"}
    assert left.items() > own.items()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(left)  # nor any folder


def test_figures_of_two_models_side_by_side(models, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    arguments = ["--data", PHANTOM, "--max_images", 20, "--min_positives", 3, "--n_bootstrap", 5]
    arguments += ["--findings", "Cardiomegaly", "--figures", "--output_dir", tmp_path]
    run(*models, *arguments, "--analyses", "sparsity", capsys=capsys)
    names = {path.name for path in tmp_path.iterdir()}
    page = (tmp_path / "report.html").read_text()
    relative = json.loads((tmp_path / "metrics.json").read_text())["sparsity"]["models"]
    drawn = any(model["ranked"]["relative"]["n_pairs"] for model in relative.values())
    assert "similarity_of_models.png" in names and "the heat-map of every model" in page
    assert ("sparsity_relative.png" in names) == drawn
    assert "choose another --output_dir, or pass --overwrite." in fails(models[0], *arguments, capsys=capsys)
    run(models[0], *arguments, "--overwrite", capsys=capsys)
    assert not {"similarity_of_models.png", "sparsity_relative.png"} & {path.name for path in tmp_path.iterdir()}


@pytest.mark.slow
def test_a_failed_evaluation_leaves_the_earlier_one(models, tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    from evaluation_tier.figures import curves

    arguments = [models[0], "--data", PHANTOM, "--min_positives", 5, "--n_bootstrap", 5, "--output_dir", tmp_path]
    run(*arguments, "--figures", capsys=capsys)
    before = evaluated(tmp_path)
    arguments[1:1] = ["--figures", "--seed", "1"]

    def fail(*arguments, **options):
        raise ValueError("nothing to draw.")

    with monkeypatch.context() as patched:
        patched.setattr(curves, "plot_roc", fail)
        assert fails(*arguments, capsys=capsys) == "nothing to draw."
    assert evaluated(tmp_path) == before
    (tmp_path / "report.html").unlink()
    (tmp_path / "report.html").mkdir()
    del before["report.html"]
    assert "report.html is a folder, where a file is to be written" in fails(*arguments, capsys=capsys)
    assert evaluated(tmp_path) == before and len(list(tmp_path.iterdir())) == len(before) + 1


def test_an_error_of_the_disk_is_one_sentence(models, tmp_path, capsys, monkeypatch):
    from evaluation_tier.output import metrics_file

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(metrics_file, "write_metrics", fail)
    output = tmp_path / "deep" / "output"
    arguments = [models[0], "--data", PHANTOM, "--min_positives", 5, "--n_bootstrap", 5, "--output_dir", output]
    assert fails(*arguments, capsys=capsys) == "[Errno 28] No space left on device"
    assert list(tmp_path.iterdir()) == []


# What can be refused before the evaluation


@pytest.fixture
def no_evaluation(monkeypatch):
    """Whatever is refused must be so before any image is embedded."""
    from evaluation_tier.scoring import zeroshot

    monkeypatch.setattr(zeroshot, "evaluate_zero_shot", lambda *_, **__: pytest.fail("the images were embedded"))


def write_table(folder: Path, **columns) -> Path:
    """The phantom's 40 images as a table; columns take the place of its own, None drops one."""
    frame = read_records(PHANTOM, "validation").remove_columns(["image", "masks"]).to_pandas()
    for record, name in zip(read_records(PHANTOM, "validation"), frame["image_id"], strict=True):
        (folder / f"{name}.png").write_bytes(record["image"]["bytes"])
    frame["image"] = frame["image_id"] + ".png"
    for name, values in columns.items():
        frame[name] = values
    frame.to_csv(folder / "table.csv", index=False)
    return folder / "table.csv"


def test_patients_of_both_splits_are_refused(models, tmp_path, capsys, no_evaluation):
    table = write_table(tmp_path, split=["train"] * 20 + ["validation"] * 20, patient_id=["p", *range(38), "p"])
    arguments = [models[0], "--data", table, "--min_positives", 1, "--output_dir", tmp_path / "out"]
    assert "1 patient is in both 'validation' and 'train'; split by patient" in fails(
        *arguments, "--threshold_split", "train", capsys=capsys
    )
    assert not (tmp_path / "out").exists()


def test_analyses_are_checked_before_the_evaluation(models, tmp_path, capsys, no_evaluation):
    table = write_table(tmp_path, findings="", impression="", report="")
    arguments = [models[0], "--data", table, "--min_positives", 1, "--output_dir", tmp_path / "out"]
    for analysis, message in (
        ("grounding", "The data set has neither boxes nor masks"),
        ("retrieval", "No record has a word in its 'both' text"),
        ("sparsity", "No record has a word in its 'both' text"),
    ):
        assert message in fails(*arguments, "--analyses", analysis, capsys=capsys)
    assert "--radiologists is empty: leave it out" in fails(*arguments, "--radiologists", "", capsys=capsys)
    for missing in (tmp_path / "nowhere", table):  # known before the data are read
        assert fails("nowhere", "--data", "nowhere", "--radiologists", missing, capsys=capsys) == (
            f"--radiologists {missing}: name the folder that holds the radiologists' labels."
        )
    readers = tmp_path / "radiologists"
    readers.mkdir()
    for name in ("bc4", "bc6", "bc8"):
        labels = pd.DataFrame({"Study": ["CheXpert-v1.0/test/patient64741/study1"]})
        labels[list(CHEXPERT_FINDINGS)] = 0
        labels.to_csv(readers / f"{name}.csv", index=False)
    assert fails(*arguments, "--radiologists", tmp_path, capsys=capsys) == (
        "None of the 40 studies was read by bc4: these radiologists are of other data; CheXpert's read its test set "
        "(--benchmark chexpert-5 --split test)."
    )


# One page holds one number for the same thing


COVID = ("COVID-19", "Non-COVID Pneumonia", "Normal")


def test_analyses_ask_what_the_evaluation_asked(models, tmp_path, capsys):
    labels = {name: [float(i % 3 == k) for i in range(40)] for k, name in enumerate(COVID)}
    table = write_table(tmp_path, **labels)
    kept = ["image", "patient_id", "view", "split", *COVID]
    pd.read_csv(table)[kept].to_csv(table, index=False)
    arguments = [models[0], "--benchmark", "covid-qu-ex", "--data", table, "--split", "validation", "--n_bootstrap", 5]
    arguments += ["--analyses", "robustness", "--protocol", "tier-padchest", "--min_positives", 3]
    run(*arguments, "--output_dir", tmp_path / "out", capsys=capsys)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    robustness = metrics["robustness"]
    assert metrics["protocol"]["no_finding"] == "others" and "Normal" in metrics["findings"]
    original = robustness["degradations"]["original"]["findings"]
    assert list(original) == list(COVID[:2])  # "Normal" is scored by these
    for finding, result in original.items():
        assert result["auroc"] == pytest.approx(metrics["findings"][finding]["auroc"], abs=1e-12)
    assert robustness["protocol"]["min_positives"] == 3
    assert robustness["protocol"]["prompts"] == metrics["protocol"]["prompts"]


def test_covid_is_told_from_pneumonia_as_tier_does(models, tmp_path, capsys):
    labels = {name: [float(i % 3 == k) for i in range(40)] for k, name in enumerate(COVID)}
    table = write_table(tmp_path, **labels)
    kept = ["image", "patient_id", "view", "split", *COVID]
    pd.read_csv(table)[kept].to_csv(table, index=False)
    arguments = [models[0], "--benchmark", "covid-pneumonia", "--data", table, "--split", "validation"]
    arguments += ["--protocol", "tier-covid", "--min_positives", 3, "--n_bootstrap", 5]
    run(*arguments, "--output_dir", tmp_path / "out", capsys=capsys)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["n_images"] == 27 and list(metrics["findings"]) == ["COVID-19", "Pneumonia"]  # of 40
    assert metrics["protocol"]["thresholds"] == (
        "highest MCC on the evaluated images (optimistic); for F1 the highest F1 there; for accuracy the ROC point "
        "nearest to (0, 1) there"
    )
    predictions = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    for finding, result in metrics["findings"].items():
        truth, scores = predictions[f"label_{finding}"], predictions[f"score_{finding}"]
        false_positives, true_positives, thresholds = roc_curve(truth, scores, drop_intermediate=False)
        nearest = thresholds[np.argmin(np.hypot(false_positives, 1 - true_positives))]
        assert result["accuracy"] == pytest.approx(((scores >= nearest) == truth).mean())
    assert metrics["mean"]["accuracy"] == np.mean([result["accuracy"] for result in metrics["findings"].values()])
    assert "Accuracy (95 % CI)" in (tmp_path / "out" / "tables.md").read_text()


def test_grounding_asks_the_evaluated_sentences(models, tmp_path, capsys, monkeypatch):
    from evaluation_tier import run as runs
    from evaluation_tier.test_sets import loader

    own = Prompts(["A sentence of its own."], ["None."])
    monkeypatch.setattr(loader, "benchmark_prompts", lambda *_: {"Edema": own})
    monkeypatch.setattr(loader, "benchmark_data", lambda benchmark, data, split: data)
    monkeypatch.setattr(loader, "apply_benchmark", lambda benchmark, dataset, split: dataset)
    monkeypatch.setattr(loader, "published_differences", lambda *_: ["Other counts."])
    asked = []
    evaluate = runs.evaluate_grounding

    def spy(model, processor, dataset, prompts, **options):
        asked.append(prompts)
        return evaluate(model, processor, dataset, prompts, **options)

    monkeypatch.setattr(runs, "evaluate_grounding", spy)
    arguments = [models[0], "--data", PHANTOM, "--benchmark", "siim", "--split", "validation", "--n_bootstrap", 5]
    arguments += ["--min_positives", 5, "--findings", "Cardiomegaly", "--analyses", "grounding"]
    run(*arguments, "--output_dir", tmp_path, capsys=capsys)
    assert asked[0]["Edema"] == own and {"Cardiomegaly", "Pneumothorax"} < asked[0].keys()
    protocol = json.loads((tmp_path / "metrics.json").read_text())["protocol"]
    assert protocol["benchmark_differs"] == ["Other counts."]
