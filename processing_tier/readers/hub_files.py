"""
Finds the files of a data set with embedded images: the Parquet files of each split, or what `save_to_disk` wrote.

    data/<split>-00000-of-00012.parquet            what `tier-prepare` and `push_to_hub` write
    <split>.parquet  data/<split>.parquet          beside a README.md
    default/<split>/0000.parquet  <split>/0.parquet   the Hub's own conversion
    dataset_dict.json  <split>/state.json          `DatasetDict.save_to_disk`
    state.json  data-00000-of-00001.arrow          `Dataset.save_to_disk`
"""

import json
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..radiograph_tier import path_under
from .archive_tables import read_bounded
from .formats import check_rows

SHARD = re.compile(r"(?P<split>\w+(\.\w+)*)-(?P<index>\d{5})-of-(?P<count>\d{5})(-\w+)?\.parquet")
NOT_SHARDS = ("metadata.parquet",)  # the metadata of an image folder
MAX_STATE_BYTES = 2**24
STATE, DICT = "state.json", "dataset_dict.json"
ONLY_SPLIT = "train"  # the name of the only split of a data set without splits


def parquet_files(folder: Path) -> list[Path]:
    """The Parquet files of a folder, in the first layout that it has."""
    for pattern in ("data/*.parquet", "default/*/*.parquet", "*.parquet", "*/*.parquet"):
        files = sorted(path for path in folder.glob(pattern) if path.name not in NOT_SHARDS)
        if files:
            return files
    return []


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    return (folder / DICT).is_file() or (folder / STATE).is_file()


def find_shards(folder: Path) -> dict[str, list[Path]]:
    """
    The files of each split of a folder, in order.

    Raises:
        `ValueError`: files are missing, or a file is a link out of the folder.
    """
    shards: dict[str, list[Path]] = defaultdict(list)
    numbered: dict[str, dict[int, Path]] = defaultdict(dict)
    counts: dict[str, int] = {}
    for path in parquet_files(folder):
        file = path_under(folder, path.relative_to(folder))
        match = SHARD.fullmatch(path.name)
        if path.parent not in (folder, folder / "data"):
            shards[path.parent.name].append(file)
        elif match:
            numbered[match["split"]][int(match["index"])] = file
            counts[match["split"]] = int(match["count"])
        else:
            shards[path.stem].append(file)
    for split, files in numbered.items():
        missing = counts[split] - len(files)
        if missing:
            raise ValueError(
                f"{folder}: {missing} of {counts[split]} files of the split {split!r} are missing; let "
                "tier-prepare finish, or copy all files."
            )
        shards[split] += [files[index] for index in sorted(files)]
    if not shards:
        raise ValueError(
            f"{folder}: it has no data/<split>-00000-of-00001.parquet; name a folder that tier-prepare wrote."
        )
    for files in shards.values():
        check_rows(count_rows(files), folder)
    return dict(shards)


def count_rows(files: Sequence[Path]) -> int:
    """
    Raises:
        `ValueError`: a file is not Parquet.
    """
    total = 0
    for path in files:
        try:
            total += pq.read_metadata(path).num_rows
        except (OSError, pa.ArrowException):
            raise ValueError(f"{path.name}: the file is not a readable parquet table; copy it again.") from None
    return total


def saved_splits(folder: Path) -> dict[str, Path]:
    """
    The splits that `save_to_disk` wrote, each with its folder.

    Raises:
        `ValueError`: a damaged description, or one that names a file outside the folder.
    """
    try:
        if (folder / DICT).is_file():
            names = json.loads(read_bounded(folder / DICT, MAX_STATE_BYTES))["splits"]
        else:
            names = [""]
        splits = {name or ONLY_SPLIT: path_under(folder, name) for name in names}
        for path in splits.values():
            state = json.loads(read_bounded(path / STATE, MAX_STATE_BYTES))
            for file in state["_data_files"]:
                path_under(folder, os.path.join(path, file["filename"]))
    except (KeyError, TypeError, RecursionError, UnicodeDecodeError, json.JSONDecodeError):
        raise ValueError(
            f"{folder}: {STATE} or {DICT} is not as save_to_disk writes it; save the data again."
        ) from None
    return splits


def has_embedded_images(path: Path) -> bool:
    """Whether a Parquet file has a column of images, as `datasets` stores them."""
    try:
        schema = pq.read_schema(path)
    except (OSError, pa.ArrowException):
        return False
    return any(
        pa.types.is_struct(field.type) and {"bytes", "path"} == {child.name for child in field.type}
        for field in schema
    )
