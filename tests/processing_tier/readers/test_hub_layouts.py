import json
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import png
from PIL import Image

from processing_tier.readers import list_splits, read_records
from processing_tier.readers.hub import read_hub
from processing_tier.records.schema import REQUIRED_COLUMNS


def make(rows: int = 2, **columns) -> datasets.Dataset:
    data = {
        "image": [{"bytes": png(i), "path": None} for i in range(rows)],
        "patient_id": list(range(rows)),
        **columns,
    }
    features = {"image": datasets.Image(), "patient_id": datasets.Value("int64")}
    inferred = datasets.Dataset.from_dict(columns).features if columns else {}
    return datasets.Dataset.from_dict(data, features=datasets.Features({**features, **inferred}))


REPORTS = ["FINDINGS: Clear.\nIMPRESSION: Normal.", "FINDINGS: Fluid. IMPRESSION: Effusion."]


@pytest.mark.parametrize(
    "layout",
    ["train.parquet", "data/train.parquet", "default/train/0000.parquet", "train/0.parquet", "saved", "dict", "file"],
)
def test_layouts(tmp_path, layout):
    folder, dataset = tmp_path / "d", make(report=REPORTS)
    folder.mkdir()
    if layout == "saved":
        dataset.save_to_disk(folder)
    elif layout == "dict":
        datasets.DatasetDict(train=dataset, test=dataset).save_to_disk(folder)
    else:
        path = folder / ("any.parquet" if layout == "file" else layout)
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset.to_parquet(path)
        (folder / "README.md").write_text("A card.")
        folder = path if layout == "file" else folder
    assert (
        list_splits(folder) == (["test", "train"] if layout == "dict" else ["train"])[:: -1 if layout == "dict" else 1]
    )
    records = read_records(folder, "train")
    assert records["impression"][:] == ["Normal.", "Effusion."] and records["findings"][:] == ["Clear.", "Fluid."]
    assert records["patient_id"][:] == ["0", "1"] and records["image"][1]["bytes"] == png(1)
    with pytest.raises(ValueError, match="the split 'validation' does not exist; it has"):
        read_records(folder, "validation")


def test_a_file_with_splits(tmp_path):
    make(3, split=["train", "test", "train"]).to_parquet(tmp_path / "t.parquet")
    assert list_splits(tmp_path / "t.parquet") == ["test", "train"]
    assert read_records(tmp_path / "t.parquet", "train")["patient_id"][:] == ["0", "2"]


def test_a_saved_data_set_stays_in_its_folder(tmp_path):
    make().save_to_disk(tmp_path / "a")
    make().save_to_disk(tmp_path / "b")
    state = json.loads((tmp_path / "a" / "state.json").read_text())
    state["_data_files"] = [{"filename": "../b/data-00000-of-00001.arrow"}]
    (tmp_path / "a" / "state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match="data-00000-of-00001.arrow: the path leaves the image folder"):
        read_records(tmp_path / "a", "train")
    (tmp_path / "a" / "state.json").write_text("[]")
    with pytest.raises(ValueError, match="state.json or dataset_dict.json is not as save_to_disk writes it"):
        read_records(tmp_path / "a", "train")


@pytest.mark.parametrize("streaming", [False, True])
def test_texts_of_classes_and_lists(tmp_path, streaming):
    dataset = make(impression=[["Clear lungs.", "No effusion."], ["Effusion."]], kind=[0, 1], Edema=["no", "yes"])
    dataset = dataset.cast_column("kind", datasets.ClassLabel(names=["LATERAL", "antero-posterior"]))
    dataset.save_to_disk(tmp_path / "d")
    columns = {"view": "kind", "findings": "kind", "Edema": "Edema"}
    records = list(read_hub(tmp_path / "d", "train", columns, streaming, {"no": 0.0, "yes": 1.0}))
    assert [record["impression"] for record in records] == ["Clear lungs.\nNo effusion.", "Effusion."]
    assert [record["findings"] for record in records] == ["LATERAL", "antero-posterior"]
    assert [record["view"] for record in records] == ["LATERAL", "AP"]
    assert [record["Edema"] for record in records] == [0, 1]


@pytest.mark.parametrize(
    ("values", "kind"),
    [([[1, 2], [3]], "lists"), ([1, 2], "values of type int64"), ([0.5, 1.5], "values of type float64")],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_columns_that_are_not_images(tmp_path, values, kind, streaming):
    make(pixels=values).save_to_disk(tmp_path / "d")
    with pytest.raises(ValueError) as error:
        read_hub(tmp_path / "d", "train", {"image": "pixels"}, streaming)
    assert str(error.value) == (
        f"{tmp_path / 'd'}: column 'pixels' (for 'image') has {kind}, not one image in each row; name the column of "
        "the images in columns."
    )


def test_a_column_of_paths(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    datasets.Dataset.from_dict({"image": ["a.png"], "patient_id": ["1"]}).save_to_disk(tmp_path / "d")
    (tmp_path / "a.png").rename(tmp_path / "d" / "a.png")
    assert read_records(tmp_path / "d", "train")["image"][0]["path"] == "a.png"


@pytest.mark.parametrize("streaming", [False, True])
def test_boxes_and_masks_are_checked(tmp_path, streaming):
    make(boxes=[[[1, 2, 3, 4]], []]).save_to_disk(tmp_path / "a")
    with pytest.raises(ValueError) as error:
        list(read_hub(tmp_path / "a", "train", None, streaming))
    assert str(error.value) == (
        f"{tmp_path / 'a'}: the boxes column has four numbers without a finding; write each box as "
        '{"label": "Pneumonia", "bbox_xywh": [x, y, width, height]}.'
    )
    mask = {"finding": "Edema", "height": 2, "width": 3, "counts": [1, 5]}
    make(masks=[[mask], [mask]]).save_to_disk(tmp_path / "b")  # of 64 bits
    assert list(read_hub(tmp_path / "b", "train", None, streaming))[0]["masks"] == [mask]
    make(masks=[[mask], [{**mask, "counts": [2**62] * 4 + [6]}]]).save_to_disk(tmp_path / "c")
    with pytest.raises(ValueError, match="the run lengths of a mask do not fill its 2x3 pixels"):
        list(read_hub(tmp_path / "c", "train", None, streaming))


def write_prepared(folder: Path, rows: list[dict], edema: str = "float32") -> Path:
    features = {"image": datasets.Image(), **{column: datasets.Value("string") for column in REQUIRED_COLUMNS[1:]}}
    schema = datasets.Features({**features, "Edema": datasets.Value(edema)}).arrow_schema
    texts = {column: "x" for column in REQUIRED_COLUMNS[1:]}
    rows = [
        {"image": {"bytes": png(i), "path": None}, **texts, "image_id": str(i), "Edema": 0.0, **row}
        for i, row in enumerate(rows)
    ]
    (folder / "data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / "data" / "train-00000-of-00001.parquet")
    return folder


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("edema", ["float32", "float64"])
def test_prepared_labels_are_checked(tmp_path, streaming, edema):
    folder = write_prepared(tmp_path / "a", [{"Edema": -1.0}, {"Edema": None}, {"Edema": 1.0}], edema)
    assert np.isnan(list(read_hub(folder, "train", streaming=streaming))[1]["Edema"] or np.nan)
    folder = write_prepared(tmp_path / "b", [{}, {"Edema": 3.0}], edema)
    with pytest.raises(ValueError) as error:
        list(read_hub(folder, "train", streaming=streaming))
    assert str(error.value) == (
        f"{folder}: finding 'Edema' has a value other than 1 (present), 0 (absent), -1 (uncertain) and blank (not "
        "stated) (3.0); map words with --label_values yes=1 no=0, or drop the column."
    )


@pytest.mark.parametrize("streaming", [False, True])
def test_prepared_identifiers_are_written_one_way(tmp_path, streaming):
    folder = write_prepared(tmp_path / "a", [{"patient_id": " 10"}, {"patient_id": "10.0"}])
    records = read_hub(folder, "train", streaming=streaming)
    assert [record["patient_id"] for record in records] == ["10", "10"]
    assert list(records.features)[: len(REQUIRED_COLUMNS)] == list(REQUIRED_COLUMNS)


def test_rows_are_named(tmp_path):
    folder = write_prepared(tmp_path / "a", [{}, {}, {"image": None}])
    with pytest.raises(ValueError) as error:
        read_hub(folder, "train")
    assert str(error.value) == "the image of row 3 has neither bytes nor a path; leave it out of the data set."
    with pytest.raises(ValueError, match="^image '2' has neither bytes nor a path; leave it out of the data set.$"):
        list(read_hub(folder, "train", streaming=True))
    folder = write_prepared(tmp_path / "b", [{}, {"image_id": "a"}, {"image_id": "a"}])
    with pytest.raises(ValueError, match="rows 2 and 3 have the same image_id 'a'; keep one row for each image"):
        read_hub(folder, "train")
