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
corner), `w`, `h`. A mask is `finding`, `height`, `width` and `counts`, see [`masks`].
"""

import itertools
import json
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
from datasets.fingerprint import generate_random_fingerprint

from .prompts import is_known_finding
from .radiograph_tier import path_under

logger = logging.getLogger(__name__)

FRONTAL_VIEWS = ("AP", "PA")
VIEWS = (*FRONTAL_VIEWS, "LATERAL", "OTHER")
VIEW_CHOICES = ("frontal", "all")
TEXT_COLUMNS = ("findings", "impression", "report")
REQUIRED_COLUMNS = ("image", "image_id", "patient_id", "study_id", "view", *TEXT_COLUMNS, "split")
OPTIONAL_COLUMNS = ("boxes", "masks", "sex", "age")
TEXT_SOURCES = ("impression", "findings", "both")
PART = 10_000  # rows
FINDING_VALUES = (-1.0, 0.0, 1.0)  # or NaN
TRUTH = {"true": 1, "false": 0}

BOXES = [{name: datasets.Value("float32" if name in "xywh" else "string") for name in ("finding", "phrase", *"xywh")}]
MASKS = [
    {
        "finding": datasets.Value("string"),
        "height": datasets.Value("int32"),
        "width": datasets.Value("int32"),
        "counts": [datasets.Value("int32")],
    }
]
VIEW_NAMES = {"FRONTAL": "PA", "LL": "LATERAL", "RL": "LATERAL", "L": "LATERAL", "LAT": "LATERAL"}


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
    names = list(patients)
    for index, first in enumerate(names):
        for second in names[index + 1 :]:
            shared = len(patients[first] & patients[second])
            if shared:
                raise ValueError(
                    f"{shared} patient{'s are' if shared > 1 else ' is'} in both {first!r} and {second!r}; split by "
                    f"patient (the shared ones are set(a['patient_id']) & set(b['patient_id']))."
                )


def normalize_view(value) -> str:
    """
    A view in the words of the schema. `FRONTAL` without more becomes `PA`, the usual projection, so that a filter on
    frontal views keeps it; blanks and anything unknown become `OTHER`.
    """
    name = str(value).strip().upper() if not pd.isna(value) else ""
    first = name.split(" ")[0]
    if name in VIEWS or name in VIEW_NAMES:
        return VIEW_NAMES.get(name, name)
    return VIEW_NAMES.get(first, first) if first in (*FRONTAL_VIEWS, "LATERAL") else "OTHER"


def make_records(
    frame: pd.DataFrame,
    columns: Mapping[str, str],
    image_root: str | os.PathLike,
    split: str,
    name: str,
    skip_missing: bool = False,
) -> datasets.Dataset:
    """
    Bring a table of one row per image into the schema. No image is opened.

    Args:
        frame (`pd.DataFrame`): the table, with only the rows of this split.
        columns (`Mapping[str, str]`):
            Schema name to column of the table. A name outside the schema is a finding; where none is given, the
            findings are the other columns whose values are all -1, 0, 1 or blank, and those with the name of a known
            finding, whose values must be. Values of `boxes` and `masks` are
            lists of dicts as the schema has them; boxes may be JSON, see [`read_boxes`].
        image_root (`str` or `os.PathLike`): folder that image paths are relative to and must not leave.
        split (`str`): value of the `split` column.
        name (`str`): what the table is called in errors.
        skip_missing (`bool`, *optional*, defaults to `False`):
            Leave out rows whose image is not there, with a warning, as archives that were downloaded in part need.

    Returns:
        `datasets.Dataset`: in the order of the table.

    Raises:
        `ValueError`: an empty table, a column that is not there, images that are not there or outside `image_root`,
        a blank patient, or a finding with other values.
    """
    known = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)
    columns = {**{column: column for column in known if column in frame.columns}, **columns}
    for schema_name, column in columns.items():
        if column not in frame.columns:
            raise ValueError(
                f"{name}: column {column!r} (for {schema_name!r}) is not there; it has {', '.join(frame.columns)}."
            )
    for schema_name in ("image", "patient_id"):
        if schema_name not in columns:
            raise ValueError(
                f"{name}: no column is named for {schema_name!r}; name one in columns={{{schema_name!r}: ...}}; "
                f"there are {', '.join(frame.columns)}."
            )
    if frame.empty:
        raise ValueError(f"{name}: the split {split!r} is empty; check the file and the split.")

    findings = {key: column for key, column in columns.items() if key not in known}
    if not findings:
        used = set(columns.values())
        others = [column for column in frame.columns if column not in used]
        # a column that is called like a finding, but holds "yes" or 2, would else be left out without a word
        findings = {
            column: column
            for column in others
            if is_finding(frame[column]) or is_known_finding(str(column)) and frame[column].notna().any()
        }
    for finding, column in findings.items():
        bad = frame[column].notna() & ~to_numbers(frame[column]).isin(FINDING_VALUES)
        if bad.any():
            raise ValueError(
                f"{name}: finding {finding!r} has {bad.sum()} values other than 1 (present), 0 (absent), "
                "-1 (uncertain) and blank (not stated); map or drop the column."
            )

    paths = frame[columns["image"]]
    for schema_name in ("image", "patient_id"):
        blanks = frame[columns[schema_name]].isna().sum()
        if blanks:
            raise ValueError(
                f"{name}: {blanks} rows have no {columns[schema_name]!r} (for {schema_name!r}); fill or remove them."
            )
    paths = [str(path) for path in paths]
    resolved = resolve_paths(image_root, paths)
    there = [os.path.isfile(file) for file in resolved]
    missing = [path for path, found in zip(paths, there, strict=True) if not found]
    if skip_missing and 0 < len(missing) < len(paths):
        logger.warning(
            "%s, split %s: %d of %d images are not there, the first is %s: left out.",
            name,
            split,
            len(missing),
            len(paths),
            Path(missing[0]).name,
        )
        frame = frame[there]
        paths, resolved = list(itertools.compress(paths, there)), list(itertools.compress(resolved, there))
    elif missing:
        raise ValueError(
            f"{name}: {len(missing)} of {len(paths)} images are not there, the first is {Path(missing[0]).name}; "
            "check the image folder."
        )

    # A part at a time, because strings of Python take several times the memory of Arrow's
    parts = [slice(start, start + PART) for start in range(0, len(frame), PART)]
    table = pa.concat_tables(
        to_table(frame.iloc[part], columns, findings, paths[part], resolved[part], split, name) for part in parts
    )
    # Without a fingerprint, `datasets` pickles all of the table to make one
    return datasets.Dataset(table, fingerprint=generate_random_fingerprint())


def to_table(
    frame: pd.DataFrame,
    columns: Mapping[str, str],
    findings: Mapping[str, str],
    paths: list[str],
    resolved: list[str],
    split: str,
    name: str,
) -> pa.Table:
    """The rows of a table that [`make_records`] has checked, as records; `resolved` are the paths of the images."""

    def text(schema_name: str, default) -> list[str]:
        if schema_name not in columns:
            return list(default)
        values = frame[columns[schema_name]]
        return ["" if blank else str(value) for value, blank in zip(values, values.isna(), strict=True)]

    blank = [""] * len(frame)
    image_ids = text("image_id", [Path(path).stem for path in paths])
    findings_text, impressions = text("findings", blank), text("impression", blank)
    joined = (" ".join(filter(None, pair)) for pair in zip(findings_text, impressions, strict=True))
    views = frame[columns["view"]] if "view" in columns else pd.Series("FRONTAL", index=frame.index)
    known_views = {value: normalize_view(value) for value in views.dropna().unique()}
    data = {
        "image": [{"path": path, "bytes": None} for path in resolved],
        "image_id": image_ids,
        "patient_id": text("patient_id", blank),
        "study_id": text("study_id", image_ids),
        "view": [known_views.get(value, "OTHER") for value in views],
        "findings": findings_text,
        "impression": impressions,
        "report": text("report", joined),
        "split": [split] * len(frame),
    }
    features = {column: datasets.Value("string") for column in data} | {"image": datasets.Image(decode=False)}
    for finding, column in findings.items():
        data[finding] = to_numbers(frame[column]).to_numpy(dtype=np.float32)
        features[finding] = datasets.Value("float32")
    if "boxes" in columns:
        data["boxes"] = [read_boxes(value, name) for value in frame[columns["boxes"]]]
        features["boxes"] = BOXES
    if "masks" in columns:
        data["masks"] = list(frame[columns["masks"]])
        features["masks"] = MASKS
    if "sex" in columns:
        data["sex"] = text("sex", blank)
        features["sex"] = datasets.Value("string")
    if "age" in columns:
        data["age"] = to_numbers(frame[columns["age"]]).to_numpy(dtype=np.float32)
        features["age"] = datasets.Value("float32")
    # `Dataset.from_dict` would encode each value of each column in Python, which is most of the time of large tables
    return pa.Table.from_pydict(data, schema=datasets.Features(features).arrow_schema)


def resolve_paths(root: str | os.PathLike, paths: Iterable[str]) -> list[str]:
    """
    What [`path_under`] gives for each of many paths; folders that they share are resolved once.

    Raises:
        `ValueError`: a path does not lie under `root`.
    """
    root = os.path.realpath(root)
    folders, below = {root: root}, os.path.join(root, "")
    resolved = []
    for path in paths:
        whole = os.path.normpath(os.path.join(root, path))
        if ".." in path or not whole.startswith(below):  # seldom: nothing is taken for granted
            resolved.append(str(path_under(root, path)))
            continue
        missing, folder = [], os.path.dirname(whole)
        while folder not in folders:
            missing.append(folder)
            folder = os.path.dirname(folder)
        for folder in reversed(missing):
            real = os.path.join(folders[os.path.dirname(folder)], os.path.basename(folder))
            folders[folder] = os.path.realpath(real) if os.path.islink(real) else real
        real = os.path.join(folders[os.path.dirname(whole)], os.path.basename(whole))
        if os.path.islink(real):
            real = os.path.realpath(real)
        if not real.startswith(below):
            path_under(root, path)  # says so
        resolved.append(real)
    return resolved


def to_numbers(values: pd.Series) -> pd.Series:
    """A column as numbers, true and false as 1 and 0; NaN where it is blank or anything else."""
    if pd.api.types.is_bool_dtype(values):
        return values.astype(float)
    numbers = pd.to_numeric(values, errors="coerce").astype(float)
    words = numbers.isna() & values.notna()
    if words.any():
        numbers[words] = values[words].map(lambda value: TRUTH.get(str(value).strip().lower(), float("nan")))
    return numbers


def is_finding(values: pd.Series) -> bool:
    return bool(values.notna().any() and to_numbers(values).isin(FINDING_VALUES)[values.notna()].all())


def read_boxes(value, name: str) -> list[dict]:
    """
    Boxes of one image, as the schema has them.

    Args:
        value: a list of dicts with `finding`, `x`, `y`, `w`, `h` and perhaps `phrase`, or JSON such as
            `[{"label": "Pneumonia", "bbox_xywh": [x, y, width, height]}]`; anything else is no box.
        name (`str`): what the table is called in errors.

    Raises:
        `ValueError`: text that is not such JSON, other keys, or a coordinate that is no number.
    """
    if not isinstance(value, (list, tuple, np.ndarray, str)) or isinstance(value, str) and not value.strip():
        return []
    try:
        if isinstance(value, str):
            value = [
                dict(zip("xywh", box["bbox_xywh"], strict=True), finding=box["label"]) for box in json.loads(value)
            ]
        boxes = [
            {**{side: float(box[side]) for side in "xywh"}, "finding": box["finding"], "phrase": box.get("phrase", "")}
            for box in value
        ]
        if not all(isinstance(box[key], str) for box in boxes for key in ("finding", "phrase")):
            raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        raise ValueError(
            f"{name}: a value of the boxes column is not a JSON list of label and bbox_xywh; mend or drop the column."
        ) from None
    if not np.isfinite([[box[side] for side in "xywh"] for box in boxes]).all():
        raise ValueError(f"{name}: a box has a coordinate that is no number; mend or drop the column.")
    return boxes
