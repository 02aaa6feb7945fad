import itertools
from collections import Counter

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from torch.utils.data import DataLoader

from processing_tier import TierImageProcessor
from processing_tier.readers import read_records
from training_tier.data.pairs import PairDataset, PairOptions
from training_tier.data.streaming import ShardedImages, read_shards

BATCH = 3


def write_shards(folder, records, per_file=20, per_group=6, split="train"):
    """A prepared data set: files of `per_file` records in row groups of `per_group`."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    starts = range(0, len(records), per_file)
    for number, start in enumerate(starts):
        part = records.select(range(start, min(start + per_file, len(records))))
        name = f"{split}-{number:05d}-of-{len(starts):05d}.parquet"
        part.to_parquet(folder / "data" / name, batch_size=per_group)
    return folder


@pytest.fixture(scope="module")
def folder(phantom, tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("prepared"), phantom)


@pytest.fixture(scope="module")
def records(folder):
    return read_shards(folder, "train")


class Indices(torch.utils.data.Dataset):
    """Gives what it is asked for, once the image was read."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.images.read(index)
        return index


def epoch_of(records, processes=1, workers=0, epoch=0, skip=0, drop_last=True, **options):
    """The batches of each process in one epoch, as accelerate hands them out; `options` of [`ShardedImages`]."""
    result = []
    for process in range(processes):
        images = ShardedImages(records, **{"shuffle_buffer": 8, **options})
        images.set_layout(BATCH, processes, workers)
        loader = DataLoader(Indices(images), BATCH, sampler=images, num_workers=workers, drop_last=drop_last)
        loader = prepare_data_loader(loader, None, processes, process, put_on_device=False)
        if skip:
            loader = skip_first_batches(loader, skip)
        loader.set_epoch(epoch)
        images.set_epoch(epoch)  # as EpochSetter does
        result.append([batch.tolist() for batch in loader])
    return result


def test_records_come_without_images_and_images_in_any_order(folder, phantom, records):
    assert records["image_id"][:] == phantom["image_id"][:]
    assert records["impression"][:] == phantom["impression"][:]
    assert np.array_equal(records["Edema"][:], phantom["Edema"][:], equal_nan=True)
    assert not {"image", "report"} & set(records.column_names) and not records.cache_files
    images = ShardedImages(records)
    for index in np.random.default_rng(0).permutation(48).tolist():
        assert images.read(index)["bytes"] == phantom[index]["image"]["bytes"]


@pytest.mark.parametrize(("processes", "workers"), list(itertools.product([1, 2, 3], [0, 1, 2])))
def test_an_epoch_has_every_record_once_over_all_processes_and_workers(records, processes, workers):
    batches = epoch_of(records, processes, workers)
    steps = 48 // (BATCH * processes)
    assert [len(own) for own in batches] == [steps] * processes
    counts = Counter(itertools.chain.from_iterable(itertools.chain.from_iterable(batches)))
    assert set(counts.values()) == {1} and len(counts) == steps * BATCH * processes


@pytest.mark.parametrize("processes", [1, 2])
def test_without_dropping_every_record_is_there(records, processes):
    batches = epoch_of(records.select(range(43)), processes, drop_last=False)
    assert {len(own) for own in batches} == {-(-43 // (BATCH * processes))}
    seen = list(itertools.chain.from_iterable(itertools.chain.from_iterable(batches)))
    assert set(seen) == set(range(43))
    assert len(seen) == (43 if processes == 1 else 48)  # accelerate fills the last batches up, as without streaming


def test_fewer_row_groups_than_workers_are_shared(phantom, tmp_path):
    records = read_shards(write_shards(tmp_path, phantom.select(range(40)), per_file=40, per_group=40), "train")
    images = ShardedImages(records)
    assert len(images.groups) == 1
    batches = epoch_of(records, processes=3, workers=2)
    seen = list(itertools.chain.from_iterable(itertools.chain.from_iterable(batches)))
    assert len(seen) == len(set(seen)) == 36


def test_the_order_depends_on_seed_and_epoch(records):
    first = epoch_of(records, 2, epoch=1)
    assert first == epoch_of(records, 2, epoch=1)
    assert first != epoch_of(records, 2, epoch=2)
    assert first != epoch_of(records, 2, epoch=1, seed=1)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_epoch_goes_on_where_it_stopped_and_reads_no_more_than_it_needs(records, workers, monkeypatch):
    whole, rest = (epoch_of(records, 2, workers, epoch=3, skip=skip) for skip in (0, 5))
    assert rest == [own[5:] for own in whole] and all(len(own) == 3 for own in rest)
    if workers == 0:
        reads = []
        read_group = ShardedImages._read_group
        monkeypatch.setattr(
            ShardedImages, "_read_group", lambda self, wanted: reads.extend(wanted) or read_group(self, wanted)
        )
        epoch_of(records, 2, epoch=3, skip=5)
        assert sorted(reads) == sorted(itertools.chain.from_iterable(itertools.chain.from_iterable(rest)))


@pytest.mark.parametrize("shuffle_buffer", [1, 10])
def test_a_worker_reads_its_row_groups_once_and_holds_the_buffer_in_bytes(records, shuffle_buffer, monkeypatch):
    processes, workers = 2, 2
    images = ShardedImages(records, shuffle_buffer)
    images.set_layout(BATCH, processes, workers)
    order = images.order
    readers = images.reader(np.arange(48))
    assert Counter(readers.tolist()) == {0: 12, 1: 12, 2: 12, 3: 12}
    read_group, reads, held = ShardedImages._read_group, [], []
    monkeypatch.setattr(
        ShardedImages,
        "_read_group",
        lambda self, wanted: reads.append(self.group[wanted[0]]) or read_group(self, wanted),
    )
    for reader in range(4):
        own = ShardedImages(records, shuffle_buffer)
        own.set_layout(BATCH, processes, workers)
        before = len(reads)
        for index in order[readers == reader].tolist():
            own.read(index)
            assert all(type(image["bytes"]) is bytes for image in own.held.values())
            held.append(len(own.held))
        assert not own.held and len(reads[before:]) == len(set(reads[before:]))
    assert len(reads) <= len(images.groups) + 4  # one of them may be shared at each border
    assert max(held) <= shuffle_buffer + 6 - 1
    assert max(held) >= min(shuffle_buffer, 6) - 1


def test_the_buffer_shuffles_and_a_buffer_of_one_does_not(records):
    images = ShardedImages(records, shuffle_buffer=1)
    groups = images.group[images.order[: 48 // BATCH * BATCH]]
    assert (np.diff(groups) != 0).sum() <= len(images.groups)  # each group in one piece, but for the one at the ends
    order = ShardedImages(records, shuffle_buffer=1000).order
    assert (np.diff(images.group[order]) != 0).sum() > 30


def test_each_record_is_dropped_about_as_often(records):
    images = ShardedImages(records, shuffle_buffer=8)
    images.set_layout(batch_size=5, num_processes=3)
    dropped = np.zeros(48)
    for epoch in range(800):
        images.set_epoch(epoch)
        dropped[images.order[45:]] += 1
    assert 20 < dropped.min() and dropped.max() < 84  # 50 +- 4.5 standard deviations


def test_a_streamed_pair_is_the_pair_of_the_copied_data_set(folder, records):
    processor = TierImageProcessor(size=32)
    options = PairOptions(augmentation="standard", sample_sentences=True, seed=4)
    streamed = PairDataset(records, processor, options, images=ShardedImages(records))
    copied = PairDataset(read_records(folder, "train"), processor, options)
    for epoch in (0, 1):
        streamed.set_epoch(epoch)
        copied.set_epoch(epoch)
        assert streamed.images.epoch == epoch
        for index in (0, 47, 20, 21):
            one, other = streamed[index], copied[index]
            assert one["pixel_values"].dtype == torch.uint8 and torch.equal(one["pixel_values"], other["pixel_values"])
            assert one["text"] == other["text"] and one["image_id"] == other["image_id"]


def test_records_that_were_left_out_are_not_read(records, phantom):
    kept = [40, 3, 18, 19]
    images = ShardedImages(records.select(kept))
    assert [images.read(i)["bytes"] for i in range(4)] == [phantom[i]["image"]["bytes"] for i in kept]
    assert len(images.groups) == 3 and sorted(images.order.tolist()) == [0, 1, 2, 3]


def test_a_path_in_a_shard_is_never_opened(phantom, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(phantom[0]["image"]["bytes"])
    outside = phantom.select(range(2)).map(
        lambda row, i: {"image": {"bytes": None, "path": str(secret)} if i else row["image"]},
        with_indices=True,
        features=phantom.features,
    )
    table = outside.data.table.combine_chunks()
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data" / "train-00000-of-00001.parquet")
    records = read_shards(tmp_path, "train")
    dataset = PairDataset(records, TierImageProcessor(size=32), images=ShardedImages(records))
    assert "pixel_values" in dataset[0]
    assert dataset[1]["error"].startswith("an image record of a shard does not have bytes; run tier-prepare")


def test_what_cannot_be_streamed_is_refused(phantom, folder, tmp_path):
    with pytest.raises(ValueError, match="^--streaming reads the Parquet files of tier-prepare, in a folder or"):
        read_shards("phantom", "train")
    with pytest.raises(ValueError, match="the split 'test' does not exist; it has train"):
        read_shards(folder, "test")
    other = write_shards(tmp_path, datasets.Dataset.from_dict({"img": ["a"], "patient_id": ["b"]}))
    with pytest.raises(
        ValueError, match="columns of a prepared data set, but image, image_id, study_id, .* are missing"
    ):
        read_shards(other, "train")
