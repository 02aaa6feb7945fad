import gzip
import math

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from processing_tier.readers import formats, read_records, read_table
from processing_tier.readers.splits import SPLIT_OPTIONS
from processing_tier.records.schema import finding_columns
from processing_tier.records.table_options import TableOptions

COLUMNS = {"image": "path", "patient_id": "subject", "impression": "report_text", "view": "Frontal/Lateral"}


@pytest.fixture
def frame(tmp_path):
    (tmp_path / "images").mkdir()
    for name in ("1", "2", "3"):
        Image.new("L", (4, 4)).save(tmp_path / "images" / f"{name}.png")
    return pd.DataFrame(
        {
            "path": ["images/1.png", "images/2.png", "images/3.png"],
            "subject": ["007", "008", "008"],
            "report_text": ["Normal.", "Edema.", None],
            "Frontal/Lateral": ["Frontal", "Lateral", "Frontal"],
            "fold": ["train", "train", "test"],
            "edema_label": [0, 1, None],
            "Fracture": [None, -1, 0],
        }
    )


@pytest.fixture(params=["csv", "parquet"])
def table(request, frame, tmp_path):
    path = tmp_path / f"table.{request.param}"
    if request.param == "csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path)
    return path


def test_any_column_names(table, tmp_path):
    dataset = read_records(table, "train", TableOptions({**COLUMNS, "split": "fold"}))
    assert dataset["image_id"][:] == ["1", "2"] and dataset["patient_id"][:] == ["007", "008"]
    assert dataset["impression"][:] == ["Normal.", "Edema."] and dataset["report"][:] == ["Normal.", "Edema."]
    assert dataset["view"][:] == ["PA", "LATERAL"] and dataset["split"][:] == ["train", "train"]
    assert dataset["image"][0]["path"] == str((tmp_path / "images" / "1.png").resolve())
    assert finding_columns(dataset) == ["edema_label", "Fracture"]
    np.testing.assert_array_equal(dataset["edema_label"][:], [0, 1])
    assert math.isnan(dataset["Fracture"][0]) and dataset["Fracture"][1] == -1


def test_listed_findings_and_a_table_that_is_one_split(table):
    dataset = read_table(table, "validation", TableOptions({**COLUMNS, "Edema": "edema_label"}))
    assert finding_columns(dataset) == ["Edema"]
    assert len(dataset) == 3 and set(dataset["split"]) == {"validation"}
    assert dataset["impression"][2] == ""


def test_image_root(table, tmp_path):
    columns = {**COLUMNS, "image": "path"}
    assert len(read_table(table, table=TableOptions(columns, image_root=tmp_path))) == 3
    with pytest.raises(ValueError) as error:
        read_table(table, table=TableOptions(columns, image_root=tmp_path / "images"))
    assert (
        str(error.value) == f"{table}: 3 of 3 images are missing, the first is images/1.png; check the image folder."
    )


def test_errors(table, tmp_path):
    there = "path, subject, report_text, Frontal/Lateral, fold, edema_label, Fracture"
    for columns, split, message in [
        ({"image": "dicom"}, None, f"column 'dicom' (for 'image') is missing; it has {there}."),
        ({**COLUMNS, "split": "set"}, None, f"column 'set' (for 'split') is missing; it has {there}."),
        (
            {"patient_id": "subject"},
            None,
            f"the column for 'image' is missing; name it with --columns image=COLUMN. It has {there}.",
        ),
        ({**COLUMNS, "split": "fold"}, None, f"which split? It has train, test. Choose one with {SPLIT_OPTIONS}."),
        (
            {**COLUMNS, "split": "fold"},
            "validation",
            f"the split 'validation' does not exist; it has train, test. Choose one with {SPLIT_OPTIONS}.",
        ),
    ]:
        with pytest.raises(ValueError) as error:
            read_table(table, split, TableOptions(columns))
        assert str(error.value) == f"{table}: {message}"


def test_rows_without_a_split(frame, tmp_path, caplog):
    """They are left out, with one warning for all splits; "NA", "null" and nothing are blank alike."""
    path, columns = tmp_path / "folds.csv", {**COLUMNS, "split": "fold"}
    rows = pd.concat([frame, frame.assign(fold=["NA", None, "null"])])
    rows.to_csv(path, index=False)
    assert [len(read_records(path, split, TableOptions(columns))) for split in ("train", "test")] == [2, 1]
    assert [record.getMessage() for record in caplog.records] == [f"{path}: 3 of 6 rows have no split: left out."]
    rows.assign(fold=None).to_parquet(path.with_suffix(".parquet"))
    with pytest.raises(ValueError) as error:  # not the split "None"
        read_table(path.with_suffix(".parquet"), "None", TableOptions(columns))
    assert str(error.value) == f"{path.with_suffix('.parquet')}: the split 'None' does not exist; no row has a split."


def test_unreadable_tables(tmp_path):
    for name, content, message in [
        ("none.csv", None, "the file does not exist; check the path."),
        ("empty.csv", b"", "the file is empty; give a table with a header line."),
        ("bad.parquet", b"PAR1 not", "the file is not a readable parquet table; export it again."),
        (
            "bad.csv",
            b'a,b\n"1\n',
            "the file is not a readable csv table (a quotation mark is not closed); export it again.",
        ),
        (
            "long.csv",
            b"a,b\n1,2\n1,2,3\n",
            "the file is not a readable csv table (line 3 has 3 fields, the header 2); export it again.",
        ),
    ]:
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ValueError) as error:
            read_records(path, "train")
        assert str(error.value) == f"{path}: {message}"


def test_a_table_with_a_header_alone(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("image,patient_id\n")
    with pytest.raises(ValueError) as error:
        read_table(path)
    assert str(error.value) == f"{path}: the split 'train' is empty; check the file and the split."


def test_sections_of_whole_reports(frame, tmp_path):
    report = "FINDINGS: Clear.\n\nIMPRESSION: Normal."
    reports = frame.assign(report_text=[report, None, report])
    columns = {"image": "path", "patient_id": "subject", "report": "report_text"}
    reports.to_csv(tmp_path / "reports.csv", index=False)
    dataset = read_table(tmp_path / "reports.csv", table=TableOptions(columns))
    assert dataset["findings"][:] == ["Clear.", "", "Clear."] and dataset["impression"][0] == "Normal."
    assert dataset["report"][:] == [report, "", report]
    reports.assign(conclusion="Own.").to_csv(tmp_path / "own.csv", index=False)
    dataset = read_table(tmp_path / "own.csv", table=TableOptions({**columns, "impression": "conclusion"}))
    assert set(dataset["findings"]) == {""} and set(dataset["impression"]) == {"Own."}  # the table's own are kept


def test_what_a_table_may_hold_is_bounded(frame, tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "MAX_TABLE_BYTES", 10_000)
    for name, data in (("large.csv", b"path\n" + b"a" * 10_000), ("large.csv.gz", gzip.compress(b"a" * 10_001))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError) as error:
            formats.read_frame(tmp_path / name)
        assert str(error.value) == f"{tmp_path / name}: the table is larger than 10,000 bytes; is it the right file?"
    (tmp_path / "small.csv.gz").write_bytes(gzip.compress(frame.to_csv(index=False).encode()))
    assert list(formats.read_frame(tmp_path / "small.csv.gz")["subject"]) == ["007", "008", "008"]


def test_rows_longer_than_the_header_show_nobody(tmp_path):
    (tmp_path / "t.csv").write_text("file_name,patient_id,impression\na.png,Jane Roe,ok,\nb.png,John Doe,ok,\n")
    with pytest.raises(ValueError) as error:
        read_table(tmp_path / "t.csv", "train", TableOptions({"image": "file_name"}))
    assert str(error.value) == (
        f"{tmp_path / 't.csv'}: the rows have more fields than the header; remove the comma at their ends."
    )


def test_a_column_of_patients_is_not_one_of_splits(tmp_path):
    pd.DataFrame({"image": "a.png", "pid": [f"Doe {i}" for i in range(50)]}).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(ValueError) as error:
        read_table(tmp_path / "t.csv", "train", TableOptions({"split": "pid"}))
    assert str(error.value) == f"{tmp_path / 't.csv'}: column 'pid' has 50 values; is it the column of the split?"
