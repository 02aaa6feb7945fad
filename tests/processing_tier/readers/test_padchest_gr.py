import csv
import json
import math

import pytest
from archive_files import error_of, no_split
from small_archives import HEART, NO_EFFUSION, write_padchest_gr, write_picture

from processing_tier import read_radiograph
from processing_tier.readers.padchest_gr import read_padchest_gr
from processing_tier.records.identities import patient_keys
from processing_tier.records.schema import check_disjoint_patients, finding_columns

JSON, TABLE = "grounded_reports_20240819.json", "master_table.csv"
IMAGES = "Padchest_GR_files/PadChest_GR"


@pytest.fixture
def root(tmp_path):
    write_padchest_gr(tmp_path / "PadChest-GR")
    return tmp_path / "PadChest-GR"


def edit_reports(root, change):
    reports = json.loads((root / JSON).read_text())
    change(reports)
    (root / JSON).write_text(json.dumps(reports))


def edit_table(root, change):
    with open(root / TABLE, newline="") as file:
        rows = change(list(csv.DictReader(file)))
    with open(root / TABLE, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_schema(root, caplog):
    dataset = read_padchest_gr(root, "train")
    assert not caplog.messages
    assert finding_columns(dataset) == ["aortic elongation", "cardiomegaly", "No Finding"]
    assert dataset["cardiomegaly"][:] == dataset["aortic elongation"][:] == [1, 1, 1, 1, 0, 0]
    assert dataset["No Finding"][:] == [0, 0, 0, 0, 1, 1]
    assert (
        dataset["image_id"][0] == "train_0_abc"
        and dataset["study_id"][0] == "2514880345577323389596015803288987347000"
    )
    assert dataset["image"][0]["path"] == str(root / IMAGES / "train_0_abc.png")
    assert dataset["patient_id"][:2] == ["00", "01"] and dataset["sex"][:2] == ["M", "F"]
    assert dataset["age"][:2] == [60, 61] and set(dataset["view"]) == {"PA"} and set(dataset["impression"]) == {""}
    splits = {name: read_padchest_gr(root, name) for name in ("train", "validation", "test")}
    assert [len(split) for split in splits.values()] == [6, 6, 6]
    check_disjoint_patients(**splits)
    assert patient_keys(["00"], "padchest_gr").tolist() == patient_keys(["00"], "padchest").tolist()


def test_sentences_of_both_languages(root):
    english, spanish = (read_padchest_gr(root, "train", language=language) for language in ("en", "es"))
    assert english["findings"][:2] == ["The heart is enlarged. No pleural effusion."] * 2  # equal sentences once
    assert english["findings"][:] == english["report"][:] and english["findings"][5] == "No pleural effusion."
    assert spanish["findings"][0] == "Cardiomegalia. Sin derrame pleural."
    assert spanish["boxes"][0][0]["phrase"] == "Cardiomegalia."
    assert spanish["boxes"][0][0]["finding"] == english["boxes"][0][0]["finding"] == "cardiomegaly"


def test_boxes_are_in_pixels_of_the_stored_image(root):
    """The archive has shares of width and height; the pictures have 64 x 48 pixels and 16 bits."""
    boxes = read_padchest_gr(root, "train")["boxes"]
    shared = {"finding": "cardiomegaly", "phrase": "The heart is enlarged."}
    assert boxes[0] == [{**shared, "x": 16.0, "y": 24.0, "w": 32.0, "h": 24.0}]
    assert boxes[1] == [boxes[0][0], {**shared, "x": 0.0, "y": 0.0, "w": 8.0, "h": 12.0}] and boxes[4] == []
    second = read_padchest_gr(root, "train", second_reader=True)["boxes"]
    assert second[0] == second[1] == [{**shared, "x": 16.0, "y": 24.0, "w": 16.0, "h": 12.0}]
    assert read_radiograph(root / IMAGES / "train_0_abc.png").size == (64, 48)


def test_the_first_row_of_a_sentence_names_its_boxes(root):
    edit_table(root, lambda rows: rows[::-1])
    assert read_padchest_gr(root, "train")["boxes"][0][0]["finding"] == "aortic elongation"
    edit_table(root, lambda rows: [{**row, "sentence_en": "Another."} for row in rows])
    assert read_padchest_gr(root, "train")["boxes"][0][0]["finding"] == "cardiomegaly"  # its own first label


@pytest.mark.parametrize("folder", ["Padchest_GR_files", "PadChest_GR", "."])
def test_layouts(root, folder):
    for path in list((root / IMAGES).iterdir()):
        (root / folder).mkdir(exist_ok=True)
        path.rename(root / folder / path.name)
    (root / IMAGES).rmdir()
    dataset = read_padchest_gr(root, "test")
    assert dataset["image"][0]["path"] == str((root / folder / "test_0_abc.png").resolve()) and dataset["boxes"][0]


def test_quirks(root, caplog):
    def change(reports):
        reports[0]["findings"] = []  # neither normal nor abnormal
        reports[1]["findings"][0]["boxes"] = [[-0.25, 0, 0.5, 1.5], [0.5, 0.5, 0.5, 0.5]]
        reports.append(reports[2])
        reports.append({**reports[3], "ImageID": "unknown.png"})

    edit_reports(root, change)
    (root / IMAGES / "train_2_abc.png").write_bytes(b"not a picture")
    (root / IMAGES / "train_3_abc.png").unlink()
    dataset = read_padchest_gr(root, "train")
    assert math.isnan(dataset["No Finding"][0]) and dataset["findings"][0] == ""
    assert [(box["x"], box["y"], box["w"], box["h"]) for box in dataset["boxes"][1]] == [(0, 0, 32, 48), (0, 0, 8, 12)]
    assert dataset["image_id"][2] == "train_2_abc" and dataset["boxes"][2] == []
    assert caplog.messages == [
        "padchest_gr: 1 of 20 reports are not in master_table.csv: left out.",
        "padchest_gr, split train: 1 of 7 rows repeat a 'ImageID': dropped.",
        "padchest_gr: 1 images are not readable PNG files: their boxes are left out.",
        f"{JSON}: 1 boxes reach beyond their image and are cut, 1 have no area inside it and are left out.",
        f"padchest_gr, split train: 1 of 6 images are missing, the first is {IMAGES}/train_3_abc.png: left out.",
    ]


def test_reports_of_another_form(root):
    form = f"{JSON}: the reports are not ImageID and findings with sentences and boxes as shipped; download it again."
    for content in (
        5,
        [5],
        [{"ImageID": "a.png"}],
        [{"ImageID": 5, "findings": []}],
        [{"ImageID": "a.png", "findings": ["The heart."]}],
        [{"ImageID": "a.png", "findings": [{**HEART, "sentence_en": 5}]}],
        [{"ImageID": "a.png", "findings": [{**HEART, "boxes": [[0, 0, 1]]}]}],
        [{"ImageID": "a.png", "findings": [{**HEART, "boxes": [[0, 0, 1, "a"]]}]}],
        [{"ImageID": "a.png", "findings": [{**HEART, "labels": [5]}]}],
        [{"ImageID": "a.png", "findings": [{**HEART, "labels": 5}]}],
    ):
        (root / JSON).write_text(json.dumps(content))
        assert error_of(read_padchest_gr, root, "train") == form, content
    (root / JSON).write_text("[")
    assert error_of(read_padchest_gr, root, "train") == (
        f"{JSON}: the file is empty, cut short or not JSON; download it again."
    )
    (root / JSON).write_text("[]")
    assert error_of(read_padchest_gr, root, "train") == (
        "padchest_gr: the split 'train' is empty; check the file and the split."
    )


def test_errors(root, tmp_path):
    def message(folder=root, split="train", **options):
        return error_of(read_padchest_gr, folder, split, **options)

    assert message(split="valid") == no_split("padchest_gr", "valid", "train, validation, test")
    assert message(language="fr") == "padchest_gr: the language 'fr' is not known; choose en or es."
    assert message(second_reader=2) == ("padchest_gr: second_reader is 2; give 1 for its boxes or 0 for the first's.")
    assert message(tmp_path) == f"{tmp_path}: this is not the folder of padchest_gr, but {root} is; name that one."
    outside = "../../../secret.png"
    write_picture(root.parent / "secret.png", 0)
    edit_reports(root, lambda reports: reports[0].update(ImageID=outside))
    edit_table(root, lambda rows: [{**row, "ImageID": outside} if i < 2 else row for i, row in enumerate(rows)])
    assert message() == "secret.png: the path leaves the image folder; name the folder that holds the images."
    write_padchest_gr(root)
    edit_table(root, lambda rows: [{**row, "PatientID": ""} for row in rows])
    assert message() == "padchest_gr: 6 rows have no 'patient_id' (for 'patient_id'); fill or remove them."
    for group in ("findings", "cardio\amegaly"):
        edit_table(root, lambda rows, group=group: [{**row, "label_group": group} for row in rows])
        assert message() == f"{TABLE}: the label_group {group!r} cannot be a finding; download it again."
    edit_table(root, lambda rows: [{key: row[key] for key in row if key != "label_group"} for row in rows])
    assert message() == f"{TABLE}: column 'label_group' is missing; is this the file of the archive, unchanged?"
    (root / TABLE).unlink()
    assert message() == (
        f"{root}: {TABLE} of padchest_gr is not in this folder; get it from "
        "https://bimcv.cipf.es/bimcv-projects/padchest-gr/."
    )


def test_a_report_of_only_normal_sentences(root):
    edit_reports(root, lambda reports: reports[0].update(findings=[{**NO_EFFUSION, "boxes": None, "labels": None}]))
    dataset = read_padchest_gr(root, "train")
    assert dataset["No Finding"][0] == 1 and dataset["boxes"][0] == []
