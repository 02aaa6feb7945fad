"""
Parquet with embedded images: a folder that `tier-prepare` wrote, or a data set on the Hub.

A folder holds `data/<split>-00000-of-00012.parquet`, as `Dataset.push_to_hub` lays a repository out too. A name is
`owner/name`. Nothing of a data set is run, a folder's files are the ones found in it (its README.md is not asked), and
no path in a record is followed out of the data set.
"""

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow.compute as pc
from datasets.exceptions import DatasetsError
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.file_download import repo_folder_name

from ..radiograph_tier import path_under
from ..records import FINDING_VALUES, OPTIONAL_COLUMNS, REQUIRED_COLUMNS, TEXT_COLUMNS, normalize_view

SHARD = re.compile(r"(?P<split>\w+(\.\w+)*)-(?P<index>\d{5})-of-(?P<count>\d{5})(-\w+)?\.parquet")
IMAGE = datasets.Image(decode=False)


def find_shards(folder: Path) -> dict[str, list[Path]]:
    """
    The files of each split of a folder, in their order.

    Raises:
        `ValueError`: there are none, some are missing, or one is a link to somewhere else.
    """
    shards, counts = defaultdict(dict), {}
    for path in sorted((folder / "data").glob("*.parquet")):
        if match := SHARD.fullmatch(path.name):
            shards[match["split"]][int(match["index"])] = path_under(folder, path.relative_to(folder))
            counts[match["split"]] = int(match["count"])
    if not shards:
        raise ValueError(f"{folder}: no data/<split>-00000-of-00001.parquet is in it; name a folder of tier-prepare.")
    for split, files in shards.items():
        missing = counts[split] - len(files)
        if missing:
            raise ValueError(
                f"{folder}: {missing} of {counts[split]} files of the split {split!r} are not there; run the "
                "tier-prepare that writes them to its end, or copy them all."
            )
    return {split: [files[index] for index in sorted(files)] for split, files in shards.items()}


def list_hub_splits(name_or_folder: str | os.PathLike) -> list[str]:
    """
    The splits of a prepared folder or of a data set on the Hub.

    Raises:
        `ValueError`: there is no such data set, or it cannot be reached.
    """
    name = os.fspath(name_or_folder)
    if os.path.isdir(name):
        return list(find_shards(Path(name)))
    try:
        return list(datasets.get_dataset_split_names(name))
    except (ValueError, OSError, RuntimeError, DatasetsError) as error:
        raise ValueError(f"{name}: the data set cannot be read ({first_line(error)}).") from None


def read_hub(
    name_or_folder: str | os.PathLike,
    split: str,
    columns: Mapping[str, str] | None = None,
    streaming: bool = False,
) -> datasets.Dataset | datasets.IterableDataset:
    """
    Read one split of a prepared folder, or of a data set on the Hub, into the schema of [`records`].

    A data set that has the schema already (one of `tier-prepare`) is taken as it is. Of any other, columns called as
    in the schema or named in `columns` are taken; findings are the ones named. Without a `patient_id` every image
    counts as a patient of its own, without a `view` it is taken as frontal.

    Args:
        name_or_folder (`str` or `os.PathLike`): a folder, otherwise `owner/name` on the Hub.
        split (`str`): such as `"train"`.
        columns (`Mapping[str, str]`, *optional*):
            Schema name to column, such as `{"image": "img", "impression": "caption", "Edema": "edema"}`. Other names
            than the schema's are findings, whose values must be -1, 0, 1, true, false or blank.
        streaming (`bool`, *optional*, defaults to `False`): give an `IterableDataset`, which downloads as it goes.

    Returns:
        `datasets.Dataset` or `datasets.IterableDataset`: images undecoded, as `{"bytes": ..., "path": ...}`; those of
        an `IterableDataset` have bytes.

    Raises:
        `ValueError`: no such data set, split or column, another value of a finding, or an image outside of the data
        set. Of an `IterableDataset`, the last two come up while it is read.
    """
    name = os.fspath(name_or_folder)
    dataset = load(name, split, streaming)
    if dataset.features is None:
        raise ValueError(f"{name}: its columns are not known before all of it is read; read it without streaming.")
    there = dataset.column_names
    known = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)
    is_prepared = not columns and all(
        column == "image" or dataset.features.get(column) == datasets.Value("string") for column in REQUIRED_COLUMNS
    )
    columns = {**{column: column for column in known if column in there and column != "split"}, **(columns or {})}
    for schema_name, column in columns.items():
        if column not in there:
            raise ValueError(
                f"{name}: column {column!r} (for {schema_name!r}) is not there; it has {', '.join(there)}."
            )
        feature = dataset.features[column]
        if schema_name not in known and isinstance(feature, datasets.ClassLabel):
            raise ValueError(
                f"{name}: finding {schema_name!r} has the classes {', '.join(feature.names)}; map it to 1, 0, -1 and "
                "blank first."
            )
    if "image" not in columns:
        raise ValueError(
            f"{name}: no column is called 'image'; name one in columns={{'image': ...}}; it has {', '.join(there)}."
        )

    root = name if os.path.isdir(name) else Path(HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type="dataset"))
    dataset = dataset.cast_column(columns["image"], IMAGE)
    if streaming:
        features = dataset.features if is_prepared else make_features(columns, dataset.features)
        convert = partial(embed, root=root)
        if not is_prepared:
            convert = partial(convert_streamed, columns=columns, split=split, name=name, root=root)
        return dataset.map(convert, features=features, remove_columns=[c for c in there if c not in features])

    check_paths(dataset, columns["image"], root)
    if is_prepared:
        return dataset
    features = make_features(columns, dataset.features)
    texts = dataset.select_columns([column for key, column in columns.items() if key != "image"])
    rows = texts if texts.column_names else ({} for _ in range(len(dataset)))
    rows = [to_record(row, columns, split, f"{split}-{index}", name) for index, row in enumerate(rows)]
    images = dataset.select_columns(columns["image"])
    if columns["image"] != "image":
        images = images.rename_column(columns["image"], "image")
    others = datasets.Features({key: feature for key, feature in features.items() if key != "image"})
    return datasets.concatenate_datasets([images, datasets.Dataset.from_list(rows, features=others)], axis=1)


def list_files(name: str, split: str) -> list[str]:
    """
    The Parquet files of a split of a folder, or of a data set on the Hub as URLs, in their order; none where the Hub
    holds the data set in another form.

    Raises:
        `ValueError`: no such data set, or no such split of the folder.
    """
    if os.path.isdir(name):
        shards = find_shards(Path(name))
        if split not in shards:
            raise ValueError(f"{name}: there is no split {split!r}; it has {', '.join(shards)}.")
        return [str(path) for path in shards[split]]
    try:
        shards = datasets.load_dataset_builder(name).config.data_files or {}
    except (ValueError, OSError, RuntimeError, DatasetsError) as error:
        raise ValueError(f"{name}: the split {split!r} cannot be read ({first_line(error)}).") from None
    files = [str(file) for file in shards.get(split, ())]
    if not all(file.startswith("hf://datasets/") for file in files):  # older versions of datasets take them
        raise ValueError(f"{name}: its card names files that are not on the Hub; do not use this data set.")
    return files if all(file.endswith(".parquet") for file in files) else []


def load(name: str, split: str, streaming: bool) -> datasets.Dataset | datasets.IterableDataset:
    """`datasets.load_dataset` of a split's files alone (of a name it would fetch all), errors in one sentence."""
    files = list_files(name, split)
    source = {"path": "parquet", "data_files": {split: files}} if files else {"path": name}
    try:
        return datasets.load_dataset(**source, split=split, streaming=streaming)
    except (ValueError, OSError, RuntimeError, DatasetsError) as error:
        raise ValueError(f"{name}: the split {split!r} cannot be read ({first_line(error)}).") from None


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def check_paths(dataset: datasets.Dataset, column: str, root: str | os.PathLike) -> None:
    """ValueError for an image without bytes whose path leaves `root`; reads no bytes of images."""
    for chunk in dataset.data.column(column).chunks:
        embedded = pc.is_valid(pc.struct_field(chunk, "bytes"))
        if pc.all(embedded).as_py() is not False:
            continue
        for path in pc.struct_field(chunk, "path").filter(pc.invert(embedded)).to_pylist():
            if path is None:
                raise ValueError("an image record has neither bytes nor a path; leave it out of the data set.")
            path_under(root, path)


def embed(record: dict, root: str | os.PathLike, column: str = "image") -> dict:
    """The image of a streamed record as bytes alone: `datasets` would prefer a file of that name, whosever it is."""
    image = record[column] or {}
    data = image.get("bytes")
    if data is None and image.get("path"):
        if "://" in image["path"]:
            raise ValueError(
                f"{Path(image['path']).name}: the image is a link and not in the table; read the data set without "
                "streaming."
            )
        data = path_under(root, image["path"]).read_bytes()
    if data is None:
        raise ValueError("an image record has neither bytes nor a path; leave it out of the data set.")
    return {"image": {"bytes": data, "path": None}}


def convert_streamed(row: dict, columns: Mapping[str, str], split: str, name: str, root: str | os.PathLike) -> dict:
    image = embed(row, root, columns["image"])
    # A row number would differ with the number of processes that share the stream
    image_id = hashlib.sha256(image["image"]["bytes"]).hexdigest()[:16]
    return {**image, **to_record(row, columns, split, image_id, name)}


def make_features(columns: Mapping[str, str], source: datasets.Features) -> datasets.Features:
    """The features of the schema, with the findings that `columns` names."""
    features = {column: datasets.Value("string") for column in REQUIRED_COLUMNS} | {"image": IMAGE}
    for schema_name, column in columns.items():
        if schema_name in ("boxes", "masks"):
            features[schema_name] = source[column]
        elif schema_name == "sex":
            features["sex"] = datasets.Value("string")
        elif schema_name not in features:  # age and the findings
            features[schema_name] = datasets.Value("float32")
    return datasets.Features(features)


def to_record(row: Mapping, columns: Mapping[str, str], split: str, image_id: str, name: str) -> dict:
    """All of one record but the image, from a row of other column names; `image_id` is taken where there is none."""

    def text(schema_name: str, default: str = "") -> str:
        value = row[columns[schema_name]] if schema_name in columns else None
        return default if value is None or value != value else str(value)

    image_id = text("image_id", image_id)
    record = {
        "image_id": image_id,
        "patient_id": text("patient_id", image_id),
        "study_id": text("study_id", image_id),
        "view": normalize_view(row[columns["view"]]) if "view" in columns else normalize_view("FRONTAL"),
        **{column: text(column) for column in TEXT_COLUMNS},
        "split": split,
    }
    record["report"] = text("report", " ".join(filter(None, (record["findings"], record["impression"]))))
    for schema_name, column in columns.items():
        if schema_name in ("boxes", "masks"):
            record[schema_name] = row[column]
        elif schema_name == "sex":
            record["sex"] = text("sex")
        elif schema_name == "age":
            record["age"] = float(pd.to_numeric(row[column], errors="coerce")) if row[column] is not None else np.nan
        elif schema_name not in REQUIRED_COLUMNS:
            value = np.nan if row[column] is None else row[column]
            if not isinstance(value, (bool, int, float)) or not (value != value or value in FINDING_VALUES):
                raise ValueError(
                    f"{name}: finding {schema_name!r} has a value other than 1 (present), 0 (absent), -1 (uncertain) "
                    "and blank (not stated); map or drop the column."
                )
            record[schema_name] = float(value)
    return record
