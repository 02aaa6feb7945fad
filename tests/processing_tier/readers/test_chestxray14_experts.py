import math

import pytest
from archive_files import error_of, no_split, write

from processing_tier.readers.chestxray14_experts import ALL, FOUR, read_chestxray14_experts
from processing_tier.records.identities import family
from processing_tier.records.schema import finding_columns

FOUR_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImageWidth,OriginalImageHeight,OriginalImagePixelSpacing_x,OriginalImagePixelSpacing_y,Fracture,"
    "Pneumothorax,Airspace opacity,Nodule or mass"
)
FOUR_ROWS = [
    "00000211_006.png,Cardiomegaly,6,211,58,M,PA,2500,2048,0.168,0.168,NO,NO,YES,NO",
    "00000013_011.png,Effusion,11,13,60,F,AP,2500,2048,0.168,0.168,,YES,NO,YES",
    "00000013_011.png,Effusion,11,13,60,F,AP,2500,2048,0.168,0.168,,YES,NO,YES",
    "00000099_003.png,No Finding,3,99,31,F,PA,2500,2048,0.168,0.168,NO,NO,NO,NO",
]
# As Google's file of the readers, without the column of the reader
ALL_HEADER = (
    "Image ID,Patient ID,Abnormal,Atelectasis,Cardiomegaly,Effusion,Infiltration,Mass,Nodule,Pneumonia,Pneumothorax,"
    "Consolidation,Edema,Emphysema,Fibrosis,Pleural Thickening,Hernia,Other"
)
ALL_ROWS = [
    "00000211_006.png,211,1,NO,YES,NO,NO,NO,NO,NO,NO,NO,NO,NO,NO,NO,NO,NO",
    "00029560_000.png,29560,0" + ",NO" * 15,
]


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "labels"
    four = root / "four_findings_expert_labels"
    write(four / "test_labels.csv", [FOUR_HEADER, *FOUR_ROWS])
    write(four / "validation_labels.csv", [FOUR_HEADER, FOUR_ROWS[0]])
    write(root / "all_findings_expert_labels" / "test_labels.csv", [ALL_HEADER, *ALL_ROWS])
    for folder, name in (
        ("images_001", "00000211_006"),
        ("images_001", "00000013_011"),
        ("images_012", "00029560_000"),
    ):
        write(tmp_path / "nih" / folder / "images" / f"{name}.png")
    return root


def test_four_findings(root, tmp_path, caplog):
    dataset = read_chestxray14_experts(root, "test", image_root=tmp_path / "nih")
    assert caplog.messages == [
        "chestxray14_experts, split test: 1 of 4 rows repeat a 'Image Index': dropped.",
        "chestxray14_experts, split test: 1 of 3 images are missing, the first is images/00000099_003.png: left out.",
    ]
    assert finding_columns(dataset) == list(FOUR)
    assert dataset["image_id"][:] == ["00000211_006", "00000013_011"]
    assert dataset["patient_id"][:] == ["00000211", "00000013"]  # as chestxray14 writes them
    assert dataset["view"][:] == ["PA", "AP"] and dataset["sex"][:] == ["M", "F"] and dataset["age"][:] == [58, 60]
    assert dataset["Airspace opacity"][:] == [1, 0] and dataset["Nodule or mass"][:] == [0, 1]
    assert dataset["Fracture"][0] == 0 and math.isnan(dataset["Fracture"][1])
    assert len(read_chestxray14_experts(root, "validation", image_root=tmp_path / "nih")) == 1
    assert family("chestxray14_experts") == "chestxray14"


def test_all_findings(root, tmp_path):
    dataset = read_chestxray14_experts(root, "test", labels="all", image_root=tmp_path / "nih")
    assert finding_columns(dataset) == [*ALL, "No Finding"]
    assert dataset["patient_id"][:] == ["00000211", "00029560"] and dataset["view"][:] == ["PA", "PA"]
    assert dataset["Cardiomegaly"][:] == [1, 0] and dataset["No Finding"][:] == [0, 1]
    assert "sex" not in dataset.column_names
    file = root / "all_findings_expert_labels/test_labels.csv"  # as a browser saves it
    file.rename(root / "all_findings_expert_labels_test_labels.csv")
    assert len(read_chestxray14_experts(root, "test", labels="all", image_root=tmp_path / "nih")) == 2


def test_errors(root, tmp_path):
    def message(split="test", **options):
        return error_of(read_chestxray14_experts, root, split, **{"image_root": tmp_path / "nih", **options})

    name = "chestxray14_experts"
    assert message("train") == no_split(f"{name}, labels four", "train", "validation, test")
    assert message("validation", labels="all") == no_split(f"{name}, labels all", "validation", "test")
    assert message(labels="five") == f"{name}: labels are 'five'; choose four or all."
    assert "3 of 3 images are missing, the first is images/00000211_006.png" in message(image_root=root)
    table = root / "four_findings_expert_labels/test_labels.csv"
    write(table, [FOUR_HEADER, FOUR_ROWS[0].replace("YES", "maybe")])
    assert message() == (
        "test_labels.csv: 1 values of 'Airspace opacity' are not YES, NO or HEDGE; is this the file of the archive, "
        "unchanged?"
    )
    write(table, [FOUR_HEADER.replace("Fracture", "Fractures"), *FOUR_ROWS])
    assert message() == "test_labels.csv: column 'Fracture' is missing; is this the file of the archive, unchanged?"
    write(table, [FOUR_HEADER, FOUR_ROWS[0].replace("00000211_006.png", "../../../x.png")])
    assert message() == "x.png: the path leaves the image folder; name the folder that holds the images."
    table.unlink()
    assert message() == (
        f"{root}: four_findings_expert_labels/test_labels.csv of {name} is not in this folder; get it from "
        "https://docs.cloud.google.com/healthcare-api/docs/resources/public-datasets/nih-chest."
    )
