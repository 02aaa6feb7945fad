"""A lock on the output folder: two runs in one folder would delete each other's checkpoints."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from accelerate.utils import broadcast_object_list
from transformers import TrainingArguments
from transformers.utils import logging

logger = logging.get_logger(__name__)

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = "_lock"  # in output_dir, during a run

_held: set[Path] = set()  # folders that this process has locked


def lock(folder: Path) -> int | None:
    """
    Locks a folder for this process. The operating system releases the lock when the process ends for any reason.

    Returns:
        `int`: a file descriptor to close; `None` on a file system without locks.

    Raises:
        `BlockingIOError`: another process has locked it.
        `OSError`: the folder cannot be written.
    """
    path = folder / LOCK
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            # a lock of the process, not of the file: data-loader workers, which may outlive it, do not inherit it
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if isinstance(error, (BlockingIOError, PermissionError)):
                raise BlockingIOError from error
            path.unlink(missing_ok=True)
            logger.warning(f"{folder} is on a file system without locks: make sure that no other run writes there.")
            return None
        try:
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except FileNotFoundError:  # deleted between opening and locking, by a run that ended
            pass
        os.close(descriptor)


@contextlib.contextmanager
def locked(folder: str | os.PathLike) -> Iterator[None]:
    """
    Creates a folder if needed, and locks it for this process, which may lock it again inside the block. Folders that
    were created and are empty at the end are removed.

    Raises:
        `ValueError`: another process has locked the folder, or it cannot be written.
    """
    path = Path(folder).absolute()
    if fcntl is None or path in _held:
        yield
        return
    made = [parent for parent in (path, *path.parents) if not parent.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        descriptor = lock(path)
    except BlockingIOError:
        raise ValueError(
            f"output_dir {str(folder)!r} is in use by another run; wait until it ends, or choose another --output_dir."
        ) from None
    except OSError:
        raise ValueError(f"output_dir {str(folder)!r} cannot be written; choose another.") from None
    _held.add(path)
    try:
        yield
    finally:
        _held.remove(path)
        if descriptor is not None:
            (path / LOCK).unlink(missing_ok=True)
            os.close(descriptor)
        with contextlib.suppress(OSError):  # not empty
            for parent in made:
                parent.rmdir()


@contextlib.contextmanager
def only_run(arguments: TrainingArguments) -> Iterator[None]:
    """
    [`locked`] for a run of one or several processes. The main process holds the lock.

    Raises:
        `ValueError`: in every process, see [`locked`].
    """
    with contextlib.ExitStack() as stack:
        fault = None
        if arguments.process_index == 0:
            try:
                stack.enter_context(locked(arguments.output_dir))
            except ValueError as error:
                fault = str(error)
        if arguments.world_size > 1:
            fault = broadcast_object_list([fault])[0]
        if fault is not None:
            raise ValueError(fault)
        yield
