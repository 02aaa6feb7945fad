import json
import os
import re

import numpy as np
import pytest
import torch
from eval_command import PHANTOM, run, save_two_models
from small_trainings import FINDINGS, with_labels
from tiny_siglip import save_siglip

from evaluation_tier.models.adapters import AdapterName
from modeling_tier import TierCLIPModel
from training_tier.fine_tuning import FineTuning

PAIR = FINDINGS[:2]


@pytest.fixture(scope="module")
def drawn(phantom):
    """Twelve images with both classes of two findings."""
    return with_labels(phantom.select(range(12)), Consolidation=[1, 0] * 6, Pneumothorax=[0, 0, 1] * 4)


def test_the_scores_are_of_a_trained_tower(base, drawn, labelled, capsys, tmp_path):
    before = TierCLIPModel.from_pretrained(base).state_dict()
    start, few, other = (
        FineTuning(steps, "cpu").score(base, drawn, PAIR, labelled, seed) for steps, seed in ((1, 0), (4, 0), (4, 1))
    )
    assert few.shape == (24, 2) and np.isfinite(few).all()
    assert not np.allclose(few, start) and not np.array_equal(few, other)  # the seed orders the images
    assert np.ptp(few, axis=0).min() > 0
    after = TierCLIPModel.from_pretrained(base).state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    assert capsys.readouterr().out == "" and os.listdir(tmp_path) == ["base"]


def test_the_labels_of_the_evaluated_images_do_not_matter_and_a_seed_repeats(base, drawn, labelled):
    turned = with_labels(labelled, **{name: (1 - np.array(labelled[name][:])).tolist() for name in PAIR})
    scores = [FineTuning(2, "cpu").score(base, drawn, PAIR, records, 0) for records in (labelled, turned)]
    np.testing.assert_array_equal(*scores)


def test_a_folder_called_as_a_preset_is_a_folder(base, drawn, labelled, monkeypatch, tmp_path):
    expected = FineTuning(1, "cpu").score(base, drawn, PAIR, labelled, 0)
    os.rename(base, tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    FineTuning(1).check("tiny")
    np.testing.assert_array_equal(FineTuning(1, "cpu").score("tiny", drawn, PAIR, labelled, 0), expected)


def test_what_cannot_be_trained_is_refused(base, tmp_path, monkeypatch):
    save_siglip(tmp_path / "siglip")
    (tmp_path / "own.py").write_text("def make(device):\n    return None\n")
    trains = "--fine_tuning_steps trains image towers of CLIP and TIER models, which {} is not: leave it out."
    for model in (str(tmp_path / "siglip"), AdapterName(f"{tmp_path / 'own.py'}:make")):
        with pytest.raises(ValueError, match=re.escape(trains.format(model))):
            FineTuning(1).check(model)
    with pytest.raises(ValueError, match="cannot train on the device 'cuda:1': choose 'cpu' or 'cuda'"):
        FineTuning(1, "cuda:1").check(base)
    FineTuning(1).check(base)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="trains in one process: start the command without torchrun"):
        FineTuning(1).check(base)


def test_images_that_do_not_decode_are_refused(base, drawn, labelled):
    broken = drawn.map(lambda row: {"image": {"bytes": b"no", "path": None}}, features=drawn.features)
    with pytest.raises(ValueError, match="do not decode|decodes"):
        FineTuning(1, "cpu").score(base, broken, PAIR, labelled, 0)


@pytest.mark.slow
def test_the_command_adds_the_curve(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    model = save_two_models(tmp_path)[0]
    given = ["--data", PHANTOM, "--findings", "Cardiomegaly", "Pleural Effusion", "--n_bootstrap", 20]
    curve = ["--learning_curve", "train", "--fine_tuning_steps", 2, "--device", "cpu"]
    text = run(model, *given, *curve, "--output_dir", tmp_path / "out", "--figures", capsys=capsys).out
    result = json.loads((tmp_path / "out" / "metrics.json").read_text())["learning_curve"]
    assert result["fine_tuning_steps"] == 2 and list(result["methods"]) == ["linear_probe", "knn", "fine_tuning"]
    for points in zip(*result["methods"].values(), strict=True):
        assert len({(point["n_patients"], point["n_images"], point["n_one_class"]) for point in points}) == 1
    assert "Fine-tuning" in text and "Fine-tuning" in (tmp_path / "out" / "tables.md").read_text()
    assert "trained for 2 steps" in (tmp_path / "out" / "report.html").read_text()
    assert (tmp_path / "out" / "learning_curve.png").is_file()
