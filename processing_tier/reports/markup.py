"""Removes the traces of exports from text: escaped line ends, HTML, and codes of Excel."""

import html
import re
from typing import Any

import pandas as pd

ENTITY = re.compile(r"&(?:#\d{1,6}|#[xX][0-9a-fA-F]{1,5}|[A-Za-z]{2,10}\d{0,2});")

# Only known names: <unk> and <hcw> are marks of de-identification, "<5 mm>" is neither
BREAK = re.compile(r"<\s*/?\s*(?:br|p|div|li|ul|ol|tr|table|tbody|h[1-6]|hr|pre)\b[^<>]{0,80}>", re.IGNORECASE)

STYLE = re.compile(
    r"<\s*/?\s*(?:b|i|u|em|strong|span|font|small|big|sup|sub|td|th|html|body)(?:\s[^<>]{0,200})?/?\s*>", re.IGNORECASE
)

EXCEL = re.compile(r"_x(0009|000[AaDd])_(?:\r?\n)?")

ESCAPED_END = re.compile(r"(?:\\r)?\\n")

# After an escaped line end something begins a line; "and\nor" is a typing error
ESCAPED_LINE = re.compile(r"\\n(?:[^a-z]|$)")

HINT = re.compile(r"[<&\\]|_x00")


def repair_markup(text: str) -> str:
    """
    Undo the changes of an export to a report: line ends for `\\n` (a backslash and an n), `<br>` and `_x000D_`, `&`
    for `&amp;`, and no tags of bold and other type. Marks of de-identification stay.

    Args:
        text (`str`): a report, or a section of one.
    """
    if not HINT.search(text):
        return text
    text = EXCEL.sub(lambda code: "\t" if code[1] == "0009" else "\n", text)
    if ESCAPED_LINE.search(text):
        text = ESCAPED_END.sub("\n", text)
    for _ in range(2):  # "&amp;lt;" was escaped twice
        text = ENTITY.sub(lambda entity: html.unescape(entity[0]), text)
    return STYLE.sub("", BREAK.sub("\n", text))


def join_text(value: Any, where: str) -> str:
    """
    A value of a text column as text. A list of sentences or lines is joined; a blank is `""`.

    Args:
        value: text, a number, blank, or a list of these.
        where (`str`): table and column, for the error.

    Raises:
        `ValueError`: a mapping, bytes, or lists in lists.
    """
    if isinstance(value, (list, tuple)) or hasattr(value, "tolist") and getattr(value, "ndim", 0) == 1:
        parts = [join_text(part, where) if not isinstance(part, (list, tuple)) else None for part in list(value)]
        if None in parts:
            raise ValueError(f"{where} holds lists of lists; give text, or a list of sentences.")
        return "\n".join(filter(None, parts))
    if isinstance(value, (dict, bytes, set)):
        raise ValueError(f"{where} holds {type(value).__name__}, not text; name another column.")
    return "" if not isinstance(value, str) and pd.isna(value) else repair_markup(str(value))
