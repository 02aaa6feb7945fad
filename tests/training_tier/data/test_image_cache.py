import os
import resource
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from shipped import PROCESSOR_CODE

from processing_tier import TierImageProcessor, read_radiograph
from processing_tier.phantom.dataset import make_phantom
from training_tier.data import image_cache
from training_tier.data.image_cache import CachedImages
from training_tier.data.pairs import PairDataset, PairOptions
from training_tier.options.data import DataArguments

PROCESSOR = TierImageProcessor(size=32)


@pytest.fixture
def records(tmp_path):
    """Six JPEG files of which some are decoded at reduced size and some not, and two images in the records."""
    phantom = make_phantom(8, seed=0, image_size=64)
    (tmp_path / "images").mkdir()
    sizes = [(610, 523), (64, 64), (61, 50), (203, 211), (97, 100), (400, 399)]
    images = []
    for record, size in zip(phantom.select(range(6)), sizes, strict=True):
        path = tmp_path / "images" / f"{record['image_id']}.jpg"
        read_radiograph(record["image"]).resize(size).save(path, quality=95)
        images.append({"bytes": None, "path": str(path)})
    images += phantom.select([6, 7])["image"][:]
    return phantom.remove_columns("image").add_column("image", images, feature=datasets.Image(decode=False))


@pytest.fixture
def decoded(monkeypatch):
    """Counts the files that are decoded."""
    count = []
    read = TierImageProcessor.read
    monkeypatch.setattr(
        TierImageProcessor,
        "read",
        lambda self, source: (isinstance(source, Image.Image) or count.append(1)) and None or read(self, source),
    )
    return count


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    "processor",
    [PROCESSOR, TierImageProcessor(size=32, geometry="crop"), TierImageProcessor(size=32, geometry="squash"),
     TierImageProcessor.chexzero(size=32, resize_edge=40), TierImageProcessor.tier(size=32, resize_edge=36)],
    ids=["pad", "crop", "squash", "chexzero", "tier"],
)  # fmt: skip
def test_pairs_are_those_without_a_cache_whatever_the_augmentation(records, processor, workers, tmp_path):
    state = torch.get_rng_state()
    images = CachedImages(records, processor, tmp_path / "cache", workers)
    assert (images.rows >= 0).all()
    assert torch.equal(torch.get_rng_state(), state)  # a run that fills the cache trains as one that finds it filled
    for augmentation in ("none", "standard", "tier"):
        plain = PairDataset(records, processor, PairOptions(augmentation=augmentation))
        cached = PairDataset(records, processor, PairOptions(augmentation=augmentation), images=images)
        for epoch in range(2):
            plain.set_epoch(epoch)
            cached.set_epoch(epoch)
            for index in range(len(records)):
                one, other = plain[index], cached[index]
                assert torch.equal(one["pixel_values"], other["pixel_values"]) and one["text"] == other["text"]


def test_each_image_is_decoded_once_and_what_has_changed_again(records, decoded, tmp_path):
    def fill(records=records, processor=PROCESSOR):
        decoded.clear()
        return CachedImages(records, processor, tmp_path / "cache"), len(decoded)

    assert fill(records.select(range(5)))[1] == 5
    assert fill()[1] == 3  # what the first lacks
    images, count = fill(records.select([7, 2, 2, 4]))  # other records, in another order
    assert count == 0 and images.read(0).size == (64, 64) and images.read(1).size == (61, 50)
    assert fill(processor=TierImageProcessor(size=32, image_mean=[0.1] * 3))[1] == 0  # comes after reading
    assert fill(processor=TierImageProcessor(size=48))[1] == 8
    assert fill(processor=TierImageProcessor(size=32, geometry="crop"))[1] == 8
    path = records[0]["image"]["path"]
    stat = os.stat(path)
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path, quality=95)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as a copy does that keeps the times
    images, count = fill()
    assert count == 1 and np.array_equal(images.read(0), PROCESSOR.read(path))


def test_what_was_interrupted_goes_on_and_what_is_unfinished_is_not_used(records, decoded, tmp_path, monkeypatch):
    monkeypatch.setattr(image_cache, "PART", 3)
    monkeypatch.setattr(image_cache, "BATCH", 2)
    replace, done = image_cache.Path.replace, []

    def stop(self, target):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(replace(self, target))

    monkeypatch.setattr(image_cache.Path, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        CachedImages(records, PROCESSOR, tmp_path / "cache")
    (folder,) = (tmp_path / "cache").iterdir()
    assert len(list(folder.iterdir())) == 2
    (folder / "other.1.tmp").write_bytes(b"half")
    os.utime(folder / "other.1.tmp", (0, 0))
    done.clear()
    decoded.clear()
    images = CachedImages(records, PROCESSOR, tmp_path / "cache")
    assert len(decoded) == 2 and (images.rows >= 0).all() and len(list(folder.iterdir())) == 3


def test_an_image_that_does_not_decode_has_its_reason_and_is_tried_again(records, tmp_path):
    path = records[1]["image"]["path"]
    whole = open(path, "rb").read()
    with open(path, "wb") as file:
        file.write(whole[:100])
    missing = records[3]["image"]["path"]
    shutil.move(missing, missing + ".gone")
    images = CachedImages(records, PROCESSOR, tmp_path / "cache")
    dataset = PairDataset(records, PROCESSOR, images=images)
    for index in (1, 3):
        assert dataset[index] == PairDataset(records, PROCESSOR)[index] and "error" in dataset[index]
    assert (images.rows < 0).nonzero()[0].tolist() == [1, 3]
    shutil.move(missing + ".gone", missing)
    with open(path, "wb") as file:
        file.write(whole)
    assert (CachedImages(records, PROCESSOR, tmp_path / "cache").rows >= 0).all()


def test_large_images_are_warned_of(records, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(image_cache, "LARGE", 100)
    CachedImages(records, PROCESSOR, tmp_path / "cache")
    assert "MiB each. Use tier-prepare with --size to make them smaller." in caplog.text


def test_a_folder_that_cannot_be_is_refused(records, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"^image_cache '.*file' cannot be used \(.*\); free some space there, or"):
        CachedImages(records, PROCESSOR, tmp_path / "file")


def pixels_of(images, records):
    return [np.asarray(PROCESSOR.read(images.read(index))) for index in range(len(records))]


@pytest.mark.parametrize("damage", ["nothing of the kind", "cut short", "empty"])
def test_a_damaged_file_is_filled_anew(records, decoded, tmp_path, caplog, damage):
    images = CachedImages(records, PROCESSOR, tmp_path / "cache")
    expected = pixels_of(images, records)
    (file,) = images.folder.glob("*.arrow")
    whole = file.read_bytes()
    file.write_bytes({"nothing of the kind": b"nothing", "cut short": whole[: len(whole) // 2], "empty": b""}[damage])
    decoded.clear()
    again = CachedImages(records, PROCESSOR, tmp_path / "cache")
    assert len(decoded) == 8 and file.read_bytes() == whole
    assert all(np.array_equal(*pair) for pair in zip(pixels_of(again, records), expected, strict=True))
    assert f"{file} is damaged (" in caplog.text and "and is deleted: its images are decoded again." in caplog.text


def test_a_flipped_bit_anywhere_changes_no_pixel(records, tmp_path, caplog):
    """In pixels, sizes, keys or structure: the image comes from its source, and the file is filled anew."""
    images = CachedImages(records, PROCESSOR, tmp_path / "cache")
    expected = pixels_of(images, records)
    (file,) = images.folder.glob("*.arrow")
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    places = [whole.index(images.table[0]["pixels"]) + 5, *rng.integers(0, len(whole), 10), *range(0, 1500, 113)]
    for place in places:
        for other in images.folder.glob("*.arrow"):
            other.unlink()
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << int(rng.integers(8))]) + whole[place + 1 :])
        opened = CachedImages(records, PROCESSOR, tmp_path / "cache")
        assert all(np.array_equal(*pair) for pair in zip(pixels_of(opened, records), expected, strict=True)), place
    file.write_bytes(whole[: places[0]] + bytes([whole[places[0]] ^ 1]) + whole[places[0] + 1 :])
    caplog.clear()
    opened = CachedImages(records, PROCESSOR, tmp_path / "cache")
    assert np.array_equal(PROCESSOR.read(opened.read(0)), expected[0])
    assert f"{file} is damaged (a checksum differs) and is deleted: its images are decoded again." in caplog.text
    CachedImages(records, PROCESSOR, tmp_path / "cache")
    assert file.read_bytes() == whole


@pytest.mark.parametrize("name", sorted(PROCESSOR_CODE))
def test_a_change_of_any_file_that_makes_pixels_starts_another_cache(monkeypatch, name):
    key, read, changed = image_cache.reading_key(PROCESSOR), Path.read_bytes, []

    def read_changed(path):
        if path.name != name:
            return read(path)
        changed.append(path)
        return read(path) + b"#"

    monkeypatch.setattr(Path, "read_bytes", read_changed)
    assert image_cache.reading_key(PROCESSOR) != key and len(changed) == 1


def test_streaming_does_without():
    with pytest.raises(ValueError, match="^image_cache keeps a copy of the images, which streaming avoids"):
        DataArguments(data="prepared", eval_split="validation", streaming=True, image_cache="cache")


def test_a_full_disk_costs_the_cache_and_not_the_training(records, tmp_path, caplog):
    """A limit on the size of files fails a write as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        images = CachedImages(records, PROCESSOR, tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [record.getMessage() for record in caplog.records] == [
        f"The image cache {images.folder} is full (File too large): missing images are read from their files in each "
        "epoch."
    ]
    assert (images.rows == -1).all() and not list(images.folder.iterdir())
    plain, cached = PairDataset(records, PROCESSOR), PairDataset(records, PROCESSOR, images=images)
    for index in range(len(records)):
        assert torch.equal(plain[index]["pixel_values"], cached[index]["pixel_values"])
