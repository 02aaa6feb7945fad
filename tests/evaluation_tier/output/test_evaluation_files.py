import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from eval_command import PHANTOM, fails, run, save_two_models
from transformers import pipeline

from modeling_tier import CxrZeroShotClassificationPipeline
from processing_tier.readers import read_records


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[Path]:
    return save_two_models(tmp_path_factory.mktemp("models"))


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
    assert set(left) == {
        *own,
        "metrics.json",
        "speed.json",
        "predictions.parquet",
        "tables.md",
        "tables.tex",
        "report.html",
    }
    assert left.items() > own.items()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(left)  # nor any folder


@pytest.mark.slow
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
    assert "report.html is a folder, but the evaluation writes a file there" in fails(*arguments, capsys=capsys)
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


@pytest.mark.parametrize(
    ("options", "level"),
    [
        ([], "patches-lse"),  # of a model whose image embedding is the mean of its patches
        (["--score_level", "global", "--scoring", "softmax"], "global"),
        (["--score_level", "both-topk"], "both-topk"),
    ],
)
def test_saved_thresholds_are_those_of_the_pipeline(models, tmp_path, capsys, options, level):
    model = shutil.copytree(models[0], tmp_path / "model")
    before = (model / "model.safetensors").read_bytes()
    arguments = [model, "--data", PHANTOM, "--min_positives", 5, "--n_bootstrap", 5, *options]
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
        assert kept["score_level"] == metrics["protocol"]["score_level"] == level
        told = kept["measured_on"]
        assert (told["split"], told["images"]) == ("validation", 40) and told["dataset"] == metrics["dataset"]
        assert all(image[i]["calibrated"] == bool(result["scale"]) for image in results)
        assert all(image[i]["threshold"] == kept["threshold"] for image in results)
        expected = scale_scores(predictions[f"score_{finding}"], kept, metrics["protocol"]["scoring"])
        np.testing.assert_allclose([image[i]["score"] for image in results], expected, rtol=0, atol=3e-5)
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


def scale_scores(scores, entry, scoring):
    """Scores of an evaluation as a pipeline gives them with the scale and bias of an entry."""
    differences = scores if scoring == "difference" else np.log(scores / (1 - scores))
    return 1 / (1 + np.exp(-(entry.get("scale", 1) * differences + entry.get("bias", 0))))


def test_thresholds_that_the_pipeline_cannot_reproduce_are_not_saved(models, tmp_path, capsys):
    model = shutil.copytree(models[0], tmp_path / "model")
    arguments = [model, "--data", PHANTOM, "--min_positives", 5, "--n_bootstrap", 5, "--output_dir", tmp_path]
    assert (
        "--save_thresholds needs the scores of the pipeline: choose a protocol or a --scoring with negative"
        in fails(*arguments, "--save_thresholds", "--protocol", "plain", capsys=capsys)
    )
    run(*arguments, "--save_thresholds", "--no_finding", "others", capsys=capsys)
    evaluated = json.loads((tmp_path / "metrics.json").read_text())["findings"]
    kept = json.loads((model / "config.json").read_text())["zero_shot_findings"]
    assert set(evaluated) - set(kept) == {"No Finding"} & set(evaluated)
