"""The plan of a preparation: it reads and checks all records, and divides them into shards."""

import hashlib
import inspect
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from processing_tier.prepare.claim import claim, remove_stale_folders
from processing_tier.prepare.options import PrepareOptions
from processing_tier.prepare.shards import Shard, is_whole, read_batches, read_quarantine
from processing_tier.prepare.summary import SOURCE_HEADING
from processing_tier.readers import PHANTOM, READERS, dataset_name, is_hub, list_splits, parse_data, read_records
from processing_tier.readers.hub_files import SHARD
from processing_tier.records.identifiers import check_unique_ids
from processing_tier.records.schema import (
    OPTIONAL_COLUMNS,
    REQUIRED_COLUMNS,
    SCHEMA_COLUMNS,
    check_disjoint_patients,
    select_text,
)
from processing_tier.records.views import FRONTAL_VIEWS
from processing_tier.reports.sections import extract_sections


@dataclass
class Plan:
    """The shards to write, and the counts of records that the card reports."""

    features: datasets.Features
    counts: dict[str, dict[str, int]]  # of each split: read, not_frontal, without_text, kept
    shards: list[Shard]
    todo: list[Shard]  # the missing shards of this job

    @cached_property
    def total(self) -> int:
        return sum(counts["kept"] for counts in self.counts.values())


# --- The records, in a separate process
def make_plan(options: PrepareOptions, output_dir: Path, work_dir: Path, shard_index: int, shard_count: int) -> Plan:
    """
    Read and check all records, compare `output_dir` with the options, and write the records of each missing shard.
    """
    datasets.disable_progress_bars()
    table = options.table
    splits = options.splits or list_splits(options.data, table)
    check_splits(splits)
    records, images, counts = {}, {}, {}
    for split in splits:
        found = read_records(options.data, split, table)
        records[split], images[split], counts[split] = select_records(found, split, options)
    check_disjoint_patients(**records)
    check_unique_ids([image_id for dataset in records.values() for image_id in dataset["image_id"]], options.data)
    features = merge_features(records)
    orders = {split: shuffle(len(dataset), split, options.seed) for split, dataset in records.items()}
    shards = [shard for split, order in orders.items() for shard in cut(split, len(order), options.shard_images)]

    fingerprint = hashlib.sha256()
    words = datasets.Features({name: feature for name, feature in features.items() if name != "image"})
    for split, dataset in records.items():
        fingerprint.update(json.dumps(images[split].tolist()).encode())
        for batch in read_batches(dataset.remove_columns("image"), np.arange(len(dataset)), words):
            fingerprint.update(json.dumps(batch.to_pylist()).encode())
    output_dir.mkdir(parents=True, exist_ok=True)
    work_dir.mkdir()
    claim(output_dir, work_dir, options.recorded() | {"records": fingerprint.hexdigest()})
    remove_stale_folders(output_dir, work_dir)
    (output_dir / "data").mkdir(exist_ok=True)
    todo = []
    for shard in shards[shard_index::shard_count]:
        target = output_dir / "data" / shard.name
        order = orders[shard.split][shard.start : shard.stop]
        if is_whole(target, shard) and not read_quarantine(pq.read_metadata(target)):
            continue
        with pa.OSFile(str(work_dir / shard.name), "wb") as file, pa.ipc.new_file(file, features.arrow_schema) as plan:
            for batch in read_batches(records[shard.split], order, features):
                plan.write_table(batch)
        todo.append(shard)
    return Plan(features, counts, shards, todo)


def check_splits(splits: Sequence[str]) -> None:
    """
    Raises:
        `ValueError`: the split is missing, or its name is impossible for files or `datasets`.
    """
    if not splits:
        raise ValueError(
            "no row of the data has a split; fill the column, or name another one with --columns split=COLUMN."
        )
    for split in splits:
        if not SHARD.fullmatch(f"{split}-00000-of-00001.parquet"):
            raise ValueError(f"split {split!r} cannot be the name of a file; use only letters, digits and _.")
        if split.lower() == "all":
            raise ValueError(f"split {split!r} cannot be loaded: to `datasets` it means all splits; rename it.")


def select_records(
    records: datasets.Dataset, split: str, options: PrepareOptions
) -> tuple[datasets.Dataset, np.ndarray, dict[str, int]]:
    """
    The records that the options select, with the sections they ask for; what [`list_images`] gives for them; and the
    number left out for each reason.
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
            f"{counts['without_text']} have no text in {options.text!r}); choose another --views or --text."
        )
    return records.select(np.flatnonzero(keep)), images[keep], counts | {"kept": int(keep.sum())}


def list_images(records: datasets.Dataset) -> np.ndarray:
    """The name of each image's file, or the number of its embedded bytes. This does not open or copy images."""
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
    """The columns of all splits together: on the Hub, all splits must have the same."""
    features = {name: feature for dataset in records.values() for name, feature in dataset.features.items()}
    findings = [name for name in features if name not in SCHEMA_COLUMNS]
    order = [*REQUIRED_COLUMNS, *findings, *(name for name in OPTIONAL_COLUMNS if name in features)]
    return datasets.Features({name: features[name] for name in order} | {"image": datasets.Image()})


def shuffle(count: int, split: str, seed: int) -> np.ndarray:
    """The order of the records of a split. Other splits do not change it."""
    return np.random.default_rng([seed, zlib.crc32(split.encode())]).permutation(count)


def cut(split: str, total: int, shard_images: int) -> list[Shard]:
    """Shards of a split: of equal size, give or take one image, and at most `shard_images`."""
    count = -(-total // shard_images)
    return [Shard(split, k, count, k * total // count, (k + 1) * total // count) for k in range(count)]


def describe_source(data: str) -> str:
    """The source of the data for the card: their origin, their terms, and the derived fields."""
    reader, folder, _ = parse_data(data)
    if reader == PHANTOM:
        return "Synthetic radiographs that tier-clip draws. They do not show real patients."
    if reader is not None:
        return inspect.cleandoc(inspect.getmodule(READERS[reader][0]).__doc__)
    card = Path(folder, "README.md")
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() and is_hub(folder) else ""
    return text.partition(SOURCE_HEADING)[2].strip() or (
        f"{dataset_name(data)}, as its owner has it. The terms of its source apply; state them here before you share "
        "it."
    )
