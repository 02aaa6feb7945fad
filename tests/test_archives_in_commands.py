"""Archives as their owners ship them, from `NAME:FOLDER` through tier-prepare, tier-train and tier-eval."""

import json

import datasets
import pytest
from small_archives import SMALL_ARCHIVES
from tiny_models import save_tiny_clip

import eval_zeroshot
import prepare_tier
import train_tier
from processing_tier.readers import READERS, read_records

# What each is trained with, and the split and the findings that it is evaluated on; rexgradient has no labels
TEXTS = ("--text", "findings")
LABELS = ("--task", "classification", "--findings")
TRAINED = {
    "rexgradient": ("--eval_split", "validation", "--metric_for_best_model", "loss"),
    "padchest_gr": (*TEXTS, "--eval_split", "validation"),
    "montgomery": (*TEXTS, "--eval_fraction", "0.5"),
    "shenzhen": (*TEXTS, "--eval_fraction", "0.5"),
    "tbx11k": (*LABELS, "Tuberculosis", "Active Tuberculosis", "--eval_split", "validation"),
    "vindr_pcxr": (*LABELS, "Broncho-pneumonia", "--eval_split", "test"),
}
EVALUATED = {
    "padchest_gr": ("test", ["cardiomegaly", "No Finding"]),
    "montgomery": ("train", ["Tuberculosis"]),
    "shenzhen": ("train", ["Tuberculosis", "No Finding"]),
    "tbx11k": ("validation", ["Tuberculosis", "Active Tuberculosis"]),
    "vindr_pcxr": ("test", ["No finding", "Broncho-pneumonia"]),
}
QUICK = [
    *("--max_steps", "1", "--per_device_train_batch_size", "2", "--report_to", "none", "--use_cpu", "true"),
    *("--dataloader_pin_memory", "false", "--disable_tqdm", "true", "--min_positives", "1"),
]


def call(command, *words) -> None:
    command.main([str(word) for word in words])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_clip(tmp_path_factory.mktemp("model") / "tiny", 0, image_pooling="patch_mean")


FAST = "padchest_gr"  # reports, labels and boxes


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == FAST else [pytest.mark.slow]) for name in SMALL_ARCHIVES]
)
def test_every_command_reads_it(name, model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "the archive"
    SMALL_ARCHIVES[name](folder)
    data, splits = f"{name}:{folder}", READERS[name][1]

    call(prepare_tier, "--data", data, "--output_dir", tmp_path / "prepared", "--size", 32, "--num_workers", 1,
         "--splits", splits[0], "--views", "all")  # fmt: skip
    read = {record["image_id"]: record for record in read_records(data, splits[0])}
    prepared = {record["image_id"]: record for record in read_records(tmp_path / "prepared", splits[0])}
    assert prepared.keys() == read.keys()
    for image_id, record in read.items():
        assert prepared[image_id]["report"] == record["report"]
        for box, scaled in zip(record.get("boxes", ()), prepared[image_id].get("boxes", ()), strict=True):
            assert scaled["phrase"] == box["phrase"]  # the pictures have 64 x 48 pixels, the prepared ones 43 x 32
            assert [scaled["x"], scaled["h"]] == pytest.approx([box["x"] * 43 / 64, box["h"] * 32 / 48], rel=1e-6)

    call(train_tier, "--data", data, "--model", model, "--output_dir", tmp_path / "run", *QUICK, *TRAINED[name])
    assert (tmp_path / "run" / "model.safetensors").is_file()
    if name not in EVALUATED:
        return
    split, findings = EVALUATED[name]
    call(eval_zeroshot, model, "--data", data, "--split", split, "--findings", *findings, "--min_positives", 1,
         "--n_bootstrap", 10, "--output_dir", tmp_path / "evaluation")  # fmt: skip
    metrics = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert metrics["dataset"] == name and list(metrics["findings"]) == findings
    labels = read_records(data, split)
    for finding in findings:
        assert metrics["findings"][finding]["n_positive"] == sum(label == 1 for label in labels[finding])


@pytest.mark.slow
def test_a_training_on_tbx11k_with_extra_images_is_found_by_an_evaluation_on_montgomery(model, tmp_path, capsys):
    """The pictures differ (512 x 512 pixels there), but the patients are the same: 0113, with a second image, 0117."""
    for name in ("tbx11k", "montgomery"):
        SMALL_ARCHIVES[name](tmp_path / name)
    words = [*QUICK, *LABELS, "Tuberculosis", "--eval_fraction", "0.3", "--model", model]
    evaluation = ["--data", f"montgomery:{tmp_path}/montgomery", "--split", "train", "--min_positives", 1]
    evaluation += ["--n_bootstrap", 5]
    for extra, name in (("", "plain"), (",extra=1", "with_extra")):
        call(train_tier, "--data", f"tbx11k:{tmp_path}/tbx11k{extra}", "--output_dir", tmp_path / name, *words)
    call(eval_zeroshot, tmp_path / "plain", *evaluation, "--output_dir", tmp_path / "out")
    with pytest.raises(SystemExit) as stop:
        call(eval_zeroshot, tmp_path / "with_extra", *evaluation, "--output_dir", tmp_path / "out2")
    assert stop.value.code == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "0 of 12 images of the split 'train' are images that the model was trained on, 2 more are of" in message
