"""Grounding on all splits of a data set."""

import json

import datasets
import ground_on_boxes
from tiny_models import save_tiny_clip

from evaluation_tier.analyses.grounding.regions import read_cases
from processing_tier.readers import read_records


def test_the_regions_of_all_splits_are_measured(tmp_path, capsys):
    model = save_tiny_clip(tmp_path / "model", 0, image_pooling="patch_mean")
    data = "phantom:num_images=8,image_size=64"
    ground_on_boxes.main([str(model), data, str(tmp_path / "out")])
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())["grounding"]
    splits = [read_records(data, split) for split in ("train", "validation", "test")]
    regions = [len(read_cases(datasets.concatenate_datasets(splits[:count]))) for count in (2, 3)]
    assert written["n_regions"] == regions[1] > regions[0] and written["dataset"] == data
    assert 0 <= written["all_regions"]["maps"]["difference_contribution"]["pointing"]["mean"] <= 1
    assert "regions" not in written and capsys.readouterr().out.strip() == str(tmp_path / "out" / "metrics.json")
