"""Parses JSON of unknown origin safely: everything that it returns can be written to a file again."""

import json
import re
from typing import Any

SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # half a character; alone only in damaged text


def parse_json(text: str) -> Any:
    """
    The value of a JSON text.

    Raises:
        `ValueError`: the text is not JSON, is nested too deeply, or has half a character, which UTF-8 cannot encode.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply.") from None
    if SURROGATE.search(text):
        json.dumps(value, ensure_ascii=False).encode()
    return value
