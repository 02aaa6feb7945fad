"""Two runs in one output folder would delete each other's checkpoints: a lock keeps the second one out."""

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

LOCK = "_lock"  # in output_dir, while a run is under way

_held: set[Path] = set()  # folders that this process has locked


def lock(folder: Path) -> int | None:
    """
    Locks a folder for this process. The system ends the lock with the process, however that ends.

    Returns:
        `int`: a file descriptor to close; `None` where the file system has no locks.

    Raises:
        `BlockingIOError`: another process has locked it.
        `OSError`: it cannot be written.
    """
    path = folder / LOCK
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            # of the process, not of the file: data-loader workers, which may outlive it, do not inherit this one
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if isinstance(error, (BlockingIOError, PermissionError)):
                raise BlockingIOError from error
            path.unlink(missing_ok=True)
            logger.warning(f"{folder} is on a file system without locks: see to it that no other run writes there.")
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
    Makes a folder where it is not there, and keeps other processes that ask for the same out of it. What was made is
    removed again where it is left empty. Inside, the same process may ask once more.

    Raises:
        `ValueError`: another process is in it, or it cannot be written.
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
    [`locked`] for a run of one or several processes, of which the main one holds the lock.

    Raises:
        `ValueError`: in all of them.
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
