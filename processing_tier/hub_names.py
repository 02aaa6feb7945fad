"""Which names can be on the Hub, and which may be looked up there: never a mistyped path of this machine."""

import difflib
import os
import re
from collections.abc import Collection
from pathlib import Path

OUR_FOLDERS = ("runs", "prepared", "models")  # where the commands of the documentation write; not owners on the Hub

OWNER, NAME = r"[A-Za-z0-9][\w.-]*", r"[\w.-]+"
DATASET_NAME = re.compile(f"{OWNER}/{NAME}")
MODEL_NAME = re.compile(rf"{OWNER}(/{NAME})?(@\w[\w./-]*)?")  # the oldest have no owner; a revision may follow


def check_hub_name(name: str | os.PathLike, kind: str, known: Collection[str] = ()) -> None:
    """
    Refuse a name that cannot be one on the Hub, or that may be a path: a folder of its first part, or something with
    a similar name, is on this disk. This check does not use the network. An existing file or folder passes.

    Args:
        name (`str` or `os.PathLike`): a folder or file, or `owner/name`.
        kind (`str`): its kind, such as `"model"`.
        known (`Sequence[str]`, *optional*): other names that it may be a typing error of.

    Raises:
        `ValueError`: with the nearest name.
    """
    text = os.fspath(name)
    if os.path.exists(text):
        return
    similar = difflib.get_close_matches(text, known, n=1)
    near = similar[0] if similar else near_path(text)
    looks_like_a_path = (
        not MODEL_NAME.fullmatch(text)
        or near is not None
        or "/" in text
        and (text.split("/")[0] in OUR_FOLDERS or os.path.isdir(text.split("/")[0]))
    )
    if looks_like_a_path:
        remedy = f"did you mean {near}?" if near else f"name one on this disk, or a {kind} on the Hub (owner/name)."
        raise ValueError(f"The {kind} {text} is not on this disk, and was not looked up on the Hub: {remedy}")


def near_path(text: str) -> str | None:
    """The existing file or folder whose path is most like `text`, matched part by part."""
    path = Path(text)
    found = Path(path.anchor)
    parts = path.parts[1:] if path.anchor else path.parts
    for part in parts:
        if (found / part).exists():
            found /= part
            continue
        try:
            names = [entry.name for entry in os.scandir(found)]
        except OSError:
            return None
        there = {Path(name).stem: name for name in names} | {name: name for name in names}
        matches = difflib.get_close_matches(part, there, n=1, cutoff=0.75)
        if not matches:
            return None
        found /= there[matches[0]]
    return found.as_posix() if parts else None
