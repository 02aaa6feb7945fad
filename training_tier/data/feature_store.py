"""Tensors on the disk by their keys, in files that are complete or absent, and mapped into memory."""

import logging
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from evaluation_tier.output.writing import write_beside
from training_tier.data.image_cache import STALE_SECONDS

logger = logging.getLogger(__name__)

PART_BYTES = 2**26  # of one file: the most that an interruption loses, and what a process holds in memory

KEY_BYTES = 16

SUFFIX = ".safetensors"


class FeatureStore:
    """
    Tensors whose first dimensions may differ, such as the tokens of texts. Several processes may share the folder.

    A file is written beside its place and then renamed. When files are opened, each is compared with its checksum; a
    damaged one is deleted with a warning, and its keys are missing.

    Args:
        folder (`Path`): created if needed.

    Raises:
        `OSError`: the folder cannot be read or written.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.open()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "parts": {}}  # a worker maps the files itself, as pickling would copy them

    def open(self) -> None:
        """Finds the files of the folder and their keys."""
        self.files = sorted(self.folder.glob(f"*{SUFFIX}"))
        self.parts: dict[int, torch.Tensor] = {}
        self.places: dict[bytes, tuple[int, int, int]] = {}  # key to the number of the file, first and last row
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for number, (file, contents) in enumerate(zip(self.files, pool.map(read_part, self.files), strict=True)):
                if isinstance(contents, str):
                    logger.warning("%s is damaged (%s) and is deleted: it is computed again.", file, contents)
                    file.unlink(missing_ok=True)
                    continue
                keys, ends = contents
                rows = zip([0, *ends[:-1]], ends, strict=True)
                self.places |= {key: (number, start, end) for key, (start, end) in zip(keys, rows, strict=True)}

    def __contains__(self, key: bytes) -> bool:
        return key in self.places

    def read(self, key: bytes) -> torch.Tensor:
        """The tensor of a key, a view of the file."""
        number, start, end = self.places[key]
        if number not in self.parts:
            self.parts[number] = safe_open(self.files[number], "pt").get_tensor("features")
        return self.parts[number][start:end]

    def add(self, entries: Iterable[tuple[bytes, torch.Tensor]]) -> None:
        """
        Writes tensors of one dtype, of the same shape but for the first dimension. [`open`] finds them.

        Raises:
            `OSError`: the disk is full, for example. What was written before is kept.
        """
        for file in self.folder.glob(f".*{SUFFIX}.*"):  # see write_beside
            if time.time() - file.stat().st_mtime > STALE_SECONDS:
                file.unlink(missing_ok=True)
        part, size = [], 0
        for key, tensor in entries:
            part.append((key, tensor))
            size += tensor.nbytes
            if size >= PART_BYTES:
                self._write(part)
                part, size = [], 0
        if part:
            self._write(part)

    def _write(self, part: Sequence[tuple[bytes, torch.Tensor]]) -> None:
        keys, tensors = zip(*part, strict=True)
        joined = b"".join(keys)
        contents = {
            "keys": torch.tensor(list(joined), dtype=torch.uint8).view(-1, KEY_BYTES),
            "ends": torch.tensor([len(tensor) for tensor in tensors]).cumsum(0),
            "features": torch.cat(tensors),
        }
        content = save(contents, metadata={"checksum": str(checksum(contents))})

        def write(path: Path) -> None:
            with open(path, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())

        name = blake2b(joined, digest_size=8).hexdigest()
        write_beside(self.folder / f"{name}{SUFFIX}", write)


def checksum(contents: dict[str, torch.Tensor]) -> int:
    """CRC-32 of the three tensors of a file; it detects any flipped bit."""
    value = 0
    for name in ("keys", "ends", "features"):
        value = crc32(contents[name].reshape(-1).view(torch.uint8).numpy(), value)
    return value


def read_part(file: Path) -> tuple[list[bytes], list[int]] | str:
    """The keys of a file and the rows at which their tensors end; or what is wrong with it."""
    try:
        with safe_open(file, "pt") as opened:
            contents = {name: opened.get_tensor(name) for name in ("keys", "ends", "features")}
            stored = (opened.metadata() or {}).get("checksum")
    except (SafetensorError, FileNotFoundError) as error:  # the second: another process has deleted it
        return type(error).__name__
    if stored != str(checksum(contents)):
        return "a checksum differs"
    keys = contents["keys"].numpy()
    return [key.tobytes() for key in np.ascontiguousarray(keys)], contents["ends"].tolist()
