import json

import numpy as np

from evaluation_tier.output.metrics_file import to_json, write_metrics


def test_metrics_json_keeps_numbers_and_writes_null_for_nan(tmp_path, metrics):
    path = write_metrics(tmp_path / "new" / "metrics.json", metrics)
    text = path.read_text()
    assert "NaN" not in text
    read = json.loads(text)
    assert list(read) == ["dataset", "protocol", "n_images", "models", "findings", "mean", "versions"]
    assert read["findings"]["Cardiomegaly"]["auroc"] == 0.8512345
    assert read["findings"]["Nodule|Mass"]["auroc"] is None
    assert read["findings"]["Nodule|Mass"]["auroc_ci95"] == [None, None]


def test_to_json_takes_numpy_apart():
    value = {"a": np.int64(3), "b": [np.float32(0.5), np.nan, np.inf], "c": np.array([1.0, np.nan]), "d": (True, "x")}
    assert to_json(value) == {"a": 3, "b": [0.5, None, None], "c": [1.0, None], "d": [True, "x"]}
