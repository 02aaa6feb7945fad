"""Images that cannot be read, or show nothing."""

import csv
import io

import datasets
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from preparation import contents, options

from processing_tier.prepare.options import PrepareOptions
from processing_tier.prepare.run import prepare
from processing_tier.readers.hub import read_hub


@pytest.mark.slow
def test_broken_images_are_quarantined(table, tmp_path):
    out, folder = tmp_path / "out", table.parent
    whole = (folder / "03.png").read_bytes()
    (folder / "03.png").write_bytes(whole[:100])
    (folder / "15.png").write_text("<html>")
    with pytest.raises(ValueError) as error:
        prepare(options(table), out, num_workers=1, max_failed=0.05)
    assert str(error.value).startswith(
        "2 images cannot be read, more than the 1 of 20 that --max_failed 0.05 allows; "
    )
    assert not (out / "README.md").exists()
    assert not list(out.rglob(".*"))
    times = {path.name: path.stat().st_mtime_ns for path in (out / "data").iterdir()}
    summary = prepare(options(table), out, num_workers=2, max_failed=0.1)
    assert times.items() <= {path.name: path.stat().st_mtime_ns for path in (out / "data").iterdir()}.items()
    rows = list(csv.DictReader(io.StringIO((out / "quarantine.csv").read_text())))
    assert [(row["split"], row["image_id"], row["file"]) for row in rows] == [
        ("train", "03", "03.png"),
        ("validation", "15", "15.png"),
    ]
    assert all(row["reason"] and str(folder) not in row["reason"] for row in rows)
    assert [summary["splits"][split]["quarantined"] for split in ("train", "validation")] == [1, 1]
    assert "03" not in read_hub(out, "train")["image_id"] and len(read_hub(out, "train")) == 13
    # The same bytes in one go
    prepare(options(table), tmp_path / "again", num_workers=1, max_failed=1)
    assert contents(tmp_path / "again") == contents(out)
    # The next run takes a repaired file, and writes only its shard again
    (folder / "03.png").write_bytes(whole)
    before = contents(out / "data")
    prepare(options(table), out, max_failed=0.1)
    after = contents(out / "data")
    assert sum(before[name] != after[name] for name in before) == 1
    assert "03" in read_hub(out, "train")["image_id"] and len((out / "quarantine.csv").read_text().splitlines()) == 2


@pytest.mark.slow
def test_split_of_broken_images(table, tmp_path):
    """A shard without a record is fine, a split without one is not."""
    for i in range(14, 18):  # of the six of validation
        (table.parent / f"{i}.png").write_bytes(b"")
    prepare(options(table, splits=("validation",), shard_images=1), tmp_path / "shards", max_failed=1)
    for streaming in (False, True):
        loaded = datasets.load_dataset(str(tmp_path / "shards"), split="validation", streaming=streaming)
        assert {record["image_id"] for record in loaded} == {"18", "19"}
    for i in (18, 19):
        (table.parent / f"{i}.png").write_bytes(b"")
    with pytest.raises(ValueError, match="^split 'validation': none of 6 images can be read; the first is 1..png: "):
        prepare(options(table), tmp_path / "out", max_failed=1)
    assert len((tmp_path / "out" / "quarantine.csv").read_text().splitlines()) == 7
    assert not (tmp_path / "out" / "README.md").exists()


@pytest.mark.slow
def test_nothing_but_broken_images(table, tmp_path):
    for path in table.parent.glob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="images cannot be read, more than the 0 of 20 that --max_failed 0.01 allows"):
        prepare(options(table), tmp_path / "out")
    with pytest.raises(ValueError, match="^split 'train': none of 14 images can be read; the first is "):
        prepare(options(table), tmp_path / "out", max_failed=1)
    assert len((tmp_path / "out" / "quarantine.csv").read_text().splitlines()) == 21


@pytest.mark.slow
def test_pictures_that_show_nothing_are_quarantined(table, make_dicom, tmp_path):
    """They are not failures: no share of them stops a run."""
    out, folder = tmp_path / "out", table.parent
    Image.new("L", (40, 30), 128).save(folder / "03.png")
    ramp = np.arange(1200, dtype=np.uint16).reshape(30, 40)
    (folder / "15.png").write_bytes(make_dicom(ramp, WindowCenter=4000, WindowWidth=10))
    summary = prepare(options(table), out, num_workers=1, max_failed=0)
    rows = list(csv.DictReader(io.StringIO((out / "quarantine.csv").read_text())))
    assert [(row["file"], row["reason"]) for row in rows] == [
        ("03.png", "all pixels of the image are equal; replace the file or leave it out."),
        (
            "15.png",
            "the window or lookup table of the DICOM file lies outside all pixel values, so the picture is a single "
            "grey; correct it, or leave the file out.",
        ),
    ]
    assert [summary["splits"][split]["blank"] for split in ("train", "validation")] == [1, 1]
    assert [summary["splits"][split]["quarantined"] for split in ("train", "validation")] == [1, 1]
    assert "03" not in read_hub(out, "train")["image_id"] and len(read_hub(out, "train")) == 13
    assert "of these: all pixels equal" in (out / "README.md").read_text()
    before = contents(out)
    prepare(options(table), out, max_failed=0)  # tried again, and still blank
    assert contents(out) == before


@pytest.mark.slow
def test_images_of_a_tree_can_be_found(tmp_path):
    """All files are called alike: identifiers, quarantine and messages have their paths."""
    data = tmp_path / "data"
    paths = [f"p{patient}/s1/view1_frontal.png" for patient in range(4)]
    for path in paths:
        (data / path).parent.mkdir(parents=True)
        Image.linear_gradient("L").resize((8, 8)).save(data / path)
    (data / paths[2]).write_bytes(b"<html>")
    pd.DataFrame({"image": paths, "patient_id": range(4), "Edema": ["yes", "no"] * 2}).to_csv(data / "t.csv")
    chosen = PrepareOptions(str(data / "t.csv"), label_values=("yes=1", "no=0"), size=None)
    prepare(chosen, tmp_path / "out", num_workers=1, max_failed=0.5)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "quarantine.csv").read_text())))
    assert [(row["image_id"], row["file"]) for row in rows] == [("p2/s1/view1_frontal", paths[2])]
    records = read_hub(tmp_path / "out", "train")
    assert sorted(zip(records["image_id"], records["Edema"], strict=True)) == [
        ("p0/s1/view1_frontal", 1.0),
        ("p1/s1/view1_frontal", 0.0),
        ("p3/s1/view1_frontal", 0.0),
    ]
