"""Findings and ages in tables: which columns are findings, and which numbers their values stand for."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from processing_tier.prompts.loader import is_known_finding
from processing_tier.records.identifiers import normalize_identifier

logger = logging.getLogger(__name__)

FINDING_VALUES = (-1.0, 0.0, 1.0)  # or NaN

TRUTH = {"true": 1.0, "false": 0.0}

MAX_AGE = 120

SHOWN_VALUES = 5  # in a message, of a column with few different values

CATEGORIES = 12  # a column with more different values may hold names, which messages must not show

GLANCE = 20  # values that show for most columns that they hold no labels

DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d{1,2}")

AGE = re.compile(r"(\d{1,4})([YMWD])")

DAYS = {"Y": 365.25, "M": 365.25 / 12, "W": 7.0, "D": 1.0}


def parse_label_values(pairs: Iterable[str] | None) -> dict[str, float] | None:
    """
    The value of `--label_values`: words of a table and their labels, from `["yes=1", "no=0", "equivocal=-1",
    "unknown="]`.

    Args:
        pairs (`Iterable[str]`, *optional*): WORD=LABEL each; the label is 1, 0, -1 or nothing (not stated).

    Returns:
        `dict[str, float]`, *optional*: word in lower case to label, NaN for not stated; `None` without pairs.

    Raises:
        `ValueError`: a pair of another form, or a word with two labels.
    """
    if not pairs:
        return None
    labels: dict[str, float] = {}
    for pair in pairs:
        word, equals, value = pair.rpartition("=")
        word = label_key(word)
        if not equals or not word or value.strip() not in ("1", "0", "-1", ""):
            raise ValueError(
                "--label_values takes WORD=LABEL with 1 (present), 0 (absent), -1 (uncertain) or nothing (not "
                f"stated), for example yes=1 no=0 unknown=, but got {pair!r}."
            )
        label = float(value) if value.strip() else float("nan")
        if word in labels and not np.array_equal(labels[word], label, equal_nan=True):
            raise ValueError(f"--label_values gives {word!r} two labels; keep one.")
        labels[word] = label
    return labels


def label_key(value: Any) -> str:
    return normalize_identifier(value).casefold()


def to_numbers(values: pd.Series) -> pd.Series:
    """A column as numbers, with 1 for true and 0 for false; everything else is NaN."""
    if pd.api.types.is_bool_dtype(values):
        return values.astype(float)
    try:
        numbers = pd.to_numeric(values, errors="coerce").astype(float)
    except (OverflowError, TypeError):  # a whole number of 400 digits, or a list
        numbers = pd.Series([to_number(value) for value in values], index=values.index, dtype=float)
    words = numbers.isna() & values.notna()
    if words.any():
        numbers[words] = values[words].map(to_number)
    return numbers


def to_number(value: Any) -> float:
    text = str(value).strip().lower()
    if DECIMAL_COMMA.fullmatch(text):
        text = text.replace(",", ".")
    try:
        return TRUTH[text] if text in TRUTH else float(text)
    except (ValueError, OverflowError):
        return float("nan")


def to_label(value: Any, label_values: Mapping[str, float] | None = None) -> float | None:
    """One value of a finding as a number: NaN for a blank, `None` for a value that is not a label."""
    if value is None or value != value or isinstance(value, str) and not value.strip():
        return float("nan")
    if isinstance(value, (list, dict, bytes)):
        return None
    if label_values and (key := label_key(value)) in label_values:
        return label_values[key]
    number = to_number(value)
    return number if number in FINDING_VALUES else None


def to_labels(values: pd.Series, label_values: Mapping[str, float] | None = None) -> tuple[pd.Series, pd.Series]:
    """
    A column of findings as numbers.

    Args:
        values (`pd.Series`): numbers, true and false, text or blank.
        label_values (`Mapping[str, float]`, *optional*): words and their labels, see [`parse_label_values`].

    Returns:
        `tuple[pd.Series, pd.Series]`: the labels, with NaN for other values; which values are neither labels nor
        blank.
    """
    stated = values[values.notna()]
    try:
        known = {value: to_label(value, label_values) for value in stated.unique()}
        found = [known[value] for value in stated]
    except TypeError:  # lists
        found = [to_label(value, label_values) for value in stated]
    is_stated = values.notna().to_numpy()
    wrong, labels = np.zeros(len(values), dtype=bool), np.full(len(values), np.nan)
    wrong[is_stated] = [label is None for label in found]
    labels[is_stated] = [np.nan if label is None else label for label in found]
    return pd.Series(labels, values.index), pd.Series(wrong, values.index)


def check_labels(
    values: pd.Series, finding: str, name: str, label_values: Mapping[str, float] | None = None
) -> pd.Series:
    """
    The labels of one finding.

    Raises:
        `ValueError`: other values. The message shows a few of them if the column has few different ones.
    """
    labels, wrong = to_labels(values, label_values)
    if wrong.any():
        raise ValueError(
            f"{name}: finding {finding!r} has {wrong.sum()} values other than 1 (present), 0 (absent), -1 (uncertain) "
            f"and blank (not stated){show_values(values[wrong])}; map words with --label_values yes=1 no=0, or drop "
            "the column."
        )
    return labels


def show_values(values: pd.Series) -> str:
    different = list(dict.fromkeys(str(value).strip()[:30] for value in values))
    if len(different) > CATEGORIES:
        return ""
    more = ", ..." if len(different) > SHOWN_VALUES else ""
    return f": {', '.join(map(repr, different[:SHOWN_VALUES]))}{more}"


def detect_findings(
    frames: Sequence[pd.DataFrame], used: Iterable[str], name: str, label_values: Mapping[str, float] | None = None
) -> list[str]:
    """
    The columns that hold a finding: in every split, all values are -1, 0, 1 or blank, or words that `label_values`
    maps. A column with the name of a known finding always counts, so that "yes" in it is an error, and the finding
    does not silently disappear.

    Args:
        frames (`Sequence[pd.DataFrame]`): all rows of the table, or the tables of all splits.
        used (`Iterable[str]`): columns that are something else.
        name (`str`): the name of the table in warnings.
        label_values (`Mapping[str, float]`, *optional*): see [`parse_label_values`].
    """
    used, findings = set(used), []
    for column in dict.fromkeys(column for frame in frames for column in frame.columns if column not in used):
        values = pd.concat([frame[column] for frame in frames if column in frame.columns], ignore_index=True)
        if not values.notna().any():
            continue
        if is_known_finding(str(column)):
            findings.append(column)
            continue
        if not label_values and to_labels(values[values.notna()].iloc[:GLANCE])[1].any():
            continue  # most columns of a table, such as texts
        labels, wrong = to_labels(values, label_values)
        if not wrong.any() and labels.notna().any():
            findings.append(column)
        elif label_values and values[~wrong].map(label_key).isin(list(label_values)).any():
            logger.warning(
                "%s: column %r has words of --label_values and other values%s: it is not read as a finding. Map these "
                "values too, or name the column with --columns.",
                name,
                column,
                show_values(values[wrong]),
            )
    return findings


def to_ages(values: pd.Series, name: str) -> pd.Series:
    """
    Ages in years, from numbers or DICOM's form (`058Y`, `003M`, `002W`, `012D`). Values that are not an age from 0 to
    120 years become NaN, and a warning says how many.
    """
    known = {value: to_age(value) for value in values.dropna().unique()}
    ages = values.map(known).astype(float)
    blank = values.isna() | values.map(lambda value: isinstance(value, str) and not value.strip())
    wrong = int((~blank & ages.isna()).sum())
    if wrong:
        logger.warning("%s: %d of %d ages are not years from 0 to %d: left blank.", name, wrong, len(values), MAX_AGE)
    return ages


def to_age(value: Any) -> float:
    """One age in years; NaN for anything else."""
    age = to_number(value)
    if age != age and (match := AGE.fullmatch(str(value).strip().upper())):
        age = int(match[1]) * DAYS[match[2]] / DAYS["Y"]
    return age if 0 <= age <= MAX_AGE else float("nan")
