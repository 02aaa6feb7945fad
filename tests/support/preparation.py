"""What the tests of tier-prepare share."""

import hashlib
from pathlib import Path

from processing_tier.prepare.options import PrepareOptions

REPORT = "FINDINGS:\nThe heart is large.\n\nIMPRESSION:\nCardiomegaly."


def options(table: Path, **others) -> PrepareOptions:
    return PrepareOptions(str(table), **{"size": 32, "format": "png", "views": "all", "shard_images": 4, **others})


def contents(folder: Path) -> dict[str, str]:
    """Every file of a folder, hidden ones too, and the hash of its bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
