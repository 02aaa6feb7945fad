"""Maps measured on all splits of a data set, and on words."""

import json

import datasets
import measure_maps
import pytest
from tiny_models import save_tiny_clip

from evaluation_tier.analyses.grounding.regions import read_cases
from processing_tier.readers import read_records

PHANTOM = "phantom:num_images=8,image_size=64"


@pytest.fixture
def model(tmp_path) -> str:
    return str(save_tiny_clip(tmp_path / "model", 0, image_pooling="patch_mean"))


def test_the_regions_of_all_splits_are_measured(model, tmp_path, capsys):
    measure_maps.main(["boxes", model, PHANTOM, str(tmp_path / "out")])
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())["grounding"]
    splits = [read_records(PHANTOM, split) for split in ("train", "validation", "test")]
    regions = [len(read_cases(datasets.concatenate_datasets(splits[:count]))) for count in (2, 3)]
    assert written["n_regions"] == regions[1] > regions[0] and written["dataset"] == PHANTOM
    assert 0 <= written["all_regions"]["maps"]["difference_contribution"]["pointing"]["mean"] <= 1
    assert "regions" not in written and capsys.readouterr().out.strip() == str(tmp_path / "out" / "metrics.json")


def test_the_words_of_one_split_are_measured(model, tmp_path):
    measure_maps.main(["words", model, PHANTOM, str(tmp_path / "out"), "--split", "test"])
    words = json.loads((tmp_path / "out" / "metrics.json").read_text())["words"]
    assert 0 < words["n_regions"] <= len(read_cases(read_records(PHANTOM, "test")))
    assert 0 <= words["maps"]["own"]["pointing"]["mean"] <= 1
