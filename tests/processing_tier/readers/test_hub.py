import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from archive_files import no_split
from hub_server import Commit, HubServer, Repo
from pictures import png

from processing_tier import read_radiograph
from processing_tier.readers import list_splits, read_records
from processing_tier.readers.hub import list_hub_splits, read_hub
from processing_tier.records.schema import REQUIRED_COLUMNS

ROOT = Path(__file__).resolve().parents[3]


def write(folder: Path, rows: list[dict], features: dict, name="train-00000-of-00001.parquet") -> Path:
    """A shard as anybody could write it: `datasets` would replace the paths."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    schema = datasets.Features(features).arrow_schema
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / "data" / name)
    return folder


def record(i: int, **others) -> dict:
    texts = {column: f"{column} {i}" for column in REQUIRED_COLUMNS[1:]}
    return {"image": {"bytes": png(i), "path": None}, **texts, "view": "AP", "split": "train", "Edema": 1.0, **others}


SCHEMA = {
    "image": datasets.Image(),
    **{column: datasets.Value("string") for column in REQUIRED_COLUMNS[1:]},
    "Edema": datasets.Value("float32"),
}


@pytest.mark.parametrize("streaming", [False, True])
def test_prepared_folder(tmp_path, streaming):
    for shard in range(2):
        rows = [record(10 * shard + i) for i in range(3)]
        write(tmp_path / "p", rows, SCHEMA, f"train-{shard:05d}-of-00002.parquet")
    records = read_hub(tmp_path / "p", "train", streaming=streaming)
    assert isinstance(records, datasets.IterableDataset if streaming else datasets.Dataset)
    assert list(records) == [record(i) for i in (0, 1, 2, 10, 11, 12)]
    assert records.features["image"] == datasets.Image(decode=False)
    assert records.features["Edema"] == datasets.Value("float32")
    assert not streaming or records.num_shards == 2
    assert list_splits(tmp_path / "p") == ["train"] and len(list(read_records(tmp_path / "p", "train"))) == 6


@pytest.mark.parametrize("streaming", [False, True])
def test_columns_of_others(tmp_path, streaming):
    rows = [
        {
            "img": {"bytes": png(7), "path": "x.png"},
            "caption": "Clear.",
            "who": 5,
            "edema": 0,
            "pos": "LL",
            "flag": True,
        },
        {
            "img": {"bytes": png(8), "path": "y.png"},
            "caption": None,
            "who": 6,
            "edema": None,
            "pos": None,
            "flag": None,
        },
    ]
    features = {"img": datasets.Image(), "caption": datasets.Value("string"), "who": datasets.Value("int64")}
    features |= {"edema": datasets.Value("int64"), "pos": datasets.Value("string"), "flag": datasets.Value("bool")}
    folder = write(tmp_path / "other", rows, features, "train-00000-of-00001-abc.parquet")
    columns = {"image": "img", "impression": "caption", "patient_id": "who", "Edema": "edema", "view": "pos"}
    records = read_hub(folder, "train", {**columns, "Device": "flag"}, streaming)
    assert list(records.features) == [*REQUIRED_COLUMNS, "Edema", "Device"]
    first, second = records
    assert (first["impression"], first["report"], first["findings"]) == ("Clear.", "Clear.", "")
    assert (first["patient_id"], first["view"], first["Edema"], first["Device"]) == ("5", "LATERAL", 0, 1)
    assert (second["impression"], second["view"], first["split"]) == ("", "OTHER", "train")
    assert np.isnan(second["Edema"]) and np.isnan(second["Device"])
    assert first["image_id"] == first["study_id"] != second["image_id"]
    assert [np.asarray(read_radiograph(r["image"])).max() for r in (first, second)] == [7, 8]
    # An image is enough: it is its own patient, and frontal
    alone = list(read_hub(folder, "train", {"image": "img"}, streaming))
    assert [r["patient_id"] == r["image_id"] and r["view"] == "PA" and r["report"] == "" for r in alone] == [True] * 2
    with pytest.raises(ValueError, match="finding 'Edema' has a value other than 1"):
        list(read_hub(folder, "train", {"image": "img", "Edema": "who"}, streaming))


def test_errors(tmp_path):
    folder = write(tmp_path / "p", [record(0)], SCHEMA | {"kind": datasets.ClassLabel(names=["no", "yes"])})
    for arguments, message in (
        ((folder, "test"), no_split(folder, "test", "train")),
        (
            (folder, "train", {"image": "img"}),
            f"{folder}: column 'img' (for 'image') is missing; it has image, image_id",
        ),
        (
            (folder, "train", {"x": "kind"}),
            f"{folder}: finding 'x' has the classes no, yes; map it to 1, 0, -1 and blank",
        ),
        ((tmp_path, "train"), f"{tmp_path}: it has no data/<split>-00000-of-00001.parquet; name a folder that tier-"),
        (("owner/name", "train"), "owner/name: the split 'train' cannot be read ("),
    ):
        with pytest.raises(ValueError) as error:
            read_hub(*arguments)
        assert str(error.value).startswith(message)
    with pytest.raises(ValueError, match="owner/name: the data set cannot be read"):
        list_hub_splits("owner/name")
    write(folder, [{"text": "no image"}], {"text": datasets.Value("string")}, "test-00000-of-00001.parquet")
    with pytest.raises(ValueError, match="the column 'image' is missing"):
        read_hub(folder, "test")
    (folder / "data" / "train-00000-of-00001.parquet").rename(folder / "data" / "train-00001-of-00003.parquet")
    with pytest.raises(ValueError, match="2 of 3 files of the split 'train' are missing"):
        read_hub(folder, "train")
    (folder / "data" / "train-00001-of-00003.parquet").unlink()
    (folder / "data" / "val-00000-of-00001.parquet").write_bytes(b"PAR1 nonsense PAR1")
    with pytest.raises(
        ValueError, match="val-00000-of-00001.parquet: the file is not a readable parquet table; copy it again."
    ):
        read_hub(folder, "val")


@pytest.mark.parametrize("streaming", [False, True])
def test_paths_do_not_leave_the_folder(tmp_path, streaming, monkeypatch):
    (tmp_path / "secret.png").write_bytes(png(99))
    for path in (str(tmp_path / "secret.png"), "../secret.png", "/etc/passwd"):
        folder = write(tmp_path / path.replace("/", "_"), [record(1, image={"bytes": None, "path": path})], SCHEMA)
        with pytest.raises(ValueError, match=f"{Path(path).name}: the path leaves the image folder"):
            list(read_hub(folder, "train", streaming=streaming))
        with pytest.raises(ValueError, match="the path leaves the image folder"):
            list(read_hub(folder, "train", {"Edema": "Edema"}, streaming))
    folder = write(tmp_path / "none", [record(1, image={"bytes": None, "path": None}), record(2)], SCHEMA)
    with pytest.raises(ValueError, match="neither bytes nor a path"):
        list(read_hub(folder, "train", streaming=streaming))
    # Bytes win over a file of that name in the working folder
    monkeypatch.chdir(tmp_path)
    both = record(3, image={"bytes": png(3), "path": "secret.png"})
    folder = write(tmp_path / "both", [both], SCHEMA)
    (same,) = read_hub(folder, "train", streaming=streaming)
    assert np.asarray(read_radiograph(same["image"])).max() == 3
    # A shard that is a link to a file outside
    os.symlink(
        folder / "data" / "train-00000-of-00001.parquet", tmp_path / "none" / "data" / "x-00000-of-00001.parquet"
    )
    with pytest.raises(ValueError, match="the path leaves the image folder"):
        read_hub(tmp_path / "none", "x", streaming=streaming)


@pytest.mark.slow
def test_from_the_hub(tmp_path):
    """Over HTTP, from a stand-in for the Hub; in a separate process, because the address is read at import."""
    folder = write(tmp_path / "p", [record(i) for i in range(3)], SCHEMA)
    shard = (folder / "data" / "train-00000-of-00001.parquet").read_bytes()
    card = b"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: %s\n---\n"
    code = (
        "from processing_tier.readers import list_splits, read_records\n"
        "from processing_tier.readers.hub import read_hub\n"
        "try:\n"
        "    print(list_splits('user/data'), read_records('user/data', 'train')['image_id'][:])\n"
        "    print([len(r['image']['bytes']) for r in read_hub('user/data', 'train', streaming=True)])\n"
        "except ValueError as error:\n"
        "    print(error)\n"
    )
    with HubServer() as hub:
        env = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": "token", "HF_HUB_DISABLE_XET": "1"}
        env |= {"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}

        def run(path: bytes) -> str:
            files = {"README.md": card % path, "data/train-00000-of-00001.parquet": shard}
            hub.repos["user/data"] = Repo(private=True, commits=[Commit(path.decode(), files)])
            result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
            assert result.returncode == 0, result.stderr
            return result.stdout

        expected = f"['train'] ['image_id 0', 'image_id 1', 'image_id 2']\n{[len(png(i)) for i in range(3)]}\n"
        assert run(b"data/train-*") == expected
        outside = run(str(folder / "data" / "train-*").encode())
        assert outside.startswith("user/data: ") and "image_id" not in outside
