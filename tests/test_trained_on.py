"""A model and what it was trained on: from the training through the evaluation to the comparison."""

import json
import shutil

import pandas as pd
import pytest

import compare_results
import eval_zeroshot
import prepare_tier
import train_tier
from evaluation_tier.models.loading import load_model
from processing_tier import read_radiograph
from processing_tier.phantom.dataset import make_phantom
from processing_tier.readers import origin_name
from processing_tier.records.identities import read_trained_on

OPTIONS = [
    *("--per_device_train_batch_size", "8"),
    *("--max_steps", "2"),
    *("--save_steps", "1"),
    *("--eval_strategy", "no"),
    *("--save_strategy", "steps"),
    *("--load_best_model_at_end", "false"),
    *("--min_positives", "1"),
    *("--eval_fraction", "0.25"),
    *("--report_to", "none"),
    *("--use_cpu", "true"),
    *("--dataloader_pin_memory", "false"),
    *("--disable_tqdm", "true"),
]
EVALUATION = ["--min_positives", "1", "--n_bootstrap", "20", "--findings", "Cardiomegaly"]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table of 64 phantoms, two images of a patient, without a column `split`."""
    folder = tmp_path_factory.mktemp("own")
    records = make_phantom(64, image_size=64)
    rows = []
    for i, record in enumerate(records):
        read_radiograph(record["image"]).save(folder / f"{i}.png")
        rows.append(
            {
                "image": f"{i}.png",
                "patient_id": f"p{i // 2}",
                "report": record["report"],
                "Cardiomegaly": i // 2 % 2,
            }
        )
    pd.DataFrame(rows).to_csv(folder / "own.csv", index=False)
    return folder / "own.csv"


@pytest.fixture(scope="module")
def trained(table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    train(table, folder, "--image_size", "32", "--model", "nano")
    return folder


def train(data, folder, *options):
    train_tier.main(list(map(str, [*OPTIONS, "--data", data, "--output_dir", folder, *options])))


def evaluate(model, data, folder, *options) -> dict:
    eval_zeroshot.main(list(map(str, [model, "--data", data, "--output_dir", folder, *EVALUATION, *options])))
    return json.loads((folder / "metrics.json").read_text())


def refused(capsys, main, *argv) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main(list(map(str, argv)))
    assert exit_.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_model_and_checkpoints_keep_what_they_were_trained_on(trained):
    listed = read_trained_on(trained / "trained_on.json")
    [source] = listed.sources
    assert listed.unlisted == () and source[:2] == ("own.csv", "train")
    assert [len(keys) for keys in source[2:]] == [48, 24, 8]  # images, patients, and patients held out
    assert (trained / "checkpoint-1" / "trained_on.json").read_text() == (trained / "trained_on.json").read_text()
    assert "| Data of the initial weights | none |" in (trained / "README.md").read_text()


def test_data_without_splits_are_evaluated_on_what_training_set_aside(trained, table, tmp_path, capsys):
    metrics = evaluate(trained, table, tmp_path / "default")
    assert metrics["protocol"]["split"] == "held_out" and metrics["n_images"] == 16
    assert metrics["protocol"]["training_overlap"] == (
        "none of the images is one of its training images or of its training patients"
    )
    assert "trained" not in metrics["protocol"] and "split 'held_out': 16 images" in capsys.readouterr().out
    named = evaluate(trained, table, tmp_path / "named", "--split", "held_out")
    assert named["findings"] == metrics["findings"]
    predictions = pd.read_parquet(tmp_path / "named" / "predictions.parquet")
    assert len(set(predictions["patient_id"])) == 8

    message = refused(capsys, eval_zeroshot.main, trained, "--data", table, "--split", "validation", *EVALUATION)
    assert "has no column 'split', so 'validation' would be all of its images: leave --split out" in message


def test_training_images_are_refused_left_out_or_told(trained, table, tmp_path, capsys):
    argv = [trained, "--data", table, "--split", "all", "--output_dir", tmp_path / "all", *EVALUATION]
    assert refused(capsys, eval_zeroshot.main, *argv) == (
        "eval_zeroshot.py: error: 48 of 64 images of the split 'all' are images that the model was trained on: choose "
        "another --split (held_out is the part set aside), leave them out with --exclude_trained, or count them with "
        "--include_trained, and the results will say so."
    )
    assert not (tmp_path / "all").exists()
    excluded = evaluate(trained, table, tmp_path / "excluded", "--split", "all", "--exclude_trained")
    held_out = evaluate(trained, table, tmp_path / "held_out")
    assert excluded["n_images"] == 16 and excluded["findings"] == held_out["findings"]
    assert excluded["protocol"]["trained"] == "excluded"
    assert excluded["protocol"]["training_overlap"].startswith("48 training images and 0 other images")

    model = tmp_path / "model"
    shutil.copytree(trained, model)
    included = evaluate(model, table, tmp_path / "included", "--split", "all", "--include_trained", "--model_card")
    assert included["n_images"] == 64 and included["protocol"]["n_trained_images"] == 48
    assert included["protocol"]["trained"] == "included"
    sentence = "48 of the 64 images are training images and 0 others are of training patients, and they count"
    assert sentence in included["protocol"]["training_overlap"]
    assert f"These results count training images: {sentence}" in (tmp_path / "included" / "report.html").read_text()
    assert f"**These results count training images:** {sentence}" in (model / "README.md").read_text()


def test_renamed_copies_and_other_images_of_a_patient_are_found(trained, table, tmp_path, capsys):
    frame = pd.read_csv(table, dtype=str)
    # under other names and ids, in a table of another name
    for name in frame["image"]:
        shutil.copy(table.parent / name, tmp_path / f"copy-{name}")
    frame.assign(image="copy-" + frame["image"], patient_id=frame["image"]).to_csv(tmp_path / "other.csv", index=False)
    argv = [trained, "--data", tmp_path / "other.csv", *EVALUATION, "--output_dir", tmp_path / "x"]
    assert "48 of 64 images of the split 'all' are images that" in refused(capsys, eval_zeroshot.main, *argv)
    # new images of the same patients, in the table of that name
    for i, record in enumerate(make_phantom(64, image_size=64, seed=1)):
        read_radiograph(record["image"]).save(tmp_path / f"new-{i}.png")
    frame = frame.assign(image=[f"new-{i}.png" for i in range(64)])
    frame.to_csv(tmp_path / "own.csv", index=False)
    message = refused(
        capsys, eval_zeroshot.main, trained, "--data", tmp_path / "own.csv", "--split", "all", *EVALUATION
    )
    assert "0 of 64 images of the split 'all' are images that the model was trained on, 48 more are of its" in message
    # and in one of another name: told, not refused, since every hospital counts from 1
    frame.to_csv(tmp_path / "elsewhere.csv", index=False)
    metrics = evaluate(trained, tmp_path / "elsewhere.csv", tmp_path / "elsewhere")
    assert metrics["protocol"]["split"] == "all" and metrics["n_images"] == 64
    assert metrics["protocol"]["training_overlap"].endswith("; 48 have the patient id of another training set")


@pytest.mark.slow
def test_a_prepared_copy_has_the_patients_of_its_original(trained, table, tmp_path, capsys):
    prepared = tmp_path / "small"
    prepare_tier.main(["--data", str(table), "--output_dir", str(prepared), "--size", "32", "--num_workers", "1"])
    assert origin_name(prepared) == "own.csv"  # all images are written anew
    argv = [trained, "--data", prepared, *EVALUATION, "--output_dir", tmp_path / "x"]
    assert refused(capsys, eval_zeroshot.main, *argv, "--split", "train").startswith(
        "eval_zeroshot.py: error: 0 of 64 images of the split 'train' are images that the model was trained on, 48 "
        "more are of its training patients: choose another --split"
    )
    metrics = evaluate(trained, prepared, tmp_path / "held_out")  # which is the default here
    assert metrics["protocol"]["split"] == "held_out" and metrics["n_images"] == 16
    assert metrics["dataset"] == "small"


def test_held_out_of_other_data_names_the_split_that_it_is_of(trained, table, tmp_path, capsys):
    frame = pd.read_csv(table, dtype=str).assign(split="test")
    frame["image"] = [str(table.parent / name) for name in frame["image"]]
    frame.to_csv(tmp_path / "other.csv", index=False)
    argv = [trained, "--data", tmp_path / "other.csv", "--split", "held_out", *EVALUATION]
    assert refused(capsys, eval_zeroshot.main, *argv) == (
        "eval_zeroshot.py: error: --split held_out is a part of the split 'train' of own.csv, but "
        f"{tmp_path / 'other.csv'} does not have it: name the data that the model was trained on, or another --split."
    )


@pytest.mark.slow
def test_a_second_training_keeps_the_list_of_the_first(trained, table, tmp_path, capsys):
    second = tmp_path / "second"
    train("phantom:num_images=40,image_size=64,seed=5", second, "--model", trained)
    listed = read_trained_on(second / "trained_on.json")
    assert [source.dataset for source in listed.sources] == ["own.csv", "phantom:num_images=40,image_size=64,seed=5"]
    assert "| Data of the initial weights | own.csv (train) |" in (second / "README.md").read_text()
    assert "48 of 64 images" in refused(
        capsys, eval_zeroshot.main, second, "--data", table, "--split", "all", *EVALUATION
    )
    model, _ = load_model(second)
    model.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "trained_on.json").read_text() == (second / "trained_on.json").read_text()


@pytest.mark.slow
def test_initial_weights_without_a_list_are_told(trained, table, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(trained, bare)
    (bare / "trained_on.json").unlink()
    metrics = evaluate(bare, table, tmp_path / "a", "--split", "all")
    assert metrics["protocol"]["training_overlap"] == "not known: the model keeps no list of its training images"
    train(table, tmp_path / "second", "--model", bare)
    metrics = evaluate(tmp_path / "second", table, tmp_path / "b")
    assert metrics["protocol"]["training_overlap"].endswith("; the training images of bare are not known")


@pytest.mark.slow
def test_a_classifier_keeps_its_list_too(table, tmp_path):
    options = ["--task", "classification", "--model", "nano", "--image_size", "32", "--label_fraction", "0.5"]
    train(table, tmp_path / "run", *options, "--findings", "Cardiomegaly")
    [source] = read_trained_on(tmp_path / "run" / "trained_on.json").sources
    assert [len(keys) for keys in source[2:]] == [24, 12, 8]


@pytest.mark.slow
def test_a_comparison_refuses_leaves_out_or_tells_training_images(trained, table, tmp_path, capsys):
    bare = tmp_path / "bare"
    shutil.copytree(trained, bare)
    (bare / "trained_on.json").unlink()
    evaluate(trained, table, tmp_path / "a", "--split", "all", "--include_trained")
    evaluate(bare, table, tmp_path / "b", "--split", "all")
    evaluate(trained, table, tmp_path / "c", "--split", "all", "--exclude_trained")
    assert "counts 48 images that its model was trained on, or of its training patients. Exclude them" in refused(
        capsys, compare_results.main, tmp_path / "a", tmp_path / "b"
    )
    for first in "ac":
        compare_results.main([str(tmp_path / first), str(tmp_path / "b"), "--exclude_trained", "--n_bootstrap", "20",
                              "--output_dir", str(tmp_path / "excluded")])  # fmt: skip
        assert json.loads((tmp_path / "excluded" / "comparison.json").read_text())["n_images"] == 16
    compare_results.main([str(tmp_path / "a"), str(tmp_path / "b"), "--include_trained", "--n_bootstrap", "20",
                          "--output_dir", str(tmp_path / "included")])  # fmt: skip
    comparison = json.loads((tmp_path / "included" / "comparison.json").read_text())
    assert comparison["n_images"] == 64 and comparison["training_overlap"][0].startswith("48 of the 64 images")
    assert "A: 48 of the 64 images are training images" in (tmp_path / "included" / "comparison.html").read_text()


def test_an_evaluation_on_a_published_training_set_warns():
    from evaluation_tier.models.trained_on import shared_archives
    from processing_tier.records.identities import EMPTY, TrainedOn, TrainingSource

    lists = {"m": TrainedOn((TrainingSource("mimic_cxr", "train", EMPTY, EMPTY),)), "other": None}
    assert shared_archives(lists, "ms_cxr") == [
        "m was trained on mimic_cxr (split train), of which ms_cxr is a part: other data may be harder for it."
    ]
    assert shared_archives(lists, "padchest") == []
