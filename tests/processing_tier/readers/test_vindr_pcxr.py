import csv

import pytest
from archive_files import error_of, no_split
from small_archives import write_vindr_pcxr

from processing_tier.readers.vindr_pcxr import CORRECTED, DIAGNOSES, MARKED, read_vindr_pcxr
from processing_tier.records.schema import finding_columns

LABELS, MARKS = "image_labels_train.csv", "annotations_train.csv"


@pytest.fixture
def root(tmp_path):
    write_vindr_pcxr(tmp_path / "vindr-pcxr")
    return tmp_path / "vindr-pcxr"


def edit(path, change):
    """Rewrite a table; `change` gets its rows and returns those to write."""
    with open(path, newline="") as file:
        rows = change(list(csv.reader(file)))
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(rows)


def test_labels_and_boxes(root, caplog):
    dataset = read_vindr_pcxr(root, "train")
    assert caplog.messages == [
        "annotations_train.csv: 1 boxes reach beyond their image and are cut, 0 have no area inside it and are left "
        "out."
    ]
    assert len(DIAGNOSES) == 15 and len(MARKED) == 36
    assert finding_columns(dataset) == [CORRECTED.get(name, name) for name in (*DIAGNOSES, *MARKED)]
    assert dataset["image_id"][:] == dataset["patient_id"][:] == [f"train{i}" for i in range(8)]
    assert dataset["image"][0]["path"] == str(root / "train" / "train0.dicom") and set(dataset["view"]) == {"PA"}
    assert dataset["No finding"][:] == [1, 0, 0, 0] * 2 and dataset["Broncho-pneumonia"][:] == [0, 0, 0, 1] * 2
    assert dataset["Consolidation"][:] == dataset["Other opacity"][:] == [0, 0, 1, 0, 0, 0, 0, 0]
    assert dataset["Bronchiectasis"][:] == [0, 0, 0, 1, 0, 0, 0, 0] and set(dataset["Edema"]) == {0}
    assert dataset["boxes"][2:5] == [
        [
            {"finding": "Consolidation", "phrase": "", "x": 10.0, "y": 5.5, "w": 20.0, "h": 15.0},
            {"finding": "Other opacity", "phrase": "", "x": 0.0, "y": 0.0, "w": 8.0, "h": 9.0},
        ],
        [{"finding": "Bronchiectasis", "phrase": "", "x": 1.0, "y": 2.0, "w": 2.0, "h": 2.0}],
        [],
    ]
    assert read_vindr_pcxr(root, "test")["image_id"][0] == "test0"


def test_repeated_and_missing_images(root, caplog):
    edit(root / LABELS, lambda rows: [*rows, rows[1]])
    (root / "train" / "train7.dicom").unlink()
    assert len(read_vindr_pcxr(root, "train")) == 7
    assert "vindr_pcxr, split train: 1 of 9 rows repeat a 'image_id': dropped." in caplog.messages
    assert "vindr_pcxr, split train: 1 of 8 images are missing, the first is train/train7.dicom: left out." in (
        caplog.messages
    )


def test_errors(root, tmp_path):
    def message(folder=root, split="train"):
        return error_of(read_vindr_pcxr, folder, split)

    assert message(split="validation") == no_split("vindr_pcxr", "validation", "train, test")
    assert message(tmp_path) == f"{tmp_path}: this is not the folder of vindr_pcxr, but {root} is; name that one."
    edit(root / LABELS, lambda rows: [["image_id", "rad_ID", "Bronchitis"], *(row[:3] for row in rows[1:])])
    assert message().startswith(f"{LABELS}: column 'No finding', 'Brocho-pneumonia', 'Other disease'")
    write_vindr_pcxr(root)
    edit(root / LABELS, lambda rows: [rows[0], ["../../secret", *rows[1][1:]], *rows[2:]])
    assert message() == "secret.dicom: the path leaves the image folder; name the folder that holds the images."
    write_vindr_pcxr(root)
    edit(root / LABELS, lambda rows: [rows[0], [*rows[1][:2], "7", *rows[1][3:]], *rows[2:]])
    assert message().startswith("vindr_pcxr: finding 'No finding' has 1 values other than 1 (present), 0 (absent)")
    write_vindr_pcxr(root)
    edit(root / MARKS, lambda rows: [*rows[:-1], [*rows[-1][:2], "Fracture", *rows[-1][3:]]])
    assert message() == f"{MARKS}: the class 'Fracture' is not one of the 36; is the table as shipped?"
    edit(root / MARKS, lambda rows: [*rows[:-1], [*rows[-1][:2], "Edema", "", "", "", ""]])
    assert message() == (f"{MARKS}: 1 boxes have a coordinate that is not a number; fix or remove their rows.")
    (root / MARKS).unlink()
    assert message() == (
        f"{root}: {MARKS} of vindr_pcxr is not in this folder; get it from "
        "https://physionet.org/content/vindr-pcxr/1.0.0/."
    )
