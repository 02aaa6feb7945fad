"""
An archive to a prepared data set: Parquet shards with embedded images, which `datasets` and [`read_hub`] read.

    <output>/prepare.json      the options, and a fingerprint of the records; what a later run is held to
    <output>/data/train-00000-of-00012.parquet ...
    <output>/quarantine.csv    images that cannot be read, and why
    <output>/summary.json      counts
    <output>/sheet.jpg         some of the images
    <output>/README.md         the card; written last, so a folder that has one is whole

A shard is made by one worker process and gets its name when all of it is written, so that a killed run goes on where
it was. Its footer carries its part of the quarantine list: there is no state beside the shards. What is in which shard
follows from the records, the seed and the number of images per shard alone.

Until they are whole, files lie in a folder of the run, `.tier-prepare-<part>-<random>`, since a scheduler may begin a
job again while it still runs. Who has made a part removes what other runs of that part have there.
"""

import csv
import dataclasses
import errno
import hashlib
import inspect
import io
import json
import logging
import multiprocessing
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image
from tqdm.auto import tqdm

from .display import spreadsheet_cell
from .identifiers import check_unique_ids
from .labels import parse_label_values
from .masks import decode_mask, encode_mask
from .paths import shown_path
from .prepare_summary import SOURCE_HEADING, draw_sheet, make_card, summarize
from .radiograph_tier import original_size, read_source, resize
from .readers import (
    PHANTOM,
    PREPARED_FILE,
    READERS,
    dataset_name,
    is_hub,
    list_splits,
    origin_name,
    parse_data,
    read_records,
)
from .readers.hub_files import SHARD
from .records import (
    FRONTAL_VIEWS,
    OPTIONAL_COLUMNS,
    REQUIRED_COLUMNS,
    check_disjoint_patients,
    select_text,
)
from .reports import extract_sections

logger = logging.getLogger(__name__)

ROWS_PER_GROUP = 100  # what a streaming reader loads at once
BYTES_PER_GROUP = 64 * 2**20  # fewer rows where the images are large
WORK_PREFIX = ".tier-prepare-"
LEFT_BEHIND = 24 * 3600  # seconds since a run began or ended a shard after which it counts as killed
QUARANTINE = "quarantine"  # key in a shard's footer
QUARANTINE_COLUMNS = ("split", "image_id", "file", "reason")
EMPTY = {"boxes": [], "masks": [], "sex": "", "age": float("nan")}  # where only another split has the column


@dataclass(frozen=True)
class PrepareOptions:
    """
    What the output depends on.

    Args:
        data (`str`), columns (`dict[str, str]`, *optional*), image_root (`str`, *optional*): see [`read_records`].
        sheet (`str`, *optional*): see [`read_records`].
        label_values (`tuple[str, ...]`, *optional*): WORD=LABEL each, see [`parse_label_values`].
        splits (`tuple[str, ...]`, *optional*): by default all that the data have.
        views (`str`, *optional*, defaults to `"frontal"`): `"frontal"` or `"all"`.
        text (`str`, *optional*):
            Leave out records without this text: `"impression"`, `"findings"` or `"both"` (either of them).
        report_style (`str`, *optional*, defaults to `"standard"`):
            `"standard"` keeps the sections as the reader gives them; `"chexzero"` and `"tier"` cut them out of the
            whole report anew, as [`extract_sections`] does.
        size (`int`, *optional*, defaults to 512):
            Pixels of the shortest side of the stored images, so that every geometry of [`TierImageProcessor`] at up to
            this size has pixels enough. Smaller images keep theirs. `None` stores all as they are.
        format (`str`, *optional*, defaults to `"jpeg"`): or `"png"`.
        quality (`int`, *optional*, defaults to 95): of JPEG.
        shard_images (`int`, *optional*, defaults to 1000): most images in a shard.
        seed (`int`, *optional*, defaults to 0): of the order of the records.
    """

    data: str
    columns: dict[str, str] | None = None
    image_root: str | None = None
    sheet: str | None = None
    label_values: tuple[str, ...] | None = None
    splits: tuple[str, ...] | None = None
    views: str = "frontal"
    text: str | None = None
    report_style: str = "standard"
    size: int | None = 512
    format: str = "jpeg"
    quality: int = 95
    shard_images: int = 1000
    seed: int = 0

    def recorded(self) -> dict:
        """The options as `prepare.json` and the card have them: nothing of this machine's folders."""
        options = {key: value for key, value in dataclasses.asdict(self).items() if key != "image_root"}
        if self.format != "jpeg":
            del options["quality"]
        return options | {
            "data": origin_name(self.data),
            "reader_options": {
                name: Path(value).name if isinstance(value, str) else value
                for name, value in parse_data(self.data)[2].items()
                if name != "image_root"
            },
            "splits": list(self.splits) if self.splits else None,
            "label_values": list(self.label_values) if self.label_values else None,
        }


@dataclass(frozen=True)
class Shard:
    """One file of the output, and which records it gets."""

    split: str
    index: int
    count: int  # shards of this split
    start: int  # among the shuffled records of this split
    stop: int

    @property
    def name(self) -> str:
        return f"{self.split}-{self.index:05d}-of-{self.count:05d}.parquet"


@dataclass
class Plan:
    """What is to be done, and what the card says about the records that are left out."""

    features: datasets.Features
    counts: dict[str, dict[str, int]]  # of each split: read, not_frontal, without_text, kept
    shards: list[Shard]
    todo: list[Shard]  # those of this machine that are not there yet

    @cached_property
    def total(self) -> int:
        return sum(counts["kept"] for counts in self.counts.values())


def prepare(
    options: PrepareOptions,
    output_dir: str | os.PathLike,
    num_workers: int | None = None,
    max_failed: float = 0.01,
    shard_index: int = 0,
    shard_count: int = 1,
) -> dict | None:
    """
    Make a prepared data set, or go on with one.

    Args:
        options ([`PrepareOptions`]): what is made.
        output_dir (`str` or `os.PathLike`): a new or empty folder, or one that was begun with the same options.
        num_workers (`int`, *optional*): worker processes; by default one for each core this process may use.
        max_failed (`float`, *optional*, defaults to 0.01):
            Share of the images that may fail to decode; those whose pixels are all equal do not count.
        shard_index (`int`, *optional*, defaults to 0), shard_count (`int`, *optional*, defaults to 1):
            Which part of the shards this machine makes; the machine that ends last writes the card.

    Returns:
        `dict` or `None`: the summary, or `None` while shards of other machines are missing.

    Raises:
        `ValueError`: what [`read_records`] raises, a patient in two splits, an output that is something else or was
            begun with other options, a split that `datasets` could not load, no record left by the filters, more
            failures than `max_failed` allows, or a worker process that died.
        `OSError`: the disk is full or fails. Then, as after the last two of the above, finished shards are kept.
    """
    output_dir = Path(os.path.abspath(output_dir))
    check_output(output_dir)
    work_dir = output_dir / f"{WORK_PREFIX}{shard_index}-of-{shard_count}-{secrets.token_hex(8)}"
    try:
        return run(options, output_dir, work_dir, num_workers, max_failed, shard_index, shard_count)
    except BrokenProcessPool:
        raise ValueError(
            "a worker process died, most likely for want of memory; run again with fewer num_workers (the finished "
            "shards are kept)."
        ) from None
    except OSError as error:
        is_gone = work_dir.name in str(error) and not work_dir.exists() or error.errno == errno.ESTALE  # of NFS
        if not is_gone:
            raise
        logger.warning("Another run has made the same part of %s meanwhile.", output_dir)
        path = output_dir / "summary.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    finally:
        shutil.rmtree(work_dir, ignore_errors=True)


def run(
    options: PrepareOptions,
    output_dir: Path,
    work_dir: Path,
    num_workers: int | None,
    max_failed: float,
    shard_index: int,
    shard_count: int,
) -> dict | None:
    context = start_method()
    # In a process of its own, whose memory (of all records) goes back to the machine before the images are read
    with ProcessPoolExecutor(1, context, initialize_worker) as executor:
        plan = executor.submit(make_plan, options, output_dir, work_dir, shard_index, shard_count).result()
    failures = list(list_quarantine(output_dir, (shard for shard in plan.shards if shard not in plan.todo)))
    allowed = int(max_failed * plan.total)
    left = allowed - count_unreadable(failures)
    failures += make_shards(plan, output_dir, work_dir, options, context, num_workers, left)
    is_done = all(is_whole(output_dir / "data" / shard.name, shard) for shard in plan.shards)
    if is_done:  # with what other machines did meanwhile
        failures = list(list_quarantine(output_dir, plan.shards))
    if count_unreadable(failures) > allowed:
        write_quarantine(output_dir, work_dir, failures)
        first = next(failure for failure in failures if not failure.get("blank"))
        raise ValueError(
            f"{count_unreadable(failures)} images cannot be read, more than the {allowed} of {plan.total} that "
            f"max_failed={max_failed} allows; the first is {first['file']}: {first['reason']} "
            f"quarantine.csv in {output_dir} lists them; mend the files or raise max_failed, and run again."
        )
    summary = write_rest(options, plan, output_dir, work_dir, failures) if is_done else None
    # Of killed runs. One that still runs has nothing left to do; this comes last, so that it need not write the card
    part = "*" if shard_count == 1 else f"{shard_index}-of-{shard_count}-*"
    for path in output_dir.glob(WORK_PREFIX + part):
        shutil.rmtree(path, ignore_errors=True)
    return summary


def count_unreadable(failures: Sequence[dict]) -> int:
    """Pictures that show nothing are left out as well, but say nothing of the decoders or the folder."""
    return sum(not failure.get("blank", False) for failure in failures)


def start_method() -> multiprocessing.context.BaseContext:
    """Workers fork from a server without threads that has the imports done, where there is one."""
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([__name__])
    return context


# --- The records, in a process of its own


def make_plan(options: PrepareOptions, output_dir: Path, work_dir: Path, shard_index: int, shard_count: int) -> Plan:
    """Reads and checks all records, holds `output_dir` to the options, and writes the records of each shard to do."""
    datasets.disable_progress_bars()
    splits = options.splits or list_splits(options.data, options.columns, options.sheet)
    source = {"columns": options.columns, "image_root": options.image_root, "sheet": options.sheet}
    source["label_values"] = parse_label_values(options.label_values)
    check_splits(splits)
    records, images, counts = {}, {}, {}
    for split in splits:
        records[split], images[split], counts[split] = select_records(
            read_records(options.data, split, **source), split, options
        )
    check_disjoint_patients(**records)
    check_unique_ids([image_id for dataset in records.values() for image_id in dataset["image_id"]], options.data)
    features = merge_features(records)
    orders = {split: shuffle(len(dataset), split, options.seed) for split, dataset in records.items()}
    shards = [shard for split, order in orders.items() for shard in cut(split, len(order), options.shard_images)]

    fingerprint = hashlib.sha256()
    words = datasets.Features({name: feature for name, feature in features.items() if name != "image"})
    for split, dataset in records.items():
        fingerprint.update(json.dumps(images[split].tolist()).encode())
        for table in read_batches(dataset.remove_columns("image"), np.arange(len(dataset)), words):
            fingerprint.update(json.dumps(table.to_pylist()).encode())
    output_dir.mkdir(parents=True, exist_ok=True)
    work_dir.mkdir()
    claim(output_dir, work_dir, options.recorded() | {"records": fingerprint.hexdigest()})
    remove_left_behind(output_dir, work_dir)
    (output_dir / "data").mkdir(exist_ok=True)
    todo = []
    for shard in shards[shard_index::shard_count]:
        target = output_dir / "data" / shard.name
        order = orders[shard.split][shard.start : shard.stop]
        if is_whole(target, shard) and not read_quarantine(pq.read_metadata(target)):
            continue
        with pa.OSFile(str(work_dir / shard.name), "wb") as file, pa.ipc.new_file(file, features.arrow_schema) as plan:
            for table in read_batches(records[shard.split], order, features):
                plan.write_table(table)
        todo.append(shard)
    return Plan(features, counts, shards, todo)


def check_splits(splits: Sequence[str]) -> None:
    """
    Raises:
        `ValueError`: no split, or a name that files or `datasets` cannot have.
    """
    if not splits:
        raise ValueError("no row of the data has a split; fill the column, or name another one in columns.")
    for split in splits:
        if not SHARD.fullmatch(f"{split}-00000-of-00001.parquet"):
            raise ValueError(f"split {split!r} cannot be the name of a file; use letters, digits and _ alone.")
        if split.lower() == "all":
            raise ValueError(f"split {split!r} cannot be loaded, for `datasets` means all splits by it; rename it.")


def select_records(
    records: datasets.Dataset, split: str, options: PrepareOptions
) -> tuple[datasets.Dataset, np.ndarray, dict[str, int]]:
    """
    The records that the options ask for, with the sections they ask for; what [`list_images`] says of them; and how
    many were left out why.
    """
    images = list_images(records)
    if options.report_style != "standard":
        sections = [extract_sections(report, options.report_style) for report in records["report"]]
        columns = records.column_names
        for name in ("findings", "impression"):
            texts = [section[name].strip() for section in sections]
            records = records.remove_columns(name).add_column(name, texts)
        records = records.select_columns(columns)
    keep = np.ones(len(records), dtype=bool)
    if options.views == "frontal":
        keep = np.isin(np.array(records["view"][:]), FRONTAL_VIEWS)
    counts = {"read": len(records), "not_frontal": int((~keep).sum()), "without_text": 0}
    if options.text is not None:
        sections = records.select_columns(["impression", "findings"])
        has_text = np.fromiter((bool(select_text(record, options.text)) for record in sections), bool, len(records))
        counts["without_text"] = int((keep & ~has_text).sum())
        keep &= has_text
    if not keep.any():
        raise ValueError(
            f"split {split!r}: none of {len(records)} records is left ({counts['not_frontal']} are not frontal, "
            f"{counts['without_text']} have no text in {options.text!r}); ask for other views or texts."
        )
    return records.select(np.flatnonzero(keep)), images[keep], counts | {"kept": int(keep.sum())}


def list_images(records: datasets.Dataset) -> np.ndarray:
    """The name of each image's file, or how many bytes of it are embedded; neither opens nor copies one."""
    images = []
    for table in records.select_columns("image").with_format("arrow").iter(1000):
        for chunk in table["image"].chunks:
            sizes = pc.binary_length(pc.struct_field(chunk, "bytes")).to_pylist()
            paths = pc.struct_field(chunk, "path").to_pylist()
            images += [
                os.path.basename(path or "") if size is None else size for size, path in zip(sizes, paths, strict=True)
            ]
    return np.array(images, dtype=object)


def merge_features(records: Mapping[str, datasets.Dataset]) -> datasets.Features:
    """The columns of all splits: those of a data set on the Hub are the same in each."""
    features = {name: feature for dataset in records.values() for name, feature in dataset.features.items()}
    findings = [name for name in features if name not in (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)]
    order = [*REQUIRED_COLUMNS, *findings, *(name for name in OPTIONAL_COLUMNS if name in features)]
    return datasets.Features({name: features[name] for name in order} | {"image": datasets.Image()})


def shuffle(count: int, split: str, seed: int) -> np.ndarray:
    """The order of the records of a split; independent of which other splits are prepared."""
    return np.random.default_rng([seed, zlib.crc32(split.encode())]).permutation(count)


def cut(split: str, total: int, shard_images: int) -> list[Shard]:
    """Shards of a split, of equal size (but one) and at most `shard_images`."""
    count = -(-total // shard_images)
    return [Shard(split, k, count, k * total // count, (k + 1) * total // count) for k in range(count)]


def read_batches(records: datasets.Dataset, order: np.ndarray, features: datasets.Features) -> Iterator[pa.Table]:
    """Records in this order as tables of `features`; findings that the split does not have are blank."""
    records = records.with_format("arrow")
    for start in range(0, len(order), ROWS_PER_GROUP):
        table = records[order[start : start + ROWS_PER_GROUP]]
        for name in features:
            if name not in table.column_names:
                values = [EMPTY.get(name, float("nan"))] * len(table)
                table = table.append_column(name, pa.array(values, features.arrow_schema.field(name).type))
        yield table.select(list(features)).cast(features.arrow_schema)


def check_output(output_dir: Path) -> None:
    """
    Raises:
        `ValueError`: the folder cannot be written, or holds something that was not begun here.
    """
    existing = next(path for path in (output_dir, *output_dir.parents) if path.exists())
    try:  # os.access says yes to root on a disk that is read-only, and in /proc
        tempfile.TemporaryDirectory(prefix=WORK_PREFIX, dir=existing).cleanup()
    except OSError as error:
        raise ValueError(
            f"the output folder {output_dir} cannot be written ({error.strerror}); name another one."
        ) from None
    if existing != output_dir or (output_dir / PREPARED_FILE).is_file():
        return
    if any(not path.name.startswith(".") for path in output_dir.iterdir()):  # what a killed run leaves is hidden
        raise ValueError(f"the output {output_dir} is not empty and holds no prepared data; name another folder.")


def claim(output_dir: Path, work_dir: Path, options: dict) -> None:
    """
    Writes `prepare.json`, or makes sure that it says the same. Of several runs that begin at once, one writes it.

    Raises:
        `ValueError`: the output was begun with other options; the message names both values.
    """
    path = output_dir / PREPARED_FILE
    partial = work_dir / path.name
    partial.write_text(json.dumps(options, indent=2) + "\n", encoding="utf-8")
    try:
        os.link(partial, path)  # unlike a rename, it does not replace
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        if not path.exists():
            os.replace(partial, path)
    try:
        begun = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(f"{path} is not readable; delete the output and begin anew.") from None
    for name, value in options.items():
        if begun.get(name) == value:
            continue
        if name == "records":
            raise ValueError(
                f"the records of {options['data']} are not those that the output {output_dir} was begun with; name "
                "another output."
            )
        raise ValueError(
            f"the output {output_dir} was begun with {name}={begun.get(name)!r}, not {value!r}; name another output, "
            "or give the same options."
        )


def remove_left_behind(output_dir: Path, work_dir: Path) -> None:
    """Folders of killed runs of any part, which may be large; by the clock of the file system, which all share."""
    now = work_dir.stat().st_mtime
    for path in output_dir.glob(f"{WORK_PREFIX}*"):
        try:
            if now - path.stat().st_mtime > LEFT_BEHIND:
                shutil.rmtree(path, ignore_errors=True)
        except FileNotFoundError:  # its run has ended
            pass


def is_whole(path: Path, shard: Shard) -> bool:
    """Whether a shard is there with all its images, read or quarantined."""
    try:
        metadata = pq.read_metadata(path)
    except (OSError, pa.ArrowInvalid):
        return False
    return metadata.num_rows + len(read_quarantine(metadata)) == shard.stop - shard.start


# --- The shards, in workers


def initialize_worker(*counters) -> None:
    """Called once in each worker: it ends with its parent, even a killed one, and leaves Ctrl-C to it."""
    global done, failed, stop
    if counters:
        done, failed, stop = counters
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def make_shards(
    plan: Plan,
    output_dir: Path,
    work_dir: Path,
    options: PrepareOptions,
    context: multiprocessing.context.BaseContext,
    num_workers: int | None,
    allowed: int,
) -> list[dict]:
    """Makes the shards to do; the failures, of which there are too many when the work was broken off."""
    if not plan.todo:
        return []
    failures = []
    counters = context.Value("q", 0), context.Value("q", 0), context.Event()
    done, failed, stop = counters
    workers = min(num_workers or count_cores(), len(plan.todo))
    total = sum(shard.stop - shard.start for shard in plan.todo)
    with (
        # A log gets a line now and then
        tqdm(total=total, unit=" images", desc="Preparing", mininterval=0.5 if sys.stderr.isatty() else 30) as bar,
        ProcessPoolExecutor(workers, context, initialize_worker, counters) as executor,
    ):
        try:
            pending = {executor.submit(write_shard, work_dir, output_dir, shard, options) for shard in plan.todo}
            while pending:
                finished, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                bar.update(done.value - bar.n)
                failures += [failure for future in finished for failure in future.result()]
                if failed.value > allowed:
                    stop.set()
            bar.update(done.value - bar.n)
        finally:
            stop.set()  # after an error: the others stop at their next image
            executor.shutdown(cancel_futures=True)
    return failures


def count_cores() -> int:
    """Cores that this process may use: of a scheduler's job, those it was given."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write_shard(work_dir: Path, output_dir: Path, shard: Shard, options: PrepareOptions) -> list[dict]:
    """
    Makes one shard, but one that is there and whose quarantined images still cannot be read; the images that cannot be
    read. Leaves nothing where it fails or is told to stop.
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
    """Records one at a time, since images that are embedded already may be large."""
    for index in range(records.num_record_batches):
        table = pa.Table.from_batches([records.get_batch(index)])
        images = table.column("image")
        for row, record in enumerate(table.drop_columns("image").to_pylist()):
            yield {"image": images[row].as_py(), **record}


def can_be_mended(records: pa.ipc.RecordBatchFileReader, positions: set[int]) -> bool:
    """Whether an image that was quarantined can be read by now."""
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


def add(counter, value: int) -> None:
    with counter.get_lock():
        counter.value += value


def open_writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    """Fixed settings, so that the bytes depend on the records alone (and on the versions of pyarrow and Pillow)."""
    return pq.ParquetWriter(
        path, schema, version="2.6", compression="zstd", use_dictionary=False, write_statistics=False
    )


def make_row(record: dict, options: PrepareOptions) -> dict:
    """
    The record with its image as it is stored; boxes and masks in the stored image's pixels.

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
    # Without a name: `datasets` would take a file of that name in the working folder for the image
    return record | {"image": {"bytes": buffer.getvalue(), "path": None}}


class BlankPicture(ValueError):
    """All pixels are equal: it can be read, and is of no use."""


def read_picture(record: dict, size: int | None = None) -> Image.Image:
    """
    Raises:
        `ValueError`: the image cannot be read, or shows nothing.
    """
    image, _ = read_source(record["image"], None, None if size is None else {"shortest_edge": size})
    if "blank" in image.info:
        raise BlankPicture(image.info["blank"])
    return image


def scale_box(box: dict, new_width: int, new_height: int, width: int, height: int) -> dict:
    x, y = new_width / width, new_height / height
    return box | {"x": box["x"] * x, "w": box["w"] * x, "y": box["y"] * y, "h": box["h"] * y}


def scale_mask(mask: dict, new_width: int, new_height: int, width: int, height: int) -> dict:
    """A pixel is inside where at least half of what it stands for is."""
    pixels = decode_mask(mask["counts"], mask["height"], mask["width"])
    image = Image.fromarray(pixels.astype(np.uint8) * 255).resize((new_width, new_height), Image.Resampling.BOX)
    counts = encode_mask(np.asarray(image) >= 128)
    return mask | {"height": new_height, "width": new_width, "counts": counts}


def describe(record: dict, error: Exception, options: PrepareOptions) -> dict:
    """The entry of an image in the quarantine list, its file from the folder of the data on, so that it is found."""
    path = record["image"]["path"] or ""
    reason = (error.strerror or type(error).__name__) if isinstance(error, OSError) else str(error)
    reason = reason.removeprefix(f"{Path(path).name}: ")
    folder = options.image_root or parse_data(options.data)[1]
    file = shown_path(path, os.path.dirname(folder) if os.path.isfile(folder) else folder) if path else ""
    entry = {"split": record["split"], "image_id": record["image_id"], "file": file, "reason": reason}
    return entry | {"blank": isinstance(error, BlankPicture)}


# --- What is written when all shards are there


def read_quarantine(metadata: pq.FileMetaData) -> list[dict]:
    return json.loads((metadata.metadata or {}).get(QUARANTINE.encode(), b"[]"))


def list_quarantine(output_dir: Path, shards: Iterable[Shard]) -> Iterator[dict]:
    for shard in shards:
        path = output_dir / "data" / shard.name
        if is_whole(path, shard):
            yield from read_quarantine(pq.read_metadata(path))


def write(path: Path, work_dir: Path, content: str | bytes) -> None:
    """Writes elsewhere, then renames: a reader never sees half a file."""
    partial = work_dir / path.name
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(partial, path)


def write_quarantine(output_dir: Path, work_dir: Path, failures: Iterable[dict]) -> None:
    text = io.StringIO()
    table = csv.DictWriter(text, QUARANTINE_COLUMNS, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows({key: spreadsheet_cell(value) for key, value in failure.items()} for failure in failures)
    write(output_dir / "quarantine.csv", work_dir, text.getvalue())


def write_rest(options: PrepareOptions, plan: Plan, output_dir: Path, work_dir: Path, failures: list[dict]) -> dict:
    """
    Counts the output, and writes everything that is not a shard; the summary.

    Raises:
        `ValueError`: no image of a split can be read.
    """
    write_quarantine(output_dir, work_dir, failures)
    for split, counts in plan.counts.items():
        failed = [failure for failure in failures if failure["split"] == split]
        if len(failed) == counts["kept"]:  # `datasets` cannot open a set with an empty split
            raise ValueError(
                f"split {split!r}: none of {len(failed)} images can be read; the first is {failed[0]['file']}: "
                f"{failed[0]['reason']} quarantine.csv in {output_dir} lists them; mend the files and run again, or "
                "prepare the other splits alone in another folder."
            )
    files = {split: [] for split in plan.counts}
    for shard in plan.shards:
        files[shard.split].append(output_dir / "data" / shard.name)
    splits = {
        split: {
            **summarize(files[split]),
            "quarantined": sum(failure["split"] == split for failure in failures),
            "blank": sum(failure["split"] == split and failure.get("blank", False) for failure in failures),
            "not_frontal": counts["not_frontal"],
            "without_text": counts["without_text"],
        }
        for split, counts in plan.counts.items()
    }
    summary = {**options.recorded(), "splits": splits}
    write(output_dir / "summary.json", work_dir, json.dumps(summary, indent=2) + "\n")
    write(output_dir / "sheet.jpg", work_dir, draw_sheet([file for split in files.values() for file in split]))
    write(output_dir / "README.md", work_dir, make_card(summary, files, describe_source(options.data)))
    return summary


def describe_source(data: str) -> str:
    """What is known of where the data come from, under which terms, and what is derived."""
    reader, folder, _ = parse_data(data)
    if reader == PHANTOM:
        return "Synthetic radiographs that tier-clip draws; they show nobody."
    if reader is not None:
        return inspect.cleandoc(inspect.getmodule(READERS[reader][0]).__doc__)
    card = Path(folder, "README.md")
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() and is_hub(folder) else ""
    return text.partition(SOURCE_HEADING)[2].strip() or (
        f"{dataset_name(data)}, as its owner has it. The terms of its source apply; state them here before you pass "
        "it on."
    )
