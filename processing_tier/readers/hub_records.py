"""Rows of a data set with embedded images and other columns to records of the schema, for `hub`."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from processing_tier.records.annotations import ANNOTATIONS, read_annotations
from processing_tier.records.identifiers import normalize_identifiers
from processing_tier.records.labels import to_age, to_label
from processing_tier.records.schema import REQUIRED_COLUMNS, TEXT_COLUMNS
from processing_tier.records.views import normalize_view
from processing_tier.reports.markup import join_text
from processing_tier.reports.sections import extract_sections

from ..radiograph_tier import path_under

IMAGE = datasets.Image(decode=False)
MISSING_IMAGE = "has neither bytes nor a path; leave it out of the data set"


@dataclass(frozen=True)
class Layout:
    """How the rows of a data set become records: `columns` maps schema names to its columns."""

    columns: Mapping[str, str]
    split: str
    name: str
    features: datasets.Features
    label_values: Mapping[str, float] | None = None

    def value(self, row: Mapping, schema_name: str) -> Any:
        """The value of a column, with the name of a class in place of its number; `None` without such a column."""
        if schema_name not in self.columns:
            return None
        column = self.columns[schema_name]
        value, feature = row[column], self.features[column]
        if not isinstance(feature, datasets.ClassLabel) or value is None:
            return value
        return feature.names[value] if 0 <= value < len(feature.names) else None

    def text(self, row: Mapping, schema_name: str) -> str:
        return join_text(self.value(row, schema_name), f"{self.name}: column {self.columns.get(schema_name)!r}")

    def identifier(self, row: Mapping, schema_name: str, default: str) -> str:
        value = self.value(row, schema_name)
        return normalize_identifiers([value], self.name, self.columns.get(schema_name, ""))[0] or default


def convert_streamed(row: dict, layout: Layout, root: str | os.PathLike) -> dict:
    image = embed(row, root, layout.columns["image"])
    # Not a row number, which depends on the number of processes that share the stream
    image_id = hashlib.sha256(image["image"]["bytes"]).hexdigest()[:16]
    return {**image, **to_record(row, layout, image_id)}


def make_features(columns: Mapping[str, str]) -> datasets.Features:
    """The features of the schema, with the findings that `columns` names."""
    features = {column: datasets.Value("string") for column in REQUIRED_COLUMNS} | {"image": IMAGE}
    for schema_name in columns:
        if schema_name in ANNOTATIONS:
            features[schema_name] = ANNOTATIONS[schema_name]
        elif schema_name == "sex":
            features["sex"] = datasets.Value("string")
        elif schema_name not in features:  # age and the findings
            features[schema_name] = datasets.Value("float32")
    return datasets.Features(features)


def to_record(row: Mapping, layout: Layout, image_id: str) -> dict:
    """One record without its image, from a row with other column names. `image_id` is used if the row has none."""
    image_id = layout.identifier(row, "image_id", image_id)
    texts = {column: layout.text(row, column) for column in TEXT_COLUMNS}
    if "report" not in layout.columns:
        texts["report"] = " ".join(filter(None, (texts["findings"], texts["impression"])))
    elif not {"findings", "impression"} & set(layout.columns):
        texts |= extract_sections(texts["report"])
    record: dict[str, Any] = {
        "image_id": image_id,
        "patient_id": layout.identifier(row, "patient_id", image_id),
        "study_id": layout.identifier(row, "study_id", image_id),
        "view": normalize_view(layout.value(row, "view") if "view" in layout.columns else "FRONTAL"),
        **texts,
        "split": layout.split,
    }
    for schema_name in layout.columns:
        if schema_name in ANNOTATIONS:
            record[schema_name] = read_annotations(schema_name, layout.value(row, schema_name), layout.name)
        elif schema_name == "sex":
            record["sex"] = layout.text(row, "sex")
        elif schema_name == "age":
            record["age"] = to_age(layout.value(row, "age"))
        elif schema_name not in REQUIRED_COLUMNS:
            value = layout.value(row, schema_name)
            record[schema_name] = to_label(value, layout.label_values)
            if record[schema_name] is None:
                raise wrong_value(schema_name, value, layout.name)
    return record


def embed(record: dict, root: str | os.PathLike, column: str = "image") -> dict:
    """The image of a streamed record as bytes without a path: `datasets` would open any file with that path."""
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
        which = f"image {record['image_id']!r}" if record.get("image_id") else "an image record"
        raise ValueError(f"{which} {MISSING_IMAGE}.")
    return {"image": {"bytes": data, "path": None}}


def wrong_value(finding: str, value: Any, name: str) -> ValueError:
    shown = f" ({value!r})" if isinstance(value, (int, float)) else ""
    return ValueError(
        f"{name}: finding {finding!r} has a value other than 1 (present), 0 (absent), -1 (uncertain) and blank (not "
        f"stated){shown}; map words with --label_values yes=1 no=0, or drop the column."
    )
