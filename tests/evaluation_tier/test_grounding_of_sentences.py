"""`eval_zeroshot.py --analyses grounding` on the sentences of boxes: --phrases, and the benchmark padchest-gr."""

import csv
import json
from pathlib import Path

import pandas as pd
import pytest
from eval_command import PHANTOM, fails, run
from small_archives import write_padchest_gr
from tiny_models import save_tiny_clip

from evaluation_tier.analyses.grounding.evaluation import evaluate_grounding
from evaluation_tier.models.loading import load_model
from evaluation_tier.output.metrics_file import to_json
from evaluation_tier.statistics.resampling import Resampling
from evaluation_tier.test_sets.loader import count_regions, load_benchmark, published_differences
from processing_tier.readers import read_records

EIGHT = list(load_benchmark("padchest-gr").findings)
QUICK = ["--split", "test", "--min_positives", 1, "--n_bootstrap", 5]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("model") / "tiny", 0, image_pooling="patch_mean")


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> str:
    """The small archive; its training split has a row of each of the eight groups, so that all have a column."""
    folder = tmp_path_factory.mktemp("archive")
    write_padchest_gr(folder)
    with open(folder / "master_table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    rows += [{**rows[0], "label": group, "label_group": group, "sentence_en": "Another."} for group in EIGHT]
    pd.DataFrame(rows).to_csv(folder / "master_table.csv", index=False)
    return f"padchest_gr:{folder}"


@pytest.mark.slow
def test_the_benchmark_grounds_the_sentences_of_its_findings(model, archive, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    arguments = [
        model,
        "--data",
        archive,
        "--benchmark",
        "padchest-gr",
        *QUICK,
        "--analyses",
        "grounding",
        "--figures",
    ]
    run(*arguments, "--output_dir", tmp_path / "out", capsys=capsys)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    grounding = metrics["grounding"]
    assert grounding["protocol"]["phrases"] and grounding["protocol"]["prompts"] == "the sentences of the boxes"
    assert list(grounding["findings"]) == ["cardiomegaly"]
    assert (grounding["n_regions"], grounding["n_images"]) == (4, 4)  # one sentence each, the second with two boxes
    regions = pd.read_parquet(tmp_path / "out" / "grounding_regions.parquet")
    assert regions["n_marks"].tolist() == [1, 2, 1, 1]
    (differs,) = metrics["protocol"]["benchmark_differs"]
    assert "4 regions of cardiomegaly and not 99, 0 regions of interstitial pattern and not 33" in differs
    assert (tmp_path / "out" / "grounding.png").is_file()

    dataset = read_records(archive, "test")
    expected = to_json(
        evaluate_grounding(
            *load_model(model), dataset, findings=["cardiomegaly"], phrases=True, resampling=Resampling(5)
        )
    )
    for name in ("positive", "difference"):
        for measure in ("miou_centred", "signed_cnr", "pointing"):
            values = (result["all_regions"]["maps"][name][measure]["mean"] for result in (grounding, expected))
            assert next(values) == pytest.approx(next(values), abs=1e-6)


def test_phrases_ask_for_something_else_than_the_findings(model, archive, tmp_path, capsys):
    arguments = [model, "--data", archive, *QUICK, "--findings", "cardiomegaly", "--analyses", "grounding"]
    maps = []
    for option in ([], ["--phrases"]):
        folder = tmp_path / f"out{len(option)}"
        run(*arguments, *option, "--output_dir", folder, capsys=capsys)
        grounding = json.loads((folder / "metrics.json").read_text())["grounding"]
        assert grounding["protocol"]["phrases"] is bool(option)
        assert (grounding["protocol"]["prompts"] == "report") is not bool(option)
        maps.append(grounding["all_regions"]["maps"]["positive"]["pixel_auroc"]["mean"])
    assert maps[0] != maps[1]


def test_errors(model, archive, capsys):
    message = fails(model, "--data", archive, *QUICK, "--phrases", capsys=capsys)
    assert message == "--phrases is for --analyses grounding: add that analysis, or leave --phrases out."
    message = fails(model, "--data", PHANTOM, "--phrases", "--analyses", "grounding", capsys=capsys)
    assert message.endswith("images has a box with a sentence: use another split or data set.")


def test_counts_of_regions(archive):
    dataset, benchmark = read_records(archive, "test"), load_benchmark("padchest-gr")
    assert sum(benchmark.splits["test"]["regions"].values()) == 530
    assert count_regions(dataset, True) == count_regions(dataset, False) == {"cardiomegaly": 4}
    assert count_regions(dataset.remove_columns("boxes"), True) == {}
    (sentence,) = published_differences(benchmark, dataset, "test")
    assert sentence.startswith("padchest-gr, split test, has 0 regions of alveolar pattern and not 39, 0 regions of")
    benchmark.splits["test"]["regions"] = {"cardiomegaly": 4}
    assert published_differences(benchmark, dataset, "test") == []
