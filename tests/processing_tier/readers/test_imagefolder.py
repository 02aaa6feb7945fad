import time

import numpy as np
import pandas as pd
import pytest
from archive_files import no_split
from PIL import Image

from processing_tier import read_radiograph
from processing_tier.readers import list_splits, read_imagefolder, read_records
from processing_tier.records.schema import check_columns, check_disjoint_patients, finding_columns, select_text
from processing_tier.records.table_options import TableOptions

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
    assert str(error.value) == no_split(folder, "test", "train, validation")

    text = (folder / "metadata.csv").read_text().replace("split,", "fold,", 1)
    (folder / "metadata.csv").write_text(text)
    dataset = read_records(folder, "validation", TableOptions({"split": "fold"}))
    assert dataset["image_id"][:] == ["b"]
    with pytest.raises(ValueError, match=": column 'set' \\(for 'split'\\) is missing; it has fold, "):
        read_imagefolder(folder, "validation", TableOptions({"split": "set"}))


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
    archive = tmp_path / "table.csv.zip"
    archive.write_bytes(b"PK")
    (folder / "train" / "b.png").unlink()
    (folder / "validation" / "metadata.csv").write_text(HEADER)
    train, validation = (folder / split / "metadata.csv" for split in ("train", "validation"))
    for path, split, message in [
        (folder / "none", "train", f"{folder / 'none'}: the folder does not exist; check the path of the data."),
        (
            archive,
            "train",
            f"{archive}: files of this kind are not supported; save the table as .csv, .tsv, .xlsx, .jsonl or "
            ".parquet.",
        ),
        (
            folder,
            "test",
            no_split(folder, "test", "train, validation"),
        ),
        (empty, "train", f"{empty}: no metadata.csv is in it or in a folder for each split; add one."),
        (folder, "train", f"{train}: 1 of 2 images are missing, the first is train/b.png; check the image folder."),
        (folder, "validation", f"{validation}: the split 'validation' is empty; check the file and the split."),
    ]:
        with pytest.raises(ValueError) as error:
            read_records(path, split)
        assert str(error.value) == message
    with pytest.raises(ValueError) as error:
        read_records(folder, "train", TableOptions(image_root="x"))
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


def test_links_inside_the_data_set(tmp_path):
    """The images of all splits may lie in one place, and the splits hold links to them."""
    (tmp_path / "store").mkdir()
    for split, name in (("train", "a"), ("validation", "b")):
        Image.new("L", (4, 4)).save(tmp_path / "store" / f"{name}.png")
        (tmp_path / split).mkdir()
        (tmp_path / split / f"{name}.png").symlink_to(tmp_path / "store" / f"{name}.png")
        (tmp_path / split / "metadata.csv").write_text(f"file_name,patient_id\n{name}.png,{name}\n")
    dataset = read_records(tmp_path, "train")
    assert dataset["image"][0]["path"] == str((tmp_path / "store" / "a.png").resolve())
    assert dataset["image_id"][:] == ["a"]
    outside = tmp_path.parent / f"{tmp_path.name}_outside.png"
    Image.new("L", (4, 4)).save(outside)
    (tmp_path / "train" / "a.png").unlink()
    (tmp_path / "train" / "a.png").symlink_to(outside)
    with pytest.raises(ValueError, match="a.png: the path leaves the image folder; name the folder that holds"):
        read_records(tmp_path, "train")


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.parquet", "metadata.tsv", "metadata.csv"])
def test_forms_of_metadata(tmp_path, name):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        Image.new("L", (4, 4)).save(tmp_path / split / f"{split}.png")
        frame = pd.DataFrame(
            {"file_name": [f"{split}.png"], "patient_id": ["007"], "text": "IMPRESSION: Ok.", "Edema": 1}
        )
        path = tmp_path / split / name
        if name.endswith("jsonl"):
            frame.to_json(path, orient="records", lines=True)
        elif name.endswith("parquet"):
            frame.to_parquet(path)
        else:
            frame.to_csv(path, index=False, sep="\t" if name.endswith("tsv") else ",")
    dataset = read_records(tmp_path, "train")
    assert (dataset["patient_id"][0], dataset["impression"][0], dataset["Edema"][0]) == ("007", "Ok.", 1)
    assert list_splits(tmp_path) == ["test", "train"]
