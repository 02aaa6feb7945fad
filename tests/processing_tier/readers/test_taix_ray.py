import math

import datasets
import pandas as pd
import pytest
from archive_files import error_of, no_split

from processing_tier.readers.taix_ray import GRADES, read_taix_ray
from processing_tier.records.schema import check_columns, check_disjoint_patients, finding_columns

NAMES = ["Cardiomegaly", "Pulmonary Congestion", "Pleural Effusion", "Lung Opacity", "Atelectasis"]
# Grades in the order of the card; ages in days, as in its viewer
CARD = ["UID", "Fold", "Split", "PatientID", "PhysicianID", "StudyDate", "Age", "Sex", *GRADES]
TRAIN = [
    ["ab" * 32, 0, "train", "p1" * 32, "d" * 64, "2013-05-25", 26647, "M", 2, 0, 2, 2, 0, 0, 2, 0],
    ["cd" * 32, 0, "train", "p2" * 32, "d" * 64, "2013-05-03", 19020, "F", 1, 3, 1, 0, 4, 0, 0, 1],
    ["cd" * 32, 0, "train", "p2" * 32, "d" * 64, "2013-05-03", 19020, "F", 1, 3, 1, 0, 4, 0, 0, 1],
    ["ef" * 32, 0, "train", "p2" * 32, "d" * 64, "2013-05-04", 0, None, -1, 0, -1, 0, -1, 3, 0, 0],
]


def write_shard(path, rows, without=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {name: list(values) for name, values in zip(CARD, zip(*rows, strict=True), strict=True)}
    data["Image"] = [{"bytes": f"png {index}".encode(), "path": None} for index in range(len(rows))]
    data.pop(without, None)
    datasets.Dataset.from_dict(data).cast_column("Image", datasets.Image(decode=False)).to_parquet(path)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "TAIX-Ray"
    (root / "README.md").parent.mkdir()
    (root / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    write_shard(root / "data/train-00000-of-00002.parquet", TRAIN[:1])
    write_shard(root / "data/train-00001-of-00002.parquet", TRAIN[1:])
    write_shard(root / "data/val-00000-of-00001.parquet", [["0" * 64, 0, "val", "p3" * 32, *TRAIN[0][4:]]])
    write_shard(root / "original/train-00000-of-00001.parquet", TRAIN[3:])
    return root


def test_grades_become_labels(root, caplog):
    dataset = read_taix_ray(root, "train")
    assert caplog.messages == ["taix_ray, split train: 1 of 4 rows repeat a 'UID': dropped."]
    check_columns(dataset)
    assert finding_columns(dataset) == NAMES
    assert dataset["image_id"][:] == dataset["study_id"][:] == ["ab" * 32, "cd" * 32, "ef" * 32]
    assert dataset["patient_id"][:] == ["p1" * 32, "p2" * 32, "p2" * 32]
    assert [image["bytes"] for image in dataset["image"]] == [b"png 0", b"png 0", b"png 2"]
    assert dataset["view"][:] == ["AP"] * 3 and dataset["split"][:] == ["train"] * 3
    assert dataset["sex"][:] == ["M", "F", ""]
    assert [round(age, 2) for age in dataset["age"]] == [72.96, 52.07, 0]
    found = [[dataset[name][row] for name in NAMES] for row in range(3)]
    assert found[:2] == [[1, 0, 1, 0, 1], [-1, 1, -1, 1, -1]]
    # a heart that cannot be assessed; one side of two, which is enough for "present" only
    assert [None if math.isnan(value) else value for value in found[2]] == [None, 0, None, 1, 0]
    owners = read_taix_ray(root, "train", questionable="absent")
    assert [owners[name][1] for name in NAMES] == [0, 1, 0, 1, 0]


def test_sides_splits_and_sizes(root):
    dataset = read_taix_ray(root, "train", sides=True)
    assert finding_columns(dataset)[2:4] == ["Left Pleural Effusion", "Right Pleural Effusion"]
    assert dataset["Left Atelectasis"][:2] == [1, 0] and dataset["Right Atelectasis"][:2] == [0, -1]
    validation = read_taix_ray(root, "validation")
    assert validation["split"][:] == ["validation"]
    check_disjoint_patients(train=dataset, validation=validation)
    assert read_taix_ray(root, "train", images="original")["image_id"][:] == ["ef" * 32]


def test_errors(root):
    def message(split="train", **options):
        return error_of(read_taix_ray, root, split, **options)

    source = "https://huggingface.co/datasets/TLAIM/TAIX-Ray"
    assert message("dev") == no_split("taix_ray", "dev", "train, validation, test")
    assert message("test") == f"{root}: data/test-*.parquet of taix_ray is not in this folder; get it from {source}."
    assert message(images="1024") == "taix_ray: images is '1024'; choose 512 or original."
    assert message(questionable="no") == "taix_ray: questionable is 'no'; choose uncertain or absent."
    assert error_of(read_taix_ray, root / "data", "train") == (
        f"{root / 'data'}: this is not the folder of taix_ray, but {root} is; name that one."
    )
    shard = root / "data/train-00001-of-00002.parquet"
    shard.unlink()
    assert "1 of 2 files of the split 'train' are missing" in message()
    shard.write_bytes(b"PAR1")
    assert message() == f"{shard.name}: the file is not a readable parquet table; copy it again."
    write_shard(shard, [[*TRAIN[1][:8], 4, *TRAIN[1][9:]]])
    assert message() == "taix_ray: 1 values of 'HeartSize' are not grades from -1 to 3; download the file again."
    write_shard(shard, [["", *TRAIN[1][1:]]])
    assert message() == "taix_ray: an image has no UID or no PatientID; download the file again."
    write_shard(shard, TRAIN[1:2])
    frame = pd.read_parquet(shard)
    frame["Image"] = [{"bytes": None, "path": "../../../secret.png"}]
    frame.to_parquet(shard)
    assert message() == "secret.png: the path leaves the image folder; name the folder that holds the images."
    for path in root.glob("data/train-*"):
        write_shard(path, TRAIN[:1], without="Atelectasis_Left")
    assert message() == f"taix_ray: column 'Atelectasis_Left' is missing; is this {source}, unchanged?"
