"""Writes one shard: a Parquet file whose footer lists the images that were left out. This runs in workers."""

import io
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from processing_tier.prepare.options import PrepareOptions
from processing_tier.radiograph_tier import original_size, read_source, resize
from processing_tier.readers import parse_data
from processing_tier.records.masks import decode_mask, encode_mask
from processing_tier.records.paths import shown_path

ROWS_PER_GROUP = 100  # a streaming reader loads one group at a time

BYTES_PER_GROUP = 64 * 2**20  # a bound for large images

QUARANTINE = "quarantine"  # key in a shard's footer

QUARANTINE_COLUMNS = ("split", "image_id", "file", "reason")

# Of a worker, see `initialize_worker`
done: Synchronized
failed: Synchronized
stop: Event

EMPTY = {"boxes": [], "masks": [], "sex": "", "age": float("nan")}  # for a column that only another split has


@dataclass(frozen=True)
class Shard:
    """One file of the output, and the range of its records."""

    split: str
    index: int
    count: int  # shards of this split
    start: int  # among the shuffled records of this split
    stop: int

    @property
    def name(self) -> str:
        return f"{self.split}-{self.index:05d}-of-{self.count:05d}.parquet"


def count_unreadable(failures: Sequence[dict]) -> int:
    """The failures without blank images, which are left out too but do not point to a wrong folder or decoder."""
    return sum(not failure.get("blank", False) for failure in failures)


def read_batches(records: datasets.Dataset, order: np.ndarray, features: datasets.Features) -> Iterator[pa.Table]:
    """Records in this order as tables of `features`. Findings that the split does not have are blank."""
    records = records.with_format("arrow")
    for start in range(0, len(order), ROWS_PER_GROUP):
        table = records[order[start : start + ROWS_PER_GROUP]]
        for name in features:
            if name not in table.column_names:
                values = [EMPTY.get(name, float("nan"))] * len(table)
                table = table.append_column(name, pa.array(values, features.arrow_schema.field(name).type))
        yield table.select(list(features)).cast(features.arrow_schema)


def is_whole(path: Path, shard: Shard) -> bool:
    """Whether a shard exists with all its images, stored or quarantined."""
    try:
        metadata = pq.read_metadata(path)
    except (OSError, pa.ArrowInvalid):
        return False
    return metadata.num_rows + len(read_quarantine(metadata)) == shard.stop - shard.start


# --- The shards, in workers
def initialize_worker(*counters: Any) -> None:
    """Called once in each worker: it ends with its parent, even with a killed one, and ignores Ctrl-C."""
    global done, failed, stop
    if counters:
        done, failed, stop = counters
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def write_shard(work_dir: Path, output_dir: Path, shard: Shard, options: PrepareOptions) -> list[dict]:
    """
    Write one shard; the images that cannot be read. An existing shard is written again only if one of its quarantined
    images can now be read. After an error or a stop, nothing is left behind.
    """
    target = output_dir / "data" / shard.name
    partial = work_dir / f"{shard.name}.partial"
    failures, rows, size = [], [], 0
    try:
        with pa.OSFile(str(work_dir / shard.name)) as file, pa.ipc.open_file(file) as records:
            if is_whole(target, shard):
                failures = read_quarantine(pq.read_metadata(target))
                if not failures or not can_be_mended(records, {failure["position"] for failure in failures}):
                    add(failed, count_unreadable(failures))
                    add(done, shard.stop - shard.start)
                    return failures
                failures = []
            with open_writer(partial, records.schema) as writer:
                for position, record in enumerate(iterate(records)):
                    if stop.is_set():
                        return failures
                    try:
                        rows.append(make_row(record, options))
                        size += len(rows[-1]["image"]["bytes"])
                    except (ValueError, OSError) as error:
                        failures.append(describe(record, error, options) | {"position": position})
                        add(failed, count_unreadable(failures[-1:]))
                    add(done, 1)
                    if len(rows) == ROWS_PER_GROUP or size >= BYTES_PER_GROUP:
                        writer.write_batch(pa.RecordBatch.from_pylist(rows, records.schema))
                        rows, size = [], 0
                if rows:
                    writer.write_batch(pa.RecordBatch.from_pylist(rows, records.schema))
                writer.add_key_value_metadata({QUARANTINE: json.dumps(failures)})
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    return failures


def iterate(records: pa.ipc.RecordBatchFileReader) -> Iterator[dict]:
    """Records one at a time, because embedded images may be large."""
    for index in range(records.num_record_batches):
        table = pa.Table.from_batches([records.get_batch(index)])
        images = table.column("image")
        for row, record in enumerate(table.drop_columns("image").to_pylist()):
            yield {"image": images[row].as_py(), **record}


def can_be_mended(records: pa.ipc.RecordBatchFileReader, positions: set[int]) -> bool:
    """Whether a quarantined image can now be read."""
    for position, record in enumerate(iterate(records)):
        if stop.is_set():
            return False
        if position not in positions:
            continue
        try:
            read_picture(record)
            return True
        except (ValueError, OSError):
            pass
    return False


def add(counter: Synchronized, value: int) -> None:
    with counter.get_lock():
        counter.value += value


def open_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Fixed settings, so that the bytes depend only on the records and the versions of pyarrow and Pillow."""
    return pq.ParquetWriter(
        path, schema, version="2.6", compression="zstd", use_dictionary=False, write_statistics=False
    )


def make_row(record: dict, options: PrepareOptions) -> dict:
    """
    The record with its image as it will be stored; boxes and masks are in pixels of that image.

    Raises:
        `ValueError`, `OSError`: the image cannot be read.
    """
    image = read_picture(record, options.size)
    width, height = original_size(image)
    shortest = min(width, height)
    if options.size is not None and options.size < shortest:
        new_size = round(width * options.size / shortest), round(height * options.size / shortest)
        image = resize(image, new_size, Image.Resampling.BICUBIC)
        for name in ("boxes", "masks"):
            scale = {"boxes": scale_box, "masks": scale_mask}[name]
            if record.get(name):
                record[name] = [scale(item, *new_size, width, height) for item in record[name]]
    buffer = io.BytesIO()
    image.save(buffer, options.format, **({"quality": options.quality} if options.format == "jpeg" else {}))
    # Without a path: `datasets` would open a file with that path in the working folder
    return record | {"image": {"bytes": buffer.getvalue(), "path": None}}


class BlankPicture(ValueError):
    """An image that can be read, but has only equal pixels."""


def read_picture(record: dict, size: int | None = None) -> Image.Image:
    """
    Raises:
        `ValueError`: the image cannot be read, or is blank.
    """
    image, _ = read_source(record["image"], None, None if size is None else {"shortest_edge": size})
    if "blank" in image.info:
        raise BlankPicture(image.info["blank"])
    return image


def scale_box(box: dict, new_width: int, new_height: int, width: int, height: int) -> dict:
    x, y = new_width / width, new_height / height
    return box | {"x": box["x"] * x, "w": box["w"] * x, "y": box["y"] * y, "h": box["h"] * y}


def scale_mask(mask: dict, new_width: int, new_height: int, width: int, height: int) -> dict:
    """A mask at another size. A pixel is inside if at least half of its area is."""
    pixels = decode_mask(mask["counts"], mask["height"], mask["width"])
    image = Image.fromarray(pixels.astype(np.uint8) * 255).resize((new_width, new_height), Image.Resampling.BOX)
    counts = encode_mask(np.asarray(image) >= 128)
    return mask | {"height": new_height, "width": new_width, "counts": counts}


def describe(record: dict, error: Exception, options: PrepareOptions) -> dict:
    """The entry of an image in the quarantine list. Its file is named from the folder of the data on."""
    path = record["image"]["path"] or ""
    reason = (error.strerror or type(error).__name__) if isinstance(error, OSError) else str(error)
    reason = reason.removeprefix(f"{Path(path).name}: ")
    folder = options.image_root or parse_data(options.data)[1]
    file = shown_path(path, os.path.dirname(folder) if os.path.isfile(folder) else folder) if path else ""
    entry = {"split": record["split"], "image_id": record["image_id"], "file": file, "reason": reason}
    return entry | {"blank": isinstance(error, BlankPicture)}


# --- The quarantine lists of all shards
def read_quarantine(metadata: pq.FileMetaData) -> list[dict]:
    return json.loads((metadata.metadata or {}).get(QUARANTINE.encode(), b"[]"))


def list_quarantine(output_dir: Path, shards: Iterable[Shard]) -> Iterator[dict]:
    for shard in shards:
        path = output_dir / "data" / shard.name
        if is_whole(path, shard):
            yield from read_quarantine(pq.read_metadata(path))
