import inspect
from pathlib import Path

import pandas as pd
import pytest

from processing_tier import readers
from processing_tier.phantom.dataset import make_phantom
from processing_tier.phantom.findings import PHANTOM_FINDINGS
from processing_tier.readers import dataset_name, list_splits, origin_name, read_records
from processing_tier.records.schema import check_columns, check_disjoint_patients, finding_columns
from processing_tier.records.table_options import TableOptions


@pytest.fixture
def archive(monkeypatch):
    """The calls of a reader named "archive", the only one."""
    calls = []

    def read_archive(root, split, *, labels="expert", minimum=0, masks=True):
        calls.append((root, split, labels, minimum, masks))
        return make_phantom(2, image_size=64, split=split)

    monkeypatch.setattr(readers, "READERS", {"archive": (read_archive, ("train", "test"))})
    return calls


def test_archive(archive):
    assert len(read_records("archive:/data/of it", "test")) == 2
    read_records("archive:/data,labels=text,minimum=50", "train")
    read_records("archive:/data,labels=70,masks=False", "train")
    assert archive == [
        ("/data/of it", "test", "expert", 0, True),
        ("/data", "train", "text", 50, True),
        ("/data", "train", "70", 0, False),
    ]
    assert list_splits("archive:/data") == ["train", "test"]


def test_splits(tmp_path):
    assert list_splits("phantom:seed=1") == ["train", "validation", "test"]
    table = tmp_path / "table.csv"
    pd.DataFrame({"file_name": ["a"], "patient_id": ["1"]}).to_csv(table)
    assert list_splits(table) == ["train"]
    pd.DataFrame({"file_name": list("abc"), "split": ["val", "train", None], "set": "x"}).to_csv(table)
    assert list_splits(table) == ["train", "val"]
    assert list_splits(table, TableOptions({"split": "set"})) == ["x"]
    table.rename(tmp_path / "metadata.csv")
    assert list_splits(tmp_path) == ["train", "val"]
    for split in ("test", "dev"):
        (tmp_path / split).mkdir()
        pd.DataFrame({"file_name": ["a"]}).to_csv(tmp_path / split / "metadata.csv")
    assert list_splits(tmp_path) == ["dev", "test"]
    with pytest.raises(ValueError, match="nowhere: the folder does not exist"):
        list_splits("nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no metadata.csv is in it"):
        list_splits(tmp_path / "empty")


def test_prepared_folder(tmp_path):
    (tmp_path / "data").mkdir()
    phantom = make_phantom(2, image_size=64, split="test")
    phantom.to_parquet(tmp_path / "data/test-00000-of-00001.parquet")
    assert list_splits(tmp_path) == ["test"]
    assert read_records(tmp_path, "test")["report"][:] == phantom["report"][:]
    with pytest.raises(ValueError, match="image_root='x' has no effect on"):
        read_records(tmp_path, "test", TableOptions(image_root="x"))


def test_a_folder_that_is_not_there_may_be_a_name_on_the_hub():
    with pytest.raises(ValueError, match="owner/name: the split 'train' cannot be read"):
        read_records("owner/name", "train")


def test_dataset_name(tmp_path, archive):
    assert dataset_name("phantom:seed=1") == "phantom:seed=1"
    assert dataset_name("archive:/secret/place,labels=text") == "archive"
    assert dataset_name(tmp_path / "cxr.csv") == "cxr.csv"
    assert dataset_name(f"{tmp_path}/cxr/") == "cxr"


def test_phantom():
    dataset = read_records("phantom:num_images=6,seed=3,image_size=64", "validation")
    expected = make_phantom(6, seed=3, image_size=64, split="validation")
    check_columns(dataset)
    assert finding_columns(dataset) == list(PHANTOM_FINDINGS)
    assert dataset["image"][:] == expected["image"][:] and dataset["report"][:] == expected["report"][:]
    train = read_records("phantom:num_images=6,seed=3,image_size=64", "train")
    check_disjoint_patients(train=train, validation=dataset)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (
            "phantom:images=3",
            {},
            "phantom option 'images=3' is not known; use num_images, seed, image_size with a whole number each.",
        ),
        (
            "phantom:seed=x",
            {},
            "phantom option 'seed=x' is not known; use num_images, seed, image_size with a whole number each.",
        ),
        (
            "phantom",
            {"columns": {"image": "x"}},
            "columns and image_root have no effect on 'phantom'; leave them out.",
        ),
        ("archive", {}, "'archive' needs the folder of its archive: archive:FOLDER."),
        ("archiv:/x", {}, "the reader 'archiv' is not known; did you mean 'archive'? The readers are archive."),
        ("archive:/x,label=a", {}, "archive has no option 'label'; it has labels, minimum, masks."),
        ("archive:/x,minimum=few", {}, "archive: minimum=few is not a whole number of at most 9 digits."),
        ("archive:/x,masks=no", {}, "archive: masks=no is not true or false."),
        ("ARCH-IVE:/x", {}, "the reader 'ARCH-IVE' is not known; did you mean 'archive'? The readers are archive."),
        ("xyz:/x", {}, "the reader 'xyz' is not known; the readers are archive."),
        (
            "archive:/x",
            {"columns": {"image": "x"}},
            "columns and image_root have no effect on 'archive'; leave them out.",
        ),
        ("archive:/x", {"image_root": "y"}, "image_root='y' has no effect on 'archive'; leave it out."),
        ("nowhere", {}, "nowhere: the folder does not exist; check the path of the data."),
    ],
)
def test_bad_data(data, options, message, archive):
    with pytest.raises(ValueError) as error:
        read_records(data, "train", TableOptions(**options))
    assert str(error.value) == message


@pytest.mark.parametrize(
    "content, origin",
    [
        ('{"data": "mimic_cxr"}', "mimic_cxr"),
        ('{"data": 5}', "copy"),
        ('{"data": ""}', "copy"),
        ('["mimic_cxr"]', "copy"),
        ("[" * 100_000, "copy"),
        (" " * 2**20 + '{"data": "mimic_cxr"}', "copy"),
        (None, "copy"),
    ],
)
def test_a_prepared_folder_knows_its_origin(content, origin, tmp_path):
    folder = tmp_path / "copy"
    folder.mkdir()
    if content is not None:
        (folder / "prepare.json").write_text(content)
    assert origin_name(folder) == origin
    assert dataset_name(folder) == "copy"  # what results call it


def test_every_reader_is_documented():
    """A reader is an entry of READERS, and a row of a table that tells users where the archive comes from."""
    page = Path(__file__).resolve().parents[3] / "docs/public_datasets.md"
    table = page.read_text(encoding="utf-8").partition("## The archives")[2].partition("\n## ")[0]
    header, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if "|" in line)
    assert header == ["Name", "Images", "Where", "Account", "Terms", "What is derived"]
    of_reader = {row[0]: row for row in rows}
    missing = [name for name in readers.READERS if f"`{name}`" not in of_reader]
    assert not missing, f"add to the tables of {page.name}: {', '.join(missing)}"
    assert all(len(row) == len(header) and all(row) for row in rows)
    for name, (read, splits) in readers.READERS.items():
        documentation = inspect.getmodule(read).__doc__
        assert "Where" in documentation and "Derived fields:" in documentation, name  # what tier-prepare's card shows
        assert splits and read.__doc__, name
