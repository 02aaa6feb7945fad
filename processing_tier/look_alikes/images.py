"""The images of data sets as numbers: fingerprints, and hashes of patients and reports.

An image takes about 100 bytes, whatever its size. Undecoded images are read 32 at a time and decoded in workers.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import NamedTuple

import datasets
import numpy as np
from PIL import Image

from processing_tier.look_alikes.fingerprints import HASH_BYTES, MIN_BORDER, PICTURE, Fingerprint, fingerprint
from processing_tier.prepare.pool import count_cores, start_method
from processing_tier.prepare.shards import BlankPicture, initialize_worker, read_picture
from processing_tier.prepare.summary import hash_text
from processing_tier.progress import progress
from processing_tier.radiograph_tier import original_size, resize
from processing_tier.readers import dataset_name, has_splits, list_splits, read_records
from processing_tier.records.schema import select_views
from processing_tier.records.table_options import TableOptions
from processing_tier.reports.duplicates import text_hash

BATCH = 32  # images that a worker is sent at once

UNREADABLE, BLANK = 1, 2  # states of an image without a fingerprint

NOTHING = np.empty((0, HASH_BYTES), dtype=np.uint8)

ALL = "all"  # the name of the split of data without splits


class Source(NamedTuple):
    """One split of a data set."""

    dataset: str
    split: str
    records: datasets.Dataset  # image, image_id and patient_id
    reports: np.ndarray  # (images,) int64: `text_hash` of each report; 0 without one
    words: np.ndarray  # (images,) int32: of the report
    patients: np.ndarray  # (images,) int64: hash of the data set and the patient


class Images(NamedTuple):
    """The images of all sources, one after another."""

    source: np.ndarray  # (images,) int32: number of the source
    row: np.ndarray  # (images,) int64: in its records
    state: np.ndarray  # (images,) uint8: 0, or why there is no fingerprint
    border: np.ndarray  # (images,) bool
    marked: np.ndarray  # (images,) bool
    hashes: np.ndarray  # (hashes, HASH_BYTES) uint8
    owner: np.ndarray  # (hashes,) int64: the image of each


def read_sources(
    data: Sequence[str], table: TableOptions, splits: Sequence[str] | None = None, views: str = "frontal"
) -> list[Source]:
    """
    Args:
        data: as [`read_records`] takes them; each gets its name, and a number if another one has the same.
        splits: to read; by default all.
        views: `"frontal"` or `"all"`.

    Raises:
        `ValueError`: what [`read_records`] raises, data named twice, or splits that none of the data have.
    """
    if len(set(data)) < len(data):
        raise ValueError("--check names the same data twice; name each once.")
    sources, names = [], []
    for one in data:
        name = dataset_name(one)
        names.append(name)
        shown = f"{name} ({names.count(name)})" if names.count(name) > 1 else name
        own = list_splits(one, table) if has_splits(one, table) else [ALL]
        for split in own if splits is None else [split for split in splits if split in own]:
            records = select_views(read_records(one, split, table), views, f"{shown}, {split}")
            sources.append(read_source(shown, split, records))
    if not sources:
        raise ValueError(f"None of the data has the split {splits[0]!r}; choose others with --splits.")
    return sources


def read_source(dataset: str, split: str, records: datasets.Dataset) -> Source:
    """The hashes of patients and reports; the texts are not kept."""
    reports, words = np.zeros(len(records), dtype=np.int64), np.zeros(len(records), dtype=np.int32)
    patients = np.zeros(len(records), dtype=np.int64)
    columns = ["patient_id", "report", "findings", "impression"]
    for row, record in enumerate(records.select_columns(columns)):
        report = record["report"] or f"{record['findings'] or ''} {record['impression'] or ''}"
        reports[row], words[row] = text_hash(report), len(report.split())
        patients[row] = hash_text(f"{dataset}\n{record['patient_id']}")
    kept = records.select_columns(["image", "image_id", "patient_id"])
    return Source(dataset, split, kept.cast_column("image", datasets.Image(decode=False)), reports, words, patients)


def read_images(sources: Sequence[Source], num_workers: int | None = None) -> Images:
    """
    Decode every image once.

    Args:
        num_workers: processes; by default one for each core that this process may use.

    Raises:
        `ValueError`: no image can be read, or a worker process died.
    """
    counts = [len(source.records) for source in sources]
    state, border, marked = np.zeros(sum(counts), np.uint8), np.zeros(sum(counts), bool), np.zeros(sum(counts), bool)
    hashes, owners, reason, image = [], [], "", 0
    bar = progress(description="reading images", unit="image", total=sum(counts))
    with bar:
        for batch in fingerprints(sources, num_workers or count_cores()):
            hashes += [np.concatenate([of.hashes for of in batch if isinstance(of, Fingerprint)] or [NOTHING])]
            for found in batch:
                if isinstance(found, Fingerprint):
                    owners += [image] * len(found.hashes)
                    border[image], marked[image] = found.border >= MIN_BORDER, found.marked
                else:
                    state[image], reason = found[0], reason or found[1]
                image += 1
            bar.update(len(batch))
    if not owners:
        raise ValueError(f"None of the {sum(counts)} images can be read; the first: {reason}")
    return Images(
        source=np.repeat(np.arange(len(sources), dtype=np.int32), counts),
        row=np.concatenate([np.arange(count) for count in counts]),
        state=state,
        border=border,
        marked=marked,
        hashes=np.concatenate(hashes),
        owner=np.array(owners, dtype=np.int64),
    )


def fingerprints(sources: Sequence[Source], num_workers: int) -> Iterator[list]:
    """What `read_batch` returns for the images of all sources, in order; a few batches are in memory."""
    batches = (
        source.records[start : start + BATCH]["image"]
        for source in sources
        for start in range(0, len(source.records), BATCH)
    )
    if num_workers == 1:
        yield from map(read_batch, batches)
        return
    waiting: deque[Future] = deque()
    try:
        with ProcessPoolExecutor(num_workers, start_method(), initialize_worker) as executor:
            for batch in batches:
                waiting.append(executor.submit(read_batch, batch))
                if len(waiting) > 2 * num_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
    except BrokenProcessPool:
        raise ValueError(
            "a worker process died, most likely because memory ran out; run again with a smaller --num_workers."
        ) from None


def read_batch(images: Sequence[dict]) -> list[Fingerprint | tuple[int, str]]:
    """The fingerprint of each undecoded image, or why it has none."""
    found: list[Fingerprint | tuple[int, str]] = []
    for image in images:
        try:
            picture = read_picture({"image": image}, PICTURE)
        except BlankPicture as error:
            found.append((BLANK, str(error)))
        except (ValueError, OSError) as error:
            found.append((UNREADABLE, str(error)))
        else:
            width, height = original_size(picture)
            scale = min(1.0, PICTURE / min(width, height))
            size = round(width * scale), round(height * scale)
            found.append(fingerprint(resize(picture, size, Image.Resampling.BICUBIC)))
    return found
