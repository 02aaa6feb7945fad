import json
import math

import pytest
from archive_files import error_of, no_split, write

from processing_tier.readers.rsna import MAPPING, read_rsna
from processing_tier.records.schema import finding_columns

LABELS = [
    "patientId,x,y,width,height,Target",
    "p-a,,,,,0",
    "p-b,264.0,152.0,213.0,379.0,1",
    "p-b,562.0,152.0,256.0,453.0,1",
    "p-b,562.0,152.0,256.0,453.0,1",
    "p-c,,,,,0",
    "p-d,1000,0,100,10,1",
]
CLASSES = [
    "patientId,class",
    "p-a,No Lung Opacity / Not Normal",
    "p-b,Lung Opacity",
    "p-b,Lung Opacity",
    "p-c,Normal",
    "p-d,Lung Opacity",
]


@pytest.fixture
def root(tmp_path):
    write(tmp_path / "stage_2_train_labels.csv", LABELS)
    write(tmp_path / "stage_2_detailed_class_info.csv", CLASSES)
    for name in ("train_images/p-a", "train_images/p-b", "train_images/p-c", "test_images/p-z", "test_images/p-y"):
        write(tmp_path / f"stage_2_{name}.dcm", ["DICM"])
    return tmp_path


def test_train(root, caplog):
    dataset = read_rsna(root, "train")
    assert caplog.messages == [
        "stage_2_train_labels.csv: 1 boxes reach beyond their image and are cut, 0 have no area inside it and are "
        "left out.",
        "rsna, split train: 1 of 4 images are missing, the first is stage_2_train_images/p-d.dcm: left out.",
    ]
    assert finding_columns(dataset) == ["Pneumonia", "Normal"]
    assert dataset["image_id"][:] == dataset["patient_id"][:] == ["p-a", "p-b", "p-c"]
    assert dataset["Pneumonia"][:] == [0, 1, 0] and dataset["Normal"][:] == [0, 0, 1]
    assert [[box[side] for side in "xywh"] for box in dataset["boxes"][1]] == [
        [264, 152, 213, 379],
        [562, 152, 256, 453],
    ]
    assert {box["finding"] for box in dataset["boxes"][1]} == {"Pneumonia"}
    assert dataset["boxes"][0] == [] and dataset["view"][0] == "PA"


def test_test_has_no_labels(root):
    dataset = read_rsna(root, "test")
    assert dataset["image_id"][:] == ["p-y", "p-z"] and dataset["split"][:] == ["test"] * 2
    assert all(math.isnan(value) for name in ("Pneumonia", "Normal") for value in dataset[name])
    assert dataset["boxes"][:] == [[], []]
    assert finding_columns(dataset) == ["Pneumonia", "Normal"]


def test_patients_of_the_nih(root):
    mapping = [
        {"subset_img_id": "p-a", "img_id": "00000007_001.png", "orig_labels": ["Mass"]},
        {"subset_img_id": "p-c", "img_id": "00000007_002.png", "orig_labels": []},
    ]
    (root / MAPPING).write_text(json.dumps(mapping))
    assert read_rsna(root, "train")["patient_id"][:] == ["00000007", "p-b", "00000007"]
    for text in ("", '{"a": 1}', "[1]", '[{"subset_img_id": "p-a"}]', '[{"subset_img_id": "p-a", "img_id": [1]}]'):
        (root / MAPPING).write_text(text)
        with pytest.raises(ValueError, match=f"^{MAPPING}: .*download it again"):
            read_rsna(root, "train")


def test_errors(root):
    def message(folder, split="train"):
        return error_of(read_rsna, folder, split)

    assert message(root, "validation") == no_split("rsna", "validation", "train, test")
    assert message(root / "stage_2_test_images") == (
        f"{root}/stage_2_test_images: this is not the folder of rsna, but {root.resolve()} is; name that one."
    )
    write(root / "stage_2_detailed_class_info.csv", [CLASSES[0], "p-a,Sick"])
    assert message(root) == (
        "stage_2_detailed_class_info.csv: a class is not one of Lung Opacity, No Lung Opacity / Not Normal, Normal; "
        "is this the file of the archive?"
    )
    (root / "stage_2_detailed_class_info.csv").unlink()
    assert message(root) == (
        f"{root}: stage_2_detailed_class_info.csv of rsna is not in this folder; get it from "
        "https://www.kaggle.com/c/rsna-pneumonia-detection-challenge."
    )
    write(root / "stage_2_train_labels.csv", [LABELS[0], "p-a,,,,,2"])
    assert message(root) == (
        "stage_2_train_labels.csv: a Target is neither 0 nor 1; is this the file of the archive, unchanged?"
    )
    write(root / "stage_2_train_labels.csv", [LABELS[0].replace("Target", "target"), *LABELS[1:]])
    assert message(root) == (
        "stage_2_train_labels.csv: column 'Target' is missing; is this the file of the archive, unchanged?"
    )
    for path in (root / "stage_2_test_images").iterdir():
        path.unlink()
    assert message(root, "test") == "rsna: the split 'test' is empty; check the file and the split."
