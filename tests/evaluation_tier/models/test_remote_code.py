"""Code that a model brings runs only when the user says so, from a folder or a commit."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from eval_command import PHANTOM, fails, run
from own_code import keep_modules_in, save_own_code
from tiny_models import save_tiny_clip

from evaluation_tier.models.adapters import AdapterName
from evaluation_tier.models.embedding import embed_images
from evaluation_tier.models.loading import load_model
from evaluation_tier.scoring.zeroshot import evaluate_zero_shot
from evaluation_tier.statistics.resampling import Resampling

OPTIONS = ["--data", PHANTOM, "--min_positives", 5, "--n_bootstrap", 5]


@pytest.fixture
def ran(tmp_path, monkeypatch) -> Path:
    """A file that exists once the code ran."""
    keep_modules_in(tmp_path / "modules", monkeypatch)
    return tmp_path / "ran"


@pytest.fixture
def folder(ran, tmp_path) -> Path:
    return save_own_code(tmp_path / "mine", ran)


def test_it_never_runs_by_itself(folder, ran, tmp_path, capsys):
    arguments = [folder, *OPTIONS, "--output_dir", tmp_path / "output"]
    assert fails(*arguments, capsys=capsys) == (
        f"The model {folder} needs code of its own, which does not run unasked: read it, then pass "
        "--trust_remote_code with a folder or owner/name@commit."
    )
    assert not ran.exists() and not (tmp_path / "output").exists()


def test_it_runs_when_asked_and_the_results_say_so(folder, ran, tmp_path, capsys, caplog):
    arguments = [folder, *OPTIONS, "--output_dir", tmp_path / "output", "--trust_remote_code"]
    run(*arguments, capsys=capsys)
    assert ran.exists()
    metrics = json.loads((tmp_path / "output" / "metrics.json").read_text())
    digest = hashlib.sha256((folder / "modeling_mine.py").read_bytes()).hexdigest()
    name = f"{tmp_path.name}/mine"
    assert metrics["remote_code"] == {name: {"class": "MineModel", "files": {"modeling_mine.py": digest}}}
    assert f"The texts of {folder} are padded to the longest and masked, as CLIP's are." in caplog.text


def test_it_is_embedded_through_its_own_processor(folder, phantom):
    model, processor = load_model(folder, trust_remote_code=True)
    few = phantom.select(range(10))
    pixels = torch.cat(
        [processor.image_processor(image["bytes"], return_tensors="pt")["pixel_values"] for image in few["image"]]
    )
    with torch.no_grad():
        expected = model.get_image_features(pixels)
    expected = (expected / expected.norm(dim=-1, keepdim=True)).numpy()
    np.testing.assert_allclose(embed_images(model, processor, few, batch_size=4), expected, rtol=0, atol=1e-6)
    options = {"findings": ["Edema"], "min_positives": 1, "resampling": Resampling(5)}
    metrics, _ = evaluate_zero_shot({"m": (model, processor)}, few, **options)
    assert metrics["protocol"]["score_level"] == "global" and "score_levels" not in metrics


def test_the_hub_needs_a_commit(capsys):
    for name in ("owner/name", "owner/name@main", "owner/name@abcdef1"):
        assert fails(name, *OPTIONS, "--trust_remote_code", capsys=capsys) == (
            f"--trust_remote_code runs the code of {name}, which may change: name the commit that you have read, "
            "owner/name@ and 40 hexadecimal digits, or download the model to a folder."
        )


def test_the_code_of_another_repository_is_refused(folder, ran, tmp_path):
    processor = json.loads((folder / "processor_config.json").read_text())
    processor["image_processor"]["auto_map"] = {"AutoImageProcessor": "other/repository--processing.Theirs"}
    (folder / "processor_config.json").write_text(json.dumps(processor))
    with pytest.raises(ValueError, match=r"processor_config.json of .*mine takes its code from another repository"):
        load_model(folder, trust_remote_code=True)
    assert not ran.exists()


def test_a_model_without_code_is_not_changed_by_the_option(ran, tmp_path, capsys, caplog):
    """TIER's own models bring their code too, but the installed one runs."""
    plain = save_tiny_clip(tmp_path / "plain", 0)
    assert "auto_map" in json.loads((plain / "config.json").read_text())
    found = {}
    for options in ([], ["--trust_remote_code"]):
        run(plain, *OPTIONS, "--output_dir", tmp_path / "output", *options, capsys=capsys)
        found[bool(options)] = json.loads((tmp_path / "output" / "metrics.json").read_text())
    assert found[True] == found[False]
    assert f"--trust_remote_code has no effect on {plain}, which does not need code of its own." in caplog.text
    assert not (tmp_path / "modules").exists()


def test_an_adapter_is_told_that_the_option_has_no_effect(caplog):
    name = AdapterName(f"{Path(__file__).parents[3] / 'examples' / 'own_model.py'}:make")
    load_model(name)
    assert not caplog.records
    load_model(name, trust_remote_code=True)
    assert [record.getMessage() for record in caplog.records] == [
        f"--trust_remote_code has no effect on {name}, which does not need code of its own."
    ]


def test_what_does_not_embed_images_and_texts_is_refused(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    code = (other / "modeling_mine.py").read_text()
    (other / "modeling_mine.py").write_text(code.replace("def get_text_features", "def embed_text"))
    with pytest.raises(ValueError, match="MineModel, which does not embed images and texts in one space"):
        load_model(other, trust_remote_code=True)
