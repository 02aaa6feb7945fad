"""The output folder: whether a run may write there, and the leftovers of killed runs."""

import json
import os
import shutil
import tempfile
from pathlib import Path

from processing_tier.readers import PREPARED_FILE

WORK_PREFIX = ".tier-prepare-"

STALE_SECONDS = 24 * 3600  # after so long without a finished shard, a run counts as killed


def check_output(output_dir: Path) -> None:
    """
    Raises:
        `ValueError`: the folder cannot be written, or holds something else than prepared data.
    """
    existing = next(path for path in (output_dir, *output_dir.parents) if path.exists())
    try:  # os.access tells root that a read-only disk and /proc are writable
        tempfile.TemporaryDirectory(prefix=WORK_PREFIX, dir=existing).cleanup()
    except OSError as error:
        raise ValueError(
            f"the output folder {output_dir} cannot be written ({error.strerror}); name another one."
        ) from None
    if existing != output_dir or (output_dir / PREPARED_FILE).is_file():
        return
    if any(not path.name.startswith(".") for path in output_dir.iterdir()):  # leftovers of killed runs are hidden
        raise ValueError(f"the output {output_dir} is not empty and does not hold prepared data; name another folder.")


def claim(output_dir: Path, work_dir: Path, options: dict) -> None:
    """
    Write `prepare.json`, or check that the existing one has the same options. If several runs begin at once, one of
    them writes it.

    Raises:
        `ValueError`: the output was begun with other options; the message names both values.
    """
    path = output_dir / PREPARED_FILE
    partial = work_dir / path.name
    partial.write_text(json.dumps(options, indent=2) + "\n", encoding="utf-8")
    try:
        os.link(partial, path)  # unlike a rename, this does not replace an existing file
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        if not path.exists():
            os.replace(partial, path)
    try:
        begun = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(f"{path} is damaged; delete the output and start again.") from None
    for name, value in options.items():
        if begun.get(name) == value:
            continue
        if name == "records":
            raise ValueError(
                f"the records of {options['data']} have changed since the output {output_dir} was begun; name another "
                "output."
            )
        raise ValueError(
            f"the output {output_dir} was begun with {name}={begun.get(name)!r}, not {value!r}; name another output, "
            "or give the same options."
        )


def remove_stale_folders(output_dir: Path, work_dir: Path) -> None:
    """Delete folders of killed runs, which may be large. Their age is measured by the clock of the file system."""
    now = work_dir.stat().st_mtime
    for path in output_dir.glob(f"{WORK_PREFIX}*"):
        try:
            if now - path.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
        except FileNotFoundError:  # its run ended just now
            pass


def write(path: Path, work_dir: Path, content: str | bytes) -> None:
    """Write in another folder, then rename: a reader never sees half a file."""
    partial = work_dir / path.name
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(partial, path)
