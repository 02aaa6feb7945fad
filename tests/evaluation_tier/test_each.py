"""`--each`: several models one by one, with the results that each has alone, from one reading of the images."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from eval_command import PHANTOM, fails, run, save_two_models, write_table
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessorPil, CLIPProcessor

import compare_results
from evaluation_tier.models import images
from evaluation_tier.models.loading import load_model
from processing_tier import radiograph_tier

EXAMPLE = Path(__file__).parents[2] / "examples" / "own_model.py"
OPTIONS = ["--min_positives", 5, "--n_bootstrap", 5]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[Path]:
    """Two models with the same pixels, and CLIP's own with CLIP's own."""
    folder = tmp_path_factory.mktemp("models")
    two = save_two_models(folder)
    model, processor = load_model(two[0])
    model.config.image_pooling = "cls"
    model.to_clip().save_pretrained(folder / "clip")
    size = {"height": 32, "width": 32}
    own = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size)
    CLIPProcessor(own, processor.tokenizer).save_pretrained(folder / "clip")
    return [*two, folder / "clip"]


@pytest.fixture
def count(monkeypatch):
    """How often files were read, and their images decoded."""
    counts = dict.fromkeys(("read_file", "read_image"), 0)

    def counted(name, function):
        def call(*args, **kwargs):
            counts[name] += 1
            return function(*args, **kwargs)

        return call

    for module, name in ((radiograph_tier, "read_file"), (images, "read_file"), (radiograph_tier, "read_image")):
        monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    return counts


def results(folder: Path) -> tuple[dict, pd.DataFrame]:
    return json.loads((folder / "metrics.json").read_text()), pd.read_parquet(folder / "predictions.parquet")


@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, True])
def test_the_results_are_those_of_each_alone(models, tmp_path, capsys, cached):
    table, adapter = write_table(tmp_path), f"{EXAMPLE}:make"
    options = ["--data", table, *OPTIONS, "--analyses", "retrieval", "--cache_dir", tmp_path / "cache"]
    options = options if cached else options[:-2]
    for i, model in enumerate(models):
        run(model, *options, "--output_dir", tmp_path / f"alone{i}", capsys=capsys)
    run("--adapter", adapter, *options, "--output_dir", tmp_path / "alone3", capsys=capsys)
    if cached:
        shutil.rmtree(sorted((tmp_path / "cache").iterdir())[1])  # of one model
    text = run("--each", *models, "--adapter", adapter, *options, "--output_dir", tmp_path / "o", capsys=capsys).out
    parent = models[0].parent.name
    folders = [f"{parent}_model0", f"{parent}_model1", f"{parent}_clip", "own_model_py_make"]
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == sorted(slug(name) for name in folders)
    for i, name in enumerate(folders):
        alone, together = results(tmp_path / f"alone{i}"), results(tmp_path / "o" / slug(name))
        notes = [metrics["protocol"].pop("training_overlap") for metrics, _ in (alone, together)]
        assert notes[1].startswith(notes[0]) and notes[1].endswith("own_model.py:make)")
        assert alone[0] == together[0]
        pd.testing.assert_frame_equal(alone[1], together[1], check_exact=True)
        assert str(tmp_path / "o" / slug(name) / "metrics.json") in text
    compare_results.main([str(tmp_path / "o" / slug(name)) for name in folders[:2]])
    assert "Mean" in capsys.readouterr().out


def slug(name: str) -> str:
    return name.replace("-", "_")


@pytest.mark.slow
@pytest.mark.parametrize("first, decoded", [(0, 80), (2, 40)])
def test_files_are_read_once_and_decoded_once_by_models_that_read_alike(
    models, tmp_path, capsys, count, first, decoded
):
    """CLIP's model and the adapter's decode in full, TIER's ask for a JPEG of reduced size."""
    table = write_table(tmp_path)
    count.update(read_file=0, read_image=0)
    arguments = ["--each", *models[first:], "--adapter", f"{EXAMPLE}:make", "--data", table, *OPTIONS]
    run(*arguments, "--output_dir", tmp_path / "o", capsys=capsys)
    assert count == {"read_file": 40, "read_image": decoded}


def test_models_that_decode_differently_share_the_bytes(models, tmp_path, capsys, count):
    changed = shutil.copytree(models[1], tmp_path / "changed")
    path = changed / "processor_config.json"
    settings = json.loads(path.read_text())
    settings["image_processor"]["grey_levels"] = "stretch"
    path.write_text(json.dumps(settings))
    table = write_table(tmp_path)
    count.update(read_file=0, read_image=0)
    arguments = ["--each", models[0], changed, "--data", table, *OPTIONS]
    run(*arguments, "--output_dir", tmp_path / "o", capsys=capsys)
    assert count == {"read_file": 40, "read_image": 80}


def test_each_gets_what_is_for_one_model(models, tmp_path, capsys):
    copies = [shutil.copytree(model, tmp_path / model.name) for model in models[:2]]
    arguments = ["--each", *copies, "--data", PHANTOM, *OPTIONS, "--save_thresholds", "--analyses", "deletion"]
    run(*arguments, "--output_dir", tmp_path / "o", capsys=capsys)
    kept = [json.loads((copy / "config.json").read_text())["zero_shot_findings"] for copy in copies]
    assert kept[0] and kept[0].keys() == kept[1].keys() and kept[0] != kept[1]


def test_weights_may_be_equal_and_one_bad_model_stops_all(models, tmp_path, capsys):
    copy = shutil.copytree(models[0], tmp_path / "copy")
    run("--each", models[0], copy, "--data", PHANTOM, *OPTIONS, "--output_dir", tmp_path / "o", capsys=capsys)
    assert len(list((tmp_path / "o").glob("*/metrics.json"))) == 2
    (copy / "model.safetensors").unlink()
    arguments = ["--each", models[0], copy, "--data", PHANTOM, *OPTIONS, "--output_dir", tmp_path / "bad"]
    assert "does not hold weights" in fails(*arguments, capsys=capsys) and not (tmp_path / "bad").exists()


def test_a_model_whose_embeddings_are_not_finite_is_named(models, tmp_path, capsys):
    broken = shutil.copytree(models[1], tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    tensors["visual_projection.weight"].fill_(float("nan"))
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    arguments = ["--each", models[0], broken, "--data", PHANTOM, *OPTIONS, "--output_dir", tmp_path / "o"]
    assert fails(*arguments, capsys=capsys) == (
        f"{tmp_path.name}/broken: The model's embeddings are zero or not finite: its weights are damaged or the "
        "training diverged."
    )
    assert not (tmp_path / "o").exists()


def test_the_folders_are_checked_before_any_work(models, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("--each", *models[:2], "--data", PHANTOM, *OPTIONS, capsys=capsys)
    folders = sorted(path.name for path in (tmp_path / "runs" / "evaluation").iterdir())
    assert len(folders) == 2
    (tmp_path / "o").mkdir()
    for folder, name in zip(folders, ("model1", "model0"), strict=True):  # each where the other belongs
        target = tmp_path / "o" / f"{models[0].parent.name}_{name}".replace("-", "_")
        shutil.copytree(tmp_path / "runs" / "evaluation" / folder, target)
    arguments = ["--each", *models[:2], "--data", PHANTOM, *OPTIONS, "--output_dir", tmp_path / "o"]
    assert "holds an evaluation of" in fails(*arguments, capsys=capsys)
