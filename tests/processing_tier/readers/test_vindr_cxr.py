import math

import pytest
from archive_files import error_of, no_split, write

from processing_tier.readers.vindr_cxr import read_vindr_cxr
from processing_tier.records.schema import finding_columns

CLASSES = "Cardiomegaly,Nodule/Mass,Pneumonia,Other {},No finding"
MARKS = [
    "image_id,rad_id,class_name,x_min,y_min,x_max,y_max",
    "a1,R1,Cardiomegaly,100,200,400,300",
    "a1,R2,Cardiomegaly,110.5,210,390.5,310",
    "a1,R2,Cardiomegaly,110.5,210,390.5,310",
    "a1,R3,Nodule/Mass,-5,10,15,30",
    "b2,R1,No finding,,,,",
    "b2,R2,No finding,,,,",
    "b2,R3,No finding,,,,",
]
LABELS = [
    "image_id,rad_id," + CLASSES.format("diseases"),
    "a1,R1,1,0,0,0,0",
    "a1,R2,1,0,1,0,0",
    "a1,R2,1,0,1,0,0",
    "a1,R3,0,1,1,,0",
    "b2,R1,0,0,0,,1",
    "b2,R2,0,0,0,,1",
    "b2,R3,0,0,0,,1",
]
TEST_MARKS = ["image_id,class_name,x_min,y_min,x_max,y_max", "c3,Nodule/Mass,1,2,3,5", "d4,No finding,,,,"]
TEST_LABELS = ["image_id," + CLASSES.format("disease"), "c3,0,1,0,1,0", "d4,0,0,0,0,1"]


@pytest.fixture
def root(tmp_path):
    write(tmp_path / "annotations" / "annotations_train.csv", MARKS)
    write(tmp_path / "annotations" / "image_labels_train.csv", LABELS)
    write(tmp_path / "annotations" / "annotations_test.csv", TEST_MARKS)
    write(tmp_path / "annotations" / "image_labels_test.csv", TEST_LABELS)
    for name in ("train/a1", "train/b2", "test/c3"):
        write(tmp_path / f"{name}.dicom", ["DICM"])
    return tmp_path


def test_two_of_three_radiologists_decide(root, caplog):
    dataset = read_vindr_cxr(root, "train")
    findings = ["Cardiomegaly", "Nodule/Mass", "Pneumonia", "Other diseases", "No finding"]
    assert finding_columns(dataset) == findings
    assert dataset["image_id"][:] == dataset["patient_id"][:] == ["a1", "b2"]
    assert dataset["view"][:] == ["PA", "PA"] and not caplog.messages
    assert [dataset[0][finding] for finding in findings] == [1, 0, 1, 0, 0]
    assert [dataset[1][finding] for finding in findings if finding != "Other diseases"] == [0, 0, 0, 1]
    assert math.isnan(dataset[1]["Other diseases"])  # no radiologist said anything
    assert dataset["boxes"][:] == [
        [
            {"finding": "Cardiomegaly", "phrase": "", "x": 100.0, "y": 200.0, "w": 300.0, "h": 100.0},
            {"finding": "Cardiomegaly", "phrase": "", "x": 110.5, "y": 210.0, "w": 280.0, "h": 100.0},
        ],
        [],
    ]


def test_other_numbers_of_votes(root, caplog):
    any_of_three = read_vindr_cxr(root, "train", min_votes=1)
    assert any_of_three["Nodule/Mass"][:] == [1, 0] and any_of_three["Pneumonia"][:] == [1, 0]
    box = any_of_three["boxes"][0][2]
    assert box == {"finding": "Nodule/Mass", "phrase": "", "x": 0.0, "y": 10.0, "w": 15.0, "h": 20.0}
    assert caplog.messages == [
        "annotations_train.csv: 1 boxes reach beyond their image and are cut, 0 have no area inside it and are left "
        "out.",
    ]
    all_three = read_vindr_cxr(root, "train", min_votes=3)
    assert all_three["Cardiomegaly"][:] == [0, 0] and all_three["No finding"][:] == [0, 1]
    assert all_three["boxes"][:] == [[], []]


def test_consensus_of_the_test_split(root, caplog):
    dataset = read_vindr_cxr(root, "test")
    assert caplog.messages == [
        "vindr_cxr, split test: 1 of 2 images are missing, the first is test/d4.dicom: left out."
    ]
    assert dataset["image_id"][:] == ["c3"]
    assert dataset["Nodule/Mass"][:] == [1] and dataset["Other diseases"][:] == [1]
    assert dataset["boxes"][0] == [{"finding": "Nodule/Mass", "phrase": "", "x": 1.0, "y": 2.0, "w": 2.0, "h": 3.0}]


def test_kaggle_layout(tmp_path):
    header, *rows = MARKS
    lines = [
        header.replace("class_name", "class_name,class_id").replace(",rad_id", "").replace("x_min", "rad_id,x_min")
    ]
    for row in rows:
        image, radiologist, name, *corners = row.split(",")
        lines.append(",".join([image, name, "0", radiologist, *corners]))
    write(tmp_path / "train.csv", lines)
    for name in ("a1", "b2"):
        write(tmp_path / "train" / f"{name}.dicom", ["DICM"])
    dataset = read_vindr_cxr(tmp_path, "train")
    assert sorted(finding_columns(dataset)) == ["Cardiomegaly", "No finding", "Nodule/Mass"]
    assert dataset["Cardiomegaly"][:] == [1, 0] and dataset["Nodule/Mass"][:] == [0, 0]
    assert dataset["No finding"][:] == [0, 1]
    assert len(dataset["boxes"][0]) == 2
    with pytest.raises(ValueError, match="annotations/annotations_test.csv of vindr_cxr is not in this folder"):
        read_vindr_cxr(tmp_path, "test")


def test_errors(root):
    def message(folder, split="train", **options):
        return error_of(read_vindr_cxr, folder, split, **options)

    assert message(root, "validation") == no_split("vindr_cxr", "validation", "train, test")
    assert message(root, min_votes=4) == (
        "vindr_cxr: min_votes is 4, but three radiologists read an image; choose 1, 2 or 3."
    )
    assert message(root / "train") == (
        f"{root}/train: this is not the folder of vindr_cxr, but {root.resolve()} is; name that one."
    )
    table = root / "annotations" / "image_labels_train.csv"
    write(table, [LABELS[0], "a1,R1,2,0,0,0,0"])
    assert message(root) == (
        "image_labels_train.csv: a finding has values other than 0 and 1; is this the file of the archive, unchanged?"
    )
    write(table, [LABELS[0].replace("image_id", "image"), *LABELS[1:]])
    assert message(root) == (
        "image_labels_train.csv: column 'image_id' is missing; is this the file of the archive, unchanged?"
    )
    for rows in (LABELS[:1], ["image_id", "a1"]):
        write(table, rows)
        assert message(root) == (
            "image_labels_train.csv: it has no findings or no rows; is this the file of the archive, unchanged?"
        )
    table.unlink()
    assert message(root) == (
        f"{root}: annotations/image_labels_train.csv of vindr_cxr is not in this folder; get it from "
        "https://physionet.org/content/vindr-cxr/1.0.0/."
    )
    write(root / "annotations" / "annotations_train.csv", [MARKS[0].replace("x_min", "x"), *MARKS[1:]])
    assert message(root) == (
        "annotations_train.csv: column 'x_min' is missing; is this the file of the archive, unchanged?"
    )


def test_no_finding_gives_way_to_a_finding(root):
    labels = [line.replace("a1,R2,1,0,1,0,0", "a1,R2,0,0,0,0,1") for line in LABELS]
    write(root / "annotations" / "image_labels_train.csv", labels)
    for votes, expected in ((1, [1, 1, 1, 0, 0]), (2, [0, 0, 0, 0, 0])):
        dataset = read_vindr_cxr(root, "train", min_votes=votes)
        findings = finding_columns(dataset)
        assert [dataset[0][finding] for finding in findings] == expected
        assert dataset[1]["No finding"] == 1


def test_kaggle_table_without_radiologists(root):
    (root / "annotations" / "annotations_train.csv").unlink()
    write(root / "train.csv", ["image_id,class_name,x_min,y_min,x_max,y_max", "a1,Cardiomegaly,1,2,3,4"])
    with pytest.raises(ValueError, match="^train.csv: column 'rad_id' is missing; is this the file of the archive"):
        read_vindr_cxr(root, "train")
