"""Columns that are added to records behind [`make_records`], a few rows at a time."""

from collections.abc import Iterable, Mapping
from itertools import islice

import datasets
import pyarrow as pa
from datasets.fingerprint import generate_random_fingerprint

ROWS_AT_ONCE = 1000


def add_columns(
    records: datasets.Dataset, features: Mapping[str, object], rows: Iterable[Mapping[str, object]]
) -> datasets.Dataset:
    """
    Records with more columns, for boxes and masks that would take several times the memory as objects of Python.

    Args:
        records (`datasets.Dataset`): without these columns.
        features (`Mapping[str, object]`): name of each new column to its feature, such as `{"boxes": BOXES}`.
        rows (`Iterable[Mapping[str, object]]`): their values, one mapping for each record in its order; read once.

    Returns:
        `datasets.Dataset`: the same records with the new columns behind the others.
    """
    schema, rows = datasets.Features(features).arrow_schema, iter(rows)
    tables = []
    while batch := list(islice(rows, ROWS_AT_ONCE)):
        tables.append(pa.Table.from_pylist(batch, schema=schema))
    added = datasets.Dataset(pa.concat_tables(tables), fingerprint=generate_random_fingerprint())
    return datasets.concatenate_datasets([records, added], axis=1)
