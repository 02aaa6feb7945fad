"""Files that are whole or absent: what goes wrong while a checkpoint is written."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError

from training_tier.loop.callbacks import TrainingStopped
from training_tier.loop.resuming import UNFINISHED, last_checkpoint

PEER_ERRORS = ("closed by peer", "reset by peer", "Broken pipe")  # of gloo, which has no class of errors


@contextlib.contextmanager
def writing(what: str, output_dir: str) -> Iterator[None]:
    """Turns a failure to write, such as a full disk, into one sentence, and leaves nothing half-written."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch raises the second, and safetensors the third
        if is_peer_error(error):
            raise
        shutil.rmtree(os.path.join(output_dir, UNFINISHED), ignore_errors=True)
        left = last_checkpoint(output_dir)
        raise TrainingStopped(
            f"{what} cannot be written to {output_dir!r} ({type(error).__name__}: {str(error).splitlines()[0]}); "
            + (f"{left} is whole: " if left else "no checkpoint was saved before: ")
            + ("make room and go on with --resume_from_checkpoint last." if left else "make room and start again.")
        ) from error


def sync(folder: str | os.PathLike) -> list[Path]:
    """Waits until the files in a folder are on the disk, which a full one may tell only now, and returns them."""
    paths = [path for path in Path(folder).rglob("*") if path.is_file()]
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    return paths


def is_peer_error(error: Exception) -> bool:
    """Whether a collective operation failed, as it does where another process has died."""
    return isinstance(error, torch.distributed.DistError) or any(words in str(error) for words in PEER_ERRORS)
