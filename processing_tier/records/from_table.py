"""A table of one row per image, as a reader or a user has it, to records of the schema (`schema`)."""

import itertools
import logging
import os
from collections.abc import Mapping, Sequence

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
from datasets.fingerprint import generate_random_fingerprint

from processing_tier.records.annotations import ANNOTATIONS, read_annotations
from processing_tier.records.identifiers import check_unique_ids, ids_from_paths, normalize_identifiers
from processing_tier.records.labels import check_labels, detect_findings, to_ages
from processing_tier.records.paths import find_files, shown_path
from processing_tier.records.schema import IDENTIFIERS, SCHEMA_COLUMNS, TEXT_COLUMNS
from processing_tier.records.views import normalize_view
from processing_tier.reports.markup import join_text

logger = logging.getLogger(__name__)

ROWS_AT_ONCE = 10_000


def make_records(
    frame: pd.DataFrame,
    columns: Mapping[str, str],
    image_root: str | os.PathLike,
    split: str,
    name: str,
    skip_missing: bool = False,
    label_values: Mapping[str, float] | None = None,
) -> datasets.Dataset:
    """
    Bring a table of one row per image into the schema. Images are not opened.

    Args:
        frame (`pd.DataFrame`): the table, with only the rows of this split.
        columns (`Mapping[str, str]`):
            Schema name to column of the table. A name outside the schema is a finding. Without one, the findings are
            those that [`detect_findings`] finds. Values of `boxes` and `masks` are lists of dicts, or JSON.
        image_root (`str` or `os.PathLike`): folder that image paths start from and must not leave.
        split (`str`): value of the `split` column.
        name (`str`): the name of the table in errors.
        skip_missing (`bool`, *optional*, defaults to `False`):
            Leave out rows whose image is missing, with a warning: archives are often downloaded in part.
        label_values (`Mapping[str, float]`, *optional*): see [`TableOptions`].

    Returns:
        `datasets.Dataset`: in the order of the table. Without an `image_id`, it is the stem of the file, or the path
        where stems repeat.

    Raises:
        `ValueError`: an empty table, a missing column, missing images or images outside `image_root`, a blank patient,
        two rows with one `image_id`, or a finding with other values.
    """
    columns = {**{column: column for column in SCHEMA_COLUMNS if column in frame.columns}, **columns}
    check_table(frame, columns, split, name)
    labels = find_labels(frame, columns, name, label_values)
    data = convert_columns(frame, columns, name) | labels

    paths = [str(path) for path in frame[columns["image"]]]
    if "image_id" not in data or "" in data["image_id"]:
        derived = ids_from_paths(paths, image_root)
        data["image_id"] = [given or own for given, own in zip(data.get("image_id", derived), derived, strict=True)]
    files = find_files(image_root, paths)
    there = check_files(files, paths, image_root, split, name, skip_missing)
    if not there.all():
        data = {
            key: column[there] if isinstance(column, np.ndarray) else list(itertools.compress(column, there))
            for key, column in data.items()
        }
        frame, files = frame[there], list(itertools.compress(files, there))
    check_unique_ids(data["image_id"], name)

    texts = {column: columns[column] for column in TEXT_COLUMNS if column in columns}
    # A few rows at a time: strings of Python take several times the memory of Arrow's
    tables = []
    for start in range(0, len(files), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        values = {key: column[rows] for key, column in data.items()} | read_texts(frame.iloc[rows], texts, name)
        tables.append(to_table(values, files[rows], list(labels), split))
    # Without a fingerprint, `datasets` pickles the whole table to make one
    return datasets.Dataset(pa.concat_tables(tables), fingerprint=generate_random_fingerprint())


def find_labels(
    frame: pd.DataFrame, columns: Mapping[str, str], name: str, label_values: Mapping[str, float] | None
) -> dict[str, np.ndarray]:
    """The labels of the findings that `columns` names, or else of those that [`detect_findings`] finds."""
    findings = {key: column for key, column in columns.items() if key not in SCHEMA_COLUMNS}
    if not findings:
        findings = {column: column for column in detect_findings([frame], columns.values(), name, label_values)}
    return {
        finding: check_labels(frame[column], finding, name, label_values).to_numpy(dtype=np.float32)
        for finding, column in findings.items()
    }


def check_files(
    files: Sequence[tuple[str, bool]],
    paths: Sequence[str],
    image_root: str | os.PathLike,
    split: str,
    name: str,
    skip_missing: bool,
) -> np.ndarray:
    """
    Which images are there, of the files that [`find_files`] found. With `skip_missing`, a warning tells how many are
    not.

    Raises:
        `ValueError`: images are missing without `skip_missing`, or all of them are.
    """
    there = np.array([is_there for _, is_there in files])
    missing = [path for path, is_there in zip(paths, there, strict=True) if not is_there]
    if not missing:
        return there
    first = shown_path(missing[0], image_root)
    if not skip_missing or len(missing) == len(paths):
        raise ValueError(
            f"{name}: {len(missing)} of {len(paths)} images are missing, the first is {first}; check the image folder."
        )
    logger.warning(
        "%s, split %s: %d of %d images are missing, the first is %s: left out.",
        name,
        split,
        len(missing),
        len(paths),
        first,
    )
    return there


def check_table(frame: pd.DataFrame, columns: Mapping[str, str], split: str, name: str) -> None:
    """
    Raises:
        `ValueError`: a missing column, a table without rows, or a row without an image or a patient.
    """
    check_named(frame, columns, name)
    if frame.empty:
        raise ValueError(f"{name}: the split {split!r} is empty; check the file and the split.")
    for schema_name in ("image", "patient_id"):
        values = frame[columns[schema_name]]
        blanks = (values.isna() | (values.astype(str).str.strip() == "")).sum()
        if blanks:
            raise ValueError(
                f"{name}: {blanks} rows have no {columns[schema_name]!r} (for {schema_name!r}); fill or remove them."
            )


def check_named(frame: pd.DataFrame, columns: Mapping[str, str], name: str) -> None:
    """
    Raises:
        `ValueError`: a column is not in the table, or the image or the patient has no column.
    """
    for schema_name, column in columns.items():
        if column not in frame.columns:
            there = ", ".join(map(str, frame.columns))
            raise ValueError(f"{name}: column {column!r} (for {schema_name!r}) is missing; it has {there}.")
    for schema_name in ("image", "patient_id"):
        if schema_name not in columns:
            raise ValueError(
                f"{name}: the column for {schema_name!r} is missing; name it with --columns {schema_name}=COLUMN. "
                f"It has {', '.join(map(str, frame.columns))}."
            )


def convert_columns(frame: pd.DataFrame, columns: Mapping[str, str], name: str) -> dict[str, list | np.ndarray]:
    """Identifiers, views, annotations, sex and age of a table, each in the form of the schema."""
    data: dict[str, list | np.ndarray] = {}
    for schema_name, column in columns.items():
        values = frame[column]
        if schema_name in ("view", "sex", "age") and any(isinstance(v, (list, dict, np.ndarray)) for v in values):
            raise ValueError(f"{name}: column {column!r} (for {schema_name!r}) has lists; give one value in each row.")
        if schema_name in IDENTIFIERS:
            data[schema_name] = normalize_identifiers(values, name, column)
        elif schema_name == "view":
            views = {value: normalize_view(value) for value in values.dropna().unique()}
            data["view"] = [views.get(value, "OTHER") for value in values]
        elif schema_name in ANNOTATIONS:
            data[schema_name] = [read_annotations(schema_name, value, name) for value in values]
        elif schema_name == "sex":
            data["sex"] = ["" if pd.isna(value) else str(value) for value in values]
        elif schema_name == "age":
            data["age"] = to_ages(values, name).to_numpy(dtype=np.float32)
    return data


def read_texts(frame: pd.DataFrame, columns: Mapping[str, str], name: str) -> dict[str, list[str]]:
    return {
        key: [join_text(value, f"{name}: column {column!r}") for value in frame[column]]
        for key, column in columns.items()
    }


def to_table(
    data: Mapping[str, Sequence], files: Sequence[tuple[str, bool]], findings: Sequence[str], split: str
) -> pa.Table:
    """Columns that [`make_records`] has checked, as a table of records; `files` are the paths of the images."""
    blank = [""] * len(files)
    texts = {column: data.get(column, blank) for column in ("findings", "impression")}
    joined = [" ".join(filter(None, pair)) for pair in zip(*texts.values(), strict=True)]
    columns = {
        "image": [{"path": path, "bytes": None} for path, _ in files],
        "image_id": data["image_id"],
        "patient_id": data["patient_id"],
        "study_id": [
            study or image for study, image in zip(data.get("study_id", blank), data["image_id"], strict=True)
        ],
        "view": data.get("view", [normalize_view("FRONTAL")] * len(files)),
        **texts,
        "report": data.get("report", joined),
        "split": [split] * len(files),
    }
    features = {column: datasets.Value("string") for column in columns} | {"image": datasets.Image(decode=False)}
    features |= {finding: datasets.Value("float32") for finding in findings}
    optional = {**ANNOTATIONS, "sex": datasets.Value("string"), "age": datasets.Value("float32")}
    features |= {column: feature for column, feature in optional.items() if column in data}
    columns |= {column: data[column] for column in features if column not in columns}
    # `Dataset.from_dict` would encode each value of each column in Python, which is most of the time of large tables
    return pa.Table.from_pydict(columns, schema=datasets.Features(features).arrow_schema)
