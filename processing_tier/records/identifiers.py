"""
Identifiers of patients, studies and images: text, in one form for every table.

Two tables of one hospital rarely agree on a number: one holds `10`, another `10.0` (a column with blanks, saved from
Excel or pandas), a third `" 10"`. All three are one patient. `007` and `7` stay different, because leading zeros are
part of an identifier.
"""

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Any

import pandas as pd

WHOLE_FLOAT = re.compile(r"([+-]?\d+)\.0+")

INVISIBLE = dict.fromkeys(map(ord, "\ufeff\u200b\u200e\u200f\u2060"))  # byte order mark, zero-width, direction


def normalize_identifier(value: Any) -> str:
    """
    One identifier as text: `10`, `10.0`, `"10.0"` and `" 10"` all give `"10"`.

    Args:
        value: text, a number, or blank (`None`, NaN, white space).

    Returns:
        `str`: without white space around it, inner white space collapsed, Unicode form NFC; `""` where it is blank.

    Raises:
        `ValueError`: a list, a mapping or bytes.
    """
    if isinstance(value, (list, tuple, dict, set, bytes)):
        raise ValueError(f"an identifier is a {type(value).__name__}, not text or a number; fix its column.")
    if not isinstance(value, str) and pd.isna(value):
        return ""
    if not isinstance(value, str) and hasattr(value, "is_integer") and value.is_integer():
        value = int(value)  # 1e16 is written 1e+16
    text = str(value)
    if not text.isascii():
        text = unicodedata.normalize("NFC", text).translate(INVISIBLE)
    text = " ".join(text.split())
    match = WHOLE_FLOAT.fullmatch(text)
    return match[1] if match else text


def normalize_identifiers(values: Iterable, name: str, column: str) -> list[str]:
    """
    [`normalize_identifier`] of each value of a column. Errors name the table and the column.

    Raises:
        `ValueError`: a value that is neither text nor a number.
    """
    try:
        return [normalize_identifier(value) for value in values]
    except ValueError as error:
        raise ValueError(f"{name}: column {column!r}: {error}") from None


def ids_from_paths(paths: Sequence[str], root: str | os.PathLike) -> list[str]:
    """
    An `image_id` for each image of a table without such a column: the stem of its file. If two images have the same
    stem, it is the path without the suffix (`p1/s1/view1_frontal` and `p1/s2/view1_frontal`).

    Args:
        paths (`Sequence[str]`): of all splits, as the table has them.
        root (`str` or `os.PathLike`): the folder that they start from.

    Returns:
        `list[str]`: the same identifier only for rows that name the same file.
    """
    folder = os.path.join(os.path.abspath(root), "")
    whole = [os.path.normpath(path.replace("\\", "/")).removeprefix(folder) for path in paths]
    parts = {path: PurePosixPath(path) for path in whole}
    for make_id in (
        lambda path: path.stem,
        lambda path: str(path.with_suffix("")) if path.name else str(path),
        str,
    ):
        ids = {path: normalize_identifier(make_id(part)) for path, part in parts.items()}
        if len(set(ids.values())) == len(ids):
            break
    return [ids[path] for path in whole]


def check_unique_ids(ids: Sequence[str], name: str, rows: Sequence[int] | None = None) -> None:
    """
    Check that no two rows have the same `image_id`.

    Args:
        ids (`Sequence[str]`): normalised; blank ones do not count.
        name (`str`): the name of the table in errors.
        rows (`Sequence[int]`, *optional*): numbers of the rows, by default from 1.

    Raises:
        `ValueError`: two rows share an `image_id`; the message names them.
    """
    if len(set(ids)) == len(ids):
        return
    first: dict[str, int] = {}
    for row, image_id in zip(rows if rows is not None else range(1, len(ids) + 1), ids, strict=True):
        if image_id and image_id in first:
            raise ValueError(
                f"{name}: rows {first[image_id]} and {row} have the same image_id {image_id!r}; keep one row for each "
                "image, or give each row another image_id."
            )
        first[image_id] = row
