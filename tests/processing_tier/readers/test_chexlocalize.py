import json

import numpy as np
import pytest
from archive_files import error_of, no_split, write

from processing_tier.readers.chexlocalize import read_chexlocalize
from processing_tier.records.masks import decode_mask
from processing_tier.records.schema import finding_columns

# The table's header and rows as in the sample of the authors' repository
HEADER = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,"
    "Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)
VAL = [
    "CheXpert-v1.0/valid/patient64541/study1/view1_frontal.jpg,Male,73,Frontal,AP" + ",0.0,1.0,1.0,1.0" + ",0.0" * 10,
    "CheXpert-v1.0/valid/patient64542/study1/view1_frontal.jpg,Female,70,Frontal,PA" + ",0.0" * 13 + ",1.0",
    "CheXpert-v1.0/valid/patient64542/study1/view2_lateral.jpg,Female,70,Lateral," + ",0.0" * 13 + ",1.0",
    "CheXpert-v1.0/valid/patient64543/study1/view1_frontal.jpg,Male,50,Frontal,AP,1.0" + ",0.0" * 13,
]
TEST_HEADER = "Path," + HEADER.split(",", 5)[5]
TEST = ["test/patient64741/study1/view1_frontal.jpg,1.0" + ",0.0" * 13]
EMPTY = {"size": [2022, 2021], "counts": "nefl3"}  # as shipped
SEGMENTATIONS = {
    "patient64541_study1_view1_frontal": {
        "Cardiomegaly": {"size": [50, 40], "counts": "T8d0n0000002Lb^1"},
        "Airspace Opacity": {"size": [2, 3], "counts": "141"},
        "Edema": EMPTY,
    },
    "patient64542_study1_view1_frontal": {"Support Devices": EMPTY},
}


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "chexlocalize"
    write(root / "CheXpert" / "val_labels.csv", [HEADER, *VAL])
    write(root / "CheXpert" / "test_labels.csv", [TEST_HEADER, *TEST])
    for name, data in {"val": SEGMENTATIONS, "test": {}}.items():
        write(root / "CheXlocalize" / f"gt_segmentations_{name}.json", [json.dumps(data)])
    for name in ("val/patient64541/study1/view1_frontal", "val/patient64542/study1/view1_frontal"):
        write(root / "CheXpert" / f"{name}.jpg")
    write(root / "CheXpert" / "val" / "patient64542" / "study1" / "view2_lateral.jpg")
    write(root / "CheXpert" / "test" / "patient64741" / "study1" / "view1_frontal.jpg")
    return root


def test_validation(root, caplog):
    dataset = read_chexlocalize(root, "validation")
    assert caplog.messages == [
        "chexlocalize, split validation: 1 of 4 images are missing, the first is "
        "CheXpert/val/patient64543/study1/view1_frontal.jpg: left out.",
    ]
    assert finding_columns(dataset) == HEADER.split(",")[5:]
    assert dataset["image_id"][:] == [
        "patient64541_study1_view1_frontal",
        "patient64542_study1_view1_frontal",
        "patient64542_study1_view2_lateral",
    ]
    assert dataset["patient_id"][:] == ["patient64541", "patient64542", "patient64542"]
    assert dataset["study_id"][:] == ["patient64541_study1", "patient64542_study1", "patient64542_study1"]
    assert dataset["view"][:] == ["AP", "PA", "LATERAL"]
    assert dataset["sex"][:] == ["M", "F", "F"] and dataset["age"][:] == [73, 70, 70]
    assert dataset["Lung Opacity"][:] == [1, 0, 0] and dataset["Support Devices"][:] == [0, 1, 1]
    heart, lung = dataset["masks"][0]
    assert (heart["finding"], lung["finding"]) == ("Cardiomegaly", "Lung Opacity")
    expected = np.zeros((50, 40), dtype=bool)
    expected[10:30, 5:9] = True
    expected[12:28, 9] = True
    np.testing.assert_array_equal(decode_mask(heart["counts"], heart["height"], heart["width"]), expected)
    assert lung == {"finding": "Lung Opacity", "height": 2, "width": 3, "counts": [1, 4, 1]}
    assert dataset["masks"][1:] == [[], []]


def test_test(root):
    dataset = read_chexlocalize(root, "test")
    assert dataset["image"][0]["path"].endswith("CheXpert/test/patient64741/study1/view1_frontal.jpg")
    assert dataset["view"][:] == ["PA"] and dataset["No Finding"][:] == [1] and dataset["masks"][:] == [[]]
    assert "sex" not in dataset.column_names and "age" not in dataset.column_names


def test_errors(root):
    def message(folder, split="validation"):
        return error_of(read_chexlocalize, folder, split)

    source = "https://stanfordaimi.azurewebsites.net/datasets/23c56a0d-15de-405b-87c8-99c30138950c"
    assert message(root, "train") == no_split("chexlocalize", "train", "validation, test")
    for wrong in (root.parent, root / "CheXpert"):
        assert message(wrong) == f"{wrong}: this is not the folder of chexlocalize, but {root} is; name that one."
    path = root / "CheXlocalize" / "gt_segmentations_val.json"
    form = "the segmentations are not as shipped; download it again."
    cut, key = "a compressed mask is cut short or is not a string of run lengths; download its file again.", "a_1"
    for text, reason in [
        ("", "the file is empty, cut short or not JSON; download it again."),
        ("[]", form),
        ('{"a": [1]}', form),
        (json.dumps({key: {"Edema": {"size": [2], "counts": "1"}}}), form),
        (json.dumps({key: {"Edema": {"size": [2, 3]}}}), form),
        (json.dumps({key: {"Edema": {"size": [2022, 2021], "counts": "nefl"}}}), cut),
        (
            json.dumps({key: {"Edema": {"size": [2022, 2020], "counts": "nefl3"}}}),
            "the run lengths of a mask do not fill its 2022x2020 pixels (height x width); download its file again.",
        ),
        (json.dumps({key: {"Rib": EMPTY}}), "'Rib' is not one of the ten findings."),
    ]:
        path.write_text(text)
        assert message(root) == f"gt_segmentations_val.json: {reason}"
    path.unlink()
    assert message(root) == (
        f"{root}: CheXlocalize/gt_segmentations_val.json of chexlocalize is not in this folder; get it from {source}."
    )
    write(root / "CheXpert" / "val_labels.csv", [HEADER.replace("Edema", "Oedema"), *VAL])
    assert message(root) == ("val_labels.csv: column 'Edema' is missing; is this the file of the archive, unchanged?")
