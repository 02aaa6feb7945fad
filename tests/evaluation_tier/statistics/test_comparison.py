import json

import numpy as np
import pytest
from saved_results import save_result

from evaluation_tier.output.comparison import comparison_tables, format_p, write_comparison
from evaluation_tier.output.metrics_file import write_metrics
from evaluation_tier.output.speed_file import write_speeds
from evaluation_tier.output.tables import text_table
from evaluation_tier.statistics.comparison import compare_evaluations
from evaluation_tier.statistics.resampling import Resampling


@pytest.fixture
def make_result(tmp_path):
    """A folder as an evaluation leaves it, from labels and scores of the finding "A"."""

    def make(name, scores, labels=(1, 1, 0, 0), image_ids=None, patients=None, finding="A", threshold=0.5, **protocol):
        by_finding = {finding: scores}, {finding: labels}
        return save_result(tmp_path / name, *by_finding, image_ids, patients, threshold, **protocol)

    return make


def test_f1_is_at_the_threshold_of_each_protocol(make_result):
    folders = [make_result(name, [0.9, 0.6, 0.8, 0.0], threshold=0.85) for name in ("mcc", "own")]
    metrics = json.loads((folders[1] / "metrics.json").read_text())
    metrics["findings"]["A"]["f1_threshold"] = 0.6  # as TIER chooses it; the other has one threshold for all
    write_metrics(folders[1] / "metrics.json", metrics)
    part = compare_evaluations(*folders, Resampling(20))["findings"]["A"]
    # at 0.85 one of two positives and nothing else: 2/3; at 0.6 both and one negative: 4/5
    assert (part["f1"]["first"], part["f1"]["second"]) == (pytest.approx(2 / 3), pytest.approx(4 / 5))
    assert part["f1"]["difference"] == pytest.approx(2 / 15) and part["mcc"]["difference"] == 0


def test_differences_by_hand(make_result):
    # of the 4 pairs of positive and negative the first ranks 2 rightly, the second all
    labels = (1, 1, 0, 0) * 5
    first = make_result("first", [0.9, 0.1, 0.8, 0.0] * 5, labels, threshold=0.85)
    second = make_result("second", [0.9, 0.8, 0.1, 0.0] * 5, labels, threshold=0.5)
    comparison = compare_evaluations(first, second, Resampling(200))
    part = comparison["findings"]["A"]
    assert (part["n_positive"], part["n_negative"]) == (10, 10)
    assert part["auroc"]["first"] == 0.75 and part["auroc"]["second"] == 1.0 and part["auroc"]["difference"] == 0.25
    # precision at the recalls 1/2 and 1: 1 and 2/3, against 1 and 1
    assert part["auprc"]["difference"] == pytest.approx(1 - (1 + 2 / 3) / 2)
    # at 0.85 one positive is found, nothing else: F1 = 2/3, MCC = 2 / sqrt(12); at 0.5 all is right
    assert part["f1"]["difference"] == pytest.approx(1 / 3)
    assert part["mcc"]["difference"] == pytest.approx(1 - 2 / np.sqrt(12))
    # DeLong by hand: the positives' shares (1, 1/2) and (1, 1), the negatives' (1/2, 1) and (1, 1); the variance of
    # the difference is twice that of five 0 and five 1/2, 10 / 16 / 9, by 10: 1/72, z = 0.25 / sqrt(1/72)
    assert part["auroc"]["p_delong"] == pytest.approx(0.0339, abs=1e-4)
    assert comparison["mean"]["auroc"]["difference"] == 0.25
    assert 0 <= part["auroc"]["difference_ci95"][0] <= 0.25 <= part["auroc"]["difference_ci95"][1] <= 1
    assert comparison["n_patients"] == comparison["n_images"] == 20 and comparison["protocol_differences"] == {}


def test_against_itself_nothing_differs(make_result, caplog):
    folder = make_result("one", [0.9, 0.1, 0.8, 0.0] * 5, (1, 1, 0, 0) * 5)
    comparison = compare_evaluations(folder, folder, Resampling(50))
    part = comparison["findings"]["A"]["auroc"]
    assert part == {
        "first": 0.75,
        "second": 0.75,
        "difference": 0,
        "difference_ci95": [0, 0],
        "p_bootstrap": 1,
        "p_delong": 1,
    }
    assert not caplog.records
    assert compare_evaluations(folder, folder, Resampling(50)) == comparison


def test_rows_may_come_in_any_order_and_labels_may_be_missing(make_result):
    labels, scores = [1, 0, np.nan, -1, 1, 0], [0.9, 0.2, 0.3, 0.1, 0.4, 0.6]
    names = [f"image{i}" for i in range(6)]
    first = make_result("first", scores, labels, names)
    second = make_result("second", scores[::-1], labels[::-1], names[::-1])
    assert compare_evaluations(first, second, Resampling(20))["findings"]["A"]["auroc"]["difference"] == 0


def test_resamples_are_of_patients(make_result, caplog):
    labels = (1, 1, 0, 0) * 5
    # five patients with four images each that are alike: every resample of patients has the AUROC of the data
    names = ("first", [0.9, 0.1, 0.8, 0.0] * 5), ("second", [0.9, 0.8, 0.1, 0.0] * 5)
    pair = [make_result(name, scores, labels, patients=[f"p{i // 4}" for i in range(20)]) for name, scores in names]
    comparison = compare_evaluations(*pair, Resampling(50, 5))
    assert comparison["findings"]["A"]["auroc"]["difference_ci95"] == [0.25, 0.25]
    assert not caplog.records
    # one patient, and one with all the positives: neither interval nor p-value, and why
    for patients in (["p"] * 20, [f"p{i // 2}" if i % 4 > 1 else "p" for i in range(20)]):
        pair = [make_result(name, scores, labels, patients=patients) for name, scores in names]
        caplog.clear()
        comparison = compare_evaluations(*pair, Resampling(50))
        part = comparison["findings"]["A"]["auroc"]
        assert part["difference"] == 0.25 and part["difference_ci95"] == [None, None]
        assert part["p_bootstrap"] is part["p_delong"] is None
        assert caplog.messages == ["No interval and no p-value for A: fewer than 5 patients with it, or without it."]
        note = comparison_tables(comparison)["auroc"][0].note
        sentence = "Intervals and p-values need images of at least 5 patients, but these are of 1."
        assert (sentence in note, "resamples of the patients" in note) == (patients[2] == "p", patients[2] != "p")


def test_p_is_of_the_resamples_where_a_patient_has_several_images(make_result):
    scores = np.random.default_rng(0).standard_normal((2, 80))
    labels = [1, 1, 0, 0] * 20
    scores[1] += labels
    patients = [f"patient{i // 2}" for i in range(80)]
    tables, p_values = {}, {}
    for name, of_images in (("several", patients), ("one", None)):
        pair = [make_result(f"{name}{i}", scores[i], labels, patients=of_images) for i in range(2)]
        comparison = compare_evaluations(*pair, Resampling(100))
        tables[name] = comparison_tables(comparison)["auroc"][0]
        p_values[name] = comparison["findings"]["A"]["auroc"]
    assert tables["several"].rows[0][-1] == format_p(p_values["several"]["p_bootstrap"])
    assert tables["one"].rows[0][-1] == format_p(p_values["one"]["p_delong"])
    assert tables["several"].rows[0][-1] != format_p(p_values["several"]["p_delong"])
    assert "DeLong's test would take the images of one patient as independent" in tables["several"].note
    assert "DeLong's test for a finding" in tables["one"].note


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_ids": ["image0", "image1", "image2", "x"]}, "has 4, {b} 4, and 3 are in both. Evaluate both models"),
        ({"image_ids": ["image0", "image1", "image2", "image2"]}, "1 rows of {b} repeat an image_id"),
        ({"labels": (1, 0, 0, 0)}, r"The labels of the two results differ (of 4 images: A 1): evaluate both"),
        ({"labels": (1, np.nan, 0, -1)}, "(of 4 images: A 2)"),
        ({"patients": ["image0", "image1", "image2", "y"]}, "1 of the 4 images belong to other patients in {b}"),
        ({"finding": "B"}, "no finding in common: {a} has 'A'; {b} has 'B'."),
    ],
)
def test_what_does_not_compare_is_refused_with_counts(make_result, changes, message):
    first = make_result("first", [0.9, 0.1, 0.8, 0.0])
    second = make_result("second", [0.9, 0.1, 0.8, 0.0], **changes)
    with pytest.raises(ValueError) as error:
        compare_evaluations(first, second, Resampling(5))
    assert message.format(a=first, b=second) in str(error.value)


def test_a_folder_without_an_evaluation_is_refused(make_result, tmp_path):
    folder = make_result("one", [0.9, 0.1, 0.8, 0.0])
    with pytest.raises(ValueError, match="does not hold metrics.json: name a folder that tier-eval wrote"):
        compare_evaluations(folder, tmp_path)
    (folder / "predictions.parquet").unlink()
    with pytest.raises(ValueError, match="does not hold predictions.parquet"):
        compare_evaluations(folder, folder)


def test_protocols_that_differ_are_named(make_result, caplog):
    scores, labels = [0.9, 0.1, 0.8, 0.0] * 5, (1, 1, 0, 0) * 5
    first = make_result("first", scores, labels, score_level="global", seed=1)
    options = {"prompts": "chexzero", "score_level": "patches-lse", "views": "all"}
    second = make_result("second", scores, labels, **options, seed=2)
    comparison = compare_evaluations(first, second, Resampling(5))
    assert comparison["protocol_differences"] == {
        "prompts": ["report", "chexzero"],
        "score_level": ["global", "patches-lse"],
        "views": [None, "all"],
    }
    (record,) = caplog.records
    told = "differ in prompts (report / chexzero), score_level (global / patches-lse), views (– / all): scores"
    assert told in record.getMessage()
    (table,) = comparison_tables(comparison)["compared"]
    assert table.rows == (
        ("Dataset", "mine", "mine"),
        ("Models", "runs/first", "runs/second"),
        ("Prompts", "report", "chexzero"),
        ("Score level", "global", "patches-lse"),
        ("Views", "–", "all"),
    )


def test_images_per_second_are_told(make_result):
    first, second = (make_result(name, [0.9, 0.1, 0.8, 0.0] * 5, (1, 1, 0, 0) * 5) for name in ("first", "second"))
    speed = {"images": 9, "device": "CPU, 1 thread", "dtype": "float32", "images_per_second": 31.26}
    write_speeds(second / "speed.json", {"m": speed})
    comparison = compare_evaluations(first, second, Resampling(5))
    assert comparison["second"]["images_per_second"] == pytest.approx(31.26)
    row = ("Images/s, without reading", "–", "31.3 (CPU, 1 thread, float32)")
    assert comparison_tables(comparison)["compared"][0].rows[-1] == row


def test_findings_without_an_interval_are_not_a_difference_of_the_protocol(make_result, caplog):
    """They are those of the findings and images, which a comparison checks itself; older results do not name them."""
    first = make_result("first", [0.9, 0.1, 0.8, 0.0] * 5, (1, 1, 0, 0) * 5, no_interval={"B": "too few patients"})
    second = make_result("second", [0.9, 0.1, 0.8, 0.0] * 5, (1, 1, 0, 0) * 5)
    comparison = compare_evaluations(first, second, Resampling(5))
    assert comparison["protocol_differences"] == {} and not caplog.records


def test_published_training_data_are_not_a_difference_of_the_protocol(make_result, caplog):
    scores, labels = [0.9, 0.1, 0.8, 0.0] * 5, (1, 1, 0, 0) * 5
    told = "X was trained on mimic_cxr"
    first = make_result("first", scores, labels)
    second = make_result("second", scores, labels, exposure=told, exposure_overlap=["m"])
    comparison = compare_evaluations(first, second, Resampling(5))
    assert comparison["protocol_differences"] == {} and not caplog.records
    assert comparison["exposure"] == [None, told]
    assert comparison_tables(comparison)["compared"][0].rows[-1] == ("Published training data", "–", told)


def test_table(make_result):
    labels = (1, 1, 0, 0) * 5
    first = make_result("first", [0.9, 0.1, 0.8, 0.0] * 5, labels, threshold=None)
    second = make_result("second", [0.9, 0.8, 0.1, 0.0] * 5, labels)
    comparison = compare_evaluations(first, second, Resampling(5))
    for part in (comparison["findings"]["A"], comparison["mean"]):
        part["auroc"] |= {"difference_ci95": [-0.25, 0.5], "p_bootstrap": 0.0001}
    table = comparison_tables(comparison)["auroc"][0]
    assert text_table(table.header, table.rows, table.align, table.num_summary).splitlines() == [
        "Finding    Positives  AUROC, A  AUROC, B    B minus A (95 % CI)       p",
        "---------  ---------  --------  --------  ---------------------  ------",
        "A                 10     0.750     1.000  0.250 (-0.250, 0.500)   0.034",
        "---------  ---------  --------  --------  ---------------------  ------",
        "Mean of 1                0.750     1.000  0.250 (-0.250, 0.500)  <0.001",
    ]
    (others,) = comparison_tables(comparison)["others"]
    assert others.rows[0][2:] == ("–", "–")  # without a threshold in one of the two


def test_p_values():
    assert [format_p(value) for value in (0.0005, 0.012, 1.0, None)] == ["<0.001", "0.012", "1.000", "–"]


def test_files(make_result, tmp_path):
    pytest.importorskip("matplotlib")
    first = make_result("first", [0.9, 0.1, 0.8, 0.0])
    second = make_result("second", [0.9, 0.8, 0.1, 0.0], prompts="tier")
    comparison = compare_evaluations(first, second, Resampling(5))
    paths = write_comparison(tmp_path / "new", comparison)
    assert sorted(path.name for path in paths) == [f"comparison.{end}" for end in ("html", "json", "md", "png", "tex")]
    assert json.loads((tmp_path / "new" / "comparison.json").read_text()) == comparison
    page = (tmp_path / "new" / "comparison.html").read_text()
    assert "The protocols of A and B differ (Prompts)" in page and page.count("data:image/") == 1
    before = {path.name: path.read_bytes() for path in paths}
    assert {path.name: path.read_bytes() for path in write_comparison(tmp_path / "new", comparison)} == before


def test_images_without_a_patient_are_no_single_patient(make_result):
    folder = make_result("one", [0.9, 0.1, 0.8, 0.0], patients=["a", None, None, "b"])
    with pytest.raises(ValueError, match="2 of 4 images have no patient id"):
        compare_evaluations(folder, folder, Resampling(5))
