"""
The record schema that every reader yields and every command accepts, and access to the findings, texts, views and
patients of records. How a table becomes records is in `from_table`.

| column | content |
| --- | --- |
| `image` | `datasets.Image(decode=False)`: path or bytes; decode with [`read_radiograph`] |
| `image_id`, `patient_id`, `study_id` | text |
| `view` | `AP`, `PA`, `LATERAL` or `OTHER` |
| `findings`, `impression`, `report` | sections and whole text; a missing one is `""` |
| `split` | name of the split |
| one float32 column per finding | 1 present, 0 absent, -1 uncertain, NaN not stated |
| `boxes`, `masks`, `sex`, `age` | optional; boxes and masks in pixels of the stored image, age in years |

A box is `finding`, `phrase` (the words of a report that it shows, or `""`), `x`, `y` (its top left corner), `w`, `h`.
A mask is `finding`, `height`, `width` and `counts`, see [`masks`]. Identifiers have one form, see
[`normalize_identifier`].
"""

import logging
from collections.abc import Iterable, Mapping

import datasets

from processing_tier.records.views import FRONTAL_VIEWS

logger = logging.getLogger(__name__)

VIEW_CHOICES = ("frontal", "all")

IDENTIFIERS = ("image_id", "patient_id", "study_id")

TEXT_COLUMNS = ("findings", "impression", "report")

REQUIRED_COLUMNS = ("image", "image_id", "patient_id", "study_id", "view", *TEXT_COLUMNS, "split")

OPTIONAL_COLUMNS = ("boxes", "masks", "sex", "age")

SCHEMA_COLUMNS = (*REQUIRED_COLUMNS, *OPTIONAL_COLUMNS)  # every other column is a finding

TEXT_SOURCES = ("impression", "findings", "both")


def finding_columns(dataset: datasets.Dataset | datasets.IterableDataset) -> list[str]:
    """Names of the finding columns: the floating-point columns that are not part of the schema, in their order."""
    return [
        name
        for name, feature in dataset.features.items()
        if name not in SCHEMA_COLUMNS and getattr(feature, "dtype", "").startswith("float")
    ]


def select_text(record: Mapping, source: str = "impression") -> str:
    """
    The text of one record that the model is given, whitespace collapsed; `""` without one.

    Args:
        record (`Mapping`): a record of the schema.
        source (`str`, *optional*, defaults to `"impression"`):
            `"impression"`, `"findings"`, or `"both"`: the impression, or else the findings.

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
    The records of frontal views (AP and PA), or all of them. A warning says how many are left out.

    Args:
        records (`datasets.Dataset`): of one split, in this schema.
        views (`str`): `"frontal"` or `"all"`.
        split (`str`): their name in messages.

    Raises:
        `ValueError`: frontal images are missing.
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
        `ValueError`: two splits share patients; the message says how many.
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
                    "%d patients of %r and %r differ only in leading zeros (007 and 7): check that they are not the "
                    "same.",
                    alike,
                    first,
                    second,
                )
