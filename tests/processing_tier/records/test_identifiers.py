import numpy as np
import pandas as pd
import pytest
from PIL import Image

from processing_tier.readers import read_records
from processing_tier.records.identifiers import check_unique_ids, ids_from_paths, normalize_identifier
from processing_tier.records.schema import check_disjoint_patients


@pytest.mark.parametrize(
    ("value", "identifier"),
    [
        (10, "10"),
        (10.0, "10"),
        (np.float32(10), "10"),
        (np.int64(10), "10"),
        ("10.0", "10"),
        ("10.00", "10"),
        (" 10", "10"),
        ("10\xa0", "10"),
        ("\ufeff10", "10"),
        (1e16, "10000000000000000"),
        ("007", "007"),  # leading zeros are a part of it
        ("10.5", "10.5"),
        ("1.2.840.0", "1.2.840.0"),  # a UID of DICOM
        ("P  1 ", "P 1"),
        ("Mu\u0308ller", "Müller"),
        (None, ""),
        (float("nan"), ""),
        (pd.NA, ""),
        ("  ", ""),
    ],
)
def test_an_identifier_is_written_one_way(value, identifier):
    assert normalize_identifier(value) == identifier


def test_identifiers_are_text_or_numbers():
    with pytest.raises(ValueError) as error:
        normalize_identifier(["a"])
    assert str(error.value) == "an identifier is a list, not text or a number; fix its column."


def test_ids_come_from_the_path_where_stems_repeat():
    assert ids_from_paths(["images/1.png", "images/2.png"], "/data") == ["1", "2"]
    tree = ["p1/s1/view1_frontal.jpg", "p1/s2/view1_frontal.jpg", "p2\\s1\\view1_frontal.jpg", "/data/p3/x.jpg"]
    ids = ["p1/s1/view1_frontal", "p1/s2/view1_frontal", "p2/s1/view1_frontal", "p3/x"]
    assert ids_from_paths(tree, "/data") == ids
    assert ids_from_paths(["a/1.png", "a/1.dcm", "b/1.png"], "/data") == ["a/1.png", "a/1.dcm", "b/1.png"]
    assert ids_from_paths(["a/1.png", "./a/1.png", "b/1.png"], "/data") == ["a/1", "a/1", "b/1"]  # one file


def test_repeated_ids_are_named():
    check_unique_ids(["a", "b", "", ""], "t.csv")
    with pytest.raises(ValueError) as error:
        check_unique_ids(["a", "b", "c", "b", "a"], "t.csv")
    assert str(error.value) == (
        "t.csv: rows 2 and 4 have the same image_id 'b'; keep one row for each image, or give each row another "
        "image_id."
    )


@pytest.fixture
def tree(tmp_path):
    """As MIMIC-CXR and CheXpert lay images out: all are called alike."""
    paths = [f"p{patient}/s{study}/view1_frontal.png" for patient in (1, 2) for study in (1, 2)]
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(tmp_path / path)
    return tmp_path, paths


def test_ids_are_unique_among_the_splits_of_a_table(tree):
    folder, paths = tree
    # In each split, the stems would differ
    frame = pd.DataFrame({"image": [paths[0], paths[2]], "patient_id": [1, 2], "split": ["train", "test"]})
    frame.to_csv(folder / "t.csv", index=False)
    ids = [read_records(folder / "t.csv", split)["image_id"][0] for split in ("train", "test")]
    assert ids == ["p1/s1/view1_frontal", "p2/s1/view1_frontal"]


def test_ids_are_unique_among_the_folders_of_splits(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        Image.new("L", (4, 4)).save(tmp_path / split / "1.png")
        (tmp_path / split / "metadata.csv").write_text(f"file_name,patient_id\n1.png,{split}\n")
    assert [read_records(tmp_path, split)["image_id"][0] for split in ("train", "test")] == ["train/1", "test/1"]


def test_repeats_in_a_table_are_refused(tree):
    folder, paths = tree
    path = folder / "t.csv"
    frame = pd.DataFrame({"image": paths, "patient_id": "1", "image_id": ["a", "b", " b", "c"]})
    frame.to_csv(path, index=False)
    with pytest.raises(ValueError) as error:
        read_records(path, "train")
    assert str(error.value) == (
        f"{path}: rows 2 and 3 have the same image_id 'b'; keep one row for each image, or give each row another "
        "image_id."
    )
    frame = frame.assign(image=[*paths[:3], paths[0]], split=["train", "train", "test", "test"]).drop(
        columns="image_id"
    )
    frame.to_csv(path, index=False)
    with pytest.raises(ValueError, match="rows 1 and 4 have the same image_id 'p1/s1/view1_frontal'; keep one row"):
        read_records(path, "train")
    frame.assign(image_id=[1, 2, 3, 4.0]).to_csv(path, index=False)  # their own identifiers make it right
    assert read_records(path, "test")["image_id"][:] == ["3", "4"]


@pytest.mark.parametrize("other", ["10.0", " 10", "10 ", "\u00a010"])
def test_a_leak_between_tables_is_found(tree, other):
    folder, paths = tree
    for name, patient, image in (("a.csv", "10", paths[0]), ("b.csv", other, paths[1])):
        (folder / name).write_text(f"image,patient_id\n{image},{patient}\n", encoding="utf-8")
    pd.DataFrame({"image": paths[2:3], "patient_id": [10.0]}).to_parquet(folder / "c.parquet")
    a, b, c = (read_records(folder / name, "train") for name in ("a.csv", "b.csv", "c.parquet"))
    assert a["patient_id"][:] == b["patient_id"][:] == c["patient_id"][:] == ["10"]
    for second in (b, c):
        with pytest.raises(ValueError, match="1 patient is in both 'train' and 'test'; split by patient"):
            check_disjoint_patients(train=a, test=second)


def test_leading_zeros_are_asked_about(tree, caplog):
    folder, paths = tree
    for name, patient, image in (("a.csv", "007", paths[0]), ("b.csv", "7", paths[1])):
        (folder / name).write_text(f"image,patient_id\n{image},{patient}\n")
    check_disjoint_patients(train=read_records(folder / "a.csv", "x"), test=read_records(folder / "b.csv", "x"))
    assert caplog.messages == [
        "1 patients of 'train' and 'test' differ only in leading zeros (007 and 7): check that they are not the same."
    ]
