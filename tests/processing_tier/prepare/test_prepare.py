"""tier-prepare's functions: the records again, image for image, whatever made the shards and whenever."""

import csv
import hashlib
import io
import json
import logging
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import processing_tier.prepare.run
from processing_tier import read_radiograph
from processing_tier.prepare.claim import claim, remove_left_behind
from processing_tier.prepare.options import PrepareOptions
from processing_tier.prepare.plan import describe_source, list_images
from processing_tier.prepare.run import prepare
from processing_tier.prepare.shards import scale_mask
from processing_tier.prepare.summary import SOURCE_HEADING
from processing_tier.readers import read_records
from processing_tier.readers.hub import read_hub
from processing_tier.records.masks import decode_mask, encode_mask
from processing_tier.records.schema import REQUIRED_COLUMNS

SIZES = [(40, 60), (64, 40), (40, 40), (16, 30), (90, 80)]  # width, height
REPORT = "FINDINGS:\nThe heart is large.\n\nIMPRESSION:\nCardiomegaly."


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def table(tmp_path) -> Path:
    """Twenty images in two splits, with boxes; patient 3 of train has a lateral image and no text."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "archive"
    folder.mkdir()
    rows = []
    for i in range(20):
        width, height = SIZES[i % len(SIZES)]
        Image.fromarray(rng.integers(0, 256, (height, width), dtype=np.uint8)).save(folder / f"{i:02d}.png")
        rows.append(
            {
                "image": f"{i:02d}.png",
                "patient_id": f"p{i // 2}",
                "study_id": f"s{i // 2}",
                "view": "LATERAL" if i == 6 else "PA",
                "findings": "" if i in (6, 7) else f"The heart {i // 2} is large.",
                "impression": "" if i in (6, 7) else ("No change." if i < 4 else f"Cardiomegaly {i // 2}."),
                "report": "" if i in (6, 7) else ("Same report." if i < 4 else REPORT + str(i)),
                "split": "train" if i < 14 else "validation",
                "Edema": ["1", "0", "-1", ""][i % 4],
                "boxes": json.dumps([{"label": "Edema", "bbox_xywh": [10, 5, 20, 10]}]) if i == 0 else "",
            }
        )
    path = folder / "reports.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


def options(table: Path, **others) -> PrepareOptions:
    return PrepareOptions(str(table), **{"size": 32, "format": "png", "views": "all", "shard_images": 4, **others})


def contents(folder: Path) -> dict[str, str]:
    """Every file of a folder, hidden ones too, and the hash of its bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_records_come_back(table, tmp_path):
    out = tmp_path / "out"
    summary = prepare(options(table), out, num_workers=2)
    assert sorted(path.name for path in (out / "data").iterdir()) == [
        *(f"train-{i:05d}-of-00004.parquet" for i in range(4)),
        *(f"validation-{i:05d}-of-00002.parquet" for i in range(2)),
    ]
    assert [path.name for path in out.glob(".*")] == []
    for split, count in (("train", 14), ("validation", 6)):
        source = {record["image_id"]: record for record in read_records(table, split)}
        prepared, streamed = read_hub(out, split), list(read_hub(out, split, streaming=True))
        loaded = datasets.load_dataset(str(out), split=split)
        assert (
            len(prepared) == len(streamed) == len(loaded) == len(source) == count == summary["splits"][split]["images"]
        )
        assert prepared.column_names == [*REQUIRED_COLUMNS, "Edema", "boxes"]
        assert prepared.features["image"] == datasets.Image(decode=False)
        assert loaded.features["image"] == datasets.Image()
        assert [record["image_id"] for record in prepared] != sorted(source)  # shuffled
        for record, same, picture in zip(prepared, streamed, loaded, strict=True):
            original = source[record["image_id"]]
            image = read_radiograph(original["image"])
            scale = min(1, 32 / min(image.size))
            size = tuple(round(side * scale) for side in image.size)
            expected = image.resize(size, Image.Resampling.BICUBIC)
            assert np.array_equal(read_radiograph(record["image"]), expected)
            assert picture["image"].mode == "L" and picture["image"].size == size
            assert record["image"]["path"] is None and same["image"] == record["image"]
            for name in set(record) - {"image", "boxes"}:
                np.testing.assert_equal(record[name], original[name])
                np.testing.assert_equal(same[name], original[name])
            for box, first in zip(record["boxes"], original["boxes"], strict=True):
                assert (box["finding"], box["phrase"]) == ("Edema", "")
                assert [box[side] for side in "xywh"] == pytest.approx([first[side] * 0.8 for side in "xywh"])
    assert next(iter(datasets.load_dataset(str(out), split="train", streaming=True)))["image"].mode == "L"


def test_same_bytes_however_the_work_is_shared(table, tmp_path):
    prepare(options(table), tmp_path / "one", num_workers=1)
    expected = contents(tmp_path / "one")
    prepare(options(table), tmp_path / "three", num_workers=3)
    assert contents(tmp_path / "three") == expected
    jobs = [prepare(options(table), tmp_path / "jobs", 1, shard_index=i, shard_count=3) for i in (2, 0, 1)]
    assert jobs[:2] == [None, None] and jobs[2]["splits"]["train"]["images"] == 14
    assert contents(tmp_path / "jobs") == expected
    assert prepare(options(table), tmp_path / "one", num_workers=1) == jobs[2]  # nothing to do
    assert contents(tmp_path / "one") == expected
    # What killed runs leave: half a shard, a lost shard, plans
    shards = sorted((tmp_path / "one" / "data").iterdir())
    shards[0].unlink()
    shards[1].write_bytes(shards[1].read_bytes()[:-100])
    work = tmp_path / "one" / ".tier-prepare-0-of-1-abc"
    work.mkdir()
    (work / f"{shards[2].name}.partial").write_bytes(b"half")
    untouched = shards[2].stat().st_mtime_ns
    prepare(options(table), tmp_path / "one", num_workers=2)
    assert contents(tmp_path / "one") == expected
    assert not work.exists()
    assert shards[2].stat().st_mtime_ns == untouched
    # Another seed is another order of the same images
    prepare(options(table, seed=1), tmp_path / "other")
    first, second = (read_hub(tmp_path / name, "train") for name in ("one", "other"))
    assert first["image_id"][:] != second["image_id"][:] and set(first["image_id"]) == set(second["image_id"])


def test_two_runs_at_once(table, tmp_path, monkeypatch, caplog):
    """A job begun again while it still runs, and another job of its array: nobody takes another's work away."""
    once, out = tmp_path / "once", tmp_path / "out"
    prepare(options(table), once, num_workers=1)
    make = processing_tier.prepare.run.make_shards

    def others_first(*arguments) -> list[dict]:
        """What happens between the plan of a run and its shards."""
        monkeypatch.setattr(processing_tier.prepare.run, "make_shards", make)
        (mine,) = out.glob(".tier-prepare-*")
        assert prepare(options(table), out, 1, shard_index=1, shard_count=2) is None
        assert list(out.glob(".tier-prepare-*")) == [mine]  # of another part
        assert prepare(options(table), out, 1, shard_index=0, shard_count=2)["splits"]["train"]["images"] == 14
        return make(*arguments)

    monkeypatch.setattr(processing_tier.prepare.run, "make_shards", others_first)
    with caplog.at_level(logging.WARNING):
        summary = prepare(options(table), out, 1, shard_index=0, shard_count=2)
    assert summary == json.loads((once / "summary.json").read_text())
    assert caplog.messages == [f"Another run has made the same part of {out} meanwhile."]
    assert contents(out) == contents(once)


def test_left_behind(tmp_path):
    now = tmp_path / ".tier-prepare-0-of-1-now"
    old, young = tmp_path / ".tier-prepare-3-of-4-old", tmp_path / ".tier-prepare-2-of-4-young"
    for folder, hours in ((now, 0), (young, 23), (old, 25)):
        folder.mkdir()
        os.utime(folder, (time.time() - hours * 3600,) * 2)
    remove_left_behind(tmp_path, now)
    assert set(tmp_path.iterdir()) == {now, young}


@pytest.mark.parametrize("links", [True, False])
def test_one_of_two_claims_wins(tmp_path, monkeypatch, links):
    """Also where the file comes between the look and the write."""
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: os.stat(tmp_path / "no links"))
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    claim(tmp_path, tmp_path / "a", {"data": "x", "size": 1})
    claim(tmp_path, tmp_path / "b", {"data": "x", "size": 1})
    with pytest.raises(ValueError, match="was begun with size=1, not 2; name another output"):
        claim(tmp_path, tmp_path / "b", {"data": "x", "size": 2})
    assert json.loads((tmp_path / "prepare.json").read_text()) == {"data": "x", "size": 1}


def test_killed_before_its_first_file(table, tmp_path):
    """What it leaves does not count as something else in the output."""
    work = tmp_path / "out" / ".tier-prepare-0-of-1-abc"
    work.mkdir(parents=True)
    (work / "prepare.json").write_text("{")
    prepare(options(table), tmp_path / "out", num_workers=1)
    assert not work.exists()


def test_output_is_held_to_its_options(table, tmp_path):
    out = tmp_path / "out"
    prepare(options(table), out)
    expected = contents(out)
    for changed, message in (
        (
            {"size": 16},
            f"the output {out} was begun with size=32, not 16; name another output, or give the same options.",
        ),
        ({"size": None}, f"the output {out} was begun with size=32, not None; name"),
        ({"splits": ("train",)}, f"the output {out} was begun with splits=None, not ['train']; name"),
        ({"format": "jpeg"}, f"the output {out} was begun with format='png', not 'jpeg'; name"),
    ):
        with pytest.raises(ValueError) as error:
            prepare(options(table, **changed), out)
        assert str(error.value).startswith(message)
    table.write_text(table.read_text().replace("Cardiomegaly 5", "Cardiomegaly 6"))
    with pytest.raises(ValueError, match="the records of reports.csv are not those that the output"):
        prepare(options(table), out)
    assert contents(out) == expected
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no prepared data"):
        prepare(options(table), other)
    below = other / "mine.txt" / "below"
    with pytest.raises(ValueError) as error:
        prepare(options(table), below)
    assert str(error.value) == f"the output folder {below} cannot be written (Not a directory); name another one."
    if Path("/proc/self").exists():
        with pytest.raises(
            ValueError, match=r"^the output folder /proc/out cannot be written \(.*\); name another one.$"
        ):
            prepare(options(table), "/proc/out")
    assert contents(other).keys() == {"mine.txt"}


def test_broken_images_are_quarantined(table, tmp_path):
    out, folder = tmp_path / "out", table.parent
    whole = (folder / "03.png").read_bytes()
    (folder / "03.png").write_bytes(whole[:100])
    (folder / "15.png").write_text("<html>")
    with pytest.raises(ValueError) as error:
        prepare(options(table), out, num_workers=1, max_failed=0.05)
    assert str(error.value).startswith("2 images cannot be read, more than the 1 of 20 that max_failed=0.05 allows; ")
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
    # A file that was mended is taken by the next run, and its shard alone is made anew
    (folder / "03.png").write_bytes(whole)
    before = contents(out / "data")
    prepare(options(table), out, max_failed=0.1)
    after = contents(out / "data")
    assert sum(before[name] != after[name] for name in before) == 1
    assert "03" in read_hub(out, "train")["image_id"] and len((out / "quarantine.csv").read_text().splitlines()) == 2


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


def test_nothing_but_broken_images(table, tmp_path):
    for path in table.parent.glob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="images cannot be read, more than the 0 of 20 that max_failed=0.01 allows"):
        prepare(options(table), tmp_path / "out")
    with pytest.raises(ValueError, match="^split 'train': none of 14 images can be read; the first is "):
        prepare(options(table), tmp_path / "out", max_failed=1)
    assert len((tmp_path / "out" / "quarantine.csv").read_text().splitlines()) == 21


def test_patient_in_two_splits(table, tmp_path):
    frame = pd.read_csv(table, dtype=str)
    frame.loc[14, "patient_id"] = "p0"
    frame.to_csv(table, index=False)
    with pytest.raises(ValueError, match="1 patient is in both 'train' and 'validation'"):
        prepare(options(table), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert prepare(options(table, splits=("train",)), tmp_path / "out")["splits"].keys() == {"train"}


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
    with pytest.raises(ValueError, match="the records of reports.csv are not those that the output"):
        prepare(options(table), tmp_path / "out", num_workers=1)
    records = read_hub(tmp_path / "out", "train")
    sizes = list_images(records)
    assert sizes.tolist() == [len(record["image"]["bytes"]) for record in records]
    assert sorted(list_images(read_records(table, "validation"))) == [f"{i}.png" for i in range(14, 20)]


def test_options_of_a_reader_are_recorded(tmp_path):
    data = "mimic_cxr:/archives/mimic,labels=negbio,reports=/home/me/reports.zip"
    recorded = PrepareOptions(data).recorded()
    assert recorded["data"] == "mimic_cxr"
    assert recorded["reader_options"] == {"labels": "negbio", "reports": "reports.zip"}
    prepare(PrepareOptions("phantom:num_images=2", splits=("train",)), tmp_path / "out", num_workers=1)
    assert json.loads((tmp_path / "out" / "prepare.json").read_text())["reader_options"] == {"num_images": "2"}
    assert "\n- Options of the reader: num_images=2.\n" in (tmp_path / "out" / "README.md").read_text()


def test_summary(table, tmp_path):
    out = tmp_path / "out"
    summary = prepare(options(table), out)
    assert json.loads((out / "summary.json").read_text()) == summary
    split = summary["splits"]["train"]
    assert (split["images"], split["patients"], split["studies"]) == (14, 7, 7)
    assert split["views"] == {"LATERAL": 1, "PA": 13}
    assert split["findings"] == {"Edema": {"1": 4, "0": 4, "-1": 3, "blank": 3}}
    assert split["empty"] == {"findings": 2, "impression": 2, "report": 2}
    assert split["words"]["impression"] == [2.0, 2.0, 2.0] and split["words"]["findings"] == [5.0, 5.0, 5.0]
    # "Same report." of the studies s0 and s1; two images of one study with one text do not count
    assert split["studies_with_the_report_of_another"] == 2
    card = (out / "README.md").read_text()
    assert "| images " in card and "num_examples: 14" in card and SOURCE_HEADING in card
    assert str(tmp_path) not in "".join(path.read_text() for path in out.glob("*.[!p]*") if path.suffix != ".jpg")
    assert datasets.load_dataset_builder(str(out)).info.splits["train"].num_examples == 14
    sheet = Image.open(out / "sheet.jpg")
    assert sheet.size == (6 * 256, 4 * 272) and np.asarray(sheet)[:256].std() > 10
    # A prepared data set prepared once more keeps what its card says of the source
    (out / "README.md").write_text(card.partition(SOURCE_HEADING)[0] + SOURCE_HEADING + "\nFrom a hospital.\n")
    prepare(options(out, size=16), tmp_path / "smaller")
    assert (tmp_path / "smaller" / "README.md").read_text().endswith(SOURCE_HEADING + "\nFrom a hospital.\n")
    assert min(read_radiograph(read_hub(tmp_path / "smaller", "train")[0]["image"]).size) == 16


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
            "the window or lookup table of the DICOM file lies outside all pixel values, so that the picture is of "
            "one grey; correct it, or leave the file out.",
        ),
    ]
    assert [summary["splits"][split]["blank"] for split in ("train", "validation")] == [1, 1]
    assert [summary["splits"][split]["quarantined"] for split in ("train", "validation")] == [1, 1]
    assert "03" not in read_hub(out, "train")["image_id"] and len(read_hub(out, "train")) == 13
    assert "of these: all pixels equal" in (out / "README.md").read_text()
    before = contents(out)
    prepare(options(table), out, max_failed=0)  # tried again, and still blank
    assert contents(out) == before


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
            "split '../../validation' cannot be the name of a file; use letters, digits and _ alone.",
        ),
        ("All", "split 'All' cannot be loaded, for `datasets` means all splits by it; rename it."),
        ("", "no row of the data has a split; fill the column, or name another one in columns."),
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


def test_large_jpeg(tmp_path):
    """It is decoded at a quarter of its size, and boxes still count from the whole picture."""
    folder = tmp_path / "data" / "train"
    folder.mkdir(parents=True)
    image = Image.radial_gradient("L").resize((1030, 810))
    image.save(folder / "a.jpg", quality=95)
    box = json.dumps([{"label": "Edema", "bbox_xywh": [103, 81, 515, 405]}])
    frame = pd.DataFrame({"file_name": ["a.jpg"], "patient_id": ["p"], "boxes": [box]})
    frame.to_csv(folder / "metadata.csv", index=False)
    prepare(PrepareOptions(str(tmp_path / "data"), size=81, format="png"), tmp_path / "out")
    (record,) = read_hub(tmp_path / "out", "train")
    stored = read_radiograph(record["image"])
    assert stored.size == (103, 81)
    expected = np.asarray(image.resize((103, 81), Image.Resampling.BICUBIC), np.float32)
    assert np.abs(np.asarray(stored) - expected).mean() < 1
    assert [record["boxes"][0][side] for side in "xywh"] == pytest.approx([10.3, 8.1, 51.5, 40.5])


def test_scale_mask():
    mask = np.zeros((40, 60), bool)
    mask[10:30, 20:40] = True
    scaled = scale_mask({"finding": "x", "height": 40, "width": 60, "counts": encode_mask(mask)}, 30, 20, 60, 40)
    assert (scaled["finding"], scaled["height"], scaled["width"]) == ("x", 20, 30)
    assert np.array_equal(decode_mask(scaled["counts"], 20, 30), mask[::2, ::2])


def test_worker_that_dies(tmp_path):
    """As when the kernel takes a worker for want of memory: one sentence, and the run can go on."""
    folder = tmp_path / "data" / "train"
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (1500, 1500), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "a.png", compress_level=0)
    frame = pd.DataFrame({"file_name": ["a.png"] * 200, "image_id": range(200), "patient_id": range(200)})
    frame.to_csv(folder / "metadata.csv", index=False)
    out = tmp_path / "out"

    def kill() -> None:
        while not list(out.glob(".tier-prepare-*/*.partial")):
            time.sleep(0.01)
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    with pytest.raises(ValueError, match="^a worker process died, most likely for want of memory; run again with"):
        prepare(PrepareOptions(str(tmp_path / "data"), size=64), out, num_workers=1)
    killer.join(10)
    assert list(out.glob(".*")) == []


def test_card_repeats_the_terms():
    assert "PhysioNet Credentialed Health Data License" in describe_source("mimic_cxr_jpg:/archives/mimic")
    assert "show nobody" in describe_source("phantom:num_images=2")
    assert describe_source("/archives/reports.csv").startswith("reports.csv, as its owner has it. The terms of its")


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
