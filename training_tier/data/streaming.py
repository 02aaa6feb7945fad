"""
Training from the shards of a prepared data set, in place: texts and labels are read first, images when needed.

The metadata of the shards fix the order of an epoch in advance. So the steps of an epoch, the images of each process
and data-loader worker, and the start of a resumed run are known without reading an image. Every worker reads its part
of the row groups from beginning to end.
"""

import math
import os
from collections.abc import Iterator

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate.utils import gather_object

from processing_tier.progress import progress
from processing_tier.readers import is_hub
from processing_tier.readers.hub import check_prepared, list_files
from processing_tier.records.schema import REQUIRED_COLUMNS

PLACE = ("shard", "row_group", "row")  # columns with the place of a record's image

SHUFFLE_BUFFER = 1000

LEFT_IN_SHARDS = ("image", "report")  # columns that training reads later, or never


def open_shard(file: str, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """A Parquet file by path or URL. From a URL, it fetches only the bytes that it reads."""
    if "://" not in file:
        return pq.ParquetFile(file, metadata=metadata)
    filesystem, path = fsspec.url_to_fs(file)
    return pq.ParquetFile(filesystem.open(path, cache_type="none"), metadata=metadata, pre_buffer=True)


def read_shards(data: str | os.PathLike, split: str) -> datasets.Dataset:
    """
    The records of one split without their images and reports, in memory. The columns `shard`, `row_group` and `row`
    (in the group) locate the image of a record.

    Args:
        data (`str` or `os.PathLike`): a folder written by `tier-prepare`, or such a data set on the Hub.
        split (`str`): such as `"train"`.

    Raises:
        `ValueError`: the data are not prepared, the split or a column of the schema is missing, or see
            [`check_prepared`].
    """
    data = os.fspath(data)
    files = list_files(data, split) if is_hub(data) else []
    if not files:
        raise ValueError(
            f"--streaming reads the Parquet files of tier-prepare, in a folder or on the Hub. {data!r} does not hold "
            f"any for {split!r}; run tier-prepare on it first."
        )
    tables = []
    for file in progress(files, "reading texts", "file"):
        with open_shard(file) as shard:
            schema = shard.schema_arrow
            missing = [name for name in REQUIRED_COLUMNS if name not in schema.names]
            if missing:
                raise ValueError(
                    f"{data}: --streaming needs the columns of a prepared data set, but {', '.join(missing)} "
                    f"{'is' if len(missing) == 1 else 'are'} missing; run tier-prepare on it first."
                )
            columns = [field.name for field in schema if not pa.types.is_nested(field.type)]
            table = shard.read([name for name in columns if name not in LEFT_IN_SHARDS])
            sizes = [shard.metadata.row_group(group).num_rows for group in range(shard.num_row_groups)]
        starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
        table = table.replace_schema_metadata().append_column("shard", pa.repeat(file, len(table)))
        table = table.append_column("row_group", pa.array(np.repeat(np.arange(len(sizes)), sizes)))
        tables.append(table.append_column("row", pa.array(np.arange(len(table)) - starts)))
    return check_prepared(datasets.Dataset(pa.concat_tables(tables)), data)


class ShardedImages(torch.utils.data.Sampler):
    """
    The encoded images of records in shards, and (as a sampler) an order of the epoch that makes reading them cheap.

    An epoch takes the row groups in random order. This order is cut into parts of whole batches, one part for each
    data-loader worker of each process, and the images of a part are shuffled within `shuffle_buffer`. So a worker that
    reads its part from beginning to end holds at most that many encoded images and one row group. Reading in any other
    order returns the same images, but costs more.

    Everything random depends on `seed` and epoch, and the parts depend on [`set_layout`]; earlier reads have no
    effect. So a resumed run has the same order.

    Args:
        records (`datasets.Dataset`): some or all records of [`read_shards`].
        shuffle_buffer (`int`, *optional*, defaults to 1000): images that are shuffled together (1 disables this).
        seed (`int`, *optional*, defaults to 0): of the order.
    """

    def __init__(self, records: datasets.Dataset, shuffle_buffer: int = SHUFFLE_BUFFER, seed: int = 0):
        place = records.select_columns(list(PLACE)).to_pandas()
        groups = place.groupby(list(PLACE[:2]))
        self.groups = list(groups.groups)  # (shard, row group) of each group
        self.group = groups.ngroup().to_numpy()  # of each record
        self.row = place["row"].to_numpy()
        self.shuffle_buffer = shuffle_buffer
        self.seed = seed
        self.epoch = 0
        self.metadata: dict[str, pq.FileMetaData] = {}
        self.set_layout(batch_size=1)

    def set_epoch(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch = epoch
            self._forget()

    def set_layout(self, batch_size: int, num_processes: int = 1, num_workers: int = 0) -> None:
        """
        Lays out the order for this many images per batch and process, processes, and data-loader workers per process.
        Batches go to the processes in turn, and those of a process to its workers in turn.
        """
        self.batch_size, self.num_processes, self.num_workers = batch_size, num_processes, max(1, num_workers)
        self._forget()

    def set_layout_of_run(self, batch_size: int, num_processes: int, num_workers: int) -> None:
        """
        [`set_layout`] for a run of several processes, which all have to call this.

        Raises:
            `ValueError`: the processes have different numbers of workers.
        """
        if num_processes > 1 and len(numbers := set(gather_object([num_workers]))) > 1:
            raise ValueError(
                f"The processes have {' and '.join(map(str, sorted(numbers)))} data-loader workers. With streaming "
                "their number sets the order of the images; give all processes the same --dataloader_num_workers."
            )
        self.set_layout(batch_size, num_processes, num_workers)

    def _forget(self) -> None:
        self.held: dict[int, dict] = {}
        self._order: np.ndarray | None = None
        self._turn: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.row)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order.tolist())

    @property
    def order(self) -> np.ndarray:
        """The records in the order of this epoch, int64, each once."""
        if self._order is None:
            rng = np.random.default_rng([self.seed, self.epoch])
            stream = np.lexsort((self.row, rng.permutation(len(self.groups))[self.group]))
            # otherwise the records that do not fill a batch are always the end of a group
            stream = np.roll(stream, rng.integers(len(stream)))
            steps = len(stream) // (self.batch_size * self.num_processes)
            batches = np.empty((steps, self.num_processes, self.batch_size), dtype=np.int64)
            used = 0
            for process in range(self.num_processes):
                for worker in range(self.num_workers):
                    shape = batches[worker :: self.num_workers, process].shape
                    part = stream[used : used + math.prod(shape)]
                    part = part[np.argsort(np.arange(len(part)) + rng.uniform(0, self.shuffle_buffer, len(part)))]
                    batches[worker :: self.num_workers, process] = part.reshape(shape)
                    used += len(part)
            self._order = np.concatenate([batches.ravel(), rng.permutation(stream[used:])])
            self._turn = np.argsort(self._order)
        return self._order

    def reader(self, turn: np.ndarray) -> np.ndarray:
        """Number of the worker, counted over all processes, that reads a position of the order."""
        batch = turn // self.batch_size
        return batch % self.num_processes * self.num_workers + batch // self.num_processes % self.num_workers

    def read(self, index: int) -> dict:
        """
        The image of a record as `{"bytes": ..., "path": ...}`. Images of its row group that the same worker reads
        later are held until then.

        Raises:
            `ValueError`: the shard does not hold its bytes.
        """
        if index not in self.held:
            self.order  # noqa: B018 (lays out the order)
            turn, members = self._turn, np.flatnonzero(self.group == self.group[index])
            later = (turn[members] > turn[index]) & (self.reader(turn[members]) == self.reader(turn[index]))
            wanted = np.append(members[later], index)
            self.held.update(zip(wanted.tolist(), self._read_group(wanted), strict=True))
        image = self.held.pop(index)
        if not image or image["bytes"] is None:  # never read the file at its path
            raise ValueError("an image record of a shard does not have bytes; run tier-prepare, which embeds them.")
        return image

    def _read_group(self, records: np.ndarray) -> list[dict]:
        """The images of records of one row group. Closes the file, because forked workers would share it."""
        file, row_group = self.groups[self.group[records[0]]]
        with open_shard(file, self.metadata.get(file)) as shard:
            self.metadata[file] = shard.metadata
            images = shard.read_row_group(row_group, columns=["image"], use_threads=False)["image"]
        return [images[row].as_py() for row in self.row[records].tolist()]
