"""
A folder of features: a subfolder for each tower, which the processes of a training fill together.

The name of a subfolder is a hash of all that decides its numbers.
"""

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist

from evaluation_tier.models.processes import fail_together, is_main_process
from processing_tier.progress import Progress, progress
from training_tier.data.feature_store import FeatureStore

logger = logging.getLogger(__name__)

OURS = re.compile(r"(images|texts)-[0-9a-f]{16}|\..*")  # what a folder of features may hold

Entries = Iterator[tuple[bytes, torch.Tensor]]
Compute = Callable[[list[int], Progress], Entries]


@contextmanager
def usable(folder: str | os.PathLike) -> Iterator[None]:
    """Turns an error of the disk into one sentence."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"cache_features {str(folder)!r} cannot be used ({error.strerror or error}); free some space there, or "
            "choose another folder. A later run continues with what is complete there."
        ) from error


def check_folder(folder: Path) -> None:
    """ValueError for a folder with something in it that this module did not write."""
    others = sorted(path.name for path in folder.iterdir() if not OURS.fullmatch(path.name)) if folder.is_dir() else []
    if others:
        raise ValueError(
            f"cache_features {str(folder)!r} is not a folder of features: it holds {others[0]!r}; name a new or empty "
            "folder."
        )


def open_store(folder: str | os.PathLike, kind: str, key: str) -> FeatureStore:
    """
    The store of a tower in this folder, with a note if there are only those of other towers.

    Args:
        folder (`str` or `os.PathLike`): of all towers.
        kind (`str`): `"images"` or `"texts"`.
        key (`str`): a hexadecimal hash of all that decides the numbers.
    """
    name = f"{kind}-{key[:16]}"
    others = [path for path in Path(folder).glob(f"{kind}-*") if path.name != name]
    if others and not Path(folder, name).exists() and is_main_process():
        logger.info(
            "%s holds %s of %d other towers, image processors or versions of the code, which may be deleted. Those of "
            "this run are computed.",
            folder,
            kind,
            len(others),
        )
    with fail_together(), usable(folder):  # all processes see the folder before one of them writes
        check_folder(Path(folder))
        return FeatureStore(Path(folder, name))


def local_processes() -> int:
    """Processes of this machine that train together; each machine may have a folder of its own."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size())) if dist.is_initialized() else 1


def own_share(rows: list[int]) -> list[int]:
    rank = int(os.environ.get("LOCAL_RANK", dist.get_rank()))
    return rows[rank :: local_processes()]


def find_missing(store: FeatureStore, keys: Sequence[bytes | None]) -> list[int]:
    """A row of each key that the store lacks."""
    return list({key: row for row, key in enumerate(keys) if key is not None and key not in store}.values())


def fill(store: FeatureStore, keys: Sequence[bytes | None], kind: str, compute: Compute) -> None:
    """
    Has the store hold all keys but those that cannot be computed. The processes share the work; what is then still
    missing, because another run wrote at the same time, each computes by itself.

    Args:
        keys (`Sequence[bytes | None]`): of all images or texts.
        compute (`Callable`): gives the entries of some rows of `keys`.
    """
    missing = find_missing(store, keys)
    if missing and is_main_process():
        found = len(keys) - len(missing)
        logger.info(
            "Features of %d %s: %d are in %s, %d are computed.", len(keys), kind, found, store.folder, len(missing)
        )
    if dist.is_initialized():
        add_rows(store, own_share(missing), kind, compute)
        if missing:
            reopen(store)
        missing = find_missing(store, keys)
    add_rows(store, missing, kind, compute)
    if missing:
        reopen(store)


def add_rows(store: FeatureStore, rows: list[int], kind: str, compute: Compute) -> None:
    """Every process has to call this."""
    silent = not is_main_process()
    with fail_together(), usable(store.folder.parent):
        if rows:
            with progress(description=f"caching {kind}", unit=kind[:-1], total=len(rows), silent=silent) as bar:
                store.add(compute(rows, bar))


def reopen(store: FeatureStore) -> None:
    with usable(store.folder.parent):
        store.open()


def check_space(folder: Path, needed: int) -> None:
    """ValueError before hours of computing whose result does not fit on the disk."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"cache_features {str(folder.parent)!r} needs {needed / 2**30:.1f} GiB for these images, but the disk has "
            f"{free / 2**30:.1f} GiB free; free some space there, or choose another folder."
        )
