"""Damaged tables of every form: records, or one sentence."""

import io
import json
import sys
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from fuzz.mutations import fuzz, run_child
from PIL import Image

from processing_tier.readers import list_splits, read_records

FORMS = (".csv", ".tsv", ".jsonl", ".json", ".parquet", ".xlsx", ".csv.gz")
BOXES = [{"label": "Edema", "bbox_xywh": [1, 2, 3, 4]}]
MASKS = [{"finding": "Edema", "height": 4, "width": 5, "counts": [3, 5, 12]}]


def make_frame() -> pd.DataFrame:
    rows = 6
    return pd.DataFrame(
        {
            "image": [f"{i}.png" for i in range(rows)],
            "image_id": [f"i{i}" for i in range(rows)],
            "patient_id": ["00061", "62", "62", "63", "64", "65"],
            "view": ["PA", "AP", "LL", "", "postero-anterior", "PA"],
            "report": [
                "FINDINGS: Clear.\nIMPRESSION: No edema.",
                "Edema, small",
                "",
                "x",
                "IMPRESSION: y",
                "[FINDINGS] z",
            ],
            "split": ["train", "train", "train", "validation", "train", "test"],
            "Edema": [1.0, 0.0, -1.0, 1.0, np.nan, 0.0],
            "sex": ["F", "M", "Male", "", "O", "F"],
            "age": [40, 411, -1, 3, 80, 9],
            "boxes": [json.dumps(BOXES), "", "[]", "", "", ""],
        }
    )


def write_seeds(folder: Path) -> dict[str, Path]:
    """Folders with a table and its images; an image folder; Parquet with images in it and `save_to_disk`."""
    buffer = io.BytesIO()
    Image.new("L", (5, 4), 7).save(buffer, "PNG")
    frame, seeds = make_frame(), {}
    for form in FORMS:
        root = folder / f"table{form}"
        root.mkdir(parents=True)
        path = root / f"table{form}"
        if form == ".parquet":
            frame.assign(boxes=[BOXES] * len(frame), masks=[MASKS] * len(frame)).to_parquet(path)
        elif form == ".xlsx":
            frame.to_excel(path, index=False)
        elif form in (".json", ".jsonl"):
            nested = frame.assign(boxes=[BOXES] * len(frame), masks=[MASKS] * len(frame))
            nested.to_json(path, orient="records", lines=form == ".jsonl")
        else:
            frame.to_csv(path, index=False, sep="\t" if form == ".tsv" else ",")
        seeds[form] = root
    root = folder / "imagefolder"
    (root / "train").mkdir(parents=True)
    frame.drop(columns=["split"]).rename(columns={"image": "file_name"}).to_csv(
        root / "train" / "metadata.csv", index=False
    )
    seeds["imagefolder"] = root
    for root in [*seeds.values(), seeds["imagefolder"] / "train"]:
        for name in frame["image"]:
            (root / name).write_bytes(buffer.getvalue())
    embedded = datasets.Dataset.from_dict(
        {
            "image": [{"bytes": buffer.getvalue(), "path": name} for name in frame["image"]],
            **{name: frame[name].tolist() for name in ("image_id", "patient_id", "report", "Edema")},
        }
    ).cast_column("image", datasets.Image(decode=False))
    (folder / "hub" / "data").mkdir(parents=True)
    embedded.to_parquet(folder / "hub" / "data" / "train-00000-of-00001.parquet")
    datasets.DatasetDict({"train": embedded}).save_to_disk(folder / "saved")
    return seeds | {"hub": folder / "hub", "saved": folder / "saved"}


def read(folder: Path) -> None:
    table = folder / folder.name
    data = table if table.is_file() else folder
    for split in list_splits(data)[:1]:
        records = read_records(data, split)
        assert records[0]["image"] and len(records["image_id"][:]) == len(records) > 0
        assert all(isinstance(value, str) and value for value in records["patient_id"][:])


def victims(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".png"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_damaged_tables_are_read_or_refused(tmp_path):
    seeds = write_seeds(tmp_path)
    for seed in seeds.values():  # undamaged, each is read
        read(seed)
    found = run_child(__file__, list(seeds.values()), 40)
    assert found["read"] > 60 and found["refused"] > 60


if __name__ == "__main__":
    fuzz(read, victims)
