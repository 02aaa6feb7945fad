import pytest

from evaluation_tier.output.folder import choose_folder
from evaluation_tier.output.metrics_file import write_metrics

IDENTITY = {
    "models": ["runs/demo"],
    "dataset": "own.csv",
    "split": "held_out",
    "benchmark": None,
    "protocol": "report",
}


def write(folder, split="held_out", models=("runs/demo",), dataset="own.csv", name="report"):
    metrics = {"dataset": dataset, "protocol": {"split": split, "name": name}, "n_images": 1, "models": list(models)}
    write_metrics(folder / "metrics.json", metrics | {"findings": {}, "mean": {}})


def test_the_default_folder_is_named_after_model_data_and_split(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert choose_folder(None, IDENTITY, False).as_posix() == "runs/evaluation/demo-own_csv-held_out"
    several = IDENTITY | {"models": ["runs/a", "owner/b"], "benchmark": "chexpert-5"}
    assert choose_folder(None, several, False).as_posix() == "runs/evaluation/a_owner_b-chexpert_5-held_out"


def test_only_an_evaluation_of_the_same_is_replaced(tmp_path):
    assert choose_folder(tmp_path, IDENTITY, False) == tmp_path
    write(tmp_path)
    assert choose_folder(tmp_path, IDENTITY, False) == tmp_path
    for other in (
        {"split": "test"},
        {"models": ["runs/other"]},
        {"dataset": "phantom"},
        {"name": "chexzero"},
    ):
        write(tmp_path, **other)
        ours = "not of runs/demo on own.csv, split 'held_out', protocol 'report': choose another --output"
        with pytest.raises(ValueError, match=ours):
            choose_folder(tmp_path, IDENTITY, False)
        assert choose_folder(tmp_path, IDENTITY, True) == tmp_path
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match="holds a metrics.json that cannot be read: choose another --output_dir, or"):
        choose_folder(tmp_path, IDENTITY, False)
