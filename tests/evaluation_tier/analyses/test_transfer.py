import json

import datasets
import numpy as np
import pytest
from eval_command import PHANTOM, fails, run, save_two_models
from saved_results import save_result
from sklearn.metrics import roc_auc_score

from evaluation_tier.analyses.transfer import match_findings, measure_transfer, read_source
from evaluation_tier.output.metrics_file import read_metrics, to_json
from evaluation_tier.output.predictions import read_predictions
from evaluation_tier.output.result_tables import evaluation_tables
from evaluation_tier.statistics.resampling import Resampling
from processing_tier.prompts.loader import load_prompts

FEW = Resampling(50)


def make(num_images: int, seed: int, shift: float = 0.0, healthy: float = 0.5):
    """Labels of two findings and of "No Finding", and scores that the findings raise."""
    generator = np.random.default_rng(seed)
    effusion, edema = (generator.random((2, num_images)) < 0.3).astype(float)
    labels = {"Effusion": effusion, "Edema": edema, "No Finding": ((effusion + edema) == 0).astype(float)}
    sick = 1 - labels["No Finding"]
    scores = {
        name: 0.3 * labels[name] + 0.2 * sick + shift + 0.2 * generator.standard_normal(num_images) for name in labels
    }
    return labels, scores


def dataset_of(labels: dict, prefix: str = "here") -> datasets.Dataset:
    number = len(labels["Edema"])
    ids = [f"{prefix}{i}" for i in range(number)]
    return datasets.Dataset.from_dict({"image_id": ids, "patient_id": ids, **labels})


@pytest.fixture
def there(tmp_path):
    labels, scores = make(400, 0)
    ids = [f"there{i}" for i in range(400)]
    save_result(tmp_path / "there", scores, labels, ids)
    return tmp_path / "there"


def carried(there, tmp_path, shift: float, wanted: float = 0.9) -> dict:
    labels, scores = make(300, 1, shift)
    here = save_result(tmp_path / "here", scores, labels, [f"here{i}" for i in range(300)])
    metrics, dataset = read_metrics(here), dataset_of(labels)
    source = read_source(there, dataset, "mine")
    matched = match_findings(source, list(metrics["findings"]))
    return measure_transfer(source, metrics, read_predictions(here, metrics), dataset, matched, wanted, FEW)


def test_the_threshold_is_that_of_the_other_data(there, tmp_path):
    result = carried(there, tmp_path, shift=-0.1)
    labels, scores = make(400, 0)
    here_labels, here_scores = make(300, 1, -0.1)
    for name, part in result["findings"].items():
        positives = np.sort(scores[name][labels[name] == 1])[::-1]
        threshold = positives[int(np.ceil(0.9 * len(positives))) - 1]
        assert part["fitted"]["threshold"] == threshold
        assert part["fitted"]["sensitivity"] >= 0.9 > np.mean(positives > threshold)
        assert part["sensitivity"] == np.mean(here_scores[name][here_labels[name] == 1] >= threshold)
        assert part["specificity"] == pytest.approx(np.mean(here_scores[name][here_labels[name] == 0] < threshold))
        low, high = part["sensitivity_ci95"]
        assert low <= part["sensitivity"] <= high
    assert result["n_kept"] == sum(part["sensitivity"] >= 0.9 for part in result["findings"].values())
    assert result["mean"]["ece"] == pytest.approx(np.mean([part["ece"] for part in result["findings"].values()]))


def test_scores_that_fall_everywhere_lose_the_sensitivity_and_the_calibration(there, tmp_path):
    same, fallen = carried(there, tmp_path, shift=0.0), carried(there, tmp_path, shift=-1.0)
    assert fallen["n_kept"] == 0 and fallen["n_lost"] == fallen["n_findings"] == 3 and same["n_lost"] < 3
    for name in ("Effusion", "Edema"):
        assert fallen["findings"][name]["ece"] > same["findings"][name]["ece"] + 0.1
        assert fallen["findings"][name]["auroc_sick"] == same["findings"][name]["auroc_sick"]  # order is the same


def test_controls_are_the_healthy_and_the_sick(there, tmp_path):
    result = carried(there, tmp_path, shift=0.0)
    labels, scores = make(300, 1)
    for name in ("Effusion", "Edema"):
        part = result["findings"][name]
        for group, value in (("healthy", 1), ("sick", 0)):
            chosen = (labels[name] == 1) | (labels["No Finding"] == value)
            assert part[f"auroc_{group}"] == pytest.approx(roc_auc_score(labels[name][chosen], scores[name][chosen]))
        assert part["auroc_difference"] == pytest.approx(part["auroc_healthy"] - part["auroc_sick"])
        assert part["auroc_difference_ci95"][0] > 0  # scores here tell sick from healthy, too
    assert np.isnan(result["findings"]["No Finding"]["auroc_healthy"])
    tables = evaluation_tables({**read_metrics(there), "transfer": to_json(result)})["transfer"]
    assert [table.name for table in tables] == ["transfer", "controls"]
    assert f"{result['n_kept']} of 3 thresholds have it here, too." in tables[0].note


def test_findings_match_by_their_sentences(there):
    labels, _ = make(300, 1)
    source = read_source(there, dataset_of(labels), "mine")
    asked = ["edema", "Pleural Effusion", "Hernia"]
    assert match_findings(source, asked) == {"edema": "Edema"}
    matched = match_findings(source, asked, lambda names: load_prompts("report", names))
    assert matched == {"edema": "Edema", "Pleural Effusion": "Effusion"}


def test_the_same_patients_and_other_scores_are_refused(there, tmp_path):
    labels, scores = make(400, 0)
    with pytest.raises(ValueError, match="fitted on 400 of the patients that are evaluated"):
        read_source(there, dataset_of(labels, "there"), "mine")
    assert read_source(there, dataset_of(labels, "there"), "others").metrics["n_images"] == 400
    here = save_result(tmp_path / "here", scores, labels, [f"here{i}" for i in range(400)], scoring="softmax")
    source, metrics = read_source(there, dataset_of(labels), "mine"), read_metrics(here)
    with pytest.raises(ValueError, match="holds scores with scoring 'difference', but these have 'softmax'"):
        measure_transfer(source, metrics, read_predictions(here, metrics), dataset_of(labels), {"Edema": "Edema"})


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return save_two_models(tmp_path_factory.mktemp("models"))


@pytest.mark.slow
def test_the_command_carries_over(models, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    given = [models[0], "--data", PHANTOM, "--min_positives", 5, "--n_bootstrap", 20]
    there, here = tmp_path / "there", tmp_path / "here"
    run(*given, "--output_dir", there, capsys=capsys)
    again = [*given, "--split", "test", "--output_dir", here, "--transfer", there, "--sensitivity", 0.8]
    text = run(*again, "--figures", capsys=capsys).out
    metrics, source = (json.loads((folder / "metrics.json").read_text()) for folder in (here, there))
    result = metrics["transfer"]
    assert result["wanted_sensitivity"] == 0.8 and result["fitted_on"]["split"] == "validation"
    assert set(result["findings"]) == set(metrics["findings"]) & set(source["findings"])
    assert f"{result['n_kept']} of {result['n_findings']} thresholds have it here, too." in text
    assert (here / "transfer.png").is_file() and "At another hospital" in (here / "report.html").read_text()
    for finding, part in result["findings"].items():  # calibrated on the same images
        assert part["fitted"]["scale"] == source["findings"][finding]["scale"]

    error = fails(models[1], *again[1:], "--overwrite", capsys=capsys)
    assert "with other weights than" in error and "only for the same model" in error
    error = fails(*again, "--overwrite", "--scoring", "softmax", capsys=capsys)
    assert "holds scores with scoring 'difference', but these have 'softmax'" in error
    error = fails(*given, "--transfer", there, "--output_dir", tmp_path / "no", capsys=capsys)
    assert "would be fitted on 30 of the patients that are evaluated" in error
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--transfer", "missing"], "--transfer missing is not a folder"),
        (["--sensitivity", 0.9], "--sensitivity has no effect without --transfer"),
        (["--transfer", ".", "--sensitivity", 1.5], "--sensitivity must be above 0 and at most 1, but is 1.5."),
        (["--transfer", ".", "--each"], "evaluate the models without --each"),
        (["--transfer", "."], "does not hold metrics.json"),
    ],
)
def test_bad_options_are_refused(models, tmp_path, monkeypatch, capsys, options, error):
    monkeypatch.chdir(tmp_path)
    assert error in fails(models[0], "--data", PHANTOM, *options, capsys=capsys)
