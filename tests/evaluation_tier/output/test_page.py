import json
import logging
import os
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from evaluation_tier.output.metrics_file import write_metrics
from evaluation_tier.output.page import render_evaluation, write_page
from evaluation_tier.output.predictions import write_predictions
from evaluation_tier.output.result_tables import evaluation_tables

VOID = {"meta", "img", "br", "link"}
EVIL = '<script>alert(1)</script>" onload="x' + "{{ 7 * 7 }}"


class Page(HTMLParser):
    """Reads a page, and fails on a tag that closes what is not open."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.text = [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes), attributes
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data):
        if self.open[-1:] != ["script"]:
            self.text.append(data)

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def metrics() -> dict:
    result = {"auroc": 0.75, "auroc_ci95": [0.5, 1.0], "auprc": 0.8, "mcc": 0.25, "f1": 0.4, "threshold": 0.0123}
    result |= {"n_positive": 2, "n_negative": 2, "n_excluded": 1}
    undefined = {"auroc": None, "auroc_ci95": [None, None], "auprc": None, "n_positive": 0, "n_negative": 5}
    return {
        "dataset": "mine",
        "protocol": {
            "split": "test",
            "scoring": "difference",
            "thresholds": "highest MCC on the evaluated images (optimistic)",
            "n_patients": 4,
            "images_skipped": ["patient-jones"],
        },
        "n_images": 5,
        "models": ["runs/a"],
        "findings": {"Edema": result, "Hernia": undefined},
        "mean": {"auroc": 0.75, "auroc_ci95": [0.5, 1.0], "auprc": 0.8, "mcc": 0.25, "f1": 0.4},
        "versions": {"python": "3.11"},
    }


@pytest.fixture
def write(tmp_path):
    """Write an evaluation's files; the predictions are of its findings."""

    def write(metrics: dict):
        write_metrics(tmp_path / "metrics.json", metrics)
        names = [f"patient-smith-{i}" for i in range(5)]
        predictions = pd.DataFrame({"image_id": names, "patient_id": names})
        for finding in metrics["findings"]:
            predictions[f"score_{finding}"] = [0.9, 0.1, 0.8, 0.0, 0.3]
            predictions[f"label_{finding}"] = [1, 1, 0, 0, np.nan] if finding != "Hernia" else 0.0
        write_predictions(tmp_path / "predictions.parquet", predictions)
        return tmp_path

    return write


def page_of(folder, metrics) -> Page:
    return Page(render_evaluation(folder, metrics, evaluation_tables(metrics)))


@pytest.mark.slow
def test_files(write, metrics):
    pytest.importorskip("matplotlib")
    folder = write(metrics)
    Image.new("L", (30, 20)).save(folder / "similarity_edema.png")
    Image.new("L", (30, 20)).save(folder / "holiday.png")  # not of an evaluation
    names = [path.name for path in write_page(folder)]
    assert names == ["findings.png", "roc.png", "precision_recall.png", "tables.md", "tables.tex", "report.html"]
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert len(page.all("img")) == 4
    assert "| Edema | 2 | 2 | 1 | 0.750 (0.500, 1.000) | 0.800 |" in (folder / "tables.md").read_text()
    assert r"Edema & 2 & 2 & 1 & 0.750 (0.500, 1.000) & 0.800 \\" in (folder / "tables.tex").read_text()
    for name in ("report.html", "tables.md", "tables.tex"):  # nobody is named
        assert not re.search("jones|smith", (folder / name).read_text())
    # the same files, the same bytes
    before = {path: path.read_bytes() for path in folder.iterdir()}
    write_page(folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_page_is_self_contained_and_accessible(write, metrics):
    folder = write(metrics)
    Image.new("L", (30, 20)).save(folder / "roc.png")
    page = page_of(folder, metrics)
    assert page.all("html") == [{"lang": "en"}] and len(page.all("h1")) == len(page.all("main")) == 1
    assert page.all("script") == [{}] and not page.all("link") and not page.all("iframe")
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        assert attributes.get("href", "#").startswith(
            "data:text/csv;charset=utf-8," if "download" in attributes else "#"
        )
        assert attributes.get("src", "data:image/webp;base64,").startswith("data:image/webp;base64,")
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    inner = [attributes for attributes in page.all("a") if "download" not in attributes]
    assert {attributes["href"][1:] for attributes in inner} <= set(ids)
    (image,) = page.all("img")
    assert (image["width"], image["height"]) == ("20", "13")  # 1.5 pixels of the figure each
    assert image["alt"] == "ROC curves of 1 finding."
    assert len(page.all("caption")) == len(page.all("table")) == 3
    assert all("scope" in attributes for attributes in page.all("th"))
    assert "url(" not in "".join(page.text) and "@import" not in "".join(page.text)


def test_only_what_was_measured_has_a_section(write, metrics):
    folder = write(metrics)
    headings = [attributes["id"] for attributes in page_of(folder, metrics).all("h2")]
    assert headings == ["results", "thresholds", "protocol"]
    metrics["retrieval"] = {"image_to_text": {"recall_at_1": 0.5, "recall_at_1_ci95": [0.25, 0.75]}}
    metrics["score_levels"] = {"global": 0.75}
    Image.new("L", (30, 20)).save(folder / "grounding_edema.png")
    page = page_of(folder, metrics)
    assert [attributes["id"] for attributes in page.all("h2")] == [
        "results",
        "thresholds",
        "score-levels",
        "retrieval",
        "grounding",
        "protocol",
    ]
    assert page.all("img")[0]["alt"] == "Figure: Grounding: Edema; the tables of the section hold its numbers."


def test_the_overlap_with_the_training_data_has_a_section(write, metrics):
    assert "overlap" not in evaluation_tables(metrics)
    told = "3 training images and 2 other images of training patients were left out"
    metrics["protocol"] |= {"training_overlap": told, "n_trained_images": 3, "n_trained_patients_images": 2}
    tables = evaluation_tables(metrics)
    assert [row[1] for row in tables["overlap"][0].rows] == [told, "3", "2"]
    assert not any(told in row for row in tables["protocol"][0].rows)
    assert "Images that the model was trained on" in page_of(write(metrics), metrics).text


def test_long_tables_and_many_figures_are_folded(write, metrics):
    folder = write(metrics)
    assert len(page_of(folder, metrics).all("details")) == 3  # a section each, which is open
    assert all("open" in attributes for attributes in page_of(folder, metrics).all("details"))
    result = metrics["findings"]["Edema"]
    metrics["findings"] = {f"Finding {i}": result for i in range(21)}
    for i in range(5):
        Image.new("L", (30, 20)).save(folder / f"similarity_finding_{i}.png")
    page = page_of(folder, metrics)
    closed = [attributes for attributes in page.all("details") if "open" not in attributes]
    assert len(closed) == 3  # both tables of findings, and the fifth figure
    assert "Results of each finding: 22 rows" in page.text and "1 more figures" in page.text


def test_tables_can_be_sorted_and_downloaded(write, metrics):
    page = page_of(write(metrics), metrics)
    assert [table.get("class") for table in page.all("table")] == [
        "sortable",
        "sortable",
        None,
    ]  # of text: the protocol
    links = {link["download"]: link["href"] for link in page.all("a") if "download" in link}
    assert list(links) == ["results.csv", "operating-points.csv", "protocol.csv"]
    assert unquote(links["results.csv"].partition(",")[2]).splitlines()[1] == "Edema,2,2,1,0.750,0.500,1.000,0.800"


def test_undefined_numbers_are_dashes(write, metrics):
    page = page_of(write(metrics), metrics)
    text = "".join(page.text[page.text.index("Results") :])
    assert "Hernia" in text and "–" in text and not re.search(r"\b(nan|none|null)\b", text, re.IGNORECASE)


def test_warns_of_flattering_thresholds_and_synthetic_images(write, metrics):
    folder = write(metrics)
    text = "".join(page_of(folder, metrics).text)
    assert "chosen on the evaluated images themselves" in text and "synthetic" not in text
    metrics["dataset"], metrics["protocol"]["thresholds"] = "phantom:seed=1", "highest MCC on the split 'validation'"
    text = "".join(page_of(folder, metrics).text)
    assert "chosen on the evaluated images themselves" not in text
    assert "Evaluation on phantom:seed=1 (synthetic)" in text and "say nothing about patients" in text


def test_data_that_are_not_the_benchmarks_are_said_at_the_top(write, metrics):
    folder = write(metrics)
    page = page_of(folder, metrics)
    assert len([tag for tag in page.all("p") if tag.get("class") == "notice"]) == 1
    assert page.text[page.text.index("Evaluation on mine") :][0] == "Evaluation on mine"
    sentences = ["It has 5 images and not 500.", "It has 2 findings and not 5."]
    metrics["protocol"] |= {"benchmark": "chexpert-5", "benchmark_differs": sentences}
    page = page_of(folder, metrics)
    assert len([tag for tag in page.all("p") if tag.get("class") == "notice"]) == 2
    assert page.text.count("Evaluation on mine, benchmark chexpert-5") == 2  # of the window, and on the page
    assert page.text.count(" ".join(sentences)) == 2  # at the top, and in the protocol


def test_the_page_reads_as_sentences(write, metrics):
    folder = write(metrics)
    for name in ("grounding", "sparsity", "robustness"):
        Image.new("L", (30, 20)).save(folder / f"{name}.png")
    page = page_of(folder, metrics)
    assert "A dash (–) means not measured." in "".join(page.text)
    for begin in ("The regions with", "Top: similarities", "How scores change"):
        assert any(text.startswith(begin) for text in page.text)
    for image, begin in zip(page.all("img"), ("Radiographs with", "Curves of", "Panels of"), strict=True):
        assert image["alt"].startswith(begin)


def test_a_rule_stands_above_the_rows_that_sum_up(write, metrics):
    wordings = {"auroc": {"name": 0.5}, "mean": 0.5, "min": 0.4, "max": 0.6, "sd": 0.1}
    metrics["robustness"] = {"wordings": {"mean": wordings}}
    page = page_of(write(metrics), metrics)
    classes = [row.get("class") for row in page.all("tr")]
    first = classes.index("summary")  # of the wordings; the other tables have one such row at most
    assert classes[first - 2 : first + 3] == [None, "summary first", "summary", "summary", "summary"]


def test_a_malicious_name_is_text(write, metrics):
    pytest.importorskip("matplotlib")
    metrics["findings"] = {EVIL: metrics["findings"]["Edema"]}
    metrics["dataset"] = metrics["models"][0] = EVIL
    metrics["subgroups"] = {
        EVIL: {"groups": {EVIL: {"n_images": 5, "mean": {"auroc": 0.5}}}, "findings_in_mean": [EVIL], "left_out": {}}
    }
    folder = write(metrics)
    Image.new("L", (30, 20)).save(folder / "similarity_<img src=x>.png")
    write_page(folder)
    text = (folder / "report.html").read_text()
    page = Page(text)
    assert len(page.all("script")) == text.count("<script") == 1 and "<img src=x" not in text
    assert all("onload" not in attributes for _, attributes in page.tags)
    assert EVIL in "".join(page.text)  # as it was given, unrendered
    assert "<script>" not in (folder / "tables.md").read_text()


def test_without_predictions_or_matplotlib_there_are_tables(write, metrics, monkeypatch, caplog):
    folder = write(metrics)
    (folder / "predictions.parquet").unlink()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert [path.name for path in write_page(folder)] == ["tables.md", "tables.tex", "report.html"]
    assert "The report is written without new figures. Figures need matplotlib" in caplog.text


def test_links_and_pipes_are_not_figures(write, metrics, tmp_path_factory, caplog):
    folder = write(metrics)
    outside = tmp_path_factory.mktemp("outside")
    Image.new("L", (3, 3)).save(outside / "secret.png")
    Image.new("L", (5, 5)).save(folder / "similarity_Edema.png")
    (folder / "similarity_link.png").symlink_to(outside / "secret.png")
    (folder / "similarity_relative.png").symlink_to(Path("..") / outside.name / "secret.png")
    (folder / "similarity_inside.png").symlink_to(folder / "similarity_Edema.png")
    os.mkfifo(folder / "similarity_pipe.png")
    with caplog.at_level(logging.WARNING):
        page = render_evaluation(folder, metrics, evaluation_tables(metrics))
    assert [figure["width"] for figure in Page(page).all("img")] == ["3", "3"]
    left_out = [record.getMessage() for record in caplog.records]
    assert left_out == [
        f"The page leaves out similarity_{name}.png: it is not a file of this folder."
        for name in ("link", "pipe", "relative")
    ]


def test_a_figure_that_is_none_is_left_out(write, metrics, caplog, monkeypatch):
    folder = write(metrics)
    (folder / "roc.png").write_bytes(b"<script>")
    monkeypatch.setattr("evaluation_tier.output.page_figures.MAX_FIGURE_BYTES", 100)
    (folder / "similarity_edema.png").write_bytes(bytes(101))
    with caplog.at_level(logging.WARNING):
        assert not page_of(folder, metrics).all("img")
    assert "leaves out roc.png: it is not a PNG image." in caplog.text
    assert "leaves out similarity_edema.png: it exceeds" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not hold metrics.json: name a folder that tier-eval wrote."),
        ("{", "is not valid JSON: evaluate the model again."),
        ("[]", "lacks a valid 'dataset'"),
        (json.dumps({"dataset": "d", "protocol": {}, "n_images": 1, "findings": {"A": {}}, "mean": {}}), "of 'A'"),
    ],
)
def test_a_folder_without_an_evaluation_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        write_page(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {"metrics.json"}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        *(
            (key, "x", f"lacks a valid '{key}'")
            for key in ("retrieval", "grounding", "score_levels", "subgroups", "mean")
        ),
        *((key, ["x"], f"lacks a valid '{key}'") for key in ("radiologists", "sparsity", "robustness", "versions")),
        ("models", {"m": 1}, "lacks a valid 'models'"),
        ("protocol", {"n_patients": "4"}, "lacks a valid 'n_patients'"),
        ("protocol", {"images_skipped": 3}, "lacks a valid 'images_skipped'"),
        ("protocol", {"benchmark_differs": "It has"}, "lacks a valid 'benchmark_differs'"),
        ("mean", {"auroc": "high"}, "has 'high' for 'auroc' of 'mean', which is not a number: evaluate"),
        ("score_levels", {"global": {"auroc": "high"}}, "for 'global' of 'score_levels', which is not a number"),
        (
            "retrieval",
            {"image_to_text": {"r": "x", "r_ci95": 1}},
            r"is not in the format of an evaluation \(TypeError",
        ),
        ("grounding", {"mean": {"maps": {"above_average": 1}}}, r"is not in the format of an evaluation \("),
        ("subgroups", {"sex": {"groups": {"F": 1}}}, r"is not in the format of an evaluation \("),
        ("sparsity", {"models": {"m": 1}}, r"is not in the format of an evaluation \("),
        ("robustness", {"wordings": {"mean": 1}}, r"is not in the format of an evaluation \("),
    ],
)
def test_a_damaged_part_is_refused_before_anything_is_written(write, metrics, key, value, message):
    folder = write(metrics | {key: value})
    with pytest.raises(ValueError, match=message):
        write_page(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["metrics.json", "predictions.parquet"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"auroc": "high"},
            "metrics.json has 'high' for 'auroc' of 'Edema', which is not a number: evaluate the model",
        ),
        ({"threshold": "low"}, "has 'low' for 'threshold' of 'Edema'"),
        ({"auroc_ci95": [0.5]}, r"has '\[0.5\]' for 'auroc_ci95' of 'Edema'"),
        ({"thresholds": {"mcc": "x"}}, "for 'thresholds' of 'Edema'"),
    ],
)
def test_results_that_are_no_numbers_are_refused(write, metrics, changes, message):
    metrics["findings"]["Edema"] |= changes
    with pytest.raises(ValueError, match=message):
        write_page(write(metrics))


def test_predictions_that_are_no_numbers_are_refused(write, metrics):
    folder = write(metrics)
    predictions = pd.read_parquet(folder / "predictions.parquet")
    write_predictions(folder / "predictions.parquet", predictions.astype({"score_Edema": str}))
    with pytest.raises(
        ValueError, match="The column 'score_Edema' of .*predictions.parquet does not hold numbers: evaluate"
    ):
        write_page(folder)


def test_files_of_two_evaluations_are_refused(write, metrics):
    folder = write(metrics)
    write_metrics(folder / "metrics.json", metrics | {"n_images": 6})
    with pytest.raises(
        ValueError, match=r"does not belong to the metrics.json beside it \(it has 5 rows for 6 images\)"
    ):
        write_page(folder)
    write_metrics(folder / "metrics.json", metrics | {"findings": {"Mass": metrics["findings"]["Edema"]}})
    with pytest.raises(ValueError, match="it lacks the column 'score_Mass'"):
        write_page(folder)
    (folder / "predictions.parquet").write_bytes(b"no table")
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        write_page(folder)


def test_published_training_data_are_told(write, metrics):
    metrics["protocol"]["exposure"] = "X was trained on padchest; the evaluated data are of another data set (rsna)"
    page = page_of(write(metrics), metrics)
    assert page.text.count(metrics["protocol"]["exposure"]) == 1 and "Overlap with the training data" in page.text
    metrics["protocol"] |= {"exposure": "X was trained on rsna", "exposure_overlap": ["m"]}
    page = page_of(write(metrics), metrics)
    assert "The evaluated data may be training data: X was trained on rsna." in page.text
