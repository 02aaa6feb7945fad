"""
The record schema that every reader yields and every command accepts.

| column | content |
| --- | --- |
| `image` | `datasets.Image(decode=False)`: path or bytes; decode with [`read_radiograph`] |
| `image_id`, `patient_id`, `study_id` | text |
| `view` | `AP`, `PA`, `LATERAL` or `OTHER` |
| `findings`, `impression`, `report` | sections and whole text, `""` where there is none |
| `split` | name of the split |
| one float32 column per finding | 1 present, 0 absent, -1 uncertain, NaN not stated |
| `boxes`, `masks`, `sex`, `age` | optional; boxes and masks in pixels of the stored image, age in years |

A box is `finding`, `phrase` (the words of a report that it shows, `""` where there are none), `x`, `y` (its top left
corner), `w`, `h`. A mask is `finding`, `height`, `width` and `counts`, see [`masks`]. Identifiers are written one way,
see [`normalize_identifier`].
"""

import itertools
import logging
import os
from collections.abc import Iterable, Mapping, Sequence

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
from datasets.fingerprint import generate_random_fingerprint

from processing_tier.records.annotations import ANNOTATIONS, read_annotations
from processing_tier.records.identifiers import check_unique_ids, ids_from_paths, normalize_identifiers
from processing_tier.records.labels import check_labels, detect_findings, to_ages
from processing_tier.records.paths import find_files, shown_path
from processing_tier.records.views import FRONTAL_VIEWS, normalize_view
from processing_tier.reports.markup import join_text

logger = logging.getLogger(__name__)

VIEW_CHOICES = ("frontal", "all")

IDENTIFIERS = ("image_id", "patient_id", "study_id")

TEXT_COLUMNS = ("findings", "impression", "report")

REQUIRED_COLUMNS = ("image", "image_id", "patient_id", "study_id", "view", *TEXT_COLUMNS, "split")

OPTIONAL_COLUMNS = ("boxes", "masks", "sex", "age")

TEXT_SOURCES = ("impression", "findings", "both")

PART = 10_000  # rows


def finding_columns(dataset: datasets.Dataset | datasets.IterableDataset) -> list[str]:
    """Names of the finding columns: the floating-point columns that are not part of the schema, in their order."""
    known = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)
    return [
        name
        for name, feature in dataset.features.items()
        if name not in known and getattr(feature, "dtype", "").startswith("float")
    ]


def select_text(record: Mapping, source: str = "impression") -> str:
    """
    The text of one record that the model is given, whitespace collapsed; `""` where there is none.

    Args:
        record (`Mapping`): a record of the schema.
        source (`str`, *optional*, defaults to `"impression"`):
            `"impression"`, `"findings"`, or `"both"`: the impression, and the findings where it is empty.

    Raises:
        `ValueError`: an unknown source.
    """
    if source not in TEXT_SOURCES:
        raise ValueError(f"text source {source!r} is not known; choose one of {', '.join(TEXT_SOURCES)}.")
    columns = ("impression", "findings") if source == "both" else (source,)
    texts = (" ".join((record[column] or "").split()) for column in columns)
    return next((text for text in texts if text), "")


def select_views(records: datasets.Dataset, views: str, split: str) -> datasets.Dataset:
    """
    The records of frontal views (AP and PA), or all of them; what is left out is said in a warning.

    Args:
        records (`datasets.Dataset`): of one split, in this schema.
        views (`str`): `"frontal"` or `"all"`.
        split (`str`): what to call them.

    Raises:
        `ValueError`: no view is frontal.
    """
    if views == "all":
        return records
    kept = [i for i, view in enumerate(records["view"][:]) if view in FRONTAL_VIEWS]
    if not kept:
        raise ValueError(f"Split {split!r} has no frontal image; use --views all, or check its views.")
    if len(kept) == len(records):
        return records
    logger.warning("%s: %d of %d images are not frontal: left out.", split, len(records) - len(kept), len(records))
    return records.select(kept)


def check_columns(dataset: datasets.Dataset, columns: Iterable[str] = REQUIRED_COLUMNS) -> None:
    """
    Raises:
        `ValueError`: a column is missing.
    """
    missing = [column for column in columns if column not in dataset.column_names]
    if missing:
        raise ValueError(
            f"column {', '.join(map(repr, missing))} is not in the data; it has {', '.join(dataset.column_names)}."
        )


def check_disjoint_patients(**splits: datasets.Dataset) -> None:
    """
    Check that no patient is in two of the named data sets, as in `check_disjoint_patients(train=..., validation=...)`.

    Raises:
        `ValueError`: with the number of patients that two splits share.
    """
    patients = {name: set(dataset["patient_id"]) for name, dataset in splits.items()}
    bare = {name: {patient.lstrip("0") for patient in found} for name, found in patients.items()}
    names = list(patients)
    for index, first in enumerate(names):
        for second in names[index + 1 :]:
            shared = len(patients[first] & patients[second])
            if shared:
                raise ValueError(
                    f"{shared} patient{'s are' if shared > 1 else ' is'} in both {first!r} and {second!r}; split by "
                    f"patient (the shared ones are set(a['patient_id']) & set(b['patient_id']))."
                )
            alike = len(bare[first] & bare[second])
            if alike:
                logger.warning(
                    "%d patients of %r and %r differ in leading zeros alone (007 and 7): check that they are not the "
                    "same.",
                    alike,
                    first,
                    second,
                )


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
    Bring a table of one row per image into the schema. No image is opened.

    Args:
        frame (`pd.DataFrame`): the table, with only the rows of this split.
        columns (`Mapping[str, str]`):
            Schema name to column of the table. A name outside the schema is a finding; where none is given, the
            findings are the other columns whose values are all -1, 0, 1 or blank, and those with the name of a known
            finding, whose values must be. Values of `boxes` and `masks` are
            lists of dicts as the schema has them, or JSON, see [`read_boxes`] and [`read_masks`].
        image_root (`str` or `os.PathLike`): folder that image paths are relative to and must not leave.
        split (`str`): value of the `split` column.
        name (`str`): what the table is called in errors.
        skip_missing (`bool`, *optional*, defaults to `False`):
            Leave out rows whose image is not there, with a warning, as archives that were downloaded in part need.
        label_values (`Mapping[str, float]`, *optional*): words of findings and their labels, see
            [`parse_label_values`].

    Returns:
        `datasets.Dataset`: in the order of the table. Without an `image_id`, it is the stem of the file, or the path
        where stems repeat.

    Raises:
        `ValueError`: an empty table, a column that is not there, images that are not there or outside `image_root`,
        a blank patient, two rows of one `image_id`, or a finding with other values.
    """
    known = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)
    columns = {**{column: column for column in known if column in frame.columns}, **columns}
    check_table(frame, columns, split, name)
    findings = {key: column for key, column in columns.items() if key not in known}
    if not findings:
        findings = {column: column for column in detect_findings([frame], columns.values(), name, label_values)}
    labels = {
        finding: check_labels(frame[column], finding, name, label_values).to_numpy(dtype=np.float32)
        for finding, column in findings.items()
    }
    data = read_columns(frame, columns, name) | labels

    paths = [str(path) for path in frame[columns["image"]]]
    files = find_files(image_root, paths)
    there = np.array([is_there for _, is_there in files])
    missing = [path for path, is_there in zip(paths, there, strict=True) if not is_there]
    if "image_id" not in data or "" in data["image_id"]:
        derived = ids_from_paths(paths, image_root)
        data["image_id"] = [given or own for given, own in zip(data.get("image_id", derived), derived, strict=True)]
    if missing and skip_missing and len(missing) < len(paths):
        logger.warning(
            "%s, split %s: %d of %d images are not there, the first is %s: left out.",
            name,
            split,
            len(missing),
            len(paths),
            shown_path(missing[0], image_root),
        )
        data = {
            key: column[there] if isinstance(column, np.ndarray) else list(itertools.compress(column, there))
            for key, column in data.items()
        }
        frame, files = frame[there], list(itertools.compress(files, there))
    elif missing:
        raise ValueError(
            f"{name}: {len(missing)} of {len(paths)} images are not there, the first is "
            f"{shown_path(missing[0], image_root)}; check the image folder."
        )
    check_unique_ids(data["image_id"], name)

    # A part at a time, because strings of Python take several times the memory of Arrow's
    texts = {column: columns[column] for column in TEXT_COLUMNS if column in columns}
    tables = []
    for start in range(0, len(files), PART):
        part = slice(start, start + PART)
        values = {key: column[part] for key, column in data.items()} | read_texts(frame.iloc[part], texts, name)
        tables.append(to_table(values, files[part], list(findings), split))
    table = pa.concat_tables(tables)
    # Without a fingerprint, `datasets` pickles all of the table to make one
    return datasets.Dataset(table, fingerprint=generate_random_fingerprint())


def check_table(frame: pd.DataFrame, columns: Mapping[str, str], split: str, name: str) -> None:
    """
    Raises:
        `ValueError`: a column that is not there, no rows, or a row without an image or a patient.
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
        `ValueError`: a column is not in the table, or none is that of the image or the patient.
    """
    for schema_name, column in columns.items():
        if column not in frame.columns:
            there = ", ".join(map(str, frame.columns))
            raise ValueError(f"{name}: column {column!r} (for {schema_name!r}) is not there; it has {there}.")
    for schema_name in ("image", "patient_id"):
        if schema_name not in columns:
            raise ValueError(
                f"{name}: no column is named for {schema_name!r}; name one by --columns {schema_name}=COLUMN; "
                f"there are {', '.join(map(str, frame.columns))}."
            )


def read_columns(frame: pd.DataFrame, columns: Mapping[str, str], name: str) -> dict[str, list | np.ndarray]:
    """The columns of a table but image, split, texts and findings, each in the schema's form."""
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
    """Columns that [`make_records`] has checked, as records; `files` are the paths of the images."""
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
