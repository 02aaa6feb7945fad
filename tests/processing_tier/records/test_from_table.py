import math

import datasets
import pandas as pd
import pytest
from PIL import Image

from processing_tier.records.from_table import make_records
from processing_tier.records.schema import (
    REQUIRED_COLUMNS,
    finding_columns,
)
from processing_tier.records.views import FRONTAL_VIEWS


@pytest.fixture
def folder(tmp_path):
    for name in "abc":
        Image.new("L", (4, 4)).save(tmp_path / f"{name}.png")
    return tmp_path


def make_frame(**columns) -> pd.DataFrame:
    frame = {"image": ["a.png", "b.png", "c.png"], "patient_id": ["1", "2", "2"]}
    return pd.DataFrame({**frame, **columns})


def test_schema(folder):
    frame = make_frame(
        findings=["Clear.", None, "Big heart."],
        impression=["Normal.", "Effusion.", None],
        Edema=[0.0, 1.0, float("nan")],
    )
    dataset = make_records(frame, {}, folder, "train", "t.csv")
    assert dataset.column_names == [*REQUIRED_COLUMNS, "Edema"]
    assert dataset.features["image"] == datasets.Image(decode=False)
    assert dataset.features["Edema"] == datasets.Value("float32")
    assert dataset[0] == {
        "image": {"bytes": None, "path": str((folder / "a.png").resolve())},
        "image_id": "a",
        "patient_id": "1",
        "study_id": "a",
        "view": "PA",
        "findings": "Clear.",
        "impression": "Normal.",
        "report": "Clear. Normal.",
        "split": "train",
        "Edema": 0.0,
    }
    assert dataset["report"][1:] == ["Effusion.", "Big heart."]
    assert dataset["findings"][1] == "" and math.isnan(dataset["Edema"][2])
    assert set(dataset["view"]) <= set(FRONTAL_VIEWS)  # nothing said: taken as frontal


def test_findings_are_detected_or_listed(folder):
    frame = make_frame(
        Edema=["1.0", "-1.0", None],
        Fracture=[True, False, True],
        Nodule=["True", "False", None],
        width=[400, 1, 0],
        empty=[None] * 3,
        note=["1", "0", "x"],
        age=[0, 1, 1],
    )
    dataset = make_records(frame, {}, folder, "train", "t.csv")
    assert finding_columns(dataset) == ["Edema", "Fracture", "Nodule"]
    assert dataset["Edema"][:2] == [1, -1] and dataset["Fracture"][:] == [1, 0, 1] and dataset["Nodule"][:2] == [1, 0]
    assert dataset["age"][:] == [0, 1, 1]
    listed = make_records(frame, {"Swelling": "Edema", "empty": "empty"}, folder, "train", "t.csv")
    assert finding_columns(listed) == ["Swelling", "empty"]
    assert all(math.isnan(value) for value in listed["empty"])
    with pytest.raises(ValueError) as error:
        make_records(frame, {"Note": "note"}, folder, "train", "t.csv")
    assert str(error.value) == (
        "t.csv: finding 'Note' has 1 values other than 1 (present), 0 (absent), -1 (uncertain) and blank (not "
        "stated): 'x'; map words with --label_values yes=1 no=0, or drop the column."
    )


@pytest.mark.parametrize("values", (["yes", "no", None], [2.0, 2.0, 2.0], ["1", "0", "0.5"]))
def test_a_column_called_like_a_finding_does_not_disappear(folder, values):
    with pytest.raises(ValueError, match=r"t.csv: finding 'Enlarged_Heart' has \d values other than 1 .* drop the"):
        make_records(make_frame(Edema=[1, 0, 0], Enlarged_Heart=values), {}, folder, "train", "t.csv")
    blank = make_records(make_frame(Edema=[1, 0, 0], Enlarged_Heart=None), {}, folder, "train", "t.csv")
    named = make_frame(Edema=[1, 0, 0], Enlarged_Heart=values)
    named = make_records(named, {"Edema": "Edema"}, folder, "train", "t.csv")
    assert finding_columns(blank) == finding_columns(named) == ["Edema"]


def test_optional_columns(folder):
    boxes = ['[{"label": "Edema", "bbox_xywh": [1, 2, 3.5, 4]}]', "[]", None]
    dataset = make_records(make_frame(boxes=boxes, sex=["F", None, "M"]), {}, folder, "train", "t.csv")
    assert dataset["boxes"][:] == [
        [{"finding": "Edema", "phrase": "", "x": 1.0, "y": 2.0, "w": 3.5, "h": 4.0}],
        [],
        [],
    ]
    assert dataset["sex"][:] == ["F", "", "M"]
    assert finding_columns(dataset) == []

    lists = [[{"finding": "Edema", "phrase": "mild edema", "x": 1.0, "y": 2.0, "w": 3.5, "h": 4.0}], [], []]
    masks = [[{"finding": "Edema", "height": 2, "width": 3, "counts": [1, 2, 3]}], [], []]
    dataset = make_records(make_frame(boxes=lists, masks=masks), {}, folder, "train", "t.csv")
    assert dataset["boxes"][:] == lists and dataset["masks"][:] == masks
    assert finding_columns(dataset) == []

    box = {"finding": "Edema", "x": 1, "y": 2, "w": 3, "h": 4}
    for value in (
        "[1]",
        "null",
        '[{"label": 5, "bbox_xywh": [1, 2, 3, 4]}]',
        [{"label": "Edema", "bbox": [1, 2, 3, 4]}],
        [1, 2],
        [{**box, "x": "left"}],
    ):
        with pytest.raises(ValueError) as error:
            make_records(make_frame(boxes=[value, "", ""]), {}, folder, "train", "t.csv")
        assert str(error.value) == (
            "t.csv: a value of the boxes column is not a JSON list of label and bbox_xywh; fix or drop the column."
        )
    with pytest.raises(
        ValueError, match="^t.csv: a box has a coordinate that is not a number; fix or drop the column.$"
    ):
        make_records(make_frame(boxes=[[{**box, "x": math.nan}], [], []]), {}, folder, "train", "t.csv")


@pytest.mark.parametrize(
    ("frame", "columns", "message"),
    [
        (
            make_frame(),
            {"impression": "text"},
            "t.csv: column 'text' (for 'impression') is missing; it has image, patient_id.",
        ),
        (
            make_frame().drop(columns="patient_id"),
            {},
            "t.csv: the column for 'patient_id' is missing; name it with --columns patient_id=COLUMN. It has image.",
        ),
        (make_frame()[:0], {}, "t.csv: the split 'train' is empty; check the file and the split."),
        (
            make_frame(patient_id=["1", None, None]),
            {},
            "t.csv: 2 rows have no 'patient_id' (for 'patient_id'); fill or remove them.",
        ),
        (
            make_frame(image=["a.png", "sub/x.png", "y.png"]),
            {},
            "t.csv: 2 of 3 images are missing, the first is sub/x.png; check the image folder.",
        ),
        (
            make_frame(image=["a.png", "../b.png", "c.png"]),
            {},
            "b.png: the path leaves the image folder; name the folder that holds the images.",
        ),
    ],
)
def test_bad_tables(frame, columns, message, folder):
    with pytest.raises(ValueError) as error:
        make_records(frame, columns, folder, "train", "t.csv")
    assert str(error.value) == message


def test_images_that_are_not_there_can_be_left_out(folder, caplog):
    frame = pd.DataFrame({"image": ["a.png", "x.png", "c.png"], "patient_id": ["1", "2", "3"], "Edema": [1, 0, None]})
    dataset = make_records(frame, {}, folder, "train", "archive", skip_missing=True)
    assert dataset["patient_id"][:] == ["1", "3"]
    assert dataset["Edema"][0] == 1 and math.isnan(dataset["Edema"][1])
    assert caplog.messages == [
        "archive, split train: 1 of 3 images are missing, the first is x.png: left out.",
    ]
    frame["image"] = ["x.png", "y.png", "z.png"]
    with pytest.raises(ValueError, match="3 of 3 images are missing"):
        make_records(frame, {}, folder, "train", "archive", skip_missing=True)
