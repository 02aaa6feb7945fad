"""Decoded training images on the disk: each is decoded once for all epochs and runs."""

import errno
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from zlib import crc32

import datasets
import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch.utils.data import DataLoader

from processing_tier import TierImageProcessor
from processing_tier.code_hash import hash_code
from processing_tier.image_processing_tier import READ_OPTIONS
from processing_tier.progress import progress

logger = logging.getLogger(__name__)

BATCH = 32  # images that a worker passes to the file together

PART = 4096  # images of one file, the most that an interruption loses

LARGE = 2**20  # bytes per image above which a warning suggests smaller ones

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk, quota or file size

STALE_SECONDS = 3600  # age of an unfinished file that its process has abandoned

SCHEMA = pa.schema(
    {
        "key": pa.binary(),  # variable in length, since datasets reads no other before 5.1
        "pixels": pa.large_binary(),  # uint8, row by row
        "size": pa.list_(pa.int32(), 2),  # width, height
        "original_size": pa.list_(pa.int32(), 2),
        "reduction": pa.int32(),
        "checksum": pa.uint32(),  # of the other columns, see row_checksum
    }
)


def source_key(source: Mapping) -> bytes | None:
    """
    16 bytes that identify the content of an image file: a digest of the bytes if the record has them, otherwise of
    path, size and times of change. `None` for a missing file.
    """
    if source.get("bytes") is not None:
        return blake2b(source["bytes"], digest_size=16).digest()
    try:
        path = os.path.abspath(source["path"])
        stat = os.stat(path)
    except (OSError, TypeError, ValueError):
        return None
    facts = (path, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
    return blake2b(repr(facts).encode(), digest_size=16).digest()


def reading_key(image_processor: TierImageProcessor) -> str:
    """A hash of everything that decides the result of [`TierImageProcessor.read`]: options, code and decoders."""
    options = {name: getattr(image_processor, name) for name in READ_OPTIONS}
    facts = json.dumps([options, hash_code(), str(SCHEMA)], default=dict, sort_keys=True)
    return blake2b(facts.encode(), digest_size=8).hexdigest()


def open_part(file: Path) -> datasets.Dataset:
    """
    Raises:
        `ValueError` and errors of pyarrow: it is not a file of the cache, or it is damaged.
    """
    part = datasets.Dataset.from_file(str(file))
    table = part.data.table
    table.validate(full=True)
    if table.schema.remove_metadata() != SCHEMA:
        raise ValueError("it has other columns")
    return part


def row_checksum(row: Mapping) -> int:
    """CRC-32 of an image in the cache. It detects any flipped bit, and is faster than decoding."""
    facts = (row["key"], list(row["size"]), list(row["original_size"]), row["reduction"])
    return crc32(row["pixels"], crc32(repr(facts).encode()))


class CachedImages:
    """
    The images of records as [`TierImageProcessor.read`] returns them, memory-mapped from files in a folder. Missing
    images are first decoded and added. The pixels equal those without a cache, with any augmentation.

    A changed image, or one that is read in another way, is a new entry; old entries stay in the folder. Several
    processes may share it. Images that do not decode are not kept, and raise their error each time. A damaged entry is
    read from its source instead, and its file is deleted, so that the next run decodes it again.

    Args:
        records (`datasets.Dataset`): with undecoded images.
        image_processor ([`TierImageProcessor`]): reads them.
        folder (`str` or `os.PathLike`): created if needed.
        num_workers (`int`, *optional*, defaults to 0): processes that decode missing images.

    Raises:
        `ValueError`: the folder cannot be read or written.
    """

    def __init__(
        self,
        records: datasets.Dataset,
        image_processor: TierImageProcessor,
        folder: str | os.PathLike,
        num_workers: int = 0,
    ):
        self.records = records.select_columns(["image"])
        self.image_processor = image_processor
        self.folder = Path(folder, reading_key(image_processor))
        sources = progress(self.records, "looking at images", "image")
        keys = [source_key(record["image"]) for record in sources]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            places = self._open()
            missing = {key: index for index, key in enumerate(keys) if key is not None and key not in places}
            if missing:
                self._fill_what_fits(list(missing.values()), keys, num_workers)
                places = self._open()
        except OSError as error:
            raise ValueError(
                f"image_cache {str(folder)!r} cannot be used ({error.strerror or error}); free some space there, or "
                "choose another folder."
            ) from error
        self.rows = np.array([places.get(key, -1) for key in keys], dtype=np.int64)

    def set_epoch(self, epoch: int) -> None:
        """Does nothing: the images are the same in every epoch."""

    def _open(self) -> dict[bytes, int]:
        """Maps the files of the folder into memory as one table. Returns key to row."""
        parts, self.files = [], []
        for file in sorted(self.folder.glob("*.arrow")):
            try:
                parts.append(open_part(file))
            except (pa.ArrowException, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
                if getattr(error, "errno", None):  # it cannot be opened, so its content may be intact
                    raise
                self._discard(file, type(error).__name__)
                continue
            self.files += [file] * len(parts[-1])
        self.table = datasets.concatenate_datasets(parts) if parts else None
        return {key: row for row, key in enumerate(self.table.with_format(None)["key"][:])} if parts else {}

    def _fill_what_fits(self, missing: Sequence[int], keys: Sequence[bytes], num_workers: int) -> None:
        """As [`_fill`], but continues without the rest when the disk is full."""
        try:
            self._fill(missing, keys, num_workers)
        except OSError as error:
            if error.errno not in FULL:
                raise
            logger.warning(
                "The image cache %s is full (%s): missing images are read from their files in each epoch.",
                self.folder,
                os.strerror(error.errno),
            )

    def _discard(self, file: Path, reason: str) -> None:
        logger.warning("%s is damaged (%s) and is deleted: its images are decoded again.", file, reason)
        file.unlink(missing_ok=True)

    def _fill(self, missing: Sequence[int], keys: Sequence[bytes], num_workers: int) -> None:
        """Decodes images and writes them one part at a time: to a temporary file, which is then renamed."""
        for file in self.folder.glob("*.tmp"):
            if time.time() - file.stat().st_mtime > STALE_SECONDS:
                file.unlink(missing_ok=True)
        written = 0
        with progress(description="filling the image cache", unit="image", total=len(missing)) as bar:
            for start in range(0, len(missing), PART):
                part = missing[start : start + PART]
                name = blake2b(b"".join(keys[index] for index in part), digest_size=8).hexdigest()
                file, unfinished = self.folder / f"{name}.arrow", self.folder / f"{name}.{os.getpid()}.tmp"
                try:
                    with pa.OSFile(str(unfinished), "wb") as sink, pa.ipc.new_stream(sink, SCHEMA) as writer:
                        for images, tried in self._decode(part, keys, num_workers):
                            writer.write_batch(pa.RecordBatch.from_pylist(images, schema=SCHEMA))
                            written += sum(len(image["pixels"]) for image in images)
                            bar.update(tried)
                    with open(unfinished, "rb") as finished:
                        os.fsync(finished.fileno())
                    unfinished.replace(file)
                finally:
                    unfinished.unlink(missing_ok=True)
        logger.info("Image cache: %d images of %.1f MiB added to %s.", len(missing), written / 2**20, self.folder)
        if written > LARGE * len(missing):
            logger.warning(
                "The images in %s take %.1f MiB each. Use tier-prepare with --size to make them smaller.",
                self.folder,
                written / len(missing) / 2**20,
            )

    def _decode(
        self, part: Sequence[int], keys: Sequence[bytes], num_workers: int
    ) -> Iterator[tuple[list[dict], int]]:
        """Batches of images as rows of the cache, with the number of images tried."""
        decoder = Decoder(self.records, self.image_processor, keys)
        # A generator of its own: the random numbers of the training are left as they are
        options = {"num_workers": num_workers, "collate_fn": list, "generator": torch.Generator()}
        for batch in DataLoader(decoder, BATCH, sampler=part, **options):
            yield [image for image in batch if image is not None], len(batch)

    def read(self, index: int) -> Image.Image | dict:
        """The decoded image of a record, or its source if it does not decode or its entry is damaged."""
        if self.rows[index] < 0:
            return self.records[index]["image"]
        number = int(self.rows[index])
        try:
            row = self.table[number]
            intact = row_checksum(row) == row["checksum"]
        except (pa.ArrowException, TypeError, ValueError):  # a missing value
            intact = False
        if not intact:
            self._discard(self.files[number], "a checksum differs")
            self.rows[index] = -1
            return self.records[index]["image"]
        image = Image.frombytes("L", tuple(row["size"]), row["pixels"])
        image.info = {"original_size": tuple(row["original_size"]), "reduction": row["reduction"]}
        return image


class Decoder:
    """Images of records as rows of the cache; `None` for one that does not decode."""

    def __init__(self, records: datasets.Dataset, image_processor: TierImageProcessor, keys: Sequence[bytes]):
        self.records = records
        self.image_processor = image_processor
        self.keys = keys

    def __getitem__(self, index: int) -> dict | None:
        try:
            image = self.image_processor.read(self.records[index]["image"])
        except ValueError:
            return None
        row = {
            "key": self.keys[index],
            "pixels": image.tobytes(),
            "size": image.size,
            "original_size": image.info["original_size"],
            "reduction": image.info["reduction"],
        }
        return {**row, "checksum": row_checksum(row)}
