import logging
import math

import pytest
from archive_files import touch, write_table

from processing_tier.readers.chexpert import (
    CHEXPERT_FINDINGS,
    RADIOLOGISTS,
    read_chexpert,
    read_radiologists,
)
from processing_tier.records.schema import check_disjoint_patients, finding_columns

HEADER = ",".join(["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT_FINDINGS])
BLANK = "," * 13
TRAIN = (
    "train/patient00001/study1/view1_frontal.jpg,Female,68,Frontal,AP,1.0,,,,,,,,,0.0,,,,1.0",
    "train/patient00001/study1/view2_lateral.jpg,Female,68,Lateral,,1.0,,,,,,,,,0.0,,,,1.0",
    f"train/patient00002/study1/view1_frontal.jpg,Male,0,Frontal,PA,,,-1.0{BLANK[3:]},",
    f"train/patient00002/study10/view1_frontal.jpg,Unknown,90,Frontal,,{BLANK}",
)
VALID = ("valid/patient64541/study1/view1_frontal.jpg,Male,73,Frontal,AP," + ",".join(["0.0"] * 14),)
TEST = (
    "test/patient64741/study1/view1_frontal.jpg",
    "test/patient64742/study1/view1_frontal.jpg",
    "test/patient64742/study1/view2_lateral.jpg",
)
STUDIES = (("patient64741", "0,1" + ",0" * 12), ("patient64742", "0,0,0,1" + ",0" * 10))


@pytest.fixture(params=["CheXpert-v1.0", "CheXpert-v1.0-small"])
def root(request, tmp_path):
    root, prefix = tmp_path / request.param, f"{request.param}/"
    newline = "\r\n" if "small" in request.param else "\n"
    write_table(root / "train.csv", HEADER, TRAIN, prefix, newline)
    write_table(root / "valid.csv", HEADER, VALID, prefix, newline)
    touch(root, (*TRAIN, *VALID, *TEST))
    return root


def write_test_labels(root):
    """The layout of rajpurkarlab/cheXpert-test-set-labels, whose files have two orders of columns."""
    rows = [f"CheXpert-v1.0/test/{patient}/study1,{labels}" for patient, labels in STUDIES]
    write_table(root / "groundtruth.csv", ",".join(["Study", *CHEXPERT_FINDINGS]), rows)
    swapped = list(CHEXPERT_FINDINGS)
    swapped[3:5] = swapped[4:2:-1]
    for reader in RADIOLOGISTS:
        folder = root / "radiologists" / "benchmark_radiologists"
        write_table(folder / f"{reader}.csv", ",".join(["Study", *swapped]), rows)


def test_chexpert(root, caplog):
    train, validation = read_chexpert(root, "train"), read_chexpert(root, "validation")
    assert caplog.records == []
    check_disjoint_patients(train=train, validation=validation)
    assert finding_columns(train) == list(CHEXPERT_FINDINGS)
    assert train["image_id"][:2] == ["patient00001_study1_view1_frontal", "patient00001_study1_view2_lateral"]
    assert train["study_id"][:] == ["patient00001_study1"] * 2 + ["patient00002_study1", "patient00002_study10"]
    assert train["patient_id"][:] == ["patient00001"] * 2 + ["patient00002"] * 2
    assert train["image"][0]["path"] == str(root / "train/patient00001/study1/view1_frontal.jpg")
    assert train["view"][:] == ["AP", "LATERAL", "PA", "PA"] and train["sex"][:] == ["F", "F", "M", ""]
    assert train["age"][:2] == [68, 68] and math.isnan(train["age"][2]) and train["age"][3] == 90
    assert train["No Finding"][:2] == [1, 1] and train["Pneumothorax"][0] == 0 and train["Support Devices"][0] == 1
    assert train["Cardiomegaly"][2] == -1 and math.isnan(train["Edema"][2])
    assert validation["split"][:] == ["validation"] and validation["Fracture"][:] == [0]
    assert len(read_chexpert(root, "train", views="first")) == 3


def test_batches_of_the_full_size(tmp_path):
    first, second = tmp_path / "CheXpert-v1.0 batch 1 (validate & csv)", tmp_path / "CheXpert-v1.0 batch 2 (train 1)"
    third = tmp_path / "CheXpert-v1.0 batch 3 (train 2)"
    write_table(first / "train.csv", HEADER, TRAIN, "CheXpert-v1.0/")
    write_table(first / "valid.csv", HEADER, VALID, "CheXpert-v1.0/")
    touch(first, VALID)
    touch(second, [row.removeprefix("train/") for row in TRAIN[:2]])
    touch(third, [row.removeprefix("train/") for row in TRAIN[2:]])
    assert len(read_chexpert(tmp_path, "train")) == 4 and len(read_chexpert(tmp_path, "validation")) == 1
    assert read_chexpert(tmp_path, "train")["image"][2]["path"] == str(
        third / "patient00002" / "study1" / "view1_frontal.jpg"
    )


@pytest.mark.parametrize("table", ["test_labels.csv", "test.csv", "labels by study"])
def test_the_test_set(root, table):
    findings = [labels for _, labels in STUDIES for _ in range(1 + (labels == STUDIES[1][1]))]
    if table == "test_labels.csv":
        rows = [f"{path},{labels}" for path, labels in zip(TEST, findings, strict=True)]
        write_table(root / table, ",".join(["Path", *CHEXPERT_FINDINGS]), rows)
    else:
        write_test_labels(root)
    if table == "test.csv":
        write_table(root / table, "Path,Sex,Age", [f"CheXpert-v1.0/{path},Male,50" for path in TEST])
    test = read_chexpert(root, "test")
    assert test["image_id"][1:] == ["patient64742_study1_view1_frontal", "patient64742_study1_view2_lateral"]
    assert test["view"][:] == ["PA", "PA", "LATERAL"] and ("sex" in test.column_names) == (table == "test.csv")
    assert test["Enlarged Cardiomediastinum"][:] == [1, 0, 0] and test["Lung Opacity"][:] == [0, 1, 1]
    first = read_chexpert(root, "test", views="first")
    assert first["study_id"][:] == ["patient64741_study1", "patient64742_study1"]


def test_radiologists(tmp_path):
    folder = tmp_path / "cheXpert-test-set-labels"
    write_test_labels(folder)
    for root in (folder, tmp_path):
        frame = read_radiologists(root)
        assert list(frame.columns) == list(CHEXPERT_FINDINGS) and len(frame) == 6
        assert frame.loc["bc6"].index.tolist() == ["patient64741_study1", "patient64742_study1"]
        assert frame.loc["bc8"]["Lung Lesion"].tolist() == [0, 1]  # the column stands elsewhere in the file
    path = folder / "radiologists" / "benchmark_radiologists" / "bc6.csv"
    path.write_text(path.read_text().replace(",1", ",2"))
    with pytest.raises(ValueError) as error:
        read_radiologists(folder)
    assert str(error.value) == (
        "bc6.csv: studies or labels are not those of the archive; get it from "
        "https://github.com/rajpurkarlab/cheXpert-test-set-labels."
    )
    path.unlink()
    with pytest.raises(ValueError) as error:
        read_radiologists(folder)
    assert str(error.value) == (
        f"{folder}: radiologists/benchmark_radiologists/bc6.csv of the radiologists' labels is not in this folder; "
        "get it from https://github.com/rajpurkarlab/cheXpert-test-set-labels."
    )


def test_quirks(root, caplog):
    write_table(root / "train.csv", HEADER, [*TRAIN, TRAIN[0]], f"{root.name}/")
    (root / "train/patient00002/study10/view1_frontal.jpg").unlink()
    with caplog.at_level(logging.WARNING):
        assert len(read_chexpert(root, "train")) == 3
    assert caplog.messages == [
        "chexpert, split train: 1 of 5 rows repeat a 'Path': dropped.",
        "chexpert, split train: 1 of 4 images are missing, the first is "
        "train/patient00002/study10/view1_frontal.jpg: left out.",
    ]
    for folder in (root.parent, root / "train"):
        with pytest.raises(ValueError) as error:
            read_chexpert(folder, "train")
        assert str(error.value) == f"{folder}: this is not the folder of chexpert, but {root} is; name that one."
    source = "https://aimi.stanford.edu/datasets/chexpert-chest-x-rays"
    with pytest.raises(ValueError) as error:
        read_chexpert(root, "test")
    assert str(error.value) == (
        f"{root}: test_labels.csv of chexpert is not in this folder; get it from {source} (or groundtruth.csv: "
        "https://github.com/rajpurkarlab/cheXpert-test-set-labels)."
    )
    write_table(root / "train.csv", HEADER.replace(",Edema", ""), [])
    with pytest.raises(ValueError) as error:
        read_chexpert(root, "train")
    assert str(error.value) == "train.csv: column 'Edema' is missing; is this the file of the archive, unchanged?"
    write_table(root / "train.csv", HEADER, [f"../{TRAIN[3]}", f"train/../../x.jpg,,,,,{BLANK}"])
    with pytest.raises(ValueError) as error:
        read_chexpert(root, "train")
    assert str(error.value) == (
        "chexpert: 1 paths are not of the form train/patient00001/study1/view1_frontal.jpg; is this the table of the "
        "archive, unchanged?"
    )
    with pytest.raises(ValueError) as error:
        read_chexpert(root, "train", views="frontal")
    assert str(error.value) == "chexpert: views are 'frontal'; choose all or first."
