"""The statistics and the tables of the study, on numbers that are known."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from study_results import (
    MEASURES,
    compare,
    failed_lines,
    find_number,
    format_difference,
    header_of,
    make_tables,
    measure,
    paired_interval,
    read_results,
    write_results,
)
from study_runs import TRAINED, Failure, Source, Study

PLAIN, PAPER = {"token_entropy_weight": 0, "patch_entropy_weight": 0}, {"token_entropy_weight": 0.2}


def test_the_interval_is_that_of_a_paired_t_test():
    first, second = np.array([0.91, 0.93, 0.90, 0.95]), np.array([0.90, 0.90, 0.91, 0.92])
    expected = stats.ttest_rel(first, second).confidence_interval(0.95)
    mean, low, high = paired_interval(first - second)
    assert mean == pytest.approx(0.015) and (low, high) == pytest.approx((expected.low, expected.high))
    # by hand: mean 2, standard deviation 1, t of 2 degrees of freedom 4.30265
    assert paired_interval([1, 2, 3]) == pytest.approx((2, 2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5), rel=1e-5)


def test_two_seeds_do_not_give_an_interval_and_none_not_even_a_mean():
    mean, low, high = paired_interval([0.1, 0.3])
    assert mean == pytest.approx(0.2) and math.isnan(low) and math.isnan(high)
    assert all(map(math.isnan, paired_interval([])))


def test_differences_as_text():
    assert format_difference(0.0123, -0.0031, 0.0277, 3) == "+0.012 (-0.003, +0.028)"
    assert format_difference(-0.02, -0.03, -0.01, 3) == "-0.020 (-0.030, -0.010)*"
    assert format_difference(0.02, math.nan, math.nan, 3) == "+0.020"
    assert format_difference(math.nan, math.nan, math.nan, 3) == "–"


def test_a_number_is_found_by_its_path():
    metrics = {"a": {"x": {"b": 2}}, "models": {"runs/m": {"gini": 0.5}}, "null": None}
    assert find_number(metrics, "a.x.b") == 2 == find_number(metrics, "a.y|x.b")
    assert find_number(metrics, "models.*.gini") == 0.5
    assert all(math.isnan(find_number(metrics, path)) for path in ("a.y.b", "a.x", "null", "null.b", "models.*.b"))


def test_measures_of_a_model_and_of_a_classifier():
    pointing = {"pointing": {"mean": 0.6}}
    metrics = {
        "mean": {"auroc": 0.9},
        "grounding": {"all_regions": {"maps": {"difference_contribution": pointing}}},
        "retrieval": {"image_to_text": {"recall_at_5": 0.2}, "text_to_image": {"recall_at_5": 0.4}},
    }
    measured = measure(metrics)
    assert measured["auroc"] == 0.9 and measured["pointing_contribution"] == 0.6
    assert measured["recall_at_5"] == pytest.approx(0.3) and math.isnan(measured["recall_at_10"])
    classifier = {"grounding": {"all_regions": {"maps": {"class_activation": pointing}}}}
    assert measure(classifier)["pointing_contribution"] == 0.6 and math.isnan(measure(classifier)["auroc"])


def test_every_measure_has_a_header():
    assert all(header_of(name) for table in MEASURES.values() for name in table)


@pytest.fixture
def study(tmp_path) -> Study:
    """Two forms and three seeds on made-up data; the files of all cells but that of the last seed of `paper`."""
    source = Source("phantom", "phantom", "demo-phantom", "test", ())
    study = Study(tmp_path, (source,), {"none": PLAIN, "paper": PAPER}, {}, (0, 1, 2))
    for cell in study.cells:
        if cell.form == "paper" and cell.seed == 2:
            continue
        folder = study.measured_folder(cell)
        folder.mkdir(parents=True)
        auroc = 0.9 + 0.01 * cell.seed + (0.02 + 0.01 * cell.seed) * (cell.form == "paper")
        (folder / "metrics.json").write_text(json.dumps({"mean": {"auroc": auroc}}))
        (cell.folder / "model").mkdir()
        (cell.folder / "model" / "trainer_state.json").write_text('{"log_history": [{"train_runtime": 60.0}]}')
        (cell.folder / TRAINED).touch()
    return study


def test_a_study_is_compared_over_the_seeds_that_both_forms_have(study):
    cells = read_results(study)
    assert len(cells) == 6 * sum(map(len, MEASURES.values()))
    assert set(cells.loc[~cells["done"], "form"]) == {"paper"} and set(cells.loc[~cells["done"], "seed"]) == {2}
    differences = compare(cells, "none").set_index(["form", "measure"])
    row = differences.loc[("paper", "auroc")]
    assert row["n_seeds"] == 2 and row["difference"] == pytest.approx(0.025) and math.isnan(row["low"])
    assert (row["mean"], row["reference_mean"]) == pytest.approx((0.93, 0.905))
    assert row["token_entropy_weight"] == 0.2 and math.isnan(row["patch_entropy_weight"])
    assert differences.loc[("paper", "training_seconds"), "difference"] == 0
    assert differences.loc[("paper", "gini"), "n_seeds"] == 0


def test_tables_show_a_missing_cell_and_the_files_hold_every_number(study):
    cells = read_results(study)
    differences = compare(cells, "none")
    tables = make_tables(cells, differences, "none", 3)
    assert [table.title for table in tables] == [
        "Scores and retrieval, trained on phantom",
        "Words and time, trained on phantom",
    ]
    assert tables[0].header == ("Form", "Token weight", "Patch weight", "Seeds", "AUROC")
    assert tables[0].rows == (("none", "0", "0", "3", "0.910"), ("paper", "0.2", "–", "2 of 3", "+0.025"))
    failures = {study.cells[-1]: Failure("training", "no space", study.folder / "log")}
    paths = write_results(study.folder, cells, differences, tables, failed_lines(failures))
    assert [path.name for path in paths] == ["cells.parquet", "differences.parquet", "study.md"]
    pd.testing.assert_frame_equal(pd.read_parquet(paths[0]), cells)
    pd.testing.assert_frame_equal(pd.read_parquet(paths[1]), differences)
    text = paths[2].read_text(encoding="utf-8")
    assert "| paper | 0.2 | – | 2 of 3 | +0.025 |" in text and text.endswith(
        f"\n- Failed: paper on phantom, seed 2, training: no space ({study.folder / 'log'})\n"
    )


def test_an_interval_without_zero_is_marked(study):
    cells = read_results(study)
    cells.loc[(cells["form"] == "paper") & (cells["measure"] == "auroc"), "value"] = [0.95, 0.961, 0.97]
    table = make_tables(cells, compare(cells, "none"), "none", 3)[0]
    assert table.rows[1][-1] == "+0.050 (+0.049, +0.052)*"


def test_a_measurement_that_failed_is_counted_and_a_form_without_a_measure_is_left_out(study):
    cells = read_results(study)
    cells["done"] = True
    word = cells["measure"] == "word_pointing"
    cells.loc[word & (cells["form"] == "none"), "value"] = [0.5, math.nan, 0.6]
    words = make_tables(cells, compare(cells, "none"), "none", 3)[-1]
    assert [row[3] for row in words.rows] == ["2 of 3", "2 of 3"] and words.rows[0][4] == "0.550"
    cells.loc[(cells["form"] == "paper") & (cells["measure"] == "training_seconds"), "value"] = math.nan
    words = make_tables(cells, compare(cells, "none"), "none", 3)[-1]
    assert [row[0] for row in words.rows] == ["none"]
