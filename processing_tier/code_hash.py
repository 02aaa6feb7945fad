"""
The part of a cache's key that changes with the code: cached pixels become stale when the code or a decoder changes.
"""

from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

import PIL
import pydicom

FOLDER = Path(__file__).parent


def hash_code(folders: Iterable[str | Path] = (FOLDER,)) -> str:
    """
    SHA-256 of the shipped modules (`*_tier.py`) in `folders` and of the versions of Pillow and pydicom. The default is
    this package: all modules that turn a file into pixels.
    """
    digest = sha256(f"{PIL.__version__} {pydicom.__version__}".encode())
    for path in sorted(path for folder in folders for path in Path(folder).glob("*_tier.py")):
        content = path.read_bytes()
        digest.update(f"\n{path.name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()
