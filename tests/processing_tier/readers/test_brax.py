import math

import pytest
from archive_files import error_of, no_split, write

from processing_tier.readers.brax import read_brax
from processing_tier.readers.chexpert import CHEXPERT_FINDINGS
from processing_tier.records.schema import finding_columns

# The table names its columns as PhysioNet describes them
HEADER = (
    "DicomPath,PngPath,PatientID,PatientSex,PatientAge,AccessionNumber,StudyDate,No Finding,"
    "Enlarged Cardiomediastinum,Cardiomegaly,Lung Lesion,Lung Opacity,Edema,Consolidation,Pneumonia,Atelectasis,"
    "Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices,ViewPosition,Rows,Columns,Manufacturer"
)


def row(name: str, patient: str, sex: str, age: str, study: str, labels: str, view: str) -> str:
    path = f"id_{patient}/Study_{study}/Series_1/image-{name}"
    images = f"Anonymized_DICOMs/{path}.dcm,images/{path}.png"
    return f"{images},{patient},{sex},{age},{study},20120101,{labels},{view},3000,2500,1"


ROWS = [
    row("1-1", "0b7d-aa", "M", "60", "77001", "1.0" + "," * 13, "PA"),
    row("1-2", "0b7d-aa", "M", "60", "77001", "1.0" + "," * 13, "L"),
    row("1-3", "0b7d-bb", "F", "85 or more", "77002", ",,1.0,,-1.0,,,0.0,,,1.0,,,1.0", "AP LLD"),
    row("1-3", "0b7d-bb", "F", "85 or more", "77002", ",,1.0,,-1.0,,,0.0,,,1.0,,,1.0", "AP LLD"),
    row("1-4", "0b7d-cc", "O", "", "77003", "," * 13, "RLO"),
    row("1-5", "0b7d-cc", "O", "", "77003", "," * 13, ""),
]


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "brax"
    write(root / "master_spreadsheet_update.csv", [HEADER, *ROWS])
    for line in ROWS[:5]:
        dicom, png = line.split(",")[:2]
        write(root / png)
        write(root / dicom)
    return root


def test_images_and_labels(root, caplog):
    dataset = read_brax(root)
    assert caplog.messages == [
        "brax: 1 of 6 rows repeat a 'PngPath': dropped.",
        "brax, split train: 1 of 5 images are missing, the first is "
        "images/id_0b7d-cc/Study_77003/Series_1/image-1-5.png: left out.",
    ]
    assert finding_columns(dataset) == list(CHEXPERT_FINDINGS)
    assert dataset["image_id"][:] == ["image-1-1", "image-1-2", "image-1-3", "image-1-4"]
    assert dataset["patient_id"][:] == ["0b7d-aa", "0b7d-aa", "0b7d-bb", "0b7d-cc"]
    assert dataset["study_id"][:] == ["77001", "77001", "77002", "77003"]
    assert dataset["view"][:] == ["PA", "LATERAL", "AP", "OTHER"]
    assert dataset["sex"][:] == ["M", "M", "F", "O"]
    assert dataset["age"][:3] == [60, 60, 85] and math.isnan(dataset["age"][3])
    assert dataset["No Finding"][:2] == [1, 1] and math.isnan(dataset["No Finding"][2])
    assert [dataset[2][finding] for finding in ("Cardiomegaly", "Lung Opacity", "Pneumonia")] == [1, -1, 0]
    assert dataset["report"][:] == [""] * 4
    assert read_brax(root, images="dicom")["image"][0]["path"].endswith("Series_1/image-1-1.dcm")


def test_the_first_version(root):
    (root / "master_spreadsheet_update.csv").rename(root / "master_spreadsheet.csv")
    assert len(read_brax(root)) == 4


def test_errors(root):
    assert error_of(read_brax, root, "test") == no_split("brax", "test", "train")
    assert error_of(read_brax, root, images="jpg") == "brax: images are 'jpg'; choose png or dicom."
    assert error_of(read_brax, root / "images") == (
        f"{root / 'images'}: this is not the folder of brax, but {root} is; name that one."
    )
    table = root / "master_spreadsheet_update.csv"
    write(table, [HEADER.replace("Edema", "Oedema"), *ROWS])
    assert error_of(read_brax, root) == (
        "master_spreadsheet_update.csv: column 'Edema' is missing; is this the file of the archive, unchanged?"
    )
    write(table, [HEADER, ROWS[0].replace("images/id_", "../../../id_")])
    assert error_of(read_brax, root) == (
        "image-1-1.png: the path leaves the image folder; name the folder that holds the images."
    )
    write(table, [HEADER, ROWS[0].replace(",1.0,", ",2.0,")])
    assert "finding 'No Finding' has 1 values other than 1 (present)" in error_of(read_brax, root)
    table.unlink()
    assert error_of(read_brax, root) == (
        f"{root}: master_spreadsheet_update.csv of brax is not in this folder; get it from "
        "https://physionet.org/content/brax/."
    )
