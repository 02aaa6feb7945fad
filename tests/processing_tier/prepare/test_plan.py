import datasets
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from preparation import REPORT, options

from processing_tier.prepare.options import PrepareOptions
from processing_tier.prepare.plan import list_images
from processing_tier.prepare.run import prepare
from processing_tier.readers import read_records
from processing_tier.readers.hub import read_hub


def test_patient_in_two_splits(table, tmp_path):
    frame = pd.read_csv(table, dtype=str)
    frame.loc[14, "patient_id"] = "p0"
    frame.to_csv(table, index=False)
    with pytest.raises(ValueError, match="1 patient is in both 'train' and 'validation'"):
        prepare(options(table), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert prepare(options(table, splits=("train",)), tmp_path / "out")["splits"].keys() == {"train"}


@pytest.mark.slow
def test_filters_and_sections(table, tmp_path):
    summary = prepare(options(table, views="frontal", text="both"), tmp_path / "filtered")
    split = summary["splits"]["train"]
    assert (split["images"], split["not_frontal"], split["without_text"]) == (12, 1, 1)
    prepare(options(table, report_style="tier"), tmp_path / "tier")
    record = next(r for r in read_hub(tmp_path / "tier", "validation") if r["image_id"] == "15")
    assert (record["findings"], record["impression"]) == ("the heart is large.", "cardiomegaly.15")
    chexzero = prepare(options(table, report_style="chexzero"), tmp_path / "chexzero")
    assert chexzero["splits"]["validation"]["empty"]["findings"] == 6
    record = next(r for r in read_hub(tmp_path / "chexzero", "validation") if r["image_id"] == "15")
    assert record["impression"] == "Cardiomegaly.15" and record["report"] == REPORT + "15"
    with pytest.raises(ValueError, match="split 'train': none of 14 records is left"):
        frame = pd.read_csv(table, dtype=str).assign(view="LATERAL")
        frame.to_csv(table, index=False)
        prepare(options(table, views="frontal"), tmp_path / "none")


def test_records_are_held_to_their_images(table, tmp_path):
    """By the name of the file where it is one, by its size where it is embedded."""
    prepare(options(table), tmp_path / "out", num_workers=1)
    frame = pd.read_csv(table, dtype=str).assign(image_id=[f"{i:02d}" for i in range(20)])
    frame.to_csv(table, index=False)
    prepare(options(table), tmp_path / "out", num_workers=1)  # the ids as they were: the stems of the names
    frame["image"] = frame["image"].to_list()[13::-1] + frame["image"].to_list()[14:]
    frame.to_csv(table, index=False)
    with pytest.raises(ValueError, match="the records of reports.csv have changed since the output"):
        prepare(options(table), tmp_path / "out", num_workers=1)
    records = read_hub(tmp_path / "out", "train")
    sizes = list_images(records)
    assert sizes.tolist() == [len(record["image"]["bytes"]) for record in records]
    assert sorted(list_images(read_records(table, "validation"))) == [f"{i}.png" for i in range(14, 20)]


def test_splits_with_other_findings(tmp_path):
    for split, finding in (("train", "Edema"), ("test", "Nodule")):
        (tmp_path / "data" / split).mkdir(parents=True)
        Image.linear_gradient("L").save(tmp_path / "data" / split / "a.png")
        frame = pd.DataFrame({"file_name": ["a.png"], "patient_id": [split], finding: [1]})
        frame.to_csv(tmp_path / "data" / split / "metadata.csv", index=False)
    prepare(PrepareOptions(str(tmp_path / "data")), tmp_path / "out")
    record = read_hub(tmp_path / "out", "test")[0]
    assert record["Nodule"] == 1 and np.isnan(record["Edema"])
    assert set(datasets.load_dataset(str(tmp_path / "out"))) == {"train", "test"}  # one schema for all splits


@pytest.mark.parametrize("names", [("0", "no"), ("gr\u00f6\u00dfe", "1e3")])
def test_names_of_splits(table, tmp_path, names):
    """Also what a bare word would be a number, a truth value or nothing in YAML."""
    frame = pd.read_csv(table, dtype=str)
    frame["split"] = frame["split"].map(dict(zip(("train", "validation"), names, strict=True)))
    frame.to_csv(table, index=False)
    prepare(options(table, shard_images=20), tmp_path / "out")
    for streaming in (False, True):
        loaded = datasets.load_dataset(str(tmp_path / "out"), streaming=streaming)
        assert {split: len(list(loaded[split])) for split in loaded} == dict(zip(names, (14, 6), strict=True))
        assert len(list(read_hub(tmp_path / "out", names[1], streaming=streaming))) == 6


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "../../validation",
            "split '../../validation' cannot be the name of a file; use only letters, digits and _.",
        ),
        ("All", "split 'All' cannot be loaded: to `datasets` it means all splits; rename it."),
        ("", "no row of the data has a split; fill the column, or name another one with --columns split=COLUMN."),
    ],
)
def test_splits_that_cannot_be(table, tmp_path, name, message):
    frame = pd.read_csv(table, dtype=str)
    frame["split"] = frame["split"].replace({"train": name if name else None, "validation": name or None})
    frame.to_csv(table, index=False)
    with pytest.raises(ValueError) as error:
        prepare(options(table), tmp_path / "out")
    assert str(error.value) == message
    assert not (tmp_path / "out").exists()
