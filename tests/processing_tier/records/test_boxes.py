import pandas as pd
import pytest

from processing_tier.records.boxes import group_boxes


def make_frame(rows) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["image_id", "finding", *"xywh"])


def test_boxes_are_grouped_in_order_and_repeated_rows_left_out(caplog):
    frame = make_frame(
        [
            ("b", "Mass", "1.5", "2", "3", "4"),
            ("a", "Edema", 0, 0, 10, 10),
            ("b", "Nodule", 5, 5, 1, 1),
            ("b", "Mass", "1.5", "2", "3", "4"),
        ]
    )
    boxes = group_boxes(frame, "t.csv", width=10, height=10)
    assert boxes["b"] == [
        {"finding": "Mass", "phrase": "", "x": 1.5, "y": 2.0, "w": 3.0, "h": 4.0},
        {"finding": "Nodule", "phrase": "", "x": 5.0, "y": 5.0, "w": 1.0, "h": 1.0},
    ]
    assert [box["w"] for box in boxes["a"]] == [10.0]
    assert list(boxes.index) == ["b", "a"] and not caplog.messages
    assert group_boxes(frame[:0], "t.csv").empty
    assert group_boxes(frame.assign(phrase="a mass"), "t.csv")["a"][0]["phrase"] == "a mass"


def test_boxes_end_at_the_image(caplog):
    frame = make_frame(
        [
            ("a", "Mass", -2, 3, 5, 4),
            ("a", "Mass", 8, 8, 2.2, 9),
            ("a", "Mass", 8, 1, 2.2, 1),
            ("b", "Mass", 12, 0, 5, 5),
            ("b", "Mass", 1, 1, 0, 5),
            ("b", "Mass", 5, 1, -2, 5),
        ]
    )
    boxes = group_boxes(frame, "t.csv", width=10, height=pd.Series([20, 10, 10, 10, 10, 10]))
    assert [[box[side] for side in "xywh"] for box in boxes["a"]] == [[0, 3, 3, 4], [8, 8, 2, 2], [8, 1, 2, 1]]
    assert "b" not in boxes
    assert caplog.messages == [
        "t.csv: 2 boxes reach beyond their image and are cut, 3 have no area inside it and are left out.",
    ]


@pytest.mark.parametrize("value", [None, "", "x", "nan", "inf"])
def test_coordinates_are_numbers(value):
    with pytest.raises(ValueError) as error:
        group_boxes(make_frame([("a", "Mass", 1, 2, value, 4), ("a", "Mass", 1, 2, 3, 4)]), "t.csv")
    assert str(error.value) == "t.csv: 1 boxes have a coordinate that is not a number; fix or remove their rows."
