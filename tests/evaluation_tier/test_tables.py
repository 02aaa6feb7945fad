import math

import pytest

from evaluation_tier.result_tables import evaluation_tables
from evaluation_tier.tables import (
    Table,
    format_cell,
    format_estimate,
    latex_cell,
    latex_table,
    latex_tables,
    markdown_cell,
    markdown_table,
    markdown_tables,
    text_table,
)

TABLE = Table(
    "two-findings",
    "Two findings",
    "What they say.",
    ("Finding", "AUROC (95 % CI)", "Change"),
    (("Nodule|Mass_1", "0.900 (0.850, 0.950)", "-0.010"), ("Edema & more", "–", "0.020"), ("Mean of 2", "0.900", "")),
    "lrr",
    True,
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
    assert text_table(("Name", "N"), [("a", "10"), ("Mean", "5")], "lr", has_summary=True).splitlines() == [
        "Name   N",
        "----  --",
        "a     10",
        "----  --",
        "Mean   5",
    ]


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
    metrics["score_levels"] = {"global": 0.9, "patch_max": None}
    metrics["subgroups"] = {
        "sex": {
            "groups": {
                "F": {"n_images": 700, "auroc": 0.9, "auroc_ci95": [0.8, 1.0]},
                "M": {"n_images": 5, "auroc": None},
            },
            "gap": 0.1,
            "gap_ci95": [0.0, 0.2],
            "left_out": {"X": "2 images"},
        }
    }
    reader = {"name": "R1", "mcc": 0.5, "f1": 0.6, "fpr": 0.1, "tpr": 0.8, "precision": 0.7}
    metrics["radiologists"] = {
        "A": {
            "readers": [reader, reader | {"name": "R2", "precision": None}],
            "mean_mcc": 0.5,
            "mean_f1": 0.6,
            "mcc_difference": -0.25,
            "mcc_difference_ci95": [-0.5, 0.0],
        }
    }
    sections = evaluation_tables(metrics)
    (results,) = sections["results"]
    assert results.header[3:] == ("Uncertain", "Not stated", "AUROC (95 % CI)", "AUPRC (95 % CI)")
    assert results.rows[0][3:] == ("3", "1", "0.900 (0.850, 0.950)", "0.500 (0.400, 0.600)")
    assert results.rows[1][3:] == ("–", "–", "–", "–")
    operating, thresholds = sections["thresholds"]
    assert operating.rows[0] == ("A", "0.0123", "0.750 (0.700, 0.800)", "0.250", "0.400")
    assert thresholds.rows == (("A", "0.0123", "-0.0100", "0.0200"), ("B", "–", "–", "–"))
    assert sections["calibration"][0].rows == (("A", "0.100", "0.050"), ("B", "–", "–"))
    assert sections["score_levels"][0].rows == (("Global", "0.900"), ("Patch max", "–"))
    (sex,) = sections["subgroups"]
    assert sex.rows == (("F", "700", "0.900 (0.800, 1.000)"), ("M", "5", "–"), ("Gap", "", "0.100 (0.000, 0.200)"))
    assert sex.name == "subgroups-sex" and sex.note.endswith("Left out: X: 2 images.")
    model, readers = sections["radiologists"]
    assert model.rows == (("A", "0.250", "0.500", "-0.250 (-0.500, 0.000)", "0.400", "0.600", "–"),)
    assert readers.rows[1] == ("A", "R2", "0.500", "0.600", "0.800", "0.100", "–")
