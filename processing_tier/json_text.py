"""Reads JSON that somebody else may have written: what comes out can be written again."""

import json
import re

SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # half a character, which stands alone in damaged text


def parse_json(text: str):
    """
    What a text of JSON stands for.

    Raises:
        `ValueError`: it is not JSON, is nested too deeply, or has half a character, which no file can hold as UTF-8.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply.") from None
    if SURROGATE.search(text):
        json.dumps(value, ensure_ascii=False).encode()
    return value
