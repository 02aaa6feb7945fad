"""Which process works in an output folder, and what earlier ones left there."""

import json
import os
import shutil
import tempfile
from pathlib import Path

from processing_tier.readers import PREPARED_FILE

WORK_PREFIX = ".tier-prepare-"

LEFT_BEHIND = 24 * 3600  # seconds since a run began or ended a shard after which it counts as killed


def check_output(output_dir: Path) -> None:
    """
    Raises:
        `ValueError`: the folder cannot be written, or holds something that was not begun here.
    """
    existing = next(path for path in (output_dir, *output_dir.parents) if path.exists())
    try:  # os.access says yes to root on a disk that is read-only, and in /proc
        tempfile.TemporaryDirectory(prefix=WORK_PREFIX, dir=existing).cleanup()
    except OSError as error:
        raise ValueError(
            f"the output folder {output_dir} cannot be written ({error.strerror}); name another one."
        ) from None
    if existing != output_dir or (output_dir / PREPARED_FILE).is_file():
        return
    if any(not path.name.startswith(".") for path in output_dir.iterdir()):  # what a killed run leaves is hidden
        raise ValueError(f"the output {output_dir} is not empty and holds no prepared data; name another folder.")


def claim(output_dir: Path, work_dir: Path, options: dict) -> None:
    """
    Writes `prepare.json`, or makes sure that it says the same. Of several runs that begin at once, one writes it.

    Raises:
        `ValueError`: the output was begun with other options; the message names both values.
    """
    path = output_dir / PREPARED_FILE
    partial = work_dir / path.name
    partial.write_text(json.dumps(options, indent=2) + "\n", encoding="utf-8")
    try:
        os.link(partial, path)  # unlike a rename, it does not replace
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        if not path.exists():
            os.replace(partial, path)
    try:
        begun = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(f"{path} is not readable; delete the output and begin anew.") from None
    for name, value in options.items():
        if begun.get(name) == value:
            continue
        if name == "records":
            raise ValueError(
                f"the records of {options['data']} are not those that the output {output_dir} was begun with; name "
                "another output."
            )
        raise ValueError(
            f"the output {output_dir} was begun with {name}={begun.get(name)!r}, not {value!r}; name another output, "
            "or give the same options."
        )


def remove_left_behind(output_dir: Path, work_dir: Path) -> None:
    """Folders of killed runs of any part, which may be large; by the clock of the file system, which all share."""
    now = work_dir.stat().st_mtime
    for path in output_dir.glob(f"{WORK_PREFIX}*"):
        try:
            if now - path.stat().st_mtime > LEFT_BEHIND:
                shutil.rmtree(path, ignore_errors=True)
        except FileNotFoundError:  # its run has ended
            pass


def write(path: Path, work_dir: Path, content: str | bytes) -> None:
    """Writes elsewhere, then renames: a reader never sees half a file."""
    partial = work_dir / path.name
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(partial, path)
