"""Splits of a table by its column, and the error for a missing split."""

import functools
import logging
from collections.abc import Iterable

import numpy as np
import pandas as pd

from processing_tier.records.identifiers import normalize_identifier

logger = logging.getLogger(__name__)

MAX_SPLITS = 20
# The options of the commands; a reader does not know which command reads
SPLIT_OPTIONS = "--split (tier-train: --train_split, --eval_split; tier-prepare: --splits)"


def check_split(split: str, splits: Iterable[str], name: str) -> None:
    """
    Raises:
        `ValueError`: the data set does not have that split.
    """
    if split not in splits:
        there = ", ".join(splits)
        remedy = f"it has {there}. Choose one with {SPLIT_OPTIONS}." if there else "no row has a split."
        raise ValueError(f"{name}: the split {split!r} does not exist; {remedy}")


def list_table_splits(frame: pd.DataFrame, column: str) -> list[str]:
    """Names of the splits of a table. A table without a split column is the split `train`."""
    if column not in frame.columns:
        return ["train"]
    return sorted(filter(None, {normalize_identifier(value) for value in split_values(frame, column)}))


def split_values(frame: pd.DataFrame, column: str) -> np.ndarray:
    """The different values of the split column, without blanks."""
    try:
        return frame[column].dropna().unique()
    except TypeError:  # lists or objects of a JSON file
        raise ValueError(f"column {column!r} (for 'split') has lists; give one value in each row.") from None


def select_split(
    frame: pd.DataFrame, split: str | None, column: str, name: str
) -> tuple[pd.DataFrame, np.ndarray, str]:
    """
    The rows that have a split, without its column; which of them belong to the wanted split; and its name.

    A table without a column called `split` is one split, with any name. Rows with a blank split are left out, with one
    warning for all calls.
    """
    if column not in frame.columns:
        if column != "split":
            there = ", ".join(frame.columns)
            raise ValueError(f"{name}: column {column!r} (for 'split') is missing; it has {there}.")
        return frame, np.ones(len(frame), dtype=bool), split or "train"
    names = {value: normalize_identifier(value) for value in split_values(frame, column)}
    splits = np.array([names.get(value, "") for value in frame[column]], dtype=object)
    blank = splits == ""
    if blank.any():
        warn_of_blank_splits(name, blank.sum(), len(frame))
    there = list(dict.fromkeys(filter(None, names.values())))
    if len(there) > MAX_SPLITS:  # perhaps patients
        raise ValueError(f"{name}: column {column!r} has {len(there)} values; is it the column of the split?")
    if split is None:
        raise ValueError(f"{name}: which split? It has {', '.join(there)}. Choose one with {SPLIT_OPTIONS}.")
    if not frame.empty:
        check_split(split, there, name)
    chosen = splits == split
    frame = frame.drop(columns=column)
    if not blank.any():  # avoids a copy of a large table
        return frame, chosen, split
    return frame[~blank], chosen[~blank], split


@functools.lru_cache  # each split is read by its own call
def warn_of_blank_splits(name: str, blank: int, total: int) -> None:
    logger.warning("%s: %d of %d rows have no split: left out.", name, blank, total)
