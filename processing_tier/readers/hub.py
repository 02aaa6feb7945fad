"""
Reads images embedded in Parquet: a folder that `tier-prepare` or `save_to_disk` wrote, or a data set on the Hub.

Which files hold which split is in `hub_files`, how rows with other columns become records in `hub_records`. Code of a
data set never runs, its README.md is ignored, and no path in a record leads out of the data set.
"""

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets.exceptions import DatasetsError
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.file_download import repo_folder_name

from processing_tier.records.annotations import ANNOTATIONS
from processing_tier.records.identifiers import check_unique_ids, normalize_identifier, normalize_identifiers
from processing_tier.records.labels import FINDING_VALUES, to_ages, to_label
from processing_tier.records.schema import IDENTIFIERS, REQUIRED_COLUMNS, SCHEMA_COLUMNS, finding_columns

from ..hub_names import check_hub_name
from ..radiograph_tier import path_under
from .formats import check_rows
from .hub_files import ONLY_SPLIT, count_rows, find_shards, is_saved, saved_splits
from .hub_records import (
    IMAGE,
    MISSING_IMAGE,
    Layout,
    convert_streamed,
    embed,
    make_features,
    to_record,
    wrong_value,
)
from .splits import check_split

IMAGE_DTYPES = ("string", "large_string", "binary", "large_binary")  # paths and files
READ_ROWS = 10_000  # of a prepared data set at once


def list_hub_splits(name_or_folder: str | os.PathLike) -> list[str]:
    """
    The splits of a prepared folder or of a data set on the Hub.

    Raises:
        `ValueError`: the data set does not exist, or cannot be reached.
    """
    name = os.fspath(name_or_folder)
    if os.path.isdir(name):
        return list((saved_splits if is_saved(Path(name)) else find_shards)(Path(name)))
    if os.path.isfile(name):
        has_splits = "split" in pq.read_schema(name).names
        column = pq.read_table(name, columns=["split"]).column("split") if has_splits else pa.array([])
        return sorted(filter(None, map(normalize_identifier, column.unique().to_pylist()))) or [ONLY_SPLIT]
    check_hub_name(name, "data set")
    try:
        return list(datasets.get_dataset_split_names(name))
    except (ValueError, OSError, RuntimeError, DatasetsError) as error:
        raise ValueError(f"{name}: the data set cannot be read ({first_line(error)}).") from None


def read_hub(
    name_or_folder: str | os.PathLike,
    split: str,
    columns: Mapping[str, str] | None = None,
    streaming: bool = False,
    label_values: Mapping[str, float] | None = None,
) -> datasets.Dataset | datasets.IterableDataset:
    """
    Read one split of a prepared folder, or of a data set on the Hub, into the schema of [`records`].

    A data set that has the schema (from `tier-prepare`) is taken as it is. From any other, the columns with names of
    the schema or named in `columns` are taken; findings must be named. Without a `patient_id`, every image is its own
    patient; without a `view`, it is frontal. If there are only whole reports, [`extract_sections`] takes findings and
    impression from them. Classes count by their names.

    Args:
        name_or_folder (`str` or `os.PathLike`): a folder or a Parquet file, otherwise `owner/name` on the Hub.
        split (`str`): such as `"train"`.
        columns (`Mapping[str, str]`, *optional*):
            Schema name to column, such as `{"image": "img", "impression": "caption", "Edema": "edema"}`. Other names
            are findings, whose values must be -1, 0, 1, true, false or blank.
        streaming (`bool`, *optional*, defaults to `False`): return an `IterableDataset`, which downloads as it goes.
        label_values (`Mapping[str, float]`, *optional*): see [`TableOptions`].

    Returns:
        `datasets.Dataset` or `datasets.IterableDataset`: images undecoded, as `{"bytes": ..., "path": ...}`.

    Raises:
        `ValueError`: an unknown data set, split or column, another value of a finding, two rows with one `image_id`,
        or an image outside the data set. An `IterableDataset` raises the last ones while it is read, and does not
        notice repeated identifiers.
    """
    name = os.fspath(name_or_folder)
    dataset = load(name, split, streaming)
    if dataset.features is None:
        raise ValueError(f"{name}: its columns are not known before it is read; read it without streaming.")
    there = dataset.column_names
    is_prepared = not columns and is_schema(dataset.features)
    if label_values and is_prepared:
        raise ValueError(f"label_values has no effect on {name}, whose findings are numbers; leave it out.")
    columns = {
        **{column: column for column in SCHEMA_COLUMNS if column in there and column != "split"},
        **(columns or {}),
    }
    check_features(dataset.features, columns, name, label_values)
    layout = Layout(columns, split, name, dataset.features, label_values)

    root = find_root(name)
    dataset = dataset.cast_column(columns["image"], IMAGE)
    if streaming:
        features = dataset.features if is_prepared else make_features(columns)
        convert = partial(embed_prepared, root=root, name=name, findings=finding_columns(dataset))
        if not is_prepared:
            convert = partial(convert_streamed, layout=layout, root=root)
        return dataset.map(convert, features=features, remove_columns=[c for c in there if c not in features])

    check_paths(dataset, columns["image"], root)
    if is_prepared:
        return check_prepared(dataset, name)
    return convert_all(dataset, layout)


def find_root(name: str) -> Path:
    """The folder that the images of a data set must not leave."""
    if os.path.isdir(name):
        return Path(name)
    return (
        Path(name).parent
        if os.path.isfile(name)
        else Path(HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type="dataset"))
    )


def is_schema(features: datasets.Features) -> bool:
    """Whether a data set has all columns of the schema, with their types."""
    text = all(column == "image" or features.get(column) == datasets.Value("string") for column in REQUIRED_COLUMNS)
    return text and all(column not in features or is_annotation(features[column], column) for column in ANNOTATIONS)


def is_annotation(feature: Any, column: str) -> bool:
    """Whether a column of boxes or masks has the type of the schema."""
    schema = datasets.Features({column: ANNOTATIONS[column]}).arrow_schema.field(column).type
    return datasets.Features({column: feature}).arrow_schema.field(column).type == schema


def check_features(
    features: datasets.Features, columns: Mapping[str, str], name: str, label_values: Mapping[str, float] | None
) -> None:
    """
    Raises:
        `ValueError`: a missing column, images that are not images, or a finding of classes without labels.
    """
    for schema_name, column in columns.items():
        if column not in features:
            raise ValueError(
                f"{name}: column {column!r} (for {schema_name!r}) is missing; it has {', '.join(features)}."
            )
        feature = features[column]
        if schema_name not in SCHEMA_COLUMNS and isinstance(feature, datasets.ClassLabel):
            if any(to_label(word, label_values) is None for word in feature.names):
                raise ValueError(
                    f"{name}: finding {schema_name!r} has the classes {', '.join(feature.names)}; map it to 1, 0, -1 "
                    "and blank first (--label_values yes=1 no=0)."
                )
    if "image" not in columns:
        raise ValueError(
            f"{name}: the column 'image' is missing; name it by --columns image=COLUMN; it has {', '.join(features)}."
        )
    feature = features[columns["image"]]
    is_image = isinstance(feature, datasets.Image) or getattr(feature, "dtype", "") in IMAGE_DTYPES
    if not is_image and not (isinstance(feature, dict) and {"bytes", "path"} & set(feature)):
        kind = getattr(feature, "dtype", None) or type(feature).__name__
        kind = "lists" if kind in ("List", "LargeList", "list") else f"values of type {kind}"
        raise ValueError(
            f"{name}: column {columns['image']!r} (for 'image') has {kind}, not one image in each row; name the "
            "column of the images in columns."
        )


def list_files(name: str, split: str) -> list[str]:
    """
    The Parquet files of a split in order: paths in a folder, or URLs on the Hub. An empty list if the Hub holds the
    data set in another form.

    Raises:
        `ValueError`: an unknown data set, or an unknown split of the folder.
    """
    if os.path.isdir(name):
        shards = find_shards(Path(name))
        check_split(split, shards, name)
        return [str(path) for path in shards[split]]
    if os.path.isfile(name):
        check_rows(count_rows([Path(name)]), Path(name))
        check_split(split, list_hub_splits(name), name)
        return [name]
    check_hub_name(name, "data set")
    try:
        shards = datasets.load_dataset_builder(name).config.data_files or {}
    except (ValueError, OSError, RuntimeError, DatasetsError) as error:
        raise ValueError(f"{name}: the split {split!r} cannot be read ({first_line(error)}).") from None
    files = [str(file) for file in shards.get(split, ())]
    if not all(file.startswith("hf://datasets/") for file in files):  # older versions of datasets would read them
        raise ValueError(f"{name}: its card names files that are not on the Hub; do not use this data set.")
    return files if all(file.endswith(".parquet") for file in files) else []


def load(name: str, split: str, streaming: bool) -> datasets.Dataset | datasets.IterableDataset:
    """
    `datasets.load_dataset` with only the files of the split (by name, it would download all), errors in one sentence.
    """
    if os.path.isdir(name) and is_saved(Path(name)):
        return load_saved(Path(name), split, streaming)
    files = list_files(name, split)
    source = {"path": "parquet", "data_files": {split: files}} if files else {"path": name}
    try:
        dataset = datasets.load_dataset(**source, split=split, streaming=streaming)
    except (ValueError, OSError, RuntimeError, DatasetsError) as error:
        raise ValueError(f"{name}: the split {split!r} cannot be read ({first_line(error)}).") from None
    if os.path.isfile(name) and "split" in dataset.column_names:
        return dataset.filter(lambda value: normalize_identifier(value) == split, input_columns="split")
    return dataset


def load_saved(folder: Path, split: str, streaming: bool) -> datasets.Dataset | datasets.IterableDataset:
    """A split that `save_to_disk` wrote."""
    splits = saved_splits(folder)
    check_split(split, splits, str(folder))
    try:
        dataset = datasets.load_from_disk(str(splits[split])).with_format(None)
        dataset.data.validate(full=True)  # the file is memory-mapped: wrong offsets would lead out of it
    except (
        *(ValueError, OSError, RuntimeError, DatasetsError),
        *(AttributeError, LookupError, TypeError, pa.ArrowException),
    ) as error:
        raise ValueError(f"{folder}: the split {split!r} cannot be read ({first_line(error)}).") from None
    check_rows(len(dataset), folder)
    for field in ("description", "citation", "homepage", "license"):  # unused, and `datasets` would join them as texts
        setattr(dataset.info, field, "")
    return dataset.to_iterable_dataset() if streaming else dataset


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def check_paths(dataset: datasets.Dataset, column: str, root: str | os.PathLike) -> None:
    """ValueError for an image without bytes whose path leaves `root`. Images are not read."""
    start = 0
    for chunk in dataset.with_format("arrow").select_columns(column).iter(READ_ROWS):
        for part in chunk[column].chunks:
            embedded = pc.is_valid(pc.struct_field(part, "bytes")).to_pylist()
            paths = pc.struct_field(part, "path").to_pylist()
            for row, (is_embedded, path) in enumerate(zip(embedded, paths, strict=True), start + 1):
                if not is_embedded and path is None:
                    raise ValueError(f"the image of row {row} {MISSING_IMAGE}.")
                if not is_embedded:
                    path_under(root, path)
            start += len(part)


def check_prepared(dataset: datasets.Dataset, name: str) -> datasets.Dataset:
    """
    A data set that has the schema, with its identifiers in the form of the schema.

    Raises:
        `ValueError`: a finding with other values than -1, 0, 1 and blank, or two rows with one `image_id`.
    """
    findings = finding_columns(dataset)
    for finding in findings:
        values = np.unique(
            np.concatenate([np.asarray(c) for c in dataset.data.column(finding).cast("float64").chunks])
        )
        wrong = [value for value in values if value == value and value not in FINDING_VALUES]
        if wrong:
            raise wrong_value(finding, float(wrong[0]), name)
    for column in IDENTIFIERS:
        values = dataset.with_format(None)[column][:]
        written = normalize_identifiers(values, name, column)
        if written != values:
            order = dataset.column_names
            dataset = dataset.remove_columns(column).add_column(column, written).select_columns(order)
        if column == "image_id":
            check_unique_ids(written, name)
    return dataset


def embed_prepared(record: dict, root: str | os.PathLike, name: str, findings: Sequence[str]) -> dict:
    """A streamed record that has the schema, as [`check_prepared`] gives it."""
    for finding in findings:
        value = record[finding]
        if value is not None and value == value and value not in FINDING_VALUES:
            raise wrong_value(finding, value, name)
    return {**embed(record, root), **{column: normalize_identifier(record[column]) for column in IDENTIFIERS}}


def convert_all(dataset: datasets.Dataset, layout: Layout) -> datasets.Dataset:
    """All rows of a data set as records. Images are not read."""
    features, split = make_features(layout.columns), layout.split
    texts = dataset.select_columns([column for key, column in layout.columns.items() if key != "image"])
    rows = texts if texts.column_names else ({} for _ in range(len(dataset)))
    rows = [to_record(row, layout, f"{split}-{index}") for index, row in enumerate(rows)]
    check_unique_ids([row["image_id"] for row in rows], layout.name)
    if "age" in layout.columns:
        ages = pd.Series(
            [layout.value(row, "age") for row in texts.select_columns(layout.columns["age"])], dtype=object
        )
        to_ages(ages, layout.name)  # warns of values that are not ages
    images = dataset.select_columns(layout.columns["image"])
    if layout.columns["image"] != "image":
        images = images.rename_column(layout.columns["image"], "image")
    others = datasets.Features({key: feature for key, feature in features.items() if key != "image"})
    return datasets.concatenate_datasets([images, datasets.Dataset.from_list(rows, features=others)], axis=1)
