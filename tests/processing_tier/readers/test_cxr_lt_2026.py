import csv
import math
import shutil

import pytest

from processing_tier.readers import read_records
from processing_tier.readers.cxr_lt_2026 import KNOWN, TABLE, UNSEEN, read_cxr_lt_2026
from processing_tier.records.identities import SAME_IMAGES
from processing_tier.records.schema import finding_columns

PADCHEST = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
HEADER = (
    *("ImageID", "ImageDir", "StudyDate_DICOM", "StudyID", "PatientID", "PatientBirth", "PatientSex_DICOM"),
    *("Projection", "Report", "MethodLabel", "Labels"),
)
ROWS = (
    ("a1.png", "0", "20140915", "S1", "839", "1930.0", "F", "PA", "sin hallazgos .", "Physician", "['normal']"),
    ("a2.png", "0", "20140915", "S1", "839", "1930.0", "F", "L", "sin hallazgos .", "Physician", "['normal']"),
    ("b.png", "33", "20120101", "S2", "00733", "1950", "M", "AP", "derrame pleural .", "RNN_model", "['mass']"),
    ("c.png", "33", "20120101", "S3", "12", "", "O", "COSTAL", "", "RNN_model", "[' pleural effusion']"),
    ("d.png", "54", "20100101", "S4", "13", "2011", "M", "AP", "x", "Physician", ""),
    ("e.png", "54", "20100101", "S5", "14", "1960", "M", "EXCLUDE", "x", "Physician", "['exclude']"),
)
IMAGES = ("c.png", "a1.png", "b.png", "d.png", "e.png", "z.png")  # e is no chest, and z is not of PadChest


def write_labels(folder, images=IMAGES, classes=KNOWN, **values):
    """The training table: the n-th image has the n-th class alone; `PatientID` has lost its digits."""
    with open(folder / TABLE, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ImageID", "StudyDate_DICOM", "PatientID", *classes])
        for i, image in enumerate(images):
            labels = [values.get(name, int(i == j)) for j, name in enumerate(classes)]
            writer.writerow([image, "20140915", "3.24e+38", *labels])


def write_table(folder, rows=ROWS):
    with open(folder / PADCHEST, "w", newline="") as file:
        csv.writer(file).writerows([HEADER, *rows])


@pytest.fixture
def challenge(tmp_path):
    root = tmp_path / "PadChest"
    for name, folder, *_ in ROWS:
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / name).touch()
    write_table(root)
    write_labels(root)
    return root


def test_schema(challenge, caplog):
    dataset = read_cxr_lt_2026(challenge)
    assert "cxr_lt_2026: 2 of 6 images are not in PadChest's table: left out." in caplog.messages
    assert dataset["image_id"][:] == ["a1", "b", "c", "d"] and set(dataset["split"]) == {"train"}
    assert finding_columns(dataset) == [*KNOWN, *UNSEEN] and len(KNOWN) == 30
    assert dataset["Normal"][:] == [0, 0, 1, 0] and dataset["aortic elongation"][:] == [1, 0, 0, 0]
    assert dataset["patient_id"][:] == ["839", "00733", "12", "13"] and dataset["view"][0] == "PA"
    assert dataset["image"][1]["path"] == str(challenge / "33" / "b.png") and dataset["age"][0] == 84
    assert dataset["report"][1] == "derrame pleural ."
    assert read_cxr_lt_2026(challenge, method="Physician")["image_id"][:] == ["a1", "d"]
    assert read_records(f"cxr_lt_2026:{challenge}", "train").num_rows == 4
    assert SAME_IMAGES["cxr_lt_2026"] == "padchest"


def test_unseen_classes_are_padchests_labels(challenge):
    labels = "['goiter', 'Bullas ', 'calcified adenopathy', 'loc right']"
    write_table(challenge, [(*row[:-1], labels if row[0] == "b.png" else row[-1]) for row in ROWS])
    dataset = read_cxr_lt_2026(challenge)
    found = {name: dataset[name][1] for name in UNSEEN}
    assert found == {"Scoliosis": 0, "Osteopenia": 0, "Bulla": 1, "Adenopathy": 0, "goiter": 1}
    assert dataset["Bulla"][0] == 0 and math.isnan(dataset["Bulla"][3])  # d has no labels


def test_tables_apart_from_images_and_images_taken_back(challenge, tmp_path, caplog):
    tables = tmp_path / "tables"
    tables.mkdir()
    shutil.move(challenge / TABLE, tables / TABLE)
    (tables / "Removal.csv").write_text("ImageID\nb.png\n")
    (tables / "corrupted_images.csv").write_text("ImageID,error\nd.png,truncated\nother.png,empty\n")
    dataset = read_cxr_lt_2026(tables, image_root=challenge)
    assert dataset["image_id"][:] == ["a1", "c"]
    assert "cxr_lt_2026: 2 of 6 images are in corrupted_images.csv and Removal.csv: left out." in caplog.messages


def test_bad_input(challenge, tmp_path, caplog):
    def fails(**options) -> str:
        with pytest.raises(ValueError) as error:
            read_cxr_lt_2026(challenge, **options)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert fails(method="RNN") == "padchest: the method is 'RNN'; choose all, Physician, RNN_model."
    assert "this is not the folder of padchest, but" in fails(image_root=challenge / "33")
    assert "the folder does not exist" in fails(image_root=tmp_path / "none")
    write_labels(challenge, (*IMAGES, "a1.png"))
    assert len(read_cxr_lt_2026(challenge)) == 4
    assert "cxr_lt_2026: 1 of 7 rows repeat a 'ImageID': dropped." in caplog.messages
    write_labels(challenge, ("x.png",))
    assert "no image of CXRLT_2026_training.csv is in the table of PadChest" in fails()
    write_labels(challenge, classes=KNOWN[:-1])
    assert fails() == f"{TABLE}: column 'calcified densities' is missing; is this the file of the archive, unchanged?"
    write_labels(challenge, Mass="yes!")
    assert "Mass" in fails()
    write_labels(challenge)
    write_table(challenge, [("../../x.png", "../..", *ROWS[0][2:]), *ROWS])
    write_labels(challenge, (*IMAGES, "../../x.png"))
    assert fails() == "x.png: the path leaves the image folder; name the folder that holds the images."
    (challenge / "Removal.csv").write_text("name\nb.png\n")
    assert fails() == "Removal.csv: column 'ImageID' is missing; is this the file of the archive, unchanged?"
    (challenge / TABLE).unlink()
    assert f"{TABLE} of cxr_lt_2026 is not in this folder; get it from https://cxr-lt.github.io" in fails()
