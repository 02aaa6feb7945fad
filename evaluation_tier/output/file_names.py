"""Names of files and folders from names of findings, models and data, which may hold anything."""

import re
from collections import Counter
from collections.abc import Iterable
from hashlib import sha256

MAX_LENGTH = 60  # file systems take 255 bytes, including prefix and suffix


def slug(name: str) -> str:
    """A name in lower-case ASCII letters and digits ("Nodule/Mass" becomes "nodule_mass"); `""` without these."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def file_names(names: Iterable[str]) -> dict[str, str]:
    """
    A part of a file name for each name, distinct on any file system: its [`slug`], and 8 digits of a hash
    where that is too long, empty, leaves out letters of other scripts, or is that of another name too.
    """
    names = list(dict.fromkeys(names))
    slugs = {name: slug(name) for name in names}
    shared = Counter(slugs.values())
    result = {}
    for name, short in slugs.items():
        if not short or len(short) > MAX_LENGTH or not name.isascii() or shared[short] > 1:
            short = f"{short[:MAX_LENGTH] or 'finding'}_{sha256(name.encode()).hexdigest()[:8]}"
        result[name] = short
    return result
