"""Reads a user's table of one row per image, with any column names. File formats are in `formats`."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets
import pandas as pd

from processing_tier.records.from_table import check_named, make_records
from processing_tier.records.identifiers import (
    check_unique_ids,
    ids_from_paths,
    normalize_identifiers,
)
from processing_tier.records.labels import detect_findings, label_key
from processing_tier.records.schema import SCHEMA_COLUMNS
from processing_tier.records.table_options import STANDARD_TABLE, TableOptions
from processing_tier.reports.markup import join_text
from processing_tier.reports.sections import extract_sections

from .formats import read_frame
from .splits import select_split

logger = logging.getLogger(__name__)


def add_sections(frame: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    """The table with findings and impression by [`extract_sections`], if it has only whole reports."""
    sources = {name: columns.get(name, name) for name in ("report", "findings", "impression")}
    there = [name for name, column in sources.items() if column in frame.columns]
    if there != ["report"]:
        return frame
    reports = [join_text(value, f"column {sources['report']!r}") for value in frame[sources["report"]]]
    sections = {text: extract_sections(text) for text in set(reports)}
    found = {name: [sections[text][name] for text in reports] for name in ("findings", "impression")}
    return frame.assign(**{name: pd.Series(texts, frame.index, dtype=object) for name, texts in found.items()})


def add_image_ids(
    frame: pd.DataFrame, columns: Mapping[str, str], image_root: str | os.PathLike, name: str
) -> tuple[pd.DataFrame, dict[str, str]]:
    """
    A table of all splits with an `image_id` that is unique among them, and the columns with it.

    Raises:
        `ValueError`: two rows with one identifier, or without identifiers two rows with one image.
    """
    columns = dict(columns)
    if "image_id" in columns:
        column = columns["image_id"]
        check_unique_ids(normalize_identifiers(frame[column], name, column), name, (frame.index + 1).tolist())
    else:
        image = columns["image"]
        filled = frame[image].notna()
        ids = ids_from_paths([str(path) for path in frame.loc[filled, image]], image_root)
        check_unique_ids(ids, name, (frame.index[filled] + 1).tolist())
        frame = frame.assign(**{"image_id": pd.Series(ids, frame.index[filled], dtype=object)})
        columns["image_id"] = "image_id"
    return frame, columns


def name_findings(
    frames: Sequence[pd.DataFrame],
    columns: Mapping[str, str],
    name: str,
    label_values: Mapping[str, float] | None,
) -> dict[str, str]:
    """
    The columns, and if they name no finding, those of all splits: a count that is 0 or 1 in one split and 3 in another
    is not a finding. A warning names words of `label_values` that no column contains.
    """
    columns = dict(columns)
    if not any(key not in SCHEMA_COLUMNS for key in columns):
        used = {*columns.values(), *SCHEMA_COLUMNS}
        columns |= {finding: finding for finding in detect_findings(frames, used, name, label_values)}
    if label_values:
        named = [column for key, column in columns.items() if key not in SCHEMA_COLUMNS]
        there = {
            label_key(value)
            for frame in frames
            for column in named
            if column in frame.columns
            for value in frame[column].dropna().unique()
        }
        unused = [word for word in label_values if word not in there]
        if unused:
            logger.warning(
                "%s: --label_values names %s, which no finding column contains.", name, ", ".join(map(repr, unused))
            )
    return columns


def drop_others(frame: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    """The table with only its named columns and those of the schema, so that others do not count as findings."""
    used = {*columns.values(), *SCHEMA_COLUMNS}
    return frame[[column for column in frame.columns if column in used]]


def read_table(
    path: str | os.PathLike, split: str | None = None, table: TableOptions = STANDARD_TABLE
) -> datasets.Dataset:
    """
    Read a table into the schema of [`records`]. A table without a view counts as frontal. If it has whole reports
    only, [`extract_sections`] takes findings and impression from them.

    Args:
        path (`str` or `os.PathLike`): the table, see [`read_frame`] for its forms.
        split (`str`, *optional*): the rows to take, by the split column. A table without that column is one split.
        table ([`TableOptions`], *optional*):
            Its `columns` must name `image` and `patient_id` where the table calls them otherwise (if every image is
            its own patient, map both to the path). Without a named finding, every other column that holds only -1, 0,
            1 and blanks (in all splits) is one. The `image_root` is by default the table's folder.

    Returns:
        `datasets.Dataset`: in the order of the table. Images are not opened.

    Raises:
        `ValueError`: see [`make_records`]; also a missing file or split.
    """
    path, columns = Path(path), dict(table.columns or {})
    columns.pop("split", None)
    image_root = table.image_root if table.image_root is not None else path.parent
    frame, chosen, split = select_split(read_frame(path, sheet=table.sheet), split, table.split_column, str(path))
    columns = {**{column: column for column in SCHEMA_COLUMNS if column in frame.columns}, **columns}
    check_named(frame, columns, str(path))
    frame, columns = add_image_ids(frame, columns, image_root, str(path))
    columns = name_findings([frame], columns, str(path), table.label_values)
    rows = drop_others(frame if chosen.all() else frame[chosen], columns)
    rows = add_sections(rows, columns)
    return make_records(rows, columns, image_root, split, str(path), label_values=table.label_values)
