"""Bad options and data end a training with one sentence before it starts."""

import shutil

import pandas as pd
import pytest
from training_runs import QUICK, refused, write_folder


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        (["--vision_model", "./nowhere", "--text_model", "bert-base-uncased"], "tower"),
        (["--vision_model", "microsoft/resnet-50", "--text_model", "./nowhere"], "tower"),
        (["--model", "nano", "--tokenizer", "./nowhere"], "tokenizer"),
    ],
)
def test_a_mistyped_tower_is_known_before_data_are_read(capsys, tmp_path, options, kind):
    """The data are not there either, and are not asked for first."""
    assert refused(capsys, "--data", tmp_path / "no_data", *options, "--output_dir", tmp_path / "run") == (
        f"The {kind} ./nowhere is not on this disk, and was not looked up on the Hub: name one on this disk, or a "
        f"{kind} on the Hub (owner/name)."
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--data", "nowhere"], "nowhere"),
        (["--model", "gigantic"], "'gigantic'"),
        (
            ["--model", "./nowhere"],
            "The checkpoint folder './nowhere' does not exist; name one, or a preset (nano, tiny, small",
        ),
        (["--token_entropy_weight", "-1"], "token_entropy_weight=-1.0 must be at least 0."),
        (["--evidence_patches", "0.5"], "evidence_patches=0.5 must be at least 1."),
        (
            ["--evidence_entropy_weight", "0.1", "--image_pooling", "cls"],
            "evidence_entropy_weight=0.1 needs scores that are sums over the patches, unlike those of image_pooling=",
        ),
        (
            ["--vision_model", "./nowhere", "--text_model", "./nowhere"],
            "The tower ./nowhere is not on this disk, and was not looked up on the Hub",
        ),
        (
            ["--image_size", "100"],
            "image_size=100 is not a multiple of the 16-pixel patches of 'tiny'; use for example 96.",
        ),
        (["--findings", "Consolidatoin"], "Consolidatoin"),
        (["--prompts", "nonsense"], "prompts 'nonsense' are not known; choose one of"),
        (["--min_positives", "1000"], "No finding has 1000 positives"),
        (["--per_device_train_batch_size", "64"], "48 training pairs do not fill one batch of 64; lower --per_device"),
        (
            ["--contrastive_chunk_size", "9"],
            "contrastive_chunk_size=9 is more than the 8 pairs of a batch, which would be one chunk; lower it",
        ),
        (["--per_device_train_batch_size", "1"], "A batch of 1 pair has no negatives; raise --per_de"),
        (["--train_sampling_strategy", "batch_rebalance"], "train_sampling_strategy='batch_rebalance' is not known"),
        (["--lerning_rate", "1"], "Unknown option '--lerning_rate'; did you mean 'learning_rate'?"),
        (["--text", "history"], "text='history' is not known"),
        (["--resume_from_checkpoint", "last"], "does not hold a whole checkpoint to resume from"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *QUICK, "--output_dir", "run", *argv)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_patient_in_two_splits_is_refused(capsys, tmp_path):
    data = write_folder(tmp_path / "data", patients={"train": "p1", "validation": "p1"})
    message = refused(capsys, *QUICK, "--data", data, "--output_dir", tmp_path / "run")
    assert message.startswith("1 patient is in both 'train' and 'evaluation'")


def test_a_finding_without_positives_is_refused_by_name(capsys, image_folder, tmp_path):
    message = refused(
        capsys, *QUICK, "--data", image_folder, "--output_dir", tmp_path / "run", "--findings", "Fracture"
    )
    assert message.startswith("The finding 'Fracture' has no positive image among the 24")


def test_a_missing_column_is_refused_by_name(capsys, image_folder, tmp_path):
    table = tmp_path / "table.csv"
    pd.DataFrame({"path": ["a.png"], "who": ["p"], "split": ["train"]}).to_csv(table, index=False)
    argv = ("--data", table, "--columns", "image=path", "patient_id=who", "impression=text")
    assert "column 'text'" in refused(capsys, *QUICK, *argv, "--output_dir", tmp_path / "run")


def test_images_that_do_not_decode_are_found_before_training(capsys, image_folder, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(image_folder, data)
    for image in (data / "train").glob("*.png"):
        image.write_bytes(image.read_bytes()[:60])
    message = refused(capsys, *QUICK, "--data", data, "--output_dir", tmp_path / "run", "--min_positives", "1")
    assert message.startswith("None of the first 8 images decodes. The first one: synthetic-train-")


def test_a_checkpoint_folder_without_weights(capsys, trained_run, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(trained_run, folder, ignore=shutil.ignore_patterns("*.safetensors", "checkpoint-*"))
    argv = [word for word in QUICK if word not in ("--image_size", "32")]
    message = refused(capsys, *argv, "--model", folder, "--output_dir", tmp_path / "run")
    assert message.startswith(f"The checkpoint folder '{folder}' does not hold weights (*.safetensors)")


def test_a_finished_run_is_not_overwritten(capsys, trained_run):
    before = (trained_run / "model.safetensors").stat().st_mtime_ns
    assert "already holds a run" in refused(capsys, *QUICK, "--output_dir", trained_run)
    assert (trained_run / "model.safetensors").stat().st_mtime_ns == before
