import os
import pickle

import pytest
import torch

from training_tier.data import feature_store
from training_tier.data.feature_store import KEY_BYTES, FeatureStore


def make_entries(count=10):
    """Tensors of different lengths, as the tokens of texts."""
    generator = torch.Generator().manual_seed(0)
    lengths = range(1, count + 1)
    return {bytes([i] * KEY_BYTES): torch.randn(i, 4, 3, generator=generator).half() for i in lengths}


@pytest.fixture
def filled(tmp_path, monkeypatch):
    """A folder of several files, with what is in it."""
    monkeypatch.setattr(feature_store, "PART_BYTES", 300)
    entries = make_entries()
    FeatureStore(tmp_path / "store").add(entries.items())
    return tmp_path / "store", entries


def test_what_was_written_is_read_by_another_process(filled):
    folder, entries = filled
    assert len(list(folder.iterdir())) == 4
    store = FeatureStore(folder)
    for one in (store, pickle.loads(pickle.dumps(store))):
        assert all(key in one and torch.equal(one.read(key), entry) for key, entry in entries.items())
    assert b"x" * KEY_BYTES not in store


def test_a_worker_gets_the_names_of_the_files_and_not_their_content(filled):
    folder, entries = filled
    store = FeatureStore(folder)
    before = len(pickle.dumps(store))
    for key in entries:
        store.read(key)
    assert len(pickle.dumps(store)) == before


@pytest.mark.parametrize("damage", ["one bit", "cut short", "empty", "nothing of the kind"])
def test_a_damaged_file_is_deleted_and_its_keys_are_missing(filled, damage, caplog):
    folder, entries = filled
    file = sorted(folder.iterdir())[1]
    whole = file.read_bytes()
    flipped = whole[:-1] + bytes([whole[-1] ^ 1])
    damaged = {"one bit": flipped, "cut short": whole[:-7], "empty": b"", "nothing of the kind": b"nothing"}
    file.write_bytes(damaged[damage])
    store = FeatureStore(folder)
    missing = {key: entry for key, entry in entries.items() if key not in store}
    assert 0 < len(missing) < len(entries) and not file.exists()
    assert f"{file} is damaged (" in caplog.text and "and is deleted: it is computed again." in caplog.text
    store.add(missing.items())
    store.open()
    assert all(torch.equal(store.read(key), entry) for key, entry in entries.items())


def test_an_interruption_loses_one_file_at_most(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_store, "PART_BYTES", 300)
    entries = make_entries()

    def interrupted():
        yield from list(entries.items())[:8]
        raise KeyboardInterrupt

    store = FeatureStore(tmp_path / "store")
    with pytest.raises(KeyboardInterrupt):
        store.add(interrupted())
    store.open()
    kept = [key for key in entries if key in store]
    assert len(kept) == 7 and all(torch.equal(store.read(key), entries[key]) for key in kept)
    assert all(path.suffix == ".safetensors" for path in store.folder.iterdir())


def test_what_a_killed_process_left_is_deleted_after_an_hour(filled):
    folder, _ = filled
    for name, age in ((".a.safetensors.1.partial", 2 * 3600), (".b.safetensors.2.partial", 0)):
        (folder / name).write_bytes(b"half")
        written = (folder / name).stat().st_mtime - age
        os.utime(folder / name, (written, written))
    FeatureStore(folder).add([])
    assert [path.name for path in folder.glob(".*")] == [".b.safetensors.2.partial"]
