"""Tables and annotations that random damage found: the sentence on each."""

import json
import os
import subprocess
import sys

import datasets
import pandas as pd
import pytest

from processing_tier.bounded_json import parse_json
from processing_tier.radiograph_tier import path_under
from processing_tier.readers import list_splits, read_records
from processing_tier.readers.formats import read_frame

ROW = {"image": "a.png", "patient_id": "1", "view": "PA", "sex": "F", "age": 40, "split": "train"}


@pytest.mark.parametrize("value", [[1, "a"], {"a": None}])
@pytest.mark.parametrize("column", ["view", "sex", "age", "split"])
def test_lists_where_one_value_is_due(tmp_path, column, value):
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({**ROW, column: value}))
    with pytest.raises(ValueError) as error:
        read_records(path, "train")
    said = f"column {column!r} (for {column!r}) has lists; give one value in each row."
    assert str(error.value).removeprefix("t.jsonl: ").removeprefix(f"{path}: ") == said
    if column == "split":
        with pytest.raises(ValueError) as error:
            list_splits(path)
        assert str(error.value) == said


@pytest.mark.parametrize("rows", ["1,a\n" + 30 * "2,b\n", "1,a,2,3\n2,b,2,3\n"])
def test_rows_of_more_fields_than_the_header(tmp_path, rows):
    path = tmp_path / "t.csv"
    path.write_text("image,patient_id\n" + rows)
    if rows.count(",") == 31:
        assert len(read_frame(path)) == 31
        return
    with pytest.raises(ValueError) as error:
        read_frame(path)
    assert str(error.value) == f"{path}: the rows have more fields than the header; remove the comma at their ends."


@pytest.mark.slow
def test_a_small_table_takes_little_memory(tmp_path):
    """Reading asks for the memory of the file, not of the largest file that is read."""
    for name in ("t.csv", "t.csv.gz", "t.jsonl"):
        frame = pd.DataFrame([ROW])
        frame.to_json(tmp_path / name, orient="records", lines=True) if name == "t.jsonl" else frame.to_csv(
            tmp_path / name, index=False
        )
    code = (
        "import pathlib, resource, sys\n"
        "from processing_tier.readers.formats import read_frame\n"
        "size = int(pathlib.Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize() + 2**28\n"
        "resource.setrlimit(resource.RLIMIT_AS, (size, size))\n"
        "for path in map(pathlib.Path, sys.argv[1:]): assert len(read_frame(path)) == 1\n"
    )
    paths = [str(path) for path in sorted(tmp_path.iterdir())]
    assert len(paths) == 3
    result = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, env={**os.environ})
    assert result.returncode == 0, result.stderr[-2000:]


def test_half_a_character_is_not_text():
    assert parse_json('{"a": "\\ud83d\\ude00"}') == {"a": "\U0001f600"}  # two halves
    for text in ('{"a": "\\ud800"}', '{"\\udfff": 1}', "[" * 100_000):
        with pytest.raises(ValueError):
            parse_json(text)


def test_a_path_with_a_nul(tmp_path):
    with pytest.raises(ValueError) as error:
        path_under(tmp_path, "a\0.png")
    assert str(error.value) == "'a\\x00.png' is not a path, since it has a NUL character; fix the record."


def save(folder, **columns):
    data = {"image": [{"bytes": b"x", "path": None}], "patient_id": ["1"], "report": ["Clear."], **columns}
    datasets.Dataset.from_dict(data).cast_column("image", datasets.Image(decode=False)).save_to_disk(folder)
    return folder


def test_the_description_of_a_saved_data_set_may_be_anything(tmp_path):
    folder = save(tmp_path / "d")
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps({**info, "license": 7}))
    assert read_records(folder, "train")["report"][:] == ["Clear."]
    state = json.loads((folder / "state.json").read_text())
    for change in ({"_split": 7}, {"_data_files": []}):
        (folder / "state.json").write_text(json.dumps({**state, **change}))
        with pytest.raises(ValueError, match="d: the split 'train' cannot be read"):
            read_records(folder, "train")


def test_offsets_of_a_saved_data_set_that_lead_outside(tmp_path):
    """The file is mapped, and its offsets would be followed as they are."""
    folder = save(tmp_path / "d", report=["Clear lungs, no effusion."])
    (file,) = folder.glob("*.arrow")
    data = bytearray(file.read_bytes())
    at = data.rindex((0).to_bytes(4, "little") + len("Clear lungs, no effusion.").to_bytes(4, "little"))
    data[at + 4 : at + 8] = (2**31 - 1).to_bytes(4, "little")
    file.write_bytes(data)
    with pytest.raises(ValueError, match="d: the split 'train' cannot be read"):
        read_records(folder, "train")
