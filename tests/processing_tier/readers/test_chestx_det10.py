import json

import pytest
from archive_files import error_of, no_split

from processing_tier.readers.chestx_det10 import FINDINGS, read_chestx_det10
from processing_tier.records.schema import finding_columns

# The first is the example of the authors' README, the second is of their test.json
TRAIN = [
    {
        "file_name": "00000042_006.png",
        "syms": ["Fibrosis", "Fibrosis"],
        "boxes": [[632, 721, 909, 969], [129, 611, 474, 909]],
    },
    {"file_name": "00000003_003.png", "syms": [], "boxes": []},
    {"file_name": "36199.png", "syms": ["Mass", "Nodule"], "boxes": [[1000, 10, 1030, 20], [5, 5, 5, 9]]},
    {"file_name": "36199.png", "syms": ["Mass", "Nodule"], "boxes": [[1000, 10, 1030, 20], [5, 5, 5, 9]]},
    {"file_name": "00000001_000.png", "syms": [], "boxes": []},
]
TEST = [{"file_name": "00000091_005.png", "syms": ["Nodule"], "boxes": [[339, 575, 386, 625]]}]


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "det10"
    for split, data in {"train": TRAIN, "test": TEST}.items():
        (root / f"{split}_data").mkdir(parents=True)
        (root / f"{split}.json").write_text(json.dumps(data))
        for entry in data[:4]:
            (root / f"{split}_data" / entry["file_name"]).write_bytes(b"png")
    return root


def test_train(root, caplog):
    dataset = read_chestx_det10(root, "train")
    assert caplog.messages == [
        "chestx_det10, split train: 1 of 5 rows repeat a 'file_name': dropped.",
        "train.json: 1 boxes reach beyond their image and are cut, 1 have no area inside it and are left out.",
        "chestx_det10, split train: 1 of 4 images are missing, the first is train_data/00000001_000.png: left out.",
    ]
    assert finding_columns(dataset) == list(FINDINGS)
    assert dataset["image_id"][:] == ["00000042_006", "00000003_003", "36199"]
    assert dataset["patient_id"][:] == ["00000042", "00000003", "36199"]
    assert dataset["Fibrosis"][:] == [1, 0, 0] and dataset["Mass"][:] == dataset["Nodule"][:] == [0, 0, 1]
    assert dataset["boxes"][:] == [
        [
            {"finding": "Fibrosis", "phrase": "", "x": 632.0, "y": 721.0, "w": 277.0, "h": 248.0},
            {"finding": "Fibrosis", "phrase": "", "x": 129.0, "y": 611.0, "w": 345.0, "h": 298.0},
        ],
        [],
        [{"finding": "Mass", "phrase": "", "x": 1000.0, "y": 10.0, "w": 24.0, "h": 10.0}],
    ]


def test_test(root):
    dataset = read_chestx_det10(root, "test")
    assert dataset["Nodule"][:] == [1] and dataset["view"][:] == ["PA"]
    assert [dataset["boxes"][0][0][side] for side in "xywh"] == [339, 575, 47, 50]
    (root / "test.json").write_text(json.dumps([{**TEST[0], "syms": [], "boxes": []}]))
    assert read_chestx_det10(root, "test")["boxes"][:] == [[]]


def test_errors(root):
    def message(folder, split="train"):
        return error_of(read_chestx_det10, folder, split)

    form = "the annotations are not file_name, syms and boxes; download it again."
    assert message(root, "validation") == no_split("chestx_det10", "validation", "train, test")
    for wrong in (root.parent, root / "train_data"):
        assert message(wrong) == f"{wrong}: this is not the folder of chestx_det10, but {root} is; name that one."
    for text, reason in [
        ("", "the file is empty, cut short or not JSON; download it again."),
        ('{"a": 1}', form),
        ('[{"file_name": "a.png", "syms": ["Mass"]}]', form),
        ('[{"file_name": "a.png", "syms": ["Mass"], "boxes": []}]', form),
        ('[{"file_name": "a.png", "syms": ["Mass"], "boxes": [[1, 2, 3]]}]', form),
        ('[{"file_name": "a.png", "syms": ["Mass"], "boxes": [["a", "b", "c", "d"]]}]', form),
        ('[{"file_name": 5, "syms": [], "boxes": []}]', form),
        ('[{"file_name": null, "syms": [], "boxes": []}]', form),
        ('[{"file_name": "a.png", "syms": [["Mass"]], "boxes": [[1, 2, 3, 4]]}]', form),
        ('[{"file_name": "a.png", "syms": ["Mass"], "boxes": [[1, 2, 3, 1' + "0" * 400 + "]]}]", form),
        (
            '[{"file_name": "a.png", "syms": ["Cardiomegaly"], "boxes": [[1, 2, 3, 4]]}]',
            "'Cardiomegaly' is not one of the ten; is this ChestX-Det10?",
        ),
    ]:
        (root / "train.json").write_text(text)
        assert message(root) == f"train.json: {reason}"
    (root / "train.json").write_text("[]")
    assert message(root) == "chestx_det10: the split 'train' is empty; check the file and the split."
    (root / "train.json").write_text('[{"file_name": "../../a.png", "syms": [], "boxes": []}]')
    assert message(root) == "a.png: the path leaves the image folder; name the folder that holds the images."
    (root / "train.json").unlink()
    assert message(root) == (
        f"{root}: train.json of chestx_det10 is not in this folder; get it from "
        "https://github.com/Deepwise-AILab/ChestX-Det10-Dataset."
    )
