"""Decoded training images on the disk, so that each is read and decoded once for all epochs and all runs."""

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
from PIL import Image
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from processing_tier import TierImageProcessor
from processing_tier.code_hash import hash_code
from processing_tier.image_processing_tier import READ_OPTIONS

logger = logging.getLogger(__name__)

BATCH = 32  # images that pass from a worker to the file together

PART = 4096  # images of one file: so many are lost where filling is interrupted

LARGE = 2**20  # bytes of an image

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of a disk, of a user's share of it, of a file

FORSAKEN = 3600  # seconds without a change after which an unfinished file is nobody's

SCHEMA = pa.schema(
    {
        "key": pa.binary(),  # variable in length, since datasets reads no other before 5.1
        "pixels": pa.large_binary(),  # uint8, row by row
        "size": pa.list_(pa.int32(), 2),  # width, height
        "original_size": pa.list_(pa.int32(), 2),
        "reduction": pa.int32(),
        "checksum": pa.uint32(),  # of all these, see row_checksum
    }
)


def source_key(source: Mapping) -> bytes | None:
    """
    16 bytes that stand for what a file holds: a digest of its bytes where the record has them, and else of its path,
    size, and times of change. `None` for a file that is not there.
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
    """Of all that decides what [`TierImageProcessor.read`] makes of a file: options, code, and decoders."""
    options = {name: getattr(image_processor, name) for name in READ_OPTIONS}
    facts = json.dumps([options, hash_code(), str(SCHEMA)], default=dict, sort_keys=True)
    return blake2b(facts.encode(), digest_size=8).hexdigest()


def open_part(file: Path) -> datasets.Dataset:
    """
    Raises:
        `ValueError` and what pyarrow raises: it is not a file of the cache, or a value lies outside of it.
    """
    part = datasets.Dataset.from_file(str(file))
    table = part.data.table
    table.validate(full=True)
    if table.schema.remove_metadata() != SCHEMA:
        raise ValueError("it has other columns")
    return part


def row_checksum(row: Mapping) -> int:
    """CRC-32 of an image as the cache holds it: any flipped bit changes it, and it takes less time than decoding."""
    facts = (row["key"], list(row["size"]), list(row["original_size"]), row["reduction"])
    return crc32(row["pixels"], crc32(repr(facts).encode()))


class CachedImages:
    """
    The images of records as [`TierImageProcessor.read`] makes them, from files in a folder, memory-mapped, which are
    first filled with those that are missing. So the pixels are those without a cache, whatever the augmentation.

    An image that has changed, or is read in another way, is another one; what is no longer asked for stays in the
    folder. Several processes may share it. Images that do not decode are not kept, and give their error each time.
    A damaged image is read from its source instead, and a damaged file is deleted, so that it is filled anew.

    Args:
        records (`datasets.Dataset`): with undecoded images.
        image_processor ([`TierImageProcessor`]): reads them.
        folder (`str` or `os.PathLike`): made where it is not there.
        num_workers (`int`, *optional*, defaults to 0): processes that decode what is missing.

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
        sources = tqdm(self.records, desc="looking at images", unit="image", delay=2, disable=None)
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
                f"image_cache {str(folder)!r} cannot be used ({error.strerror or error}); make room there, or choose "
                "another folder."
            ) from error
        self.rows = np.array([places.get(key, -1) for key in keys], dtype=np.int64)

    def set_epoch(self, epoch: int) -> None:
        """The images are the same in each."""

    def _open(self) -> dict[bytes, int]:
        """Maps the files of the folder into memory as one table, and tells the row of each key."""
        parts, self.files = [], []
        for file in sorted(self.folder.glob("*.arrow")):
            try:
                parts.append(open_part(file))
            except (pa.ArrowException, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
                if getattr(error, "errno", None):  # it cannot be opened, which says nothing of what it holds
                    raise
                self._discard(file, type(error).__name__)
                continue
            self.files += [file] * len(parts[-1])
        self.table = datasets.concatenate_datasets(parts) if parts else None
        return {key: row for row, key in enumerate(self.table.with_format(None)["key"][:])} if parts else {}

    def _fill_what_fits(self, missing: Sequence[int], keys: Sequence[bytes], num_workers: int) -> None:
        """As [`_fill`], but goes on without the rest where the disk is full."""
        try:
            self._fill(missing, keys, num_workers)
        except OSError as error:
            if error.errno not in FULL:
                raise
            logger.warning(
                "The image cache %s is full (%s): the images that it lacks are read from their files in each epoch.",
                self.folder,
                os.strerror(error.errno),
            )

    def _discard(self, file: Path, reason: str) -> None:
        logger.warning("%s is damaged (%s) and is deleted: its images are decoded again.", file, reason)
        file.unlink(missing_ok=True)

    def _fill(self, missing: Sequence[int], keys: Sequence[bytes], num_workers: int) -> None:
        """Decodes images and writes them a part at a time, each beside and then under its name."""
        for file in self.folder.glob("*.tmp"):
            if time.time() - file.stat().st_mtime > FORSAKEN:
                file.unlink(missing_ok=True)
        written = 0
        with tqdm(total=len(missing), desc="filling the image cache", unit="image", delay=2, disable=None) as bar:
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
                "The images in %s take %.1f MiB each; tier-prepare with a --size makes smaller ones.",
                self.folder,
                written / len(missing) / 2**20,
            )

    def _decode(
        self, part: Sequence[int], keys: Sequence[bytes], num_workers: int
    ) -> Iterator[tuple[list[dict], int]]:
        """Batches of images as the files hold them, and how many were tried."""
        decoder = Decoder(self.records, self.image_processor, keys)
        for batch in DataLoader(decoder, BATCH, sampler=part, num_workers=num_workers, collate_fn=list):
            yield [image for image in batch if image is not None], len(batch)

    def read(self, index: int) -> Image.Image | dict:
        """The image of a record; as the record has it where it does not decode, or where the cache is damaged."""
        if self.rows[index] < 0:
            return self.records[index]["image"]
        number = int(self.rows[index])
        try:
            row = self.table[number]
            intact = row_checksum(row) == row["checksum"]
        except (pa.ArrowException, TypeError, ValueError):  # a value that is not there
            intact = False
        if not intact:
            self._discard(self.files[number], "a checksum differs")
            self.rows[index] = -1
            return self.records[index]["image"]
        image = Image.frombytes("L", tuple(row["size"]), row["pixels"])
        image.info = {"original_size": tuple(row["original_size"]), "reduction": row["reduction"]}
        return image


class Decoder:
    """Images of records as the cache holds them; `None` for one that does not decode."""

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
