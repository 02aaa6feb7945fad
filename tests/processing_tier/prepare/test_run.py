"""tier-prepare's functions: the records again, image for image, whatever made the shards and whenever."""

import json
import multiprocessing
import os
import signal
import threading
import time

import datasets
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from preparation import contents, options

from processing_tier import read_radiograph
from processing_tier.prepare.options import PrepareOptions
from processing_tier.prepare.run import prepare
from processing_tier.prepare.shards import scale_mask
from processing_tier.readers import read_records
from processing_tier.readers.hub import read_hub
from processing_tier.records.masks import decode_mask, encode_mask
from processing_tier.records.schema import REQUIRED_COLUMNS


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
    """As when the kernel kills a worker for lack of memory: one sentence, and the run can resume."""
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
    with pytest.raises(ValueError, match="^a worker process died, most likely because memory ran out; run again with"):
        prepare(PrepareOptions(str(tmp_path / "data"), size=64), out, num_workers=1)
    killer.join(10)
    assert list(out.glob(".*")) == []
