import csv
import gzip
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from eval_command import run, save_two_models
from PIL import Image

from evaluation_tier.analyses.robustness.alignment import Variants, compare_reports, match_images, read_cxr_align
from evaluation_tier.analyses.robustness.evaluation import evaluate_robustness
from evaluation_tier.figures.robustness import plot_robustness
from evaluation_tier.models.embedding import embed_sentences
from evaluation_tier.output.analysis_tables import robustness_tables
from evaluation_tier.statistics.resampling import Resampling
from processing_tier import read_radiograph
from processing_tier.phantom.dataset import make_phantom
from processing_tier.prompts.loader import Prompts
from processing_tier.readers.chexpert import CHEXPERT_FINDINGS

BRIGHT = {"Bright": Prompts(["Bright."], ["No brightness."])}
PAIR = {  # in the layout of its owners
    "report": "Edema. Effusion.",
    "chosen": " Edema ",
    "location": "bilateral",
    "negation": "No edema. Effusion.",
    "omitted": "Effusion.",
}


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_reports_are_read(tmp_path):
    other = {**PAIR, "chosen": ["x"]}
    path = write(tmp_path / "cxr-align.json", {"mimic": {"a": PAIR, "b": other, "blank": {**PAIR, "omitted": " "}}})
    assert read_cxr_align(path) == {
        "a": Variants("Edema. Effusion.", "No edema. Effusion.", "Effusion.", "Edema"),
        "b": Variants("Edema. Effusion.", "No edema. Effusion.", "Effusion.", ""),
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty, cut short or not JSON"),
        ('{"mimic": {"a": {"report": "x"', "the file is empty, cut short or not JSON"),
        ([PAIR], "the entries are not report, negation, omitted by image"),
        ({"mimic": [PAIR]}, "the entries are not report, negation, omitted by image"),
        ({"mimic": {"a": "text"}}, "the entries are not report, negation, omitted by image"),
        ({"mimic": {"a": {"report": "x", "negation": "y"}}}, "the entries are not report, negation, omitted by image"),
        ({"mimic": {"a": {**PAIR, "negation": 1}}}, "the entries are not report, negation, omitted by image"),
        ({"mimic": {"a": PAIR}, "other": {"a": PAIR}}, "the image 'a' is in two groups"),
        ({"mimic": {"a": {**PAIR, "report": ""}}}, "no image has a report"),
        ({}, "no image has a report"),
    ],
)
def test_bad_files(tmp_path, content, message):
    with pytest.raises(ValueError, match=message) as error:
        read_cxr_align(write(tmp_path / "cxr-align.json", content))
    assert "\n" not in str(error.value)


def test_a_missing_file_and_other_images(tmp_path):
    with pytest.raises(ValueError, match="the file cannot be read"):
        read_cxr_align(tmp_path / "none.json")
    assert match_images({"b": Variants("", "", "", "")}, ["a", "b", "c"]).tolist() == [1]
    with pytest.raises(ValueError, match="reports of 1 images of MIMIC-CXR, but of none of the 2 evaluated ones"):
        match_images({"b": Variants("", "", "", "")}, ["a", "c"])


def test_shares_by_hand():
    """Cosines with the report, the negated and the shortened one."""
    cosines = [[0.9, 0.1, 0.5], [0.5, 0.6, 0.4], [0.5, 0.4, 0.6], [0.5, 0.5, 0.4], [0.5, 0.3, 0.5 + 1e-9]]
    images = np.array([[1.0, 0.0]] * 5)
    texts = np.stack([cosines, np.zeros((5, 3))], axis=-1)
    findings = np.array(["Edema", "Edema", "Edema", "", "Fracture"])
    patients, draws = np.arange(5), np.eye(5)[[0, 1, 2]] * 5  # each resample has one patient alone
    result = compare_reports(images, texts, findings, patients, draws, min_images=2)
    assert list(result["findings"]) == ["Edema"]  # the fracture has one image only
    everything, edema = result["all"], result["findings"]["Edema"]
    assert (everything["n_images"], everything["n_ties"]) == (5, 2)
    assert everything["over_negated"] == pytest.approx((1 + 0 + 1 + 0.5 + 1) / 5)
    assert everything["over_shortened"] == pytest.approx((1 + 1 + 0 + 1 + 0.5) / 5)
    assert everything["over_both"] == pytest.approx((1 + 0 + 0 + 0.5 + 0.5) / 5)
    assert everything["over_negated_ci95"] == pytest.approx([0.05, 1.0])
    assert (edema["n_images"], edema["n_ties"], edema["over_both"]) == (3, 0, pytest.approx(1 / 3))
    assert np.isnan(edema["over_both_ci95"]).all()  # fewer than five patients
    assert result["chance"] == {"over_negated": 0.5, "over_shortened": 0.5, "over_both": 1 / 3}


def test_equal_texts_are_embedded_once(brightness):
    model, processor = brightness
    seen = []
    tokenizer = processor.tokenizer
    processor = SimpleNamespace(image_processor=processor.image_processor, tokenizer=None)

    def count(texts, **options):
        seen.extend(texts)
        return tokenizer(texts, **options)

    count.model_max_length = tokenizer.model_max_length
    processor.tokenizer = count
    embeddings = embed_sentences(model, processor, ["Bright.", "No.", "Bright."])
    assert seen == ["Bright.", "No."] and embeddings.shape[0] == 3
    assert np.array_equal(embeddings[0], embeddings[2]) and not np.array_equal(embeddings[0], embeddings[1])
    assert not torch.is_tensor(embeddings)


@pytest.mark.slow
def test_a_probe_of_robustness(brightness, make_grey_dataset, tmp_path):
    """Sentences that begin with "No" deny, so a bright image lies nearer to the report and a dark one does not."""
    pytest.importorskip("matplotlib")
    levels = [10, 20, 200, 210, 220, 230, 240]
    dataset = make_grey_dataset(levels, [0, 0, 1, 1, 1, 1, 1])
    bright = Variants("Bright.", "No brightness.", "Something.", "Bright")
    reports = {f"image{i}": bright for i in (0, 2, 3, 4, 5, 6)} | {"elsewhere": bright}
    options = {"min_positives": 1, "resampling": Resampling(20), "reports": reports}
    results = evaluate_robustness(*brightness, dataset, None, BRIGHT, **options)
    aligned = results["report_alignment"]
    assert aligned["all"]["n_images"] == 6 and aligned["all"]["n_ties"] == 6  # "Something." is no denial, either
    assert aligned["all"]["over_negated"] == pytest.approx(5 / 6)
    assert aligned["all"]["over_shortened"] == 0.5 and aligned["all"]["over_both"] == pytest.approx(5 / 12)
    assert aligned["findings"]["Bright"] == aligned["all"]
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    table = robustness_tables(results)[-1]
    assert table.title == "CXR-Align" and [row[0] for row in table.rows] == ["Bright", "All"]
    with_panel, without = tmp_path / "with.png", tmp_path / "without.png"
    plot_robustness(results, with_panel)
    plot_robustness({**results, "report_alignment": None}, without)
    heights, green = [], []
    for path in (with_panel, without):
        with Image.open(path) as picture:
            heights.append(picture.height)
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        green.append((np.abs(pixels - [0x00, 0x9E, 0x73]).max(axis=-1) < 12).sum())  # preferred to both
    assert heights[0] > heights[1] + 200 and green[0] > green[1] + 500
    many = make_grey_dataset([200] * 200, [1.0, 0.0] * 100)
    many = many.map(lambda row, i: {"image": {"bytes": b"no", "path": None}} if i == 3 else {}, with_indices=True)
    results = evaluate_robustness(*brightness, many, None, BRIGHT, **options)
    assert results["report_alignment"]["all"]["n_images"] == 5  # image 3 is not readable
    assert results["report_alignment"]["all"]["over_negated"] == 1.0
    with pytest.raises(ValueError, match="but of none of the 7 evaluated ones"):
        evaluate_robustness(*brightness, dataset, None, BRIGHT, **{**options, "reports": {"elsewhere": bright}})
    assert "report_alignment" not in evaluate_robustness(
        *brightness, dataset, None, BRIGHT, min_positives=1, resampling=Resampling(5)
    )


def write_mimic(root, count):
    """Phantoms in the layout of MIMIC-CXR-JPG 2.1.0, two images of each study, and their `dicom_id`s."""
    tables = {
        "split": [("dicom_id", "study_id", "subject_id", "split")],
        "metadata": [("dicom_id", "subject_id", "study_id", "ViewPosition")],
        "chexpert": [("subject_id", "study_id", *CHEXPERT_FINDINGS)],
    }
    for number, record in enumerate(make_phantom(count, image_size=64)):
        dicom, study, subject = f"{number:08x}-0a1b2c3d", 50000000 + number // 2, 10000000 + number // 2
        path = root / f"files/p10/p{subject}/s{study}/{dicom}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        read_radiograph(record["image"]).convert("L").save(path)
        path.parent.with_suffix(".txt").write_text(f" FINDINGS:\n\n {record['findings']}\n")
        tables["split"].append((dicom, study, subject, "test"))
        tables["metadata"].append((dicom, subject, study, ("PA", "LATERAL")[number % 2]))
        if number % 2 == 0:
            labels = {"Cardiomegaly": number // 2 % 2, "Edema": number // 4 % 2}
            tables["chexpert"].append((subject, study, *(labels.get(name, "") for name in CHEXPERT_FINDINGS)))
    for name, rows in tables.items():
        with gzip.open(root / f"mimic-cxr-2.0.0-{name}.csv.gz", "wt", newline="") as file:
            csv.writer(file).writerows(rows)
    return [row[0] for row in tables["split"][1:]]


@pytest.mark.slow
def test_the_command_on_mimics_layout(tmp_path, capsys):
    """The ids are the images', not the studies': the file has every third image, frontal or not."""
    pytest.importorskip("matplotlib")
    [model, _] = save_two_models(tmp_path)
    ids = write_mimic(tmp_path / "2.1.0", 32)
    content = {"mimic": {name: PAIR for name in ids[::3]} | {"ffffffff-0a1b2c3d": PAIR}}
    path = write(tmp_path / "cxr-align.json", content)
    arguments = [model, "--data", f"mimic_cxr_jpg:{tmp_path}/2.1.0", "--split", "test", "--cxr_align", path]
    arguments += ["--analyses", "robustness", "--min_positives", 3, "--n_bootstrap", 10]
    numbers = []
    for views, *figures in (("all", "--figures"), ("frontal",)):
        output = tmp_path / views
        run(*arguments, "--views", views, *figures, "--output_dir", output, capsys=capsys)
        aligned = json.loads((output / "metrics.json").read_text())["robustness"]["report_alignment"]
        assert aligned["findings"] == {"Edema": aligned["all"]} and "CXR-Align" in (output / "tables.md").read_text()
        assert (output / "robustness.png").is_file() == bool(figures)
        numbers.append(aligned["all"]["n_images"])
    assert numbers == [len(ids[::3]), len(set(ids[::3]) & set(ids[::2]))]
