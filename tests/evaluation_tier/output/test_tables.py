import math

import numpy as np
import pandas as pd
import pytest

from evaluation_tier.analyses.radiologists import compare_with_radiologists
from evaluation_tier.output.result_tables import evaluation_tables, order_groups
from evaluation_tier.output.tables import (
    Table,
    column_name,
    format_cell,
    format_estimate,
    latex_cell,
    latex_table,
    latex_tables,
    markdown_cell,
    markdown_table,
    markdown_tables,
    matrix_table,
    text_table,
)
from evaluation_tier.statistics.resampling import Resampling
from evaluation_tier.statistics.subgroups import subgroup_metrics

TABLE = Table(
    "two-findings",
    "Two findings",
    "What they say.",
    ("Finding", "AUROC (95 % CI)", "Change"),
    (("Nodule|Mass_1", "0.900 (0.850, 0.950)", "-0.010"), ("Edema & more", "–", "0.020"), ("Mean of 2", "0.900", "")),
    "lrr",
    1,
)


@pytest.fixture
def metrics() -> dict:
    """Two findings, without anything optional."""
    result = {"auroc": 0.9, "auroc_ci95": [0.85, 0.95], "auprc": 0.5, "mcc": 0.25, "f1": 0.4, "threshold": 0.0123}
    counts = {"n_positive": 1200, "n_negative": 30, "n_excluded": 4}
    undefined = {"auroc": None, "auroc_ci95": [None, None], "auprc": None, "mcc": None, "f1": None, "threshold": None}
    return {
        "dataset": "mine",
        "protocol": {
            "split": "test",
            "thresholds": "highest MCC on a split apart",
            "seed": 1234,
            "findings_left_out": {"Edema": "3 positives"},
            "resamples_dropped": {"A": 0, "B": 7},
            "images_skipped": ["patient-jones"],
        },
        "n_images": 1234,
        "models": ["runs/a", "runs/b"],
        "findings": {"A": result | counts, "B": undefined | counts},
        "mean": {"auroc": 0.9, "auroc_ci95": [0.85, 0.95], "auprc": 0.5, "mcc": 0.25, "f1": 0.4},
        "versions": {"python": "3.11", "torch": "2.13"},
    }


def test_markdown():
    assert markdown_table(TABLE) == (
        "| Finding | AUROC (95 % CI) | Change |\n"
        "| --- | ---: | ---: |\n"
        "| Nodule\\|Mass_1 | 0.900 (0.850, 0.950) | -0.010 |\n"
        "| Edema & more | – | 0.020 |\n"
        "| **Mean of 2** | **0.900** |  |\n"
    )
    assert markdown_tables({"x": [TABLE]}).startswith("## Two findings\n\nWhat they say.\n\n| Finding |")


def test_latex():
    assert latex_table(TABLE) == "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            r"\caption{Two findings. What they say.}",
            r"\label{tab:two-findings}",
            r"\begin{tabular}{lrr}",
            r"\toprule",
            r"Finding & AUROC (95~\% CI) & Change \\",
            r"\midrule",
            r"Nodule\textbar{}Mass\_1 & 0.900 (0.850, 0.950) & $-$0.010 \\",
            r"Edema \& more & -- & 0.020 \\",
            r"\midrule",
            r"Mean of 2 & 0.900 &  \\",
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )
    assert latex_tables({"x": [TABLE]}).startswith("% Needs \\usepackage{booktabs}")


def test_latex_escapes_every_special_character():
    text = latex_cell('a\\b{c}_d^e~f#g$h%i&j<k>l|m "n"\no')
    assert text == (
        r"a\textbackslash{}b\{c\}\_d\textasciicircum{}e\textasciitilde{}f\#g\$h\%i\&j\textless{}k\textgreater{}"
        r"l\textbar{}m ''n'' o"
    )
    assert latex_cell("ages 40-64 by -0.5") == "ages 40-64 by $-$0.5"


def test_markdown_escapes_what_would_be_markup():
    assert markdown_cell("<b>*x*</b> [a](b) `c` _d_ e_f a|b\\\nc") == (
        r"\<b\>\*x\*\</b\> \[a\](b) \`c\` \_d\_ e_f a\|b\\ c"
    )


def test_terminal():
    assert text_table(("Name", "N"), [("a", "10"), ("Mean", "5")], "lr", num_summary=1).splitlines() == [
        "Name   N",
        "----  --",
        "a     10",
        "----  --",
        "Mean   5",
    ]


def test_several_rows_may_sum_up_the_others():
    table = TABLE._replace(rows=(*TABLE.rows, ("Highest", "0.950", "")), num_summary=2)
    lines = text_table(table.header, table.rows, table.align, table.num_summary).splitlines()
    assert lines[1] == lines[4] and lines[5].startswith("Mean of 2") and lines[6].startswith("Highest")
    lines = latex_table(table).splitlines()
    assert lines[-6] == r"\midrule" and lines[-5].startswith("Mean of 2") and lines[-4].startswith("Highest")
    lines = markdown_table(table).splitlines()
    assert lines[-3].startswith("| Edema") and lines[-2].startswith("| **Mean") and lines[-1].startswith("| **High")


def test_cells():
    assert format_estimate(0.5, (0.25, 0.75)) == "0.500 (0.250, 0.750)"
    assert format_estimate(0.5, (None, 0.75)) == format_estimate(0.5) == "0.500"
    assert format_estimate(None, (0.2, 0.3)) == format_estimate(math.nan, None) == "–"
    assert [format_cell(value) for value in (None, math.nan, True, 1234, 0.5, 0.00012, 0.0)] == [
        "–",
        "–",
        "yes",
        "1,234",
        "0.500",
        "0.00012",
        "0.000",
    ]
    assert format_cell([1, 0.5, "a\nb"]) == "1, 0.500, a b"
    assert format_cell([0.5] * 100) == "100 values"
    assert format_cell({"a": 1, "b": {}}) == "a: 1; b: none"


def test_tables_of_what_every_evaluation_measures(metrics):
    sections = evaluation_tables(metrics)
    assert list(sections) == ["results", "thresholds", "protocol"]
    assert markdown_table(sections["results"][0]).splitlines() == [
        "| Finding | Positives | Negatives | Excluded | AUROC (95 % CI) | AUPRC |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| A | 1,200 | 30 | 4 | 0.900 (0.850, 0.950) | 0.500 |",
        "| B | 1,200 | 30 | 4 | – | – |",
        "| **Mean of 2** |  |  |  | **0.900 (0.850, 0.950)** | **0.500** |",
    ]
    assert sections["thresholds"][0].rows[0] == ("A", "0.0123", "0.250", "0.400")
    assert "Thresholds: highest MCC on a split apart." in sections["thresholds"][0].note


def test_the_protocol_says_how_and_names_no_patient(metrics):
    (table,) = evaluation_tables(metrics)["protocol"]
    rows = dict(table.rows)
    assert rows["Images"] == "1,234" and rows["Seed"] == "1234" and rows["Split"] == "test"
    assert rows["Images that did not decode"] == "1" and "jones" not in str(table)
    assert rows["Resamples dropped"] == "B: 7"
    assert rows["Findings left out"] == "Edema: 3 positives"
    assert rows["Models, scores averaged"] == "runs/a, runs/b"
    assert rows["Software"] == "python 3.11, torch 2.13"


def test_everything_optional_has_its_table(metrics):
    metrics["findings"]["A"] |= {
        "auprc_ci95": [0.4, 0.6],
        "sensitivity": 0.75,
        "sensitivity_ci95": [0.7, 0.8],
        "thresholds": {"mcc": 0.0123, "f1": -0.01, "youden": 0.02},
        "brier": 0.1,
        "ece": 0.05,
        "n_uncertain": 3,
        "n_missing": 1,
    }
    metrics["protocol"]["score_level"] = "patches-max"
    metrics["score_levels"] = {
        "global": {"auroc": 0.9, "auroc_ci95": [0.85, 0.95]},
        "patches-max": {"auroc": None, "auroc_ci95": [None, None]},
    }
    labels = np.array([[1, 1, 0, 0, 1, 0]]).T
    scores = np.array([[0.9, 0.8, 0.1, 0.2, 0.5, 0.6]]).T
    sexes = ["F", "F", "F", "F", "M", "M"]
    everyone = np.ones((1, 6))
    subgroups = subgroup_metrics(labels, scores, sexes, everyone, findings=["A"], min_cases=1)
    metrics["subgroups"] = {"sex": subgroups}
    studies = pd.Index([f"s{i}" for i in range(12)], name="study_id")
    readers = pd.concat({"R1": pd.DataFrame({"A": [1, 1, 0, 0, 0, 0] * 2}, studies)}, names=["reader"])
    labels, scores = (pd.DataFrame(np.tile(values, (2, 1)), studies, ["A"]) for values in (labels, scores))
    metrics["radiologists"] = compare_with_radiologists(labels, scores, {"A": 0.7}, readers, resampling=Resampling(2))
    sections = evaluation_tables(metrics)
    (results,) = sections["results"]
    assert results.header[3:] == ("Uncertain", "Not stated", "AUROC (95 % CI)", "AUPRC (95 % CI)")
    assert results.rows[0][3:] == ("3", "1", "0.900 (0.850, 0.950)", "0.500 (0.400, 0.600)")
    assert results.rows[1][3:] == ("–", "–", "–", "–")
    operating, thresholds = sections["thresholds"]
    assert operating.rows[0] == ("A", "0.0123", "0.750 (0.700, 0.800)", "0.250", "0.400")
    assert thresholds.rows == (("A", "0.0123", "-0.0100", "0.0200"), ("B", "–", "–", "–"))
    assert sections["calibration"][0].rows == (("A", "0.100", "0.050"), ("B", "–", "–"))
    assert sections["score_levels"][0].rows == (("Global", "0.900 (0.850, 0.950)"), ("Patches-max", "–"))
    assert sections["score_levels"][0].header == ("Score", "AUROC, mean (95 % CI)")
    assert sections["score_levels"][0].note.endswith(" The results of the findings have the score level patches-max.")
    sex, of_findings = sections["subgroups"]
    assert sex.header == ("Sex", "Images", "AUROC, mean (95 % CI)")
    assert sex.rows == (
        ("F", "4", "1.000 (1.000, 1.000)"),
        ("M", "2", "0.000 (0.000, 0.000)"),
        ("Gap", "", "1.000 (1.000, 1.000)"),
    )
    assert sex.note.endswith("Its interval is that of the difference of these two groups.")
    of_three = {"sex": subgroups | {"groups": subgroups["groups"] | {"X": subgroups["groups"]["F"]}}}
    (note, _) = (table.note for table in evaluation_tables(metrics | {"subgroups": of_three})["subgroups"])
    assert "chosen as the farthest apart" in note
    assert of_findings.header == ("Finding", "F", "M", "Gap (95 % CI)")
    assert of_findings.rows == (("A", "1.000", "0.000", "1.000 (1.000, 1.000)"),)
    model, readers = sections["radiologists"]
    assert model.header[:4] == ("Finding", "MCC, model", "MCC, readers", "Difference (95 % CI)")
    assert model.rows[0][1:3] == model.rows[1][1:3] and [row[0] for row in model.rows] == ["A", "Mean of 1"]
    assert model.rows[0][1:3] == ("0.707", "0.707") and model.rows[0][3].startswith("0.000 (")
    assert readers.rows[0] == ("A", "Model", "0.707", "0.800", "0.667", "0.000", "1.000")
    assert readers.rows[1] == ("A", "R1", "0.707", "0.800", "0.667", "0.000", "1.000")


def test_kinds_of_score_of_an_older_evaluation(metrics):
    (table,) = evaluation_tables(metrics | {"score_levels": {"global": 0.9, "both-max": None}})["score_levels"]
    assert table.rows == (("Global", "0.900"), ("Both-max", "–")) and table.header == ("Score", "AUROC, mean")


def test_groups_without_a_common_finding_have_no_mean(metrics):
    group = {"n_images": 9, "mean": {"auroc": None, "auroc_ci95": [None, None]}}
    groups = {"AP": group | {"auroc": {"A": 0.75}}, "PA": group | {"auroc": {"B": 0.5}}}
    view = {"groups": groups, "findings_in_mean": [], "mean_gap": None, "left_out": {"LL": "3 images"}, "n_unknown": 4}
    (table,) = evaluation_tables(metrics | {"subgroups": {"view": view}})["subgroups"]
    assert table.rows == (("A", "0.750", "–", "–"), ("B", "–", "0.500", "–"))
    assert "so there are no means to compare. Left out: LL (3 images). Images without a known group: 4." in table.note
    for numbers in groups.values():
        numbers["auroc"] = {}
    assert "subgroups" not in evaluation_tables(metrics | {"subgroups": {"view": view}})


@pytest.mark.parametrize("missing", [None, math.nan])
def test_a_finding_that_is_not_calibrated_has_a_reason(metrics, missing):
    for result in metrics["findings"].values():
        result |= {"scale": 30.0, "brier": 0.1}
    assert "Not calibrated" not in evaluation_tables(metrics)["calibration"][0].note
    metrics["findings"]["B"] |= {"scale": missing, "brier": missing}
    (table,) = evaluation_tables(metrics)["calibration"]
    assert "Not calibrated: B. Calibration needs both classes" in table.note and table.rows[1] == ("B", "–")


def test_groups_of_age_stand_in_their_order():
    assert list(order_groups({"18-39": {}, ">=80": {}, "<18": {}, "40-59": {}})) == ["<18", "18-39", "40-59", ">=80"]


def test_what_columns_are_called():
    names = {
        "n_images": "Images",
        "pixel_auroc": "Pixel AUROC",
        "miou_scaled": "mIoU scaled",
        "f1": "F1",
        "seed": "Seed",
    }
    names |= {"images_skipped": "Images that did not decode", "min_positives": "Min positives"}
    assert {key: column_name(key) for key in names} == names


def test_matrix():
    numbers = {"Edema": {"r": 0.5, "r_ci95": [0.25, 0.75], "n_words": 1200}, "none_1": {"r": None}}
    table = matrix_table("name", "Title", "", numbers, "Finding")
    assert table.header == ("Finding", "R (95 % CI)", "Words")
    assert table.rows == (("Edema", "0.500 (0.250, 0.750)", "1,200"), ("none_1", "–", "–"))


def test_retrieval(metrics):
    numbers = {"recall_at_5": 0.5, "recall_at_5_ci95": [0.25, 0.75], "median_rank": 4, "median_rank_ci95": [2, 8]}
    levels = {"recall_at_5_chance": 0.01, "recall_at_5_most_frequent": 0.1, "median_rank_chance": 100}
    retrieval = {"image_to_text": numbers | levels, "protocol": {"images_skipped": ["patient-jones"]}}
    (table,) = evaluation_tables(metrics | {"retrieval": retrieval})["retrieval"]
    assert table.rows == (
        ("Report of an image", "R@5", "0.500 (0.250, 0.750)", "0.010", "0.100"),
        ("Report of an image", "median rank", "4.0 (2.0, 8.0)", "100", "–"),
    )


def test_sparsity(metrics):
    words = {"all": {"n_words": 10, "gini": 0.25, "gini_ci95": [0.125, 0.5]}}
    part = {"num_patches": 49, "token_entropy": 3.5, "token_entropy_ci95": [3.0, 4.0], "words": words}
    sparsity = {"models": {"plain": part, "tier": part}, "differences": {"tier": part}}
    entropies, *words = evaluation_tables(metrics | {"sparsity": sparsity})["sparsity"]
    assert entropies.rows == tuple((name, "3.5000 (3.0000, 4.0000)") for name in ("plain", "tier", "tier minus plain"))
    assert [table.title for table in words] == ["Words, plain", "Words, tier", "Words, tier minus plain"]
    assert words[0].rows == (("all", "10", "0.2500 (0.1250, 0.5000)"),)


def test_deletion(metrics):
    def drop(mean):
        return {"mean": mean, "ci95": [0.25, 0.75]}

    of_kind = {"hottest": drop(0.5), "difference": drop(0.375), "difference_sd": {"mean": None, "ci95": [None, None]}}
    part = {"n_pairs": 9, "random": drop(0.125), "maps": {"contribution": of_kind, "cosine": of_kind}}
    deletion = {"findings": {"A": part, "B": {"n_pairs": 0}}, "mean": {"findings": ["A"], **part}}
    (table,) = evaluation_tables(metrics | {"deletion": deletion})["deletion"]
    numbers = ("9", "0.125 (0.250, 0.750)", *["0.500 (0.250, 0.750)"] * 2, *["–"] * 2)
    assert table.rows == (("A", *numbers), ("Mean of 1", *numbers)) and table.num_summary == 1
    assert table.header[3:] == (
        "Contribution (95 % CI)",
        "Cosine (95 % CI)",
        "Contribution minus random, SD (95 % CI)",
        "Cosine minus random, SD (95 % CI)",
    )
    assert "deletion" not in evaluation_tables(metrics | {"deletion": {"findings": {}}})


def test_robustness(metrics):
    numbers = {"balanced": 0.5, "balanced_ci95": [0.25, 0.75]}
    robustness = {
        "wordings": {"mean": {"auroc": {"name": 0.5}, "auroc_ci95": {"name": [0.25, 0.75]}, "sd": 0.125}},
        "negation": {"mean": {"name": numbers}},
        "laterality": {"findings": {}, "all": None},
        "empty_images": {"findings": {"A": {"images": {"black": {"quantile": 0.5, "positive": True}}}}},
        "degradations": {"JPEG quality 10": {"findings": {}, "mean": {"auroc": 0.5, "drop": 0.25}}},
    }
    tables = evaluation_tables(metrics | {"robustness": robustness})["robustness"]
    assert [table.name for table in tables] == [
        f"robustness-{name}" for name in ("wordings", "negation", "empty-images", "degradations")
    ]
    assert tables[0].rows[0] == ("name", "0.500 (0.250, 0.750)") and tables[0].rows[-1] == (
        "sd over the wordings",
        "0.125",
    )
    assert tables[0].num_summary == 4 and tables[0].rows[-4][0] == "mean over the wordings"
    assert tables[1].rows == (("name", "0.500 (0.250, 0.750)"),)
    assert tables[2].rows == (("A", "0.500 *"),)
    assert tables[3].rows == (("JPEG quality 10", "0.500", "0.250"),)
