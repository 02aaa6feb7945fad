import csv
import gzip
import io
import math

import pytest

from processing_tier.readers.padchest import BROKEN, parse_labels, read_padchest
from processing_tier.records.schema import finding_columns

TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
HEADER = (
    "",
    *("ImageID", "ImageDir", "StudyDate_DICOM", "StudyID", "PatientID", "PatientBirth", "PatientSex_DICOM"),
    *("Projection", "Report", "MethodLabel", "Labels", "Localizations"),
)
# ImageID, ImageDir, date, study, patient, birth, sex, projection, report, method, labels
ROWS = (
    ("a1.png", "0", "20140915", "S1", "839", "1930.0", "F", "PA", "sin hallazgos .", "Physician", "['normal']"),
    ("a2.png", "0", "20140915", "S1", "839", "1930.0", "F", "L", "sin hallazgos .", "Physician", "['normal']"),
    (
        *("b.png", "33", "20120101.0", "S2", "00733", "1950", "M", "AP_horizontal", "derrame pleural .", "RNN_model"),
        "['pleural effusion', ' cardiomegaly', 'loc right', '', 'Pleural  effusion']",
    ),
    ("c.png", "33", "20120101", "S3", "12", "", "O", "COSTAL", "", "RNN_model", "[' pleural effusion']"),
    ("d.png", "54", "20100101", "S4", "13", "2011", "M", "AP", "x", "Physician", ""),
    ("e.png", "54", "20100101", "S5", "14", "1960", "M", "EXCLUDE", "x", "Physician", "['exclude']"),
    ("f.png", "54", "20100101", "S6", "15", "1960", "M", "PA", "x", "Physician", "['', 'loc basal']"),
    (sorted(BROKEN)[0], "0", "20100101", "S7", "16", "1960", "M", "PA", "x", "Physician", "['normal']"),
)


def write_table(root, rows=ROWS, header=HEADER, compress=False):
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n" if compress else "\r\n")
    writer.writerow(header)
    writer.writerows((str(number), *row, "[]") for number, row in enumerate(rows))
    data = text.getvalue().encode()
    path = root / (TABLE + ".gz" if compress else TABLE)
    path.write_bytes(gzip.compress(data) if compress else data)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "PadChest"
    root.mkdir()
    write_table(root)
    for name, folder, *_ in ROWS:
        (root / folder).mkdir(exist_ok=True)
        (root / folder / name).touch()
    return root


def test_schema(root, caplog):
    dataset = read_padchest(root, min_images=2)
    assert caplog.messages == [
        "padchest: 1 of 8 images are excluded by their projection and 1 are known to be broken: left out."
    ]
    assert dataset["image_id"][:] == ["a1", "a2", "b", "c", "d", "f"] and set(dataset["split"]) == {"train"}
    assert dataset["image"][2]["path"] == str(root / "33" / "b.png")
    assert dataset["patient_id"][:3] == ["839", "839", "00733"] and dataset["study_id"][:3] == ["S1", "S1", "S2"]
    assert dataset["view"][:] == ["PA", "LATERAL", "AP", "OTHER", "AP", "PA"]
    assert dataset["sex"][:4] == ["F", "F", "M", ""] and dataset["age"][:3] == [84, 84, 62]
    assert math.isnan(dataset["age"][3]) and math.isnan(dataset["age"][4])  # no birth, and a birth after the study
    assert dataset["findings"][2] == dataset["report"][2] == "derrame pleural ." and dataset["impression"][2] == ""
    assert finding_columns(dataset) == ["normal", "pleural effusion"]  # "normal" of a broken image does not count
    assert dataset["pleural effusion"][:4] == [0, 0, 1, 1] and dataset["normal"][:4] == [1, 1, 0, 0]
    assert math.isnan(dataset["normal"][4]) and math.isnan(dataset["normal"][5])
    assert finding_columns(read_padchest(root, min_images=1)) == ["normal", "pleural effusion", "cardiomegaly"]
    assert finding_columns(read_padchest(root)) == []  # none has more than 50 images


def test_method(root):
    dataset = read_padchest(root, method="Physician", min_images=1)
    assert dataset["image_id"][:] == ["a1", "a2", "d", "f"] and finding_columns(dataset) == ["normal"]
    assert read_padchest(root, method="RNN_model", min_images=2)["image_id"][:] == ["b", "c"]
    for options, message in [
        ({"method": "RNN"}, "padchest: the method is 'RNN'; choose all, Physician, RNN_model."),
        ({"min_images": 0}, "padchest: min_images is 0; give a whole number of at least 1."),
        ({"min_images": "x"}, "padchest: min_images is 'x'; give a whole number of at least 1."),
    ]:
        with pytest.raises(ValueError) as error:
            read_padchest(root, **options)
        assert str(error.value) == message


@pytest.mark.parametrize("folder", ["", "images", "images/0"])
def test_layouts(tmp_path, folder, caplog):
    write_table(tmp_path, compress=True)
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / folder / "a2.png").touch()
    dataset = read_padchest(tmp_path)
    assert dataset["image"][0]["path"] == str(tmp_path / folder / "a2.png") and len(dataset) == 1
    first = "/".join(filter(None, (folder, "a1.png")))
    assert f"padchest, split train: 5 of 6 images are missing, the first is {first}: left out." in caplog.messages


def test_quirks(root, caplog):
    write_table(root, (*ROWS, *ROWS[:2]))
    assert len(read_padchest(root)) == 6
    assert "padchest: 2 of 10 rows repeat a 'ImageID': dropped." in caplog.messages
    for folder in (root / "33", root.parent):
        with pytest.raises(ValueError) as error:
            read_padchest(folder)
        assert str(error.value) == f"{folder}: this is not the folder of padchest, but {root} is; name that one."
    outside = ("../../x.png", "../..", *ROWS[0][2:])
    write_table(root, (outside, *ROWS))
    with pytest.raises(ValueError) as error:
        read_padchest(root)
    assert str(error.value) == "x.png: the path leaves the image folder; name the folder that holds the images."
    write_table(root, header=[name.replace("Labels", "labels") for name in HEADER])
    with pytest.raises(ValueError) as error:
        read_padchest(root)
    assert str(error.value) == f"{TABLE}: column 'Labels' is missing; is this the file of the archive, unchanged?"
    (root / TABLE).rename(root / "labels.txt")
    with pytest.raises(ValueError) as error:
        read_padchest(root)
    assert str(error.value) == (
        f"{root}: PADCHEST_*.csv* of padchest is not in this folder; get it from "
        "https://bimcv.cipf.es/bimcv-projects/padchest/."
    )


def test_labels_are_data_not_code():
    assert parse_labels("['normal ', ' loc  right', \"ground glass pattern\"]") == {"normal", "ground glass pattern"}
    assert parse_labels(float("nan")) is parse_labels(" ") is parse_labels("[]") is None
    for text in ("__import__('os').getcwd()", "['a'", "{'a': 1}", "[1]", "normal", "[" * 20_000, "['a'] * 9" * 2000):
        with pytest.raises(ValueError) as error:
            parse_labels(text)
        assert str(error.value) == (
            "padchest: a value of Labels is not a list of texts; is this the file of the archive, unchanged?"
        )


def test_a_row_without_an_image(root):
    write_table(root, [*ROWS[:2], ("", *ROWS[2][1:])])
    with pytest.raises(ValueError) as error:
        read_padchest(root)
    assert str(error.value) == "padchest: 1 rows have no 'path' (for 'image'); fill or remove them."
