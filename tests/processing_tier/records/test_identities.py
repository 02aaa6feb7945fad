import json

import datasets
import numpy as np
import pytest

from processing_tier.records.identities import (
    BLOCK,
    BLOCKS,
    TrainedOn,
    family,
    find_trained_on,
    image_key,
    image_keys,
    make_source,
    patient_keys,
    read_trained_on,
    write_trained_on,
)


def test_an_image_is_known_by_content_whether_embedded_or_in_a_file(tmp_path):
    data = bytes(np.random.default_rng(0).integers(0, 256, BLOCK * BLOCKS * 3 + 7, dtype=np.uint8))
    for name in ("a.png", "b.dcm"):
        (tmp_path / name).write_bytes(data)
    keys = {image_key({"bytes": data, "path": None})}
    keys |= {image_key({"bytes": None, "path": str(tmp_path / name)}) for name in ("a.png", "b.dcm")}
    assert len(keys) == 1 and 0 < keys.pop() < 2**64
    for place in (0, len(data) // 2, len(data) - 1):  # in the first, a middle and the last block
        start = (len(data) - BLOCK) * 7 // 15 if place == len(data) // 2 else place
        changed = bytearray(data)
        changed[start] ^= 1
        assert image_key({"bytes": bytes(changed)}) != image_key({"bytes": data})
    assert image_key({"bytes": data[:-1]}) != image_key({"bytes": data})
    assert image_key({"bytes": None, "path": str(tmp_path / "nowhere.png")}) == 0


def test_a_small_image_is_hashed_whole():
    data = bytearray(BLOCK * BLOCKS)
    key = image_key({"bytes": bytes(data)})
    for place in range(0, len(data), 1000):
        data[place] = 1
        assert image_key({"bytes": bytes(data)}) != key
        data[place] = 0


def test_patients_are_known_by_id_and_data_set():
    keys = patient_keys(["7", "8", "7"], "chexpert")
    assert keys.dtype == np.uint64 and keys[0] == keys[2] != keys[1]
    assert (patient_keys(["7", "8", "7"], "chexpert_plus") == keys).all()  # the same people
    assert not np.isin(patient_keys(["7", "8"], "padchest"), keys).any()
    assert family("phantom:num_images=40,seed=0") == family("phantom:image_size=64") == "phantom"
    assert family("phantom:num_images=40,seed=2") == "phantom:seed=2"


@pytest.mark.parametrize("public", [False, True])
def test_a_list_is_read_as_it_was_written_and_holds_no_clear_text(tmp_path, public):
    images = datasets.Dataset.from_dict({"image": [{"bytes": bytes([i]), "path": "secret.png"} for i in range(3)]})
    source = make_source(
        "own.csv", "train", image_keys(images), ["patient-4711", "patient-4712", "patient-4711"], ["x"]
    )
    assert [len(keys) for keys in source[2:]] == [3, 2, 1]
    path = write_trained_on(tmp_path, TrainedOn((source,), ("owner/name",)), public)
    assert path.name == ("_trained_on.json" if public else "trained_on.json") and find_trained_on(tmp_path) == path
    read = read_trained_on(path)
    assert read.unlisted == ("owner/name",) and read.sources[0][:2] == ("own.csv", "train")
    for keys, written in zip(read.sources[0][2:], source[2:], strict=True):
        np.testing.assert_array_equal(keys, written)
    assert "4711" not in path.read_text() and "secret" not in path.read_text()


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"sources": [{"dataset": "a"}], "unlisted": []}', "[" * 100_000, '{"sources": 3}']
)
def test_a_damaged_list_is_one_sentence(tmp_path, content):
    (tmp_path / "trained_on.json").write_text(content)
    with pytest.raises(ValueError, match="is damaged: the images that the model was trained on are not known"):
        read_trained_on(tmp_path / "trained_on.json")


def test_a_list_that_was_cut_is_damaged(tmp_path):
    path = write_trained_on(tmp_path, TrainedOn((make_source("a", "train", np.arange(1, 5, dtype=np.uint64), ["p"]),)))
    content = json.loads(path.read_text())
    content["sources"][0]["images"] = content["sources"][0]["images"][:32]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="is damaged"):
        read_trained_on(path)
