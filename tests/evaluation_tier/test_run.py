import html
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from eval_command import PHANTOM, fails, run, save_two_models, write_table
from PIL import PngImagePlugin
from sklearn.metrics import roc_curve

from evaluation_tier.analyses.deletion import evaluate_deletion
from evaluation_tier.analyses.grounding.evaluation import evaluate_grounding
from evaluation_tier.analyses.retrieval import evaluate_retrieval
from evaluation_tier.analyses.robustness.evaluation import evaluate_robustness
from evaluation_tier.analyses.sparsity import evaluate_sparsity
from evaluation_tier.models.loading import load_model
from evaluation_tier.options import ANALYSES
from evaluation_tier.output.metrics_file import to_json
from evaluation_tier.statistics.resampling import Resampling
from processing_tier.prompts.loader import Prompts
from processing_tier.readers import read_records

FULL = ["--min_positives", 5, "--n_bootstrap", 5, "--analyses", *ANALYSES]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[Path]:
    return save_two_models(tmp_path_factory.mktemp("models"))


COVID = ("COVID-19", "Non-COVID Pneumonia", "Normal")


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
        "sizes",
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


@pytest.mark.slow
def test_a_training_log_without_a_loss_costs_its_figure_only(models, tmp_path, capsys, caplog):
    pytest.importorskip("matplotlib")
    model, output = shutil.copytree(models[0], tmp_path / "model"), tmp_path / "output"
    (model / "trainer_state.json").write_text('{"log_history": []}')
    arguments = [model, "--data", PHANTOM, "--min_positives", 5, "--n_bootstrap", 5, "--output_dir", output]
    run(*arguments, "--figures", capsys=capsys)
    assert (output / "roc.png").exists() and not (output / "training_curves.png").exists()
    assert f"The training curves are not drawn. {model / 'trainer_state.json'} does not log a loss" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    "analysis, what", [("retrieval", "report"), ("sparsity", "report"), ("grounding", "box or mask")]
)
def test_an_analysis_whose_images_do_not_decode(models, tmp_path, capsys, analysis, what):
    """Of 120 images, one alone has a report and a mask, and it is damaged: the scores allow that, the analysis not."""
    data = read_records("phantom:num_images=120,image_size=64", "validation").to_pandas()
    (row,) = data.index[data["masks"].map(len) > 0][:1]
    data.loc[data.index != row, ["findings", "impression", "report"]] = ""
    data["masks"] = [masks if i == row else [] for i, masks in enumerate(data["masks"])]
    for name, image in zip(data["image_id"], data["image"], strict=True):
        (tmp_path / f"{name}.png").write_bytes(image["bytes"])
    (tmp_path / f"{data['image_id'][row]}.png").write_bytes(b"no image")
    data["image"] = data["image_id"] + ".png"
    data.to_parquet(tmp_path / "table.parquet")
    arguments = [models[0], "--data", tmp_path / "table.parquet", "--min_positives", 5, "--n_bootstrap", 5]
    arguments += ["--output_dir", tmp_path / "output", "--analyses", analysis]
    with pytest.raises(SystemExit, match="2"):
        run(*arguments, capsys=capsys)
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"eval_zeroshot.py: error: None of the images with a {what} (1) decodes: repair them, or use other data."
    )
    assert not (tmp_path / "output").exists()


def test_robustness_of_what_only_the_other_findings_score(models, tmp_path, capsys):
    table = write_table(tmp_path, **{"No Finding": [0, 1] * 20})
    arguments = [models[0], "--data", table, "--findings", "No Finding", "--no_finding", "others"]
    assert fails(*arguments, "--analyses", "robustness", "--output_dir", tmp_path / "output", capsys=capsys) == (
        "Robustness asks for findings by their sentences, but 'No Finding' is scored by the other findings: name more "
        "in --findings, or pass --no_finding prompts."
    )


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


def test_protocol_level_and_cache(models, tmp_path, capsys):
    arguments = [models[0], "--data", PHANTOM, "--min_positives", 5, "--n_bootstrap", 40, "--protocol", "chexzero"]
    arguments += ["--score_level", "patches-max", "--cache_dir", tmp_path / "cache"]
    texts = [run(*arguments, "--output_dir", tmp_path / name, capsys=capsys).out for name in "ab"]
    assert "Mean AUROC by score level (95 % CI): global 0." in texts[0]
    assert (tmp_path / "a" / "metrics.json").read_bytes() == (tmp_path / "b" / "metrics.json").read_bytes()
    protocol = json.loads((tmp_path / "a" / "metrics.json").read_text())["protocol"]
    assert (protocol["name"], protocol["score_level"]) == ("chexzero, own score_level", "patches-max")
    assert "; the table has patches-max\n" in texts[0]
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 40
    speeds = [json.loads((tmp_path / name / "speed.json").read_text())["models"] for name in "ab"]
    (first,), (second,) = speeds[0].values(), speeds[1].values()
    assert list(speeds[0]) == list(speeds[1]) == json.loads((tmp_path / "a" / "metrics.json").read_text())["models"]
    assert (
        first["images"] == 8 and first["images_per_second"] == 8 / first["seconds"]
    )  # without the first batch, of 32
    assert first["device"].startswith("CPU, ") and first["dtype"] == "float32" and first["batch_size"] == 32
    assert (second["images"], second["seconds"], second["images_per_second"]) == (0, 0, None)  # all from the cache


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


@pytest.mark.slow
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

    class Spy(runs.Grounding):
        def __post_init__(self):
            asked.append(self.prompts)
            super().__post_init__()

    monkeypatch.setattr(runs, "Grounding", Spy)
    arguments = [models[0], "--data", PHANTOM, "--benchmark", "siim", "--split", "validation", "--n_bootstrap", 5]
    arguments += ["--min_positives", 5, "--findings", "Cardiomegaly", "--analyses", "grounding"]
    run(*arguments, "--output_dir", tmp_path, capsys=capsys)
    assert asked[0]["Edema"] == own and "Pneumothorax" in asked[0]
    protocol = json.loads((tmp_path / "metrics.json").read_text())["protocol"]
    assert protocol["benchmark_differs"] == ["Other counts."]


# One pass over the images


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """Grows by one whenever the pixels of a PNG file have been decoded, whoever asks for them."""
    times = []
    load_end = PngImagePlugin.PngImageFile.load_end

    def count(image):
        times.append(1)
        return load_end(image)

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load_end", count)
    return times


@pytest.mark.slow
def test_a_full_evaluation_decodes_each_image_once(models, tmp_path, capsys, decoded):
    run(models[0], "--data", PHANTOM, *FULL, "--output_dir", tmp_path / "one", capsys=capsys)
    assert len(decoded) == 40
    decoded.clear()
    arguments = [models[0], "--data", PHANTOM, *FULL, "--threshold_split", "train", "--max_images", 30]
    run(*arguments, "--output_dir", tmp_path / "two", capsys=capsys)
    assert len(decoded) == 60  # 30 of each split


def test_an_ensemble_decodes_each_image_once_per_model(models, tmp_path, capsys, decoded):
    arguments = ["--data", PHANTOM, "--min_positives", 5, "--n_bootstrap", 5, "--analyses", "sparsity"]
    run(*models, *arguments, "--output_dir", tmp_path, capsys=capsys)
    assert len(decoded) == 80


def test_the_cache_serves_scores_and_every_analysis(models, tmp_path, capsys, decoded):
    arguments = [models[0], "--data", PHANTOM, *FULL, "--batch_size", 16]
    run(*arguments, "--output_dir", tmp_path / "without", capsys=capsys)
    for name, times in (("filled", 40), ("read", 0)):
        decoded.clear()
        run(*arguments, "--cache_dir", tmp_path / "cache", "--output_dir", tmp_path / name, capsys=capsys)
        assert len(decoded) == times
        for file in ("metrics.json", "predictions.parquet", "grounding_regions.parquet"):
            assert (tmp_path / name / file).read_bytes() == (tmp_path / "without" / file).read_bytes()


@pytest.mark.slow
def test_reports_of_cxr_align(models, tmp_path, capsys):
    image_ids = read_records(PHANTOM, "validation")["image_id"][:6]
    texts = {"report": "Left effusion.", "negation": "No left effusion.", "omitted": "Heart.", "chosen": "Effusion"}
    path = tmp_path / "cxr-align.json"
    path.write_text(json.dumps({"mimic": {image_id: texts for image_id in image_ids} | {"of MIMIC": texts}}))
    arguments = [models[0], "--data", PHANTOM, "--min_positives", 5, "--n_bootstrap", 5]
    arguments += ["--analyses", "robustness", "--cxr_align"]
    run(*arguments, path, "--output_dir", tmp_path / "output", capsys=capsys)
    metrics = json.loads((tmp_path / "output" / "metrics.json").read_text())
    aligned = metrics["robustness"]["report_alignment"]
    assert aligned["all"]["n_images"] == 6 and aligned["findings"] == {"Effusion": aligned["all"]}
    assert "## CXR-Align" in (tmp_path / "output" / "tables.md").read_text()
    path.write_text(json.dumps({"mimic": {"of MIMIC": texts}}))
    assert "but of none of the 40 evaluated ones" in fails(*arguments, path, capsys=capsys)
    path.write_text('{"mimic": ')
    assert "not JSON; download it again" in fails(*arguments, path, capsys=capsys)
    assert "is not a file: name the cxr-align.json" in fails(*arguments, tmp_path / "none.json", capsys=capsys)
    assert "no effect without --analyses robustness" in fails(
        models[0], "--data", PHANTOM, "--cxr_align", path, capsys=capsys
    )
    assert "--cxr_align is empty" in fails(*arguments, "", capsys=capsys)


def test_analyses_in_one_pass_are_those_of_their_own(models, tmp_path, capsys):
    """What the analyses measure together is what each measures when it is called alone."""
    run(models[0], "--data", PHANTOM, *FULL, "--output_dir", tmp_path, capsys=capsys)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    regions = pd.read_parquet(tmp_path / "grounding_regions.parquet")
    (model, processor), dataset = load_model(models[0]), read_records(PHANTOM, "validation")
    options = {"resampling": Resampling(5), "dataset_name": PHANTOM}
    alone = {
        "grounding": evaluate_grounding(model, processor, dataset, **options),
        "deletion": evaluate_deletion(model, processor, dataset, list(metrics["findings"]), **options),
        "retrieval": evaluate_retrieval(model, processor, dataset, **options),
        "sparsity": evaluate_sparsity({metrics["models"][0]: (model, processor)}, dataset, **options),
        "robustness": evaluate_robustness(model, processor, dataset, list(metrics["findings"]), **options),
    }
    assert [region["row"] for region in alone["grounding"].pop("regions")] == regions["row"].tolist()
    for name in ("deletion", "robustness"):
        alone[name]["protocol"]["min_positives"] = 5
    for name, result in alone.items():
        assert_alike(metrics[name], to_json(result))


def assert_alike(found, expected) -> None:
    """Equal but for the rounding of numbers: alone, an analysis may batch other images together."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_alike(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_alike(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-7)
    else:
        assert found == expected


def test_the_archive_of_a_published_training_is_told(models, tmp_path, capsys):
    folder = tmp_path / "mimic_cxr"
    folder.mkdir()
    table = pd.read_csv(write_table(folder)).rename(columns={"image": "file_name"})
    table.to_csv(folder / "metadata.csv", index=False)
    (folder / "table.csv").unlink()
    named = shutil.copytree(models[0], tmp_path / "medsiglip-448")
    options = ["--data", folder, "--min_positives", 5, "--n_bootstrap", 20, "--output_dir", tmp_path / "out"]
    run(named, *options, "--model_card", capsys=capsys)
    protocol = json.loads((tmp_path / "out" / "metrics.json").read_text())["protocol"]
    assert protocol["exposure_overlap"] == [f"{tmp_path.name}/medsiglip-448"]
    assert protocol["exposure"].endswith(
        "; the evaluated data are of mimic_cxr too, so it may have seen these images or patients"
    )
    told = f"The evaluated data may be training data: {protocol['exposure']}."
    assert told in html.unescape((tmp_path / "out" / "report.html").read_text())
    assert "**The evaluated data may be training data:** MedSigLIP" in (named / "README.md").read_text()
