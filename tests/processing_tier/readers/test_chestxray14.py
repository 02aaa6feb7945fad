import gzip
import math
import shutil

import numpy as np
import pandas as pd
import pytest
from archive_files import error_of, no_split, write
from PIL import Image

from processing_tier.readers import chestxray14
from processing_tier.readers.chestxray14 import FINDINGS, SPLITS, read_chestxray14
from processing_tier.records.schema import check_disjoint_patients, finding_columns

HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)
ROWS = [  # the first version of the table: ages with units, a comma at the end of each line
    "00000001_000.png,Cardiomegaly,0,1,058Y,M,PA,2682,2749,0.143,0.143,",
    "00000001_001.png,Cardiomegaly|Emphysema,1,1,058Y,M,PA,2894,2729,0.143,0.143,",
    "00000002_000.png,No Finding,0,2,006M,F,AP,2500,2048,0.168,0.168,",
    "00000003_000.png,Infiltration|Pleural_Thickening,0,3,414Y,F,PA,2500,2048,0.168,0.168,",
    "00000003_000.png,Infiltration|Pleural_Thickening,0,3,414Y,F,PA,2500,2048,0.168,0.168,",
    "00000004_000.png,Mass,0,4,020D,M,PA,2500,2048,0.168,0.168,",
]
BOXES = [
    "Image Index,Finding Label,Bbox [x,y,w,h],,,",
    "00000003_000.png,Infiltrate,100,200.5,300,400",
    "00000003_000.png,Infiltrate,900,900,200,50",
    "00000004_000.png,Mass,10,20,30,40",
]


@pytest.fixture
def root(tmp_path):
    write(tmp_path / "Data_Entry_2017.csv", [HEADER, *ROWS])
    write(tmp_path / "BBox_List_2017.csv", BOXES)
    write(tmp_path / "train_val_list.txt", ["00000001_000.png", "00000001_001.png", "00000004_000.png"])
    write(tmp_path / "test_list.txt", ["00000002_000.png", "00000003_000.png", ""])
    for folder, names in {"images_001": ("00000001_000", "00000001_001"), "images_012": ("00000002_000",)}.items():
        for name in names:
            write(tmp_path / folder / "images" / f"{name}.png", ["png"])
    write(tmp_path / "images" / "00000003_000.png", ["png"])
    return tmp_path


def test_train(root, caplog):
    dataset = read_chestxray14(root, "train")
    assert caplog.messages == [
        "chestxray14, split train: 1 of 3 images are missing, the first is images/00000004_000.png: left out.",
    ]
    assert finding_columns(dataset) == [*FINDINGS, "No Finding"]
    assert dataset["image_id"][:] == ["00000001_000", "00000001_001"]
    assert dataset["image"][1]["path"] == str((root / "images_001/images/00000001_001.png").resolve())
    assert dataset["patient_id"][:] == ["00000001"] * 2
    assert dataset["view"][:] == ["PA"] * 2 and dataset["sex"][:] == ["M"] * 2 and dataset["age"][:] == [58.0] * 2
    assert dataset["Cardiomegaly"][:] == [1, 1] and dataset["Emphysema"][:] == [0, 1]
    assert dataset["No Finding"][:] == [0, 0]
    assert dataset["boxes"][:] == [[], []] and set(dataset["report"]) == {""}
    assert dataset["split"][:] == ["train"] * 2
    assert SPLITS == ("train", "test")


def test_test_and_its_quirks(root, caplog):
    dataset = read_chestxray14(root, "test")
    assert caplog.messages == [
        "chestxray14, split test: 1 of 3 rows repeat a 'Image Index': dropped.",
        "BBox_List_2017.csv: 1 boxes reach beyond their image and are cut, 0 have no area inside it and are left out.",
        "chestxray14: 1 of 2 ages are not years from 0 to 120: left blank.",
    ]
    assert dataset["image_id"][:] == ["00000002_000", "00000003_000"]
    assert dataset["age"][0] == 0.5 and math.isnan(dataset["age"][1])
    assert dataset["No Finding"][:] == [1, 0] and dataset["Pleural_Thickening"][:] == [0, 1]
    assert dataset["boxes"][0] == []
    assert dataset["boxes"][1] == [
        {"finding": "Infiltration", "phrase": "", "x": 100.0, "y": 200.5, "w": 300.0, "h": 400.0},
        {"finding": "Infiltration", "phrase": "", "x": 900.0, "y": 900.0, "w": 124.0, "h": 50.0},
    ]
    check_disjoint_patients(train=read_chestxray14(root, "train"), test=dataset)


def test_resized_images_and_other_lists(root, tmp_path):
    dataset = read_chestxray14(root, "test", image_size=256)
    assert [dataset["boxes"][1][0][side] for side in "xywh"] == [25.0, 50.125, 75.0, 100.0]
    lists = tmp_path / "lists"
    write(lists / "train_list.txt", ["00000001_000.png 0 1 0"], end="\n")
    write(lists / "val_list.txt", ["images_012/00000002_000.png 0 0 0"], end="\n")
    assert read_chestxray14(root, "validation", lists=lists)["patient_id"][:] == ["00000002"]
    with pytest.raises(ValueError) as error:
        read_chestxray14(root, "test", lists=lists)
    assert str(error.value) == (f"{lists}: test_list.txt is not in this folder of lists; name the folder that has it.")


def test_errors(root, tmp_path_factory):
    def message(folder, split="train", **options):
        return error_of(read_chestxray14, folder, split, **options)

    assert message(root, "validation") == no_split("chestxray14", "validation", "train, test")
    assert message(root, image_size="small") == (
        "chestxray14: image_size is 'small'; give the width of the stored images in pixels."
    )
    above, empty = root.parent, tmp_path_factory.mktemp("empty")
    assert message(root / "images_001") == (
        f"{root}/images_001: this is not the folder of chestxray14, but {root.resolve()} is; name that one."
    )
    assert message(above).endswith(f"but {root} is; name that one.")
    assert message(empty) == (
        f"{empty}: Data_Entry_2017_v2020.csv of chestxray14 is not in this folder; get it from "
        "https://nihcc.app.box.com/v/ChestXray-NIHCC."
    )
    write(root / "Data_Entry_2017.csv", [HEADER.replace("Finding Labels", "Labels"), *ROWS])
    assert message(root) == (
        "Data_Entry_2017.csv: column 'Finding Labels' is missing; is this the file of the archive, unchanged?"
    )
    write(root / "Data_Entry_2017.csv", [HEADER, ROWS[0].replace("Cardiomegaly", "Cardiomegalie"), *ROWS[1:]])
    assert message(root) == (
        "Data_Entry_2017.csv: the label 'Cardiomegalie' is not one of the 14; is the table as shipped?"
    )
    write(root / "Data_Entry_2017.csv", [HEADER, *ROWS])
    write(root / "BBox_List_2017.csv", [BOXES[0], BOXES[1].replace("100", "left")])
    assert message(root, "test") == (
        "BBox_List_2017.csv: 1 boxes have a coordinate that is not a number; fix or remove their rows."
    )
    write(root / "BBox_List_2017.csv", ["a,b", "c,d"])
    assert message(root) == (
        "BBox_List_2017.csv: the columns are not image, finding, x, y, w and h; is this the list as shipped?"
    )
    (root / "BBox_List_2017.csv").unlink()
    assert message(root).startswith(f"{root}: BBox_List_2017.csv of chestxray14 is not in this folder; get it from")
    (root / "test_list.txt").unlink()
    assert message(root, "test").startswith(f"{root}: test_list.txt of chestxray14 is not in this folder")


def test_real_tables_and_images(shared_data, tmp_path):
    for name in ("Data_Entry_2017_v2020.csv", "BBox_List_2017.csv"):
        with gzip.open(shared_data / "labels" / f"{name}.gz") as file:
            (tmp_path / name).write_bytes(file.read())
    table = pd.read_csv(shared_data / "nih_cxr14" / "train" / "metadata.csv", dtype={"patient_id": str})
    boxes = pd.read_csv(shared_data / "nih_cxr14" / "bboxes.csv")
    boxes = boxes[boxes["split"] == "train"]
    table = pd.concat([table[table["image_id"].isin(boxes["image_id"])], table[:20]]).drop_duplicates("image_id")
    (tmp_path / "images_001" / "images").mkdir(parents=True)
    for source, target in zip(table["file_name"], table["image_id"], strict=True):
        shutil.copy(shared_data / "nih_cxr14" / "train" / source, tmp_path / "images_001" / "images" / target)
    for name, listed in {"test_list.txt": "test", "train_val_list.txt": "train_val"}.items():
        write(tmp_path / name, table["image_id"][table["official_split"] == listed], end="\n")

    read = {name: read_chestxray14(tmp_path, name, image_size=320) for name in SPLITS}
    check_disjoint_patients(**read)
    assert sum(map(len, read.values())) == len(table) > 40
    expected, found = table.set_index("image_id"), 0
    for dataset in read.values():
        for record in dataset:
            name = record["image_id"] + ".png"
            row = expected.loc[name]
            assert row["patient_id"] == "NIH" + record["patient_id"]
            assert (record["view"], record["sex"], record["age"]) == (row["view_position"], row["sex"], row["age"])
            assert {finding for finding in (*FINDINGS, "No Finding") if record[finding]} == set(
                row["labels"].split("|")
            )
            listed = boxes[boxes["image_id"] == name].sort_values("x")
            of_image = sorted(record["boxes"], key=lambda box: box["x"])
            assert [box["finding"] for box in of_image] == list(listed["label"].replace("Infiltrate", "Infiltration"))
            pixels = np.reshape([[box[side] for side in "xywh"] for box in of_image], (-1, 4))
            np.testing.assert_allclose(pixels, listed[list("xywh")] * 320 / 1024, rtol=1e-6)
            found += len(listed)
    assert found == len(boxes) == 45
    with Image.open(read["train"][0]["image"]["path"]) as image:
        assert min(image.size) == 320


def test_a_table_without_sex_and_lists_of_other_images(root, monkeypatch):
    (root / "test_list.txt").write_bytes(b"\xff\xfe\0")
    with pytest.raises(ValueError) as error:
        read_chestxray14(root, "test")
    assert str(error.value) == "test_list.txt: the list names no image of Data_Entry_2017.csv; is it the right list?"
    monkeypatch.setattr(chestxray14, "MAX_LIST_BYTES", 2)
    with pytest.raises(ValueError, match="^test_list.txt: the file is larger than 2 bytes"):
        read_chestxray14(root, "test")
    write(root / "Data_Entry_2017.csv", [HEADER.replace("Patient Gender", "Patient"), *ROWS])
    with pytest.raises(ValueError) as error:
        read_chestxray14(root, "train")
    assert str(error.value) == (
        "Data_Entry_2017.csv: column 'Patient Gender' is missing; is this the table as shipped?"
    )
