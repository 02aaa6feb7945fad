import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from eval_command import PHANTOM, fails, run, save_two_models, write_table
from PIL import Image

from processing_tier.readers import read_records
from processing_tier.readers.chexpert import CHEXPERT_FINDINGS


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[Path]:
    return save_two_models(tmp_path_factory.mktemp("models"))


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


def test_a_dataset_smaller_than_max_images_is_taken_whole(models, tmp_path, capsys):
    run(
        *[models[0], "--data", PHANTOM, "--min_positives", 5, "--n_bootstrap", 5, "--max_images", 1000],
        *["--output_dir", tmp_path],
        capsys=capsys,
    )
    assert json.loads((tmp_path / "metrics.json").read_text())["n_images"] == 40


@pytest.fixture
def no_evaluation(monkeypatch):
    """Whatever is refused must be so before any image is embedded."""
    from evaluation_tier import run as evaluation

    monkeypatch.setattr(evaluation, "evaluate_models", lambda *_, **__: pytest.fail("the images were embedded"))


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
        "None of the 40 studies was read by bc4: these radiologists belong to other data. CheXpert's read its "
        "test set: use --benchmark chexpert-5 --split test."
    )
