import time

import numpy as np
import pytest
from PIL import Image

from processing_tier import read_radiograph
from processing_tier.readers import read_imagefolder, read_records
from processing_tier.records import check_columns, check_disjoint_patients, finding_columns, select_text

HEADER = "file_name,patient_id,view,dicom_view,text,impression,Edema,orig_width\n"
ROWS = "a.png,1,frontal,,Heart big. Edema.,Edema.,1.0,2000\nb.png,2,frontal,AP,Normal.,,0.0,1900\n"


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "validation"):
        (tmp_path / split).mkdir()
        for name in "ab":
            Image.new("L", (4, 4)).save(tmp_path / split / f"{name}.png")
        (tmp_path / split / "metadata.csv").write_text(HEADER + ROWS)
    return tmp_path


def test_layout(folder):
    dataset = read_records(folder, "validation")
    assert dataset["report"][:] == ["Heart big. Edema.", "Normal."] and dataset["impression"][:] == ["Edema.", ""]
    assert dataset["view"][:] == ["PA", "AP"]  # an unknown frontal is kept by a filter on frontal views
    assert finding_columns(dataset) == ["Edema"] and dataset["Edema"][:] == [1, 0]
    assert dataset["image"][0]["path"] == str((folder / "validation" / "a.png").resolve())


def test_one_metadata_file_with_a_split_column(folder, caplog):
    text = "split," + HEADER + "train,train/" + ROWS.replace("\n", "\nvalidation,validation/", 1)
    for split in ("train", "validation"):
        (folder / split / "metadata.csv").unlink()
    (folder / "metadata.csv").write_text(text + ",train/" + ROWS.splitlines()[0])
    dataset = read_imagefolder(folder, "validation")
    assert caplog.messages == [f"{folder}: 1 of 3 rows have no split: left out."]
    assert dataset["image_id"][:] == ["b"] and dataset["split"][:] == ["validation"]
    with pytest.raises(ValueError) as error:
        read_imagefolder(folder, "test")
    assert str(error.value) == f"{folder}: there is no split 'test'; it has train, validation."

    text = (folder / "metadata.csv").read_text().replace("split,", "fold,", 1)
    (folder / "metadata.csv").write_text(text)
    dataset = read_records(folder, "validation", columns={"split": "fold"})
    assert dataset["image_id"][:] == ["b"]
    with pytest.raises(ValueError, match=": column 'set' \\(for 'split'\\) is not there; it has fold, "):
        read_imagefolder(folder, "validation", columns={"split": "set"})


def test_sections_of_whole_reports(folder):
    rows = ROWS.replace("Heart big. Edema.,Edema.", "FINDINGS: Heart big. IMPRESSION: Edema.").replace(
        "Normal.,", "Normal."
    )
    (folder / "train" / "metadata.csv").write_text(HEADER.replace("impression,", "") + rows)
    dataset = read_records(folder, "train")
    assert dataset["findings"][:] == ["Heart big.", "Normal."] and dataset["impression"][:] == ["Edema.", ""]


def test_errors(folder, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    (folder / "train" / "b.png").unlink()
    (folder / "validation" / "metadata.csv").write_text(HEADER)
    train, validation = (folder / split / "metadata.csv" for split in ("train", "validation"))
    for path, split, message in [
        (folder / "none", "train", f"{folder / 'none'}: there is no such folder; check the path of the data."),
        (folder, "test", f"{folder}: there is no split 'test'; it has train, validation."),
        (empty, "train", f"{empty}: no metadata.csv is in it or in a folder for each split; add one."),
        (folder, "train", f"{train}: 1 of 2 images are not there, the first is train/b.png; check the image folder."),
        (folder, "validation", f"{validation}: the split 'validation' is empty; check the file and the split."),
    ]:
        with pytest.raises(ValueError) as error:
            read_records(path, split)
        assert str(error.value) == message
    with pytest.raises(ValueError) as error:
        read_records(folder, "train", image_root="x")
    assert str(error.value) == f"image_root='x' has no effect on {folder.name!r}; leave it out."


def test_a_path_in_the_metadata_stays_in_the_folder(folder):
    (folder / "train" / "metadata.csv").write_text(HEADER + ROWS.replace("a.png", "../../validation/a.png"))
    with pytest.raises(ValueError) as error:
        read_records(folder, "train")
    assert str(error.value) == "a.png: the path leaves the image folder; name the folder that holds the images."


def test_indiana(shared_data):
    start = time.perf_counter()
    train = read_records(shared_data / "iu_cxr", "train")
    seconds = time.perf_counter() - start
    validation = read_records(shared_data / "iu_cxr", "validation")
    assert seconds < 8  # under 2 s on a quiet machine
    assert (len(train), len(validation)) == (2654, 355)
    check_columns(train)
    check_disjoint_patients(train=train, validation=validation)
    assert len(finding_columns(train)) == 16 and "Nodule/Mass" in finding_columns(train)
    cardiomegaly = np.array(train["Cardiomegaly"])
    assert (np.nansum(cardiomegaly), np.isnan(cardiomegaly).sum()) == (243, 60)
    views = np.array(train["view"])
    assert ((views == "AP").sum(), (views == "PA").sum()) == (279, 2654 - 279)
    assert sum(not text for text in train["impression"]) == 6
    assert sum(not select_text(record, "both") for record in train.remove_columns("image")) == 0
    image = read_radiograph(train[0]["image"])
    assert image.mode == "L" and image.size == (256, 256)


def test_nih(shared_data):
    train, validation = (read_records(shared_data / "nih_cxr14", split) for split in ("train", "validation"))
    assert (len(train), len(validation)) == (1186, 130)
    check_columns(train)
    check_disjoint_patients(train=train, validation=validation)
    assert finding_columns(train)[:6] == [
        "No Finding",
        "Atelectasis",
        "Cardiomegaly",
        "Consolidation",
        "Edema",
        "Effusion",
    ]
    assert "labels" not in train.column_names and set(train["report"]) == {""}
    assert set(train["view"]) == {"AP", "PA"} and set(train["sex"]) == {"F", "M"}
    boxes = [box for image in train["boxes"] for box in image]
    assert len(boxes) == 45
    assert all(0 <= box["x"] < box["x"] + box["w"] <= 320.5 for box in boxes)
