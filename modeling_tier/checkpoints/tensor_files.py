"""
Reads the tensors of checkpoint files without running code from the files.

safetensors reads its own files. For others, the `weights_only` reader of torch accepts tensors and plain containers
and refuses everything else by name. Two more things are accepted, as placeholders that discard their arguments, so
that only code of this module is called: what old training scripts save beside the tensors, and modules of TorchScript
archives. Before that, `pickled.py` compares the requests of a file with its contents.
"""

import contextlib
import io
import json
import warnings
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from .pickled import BOOKKEEPING, PICKLE_LIMIT, Arguments, CheckpointRefused, Placeholder, called_names, read_claims

JSON_LIMIT = 2**20  # bytes; such files have a few kilobytes
LEGACY_PICKLES = 3  # before the one with the tensors, in files of torch before 1.6: magic number, protocol, system


class ScriptedModule(Placeholder):
    """Stands for a module of a TorchScript archive: its attributes, without its code."""

    attributes: Mapping = {}

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}

    def tensors(self, prefix: str = "") -> dict[str, torch.Tensor]:
        found = {}
        attributes, self.attributes = self.attributes, {}  # once: in a hostile archive, modules contain themselves
        for name, value in attributes.items():
            if isinstance(value, torch.Tensor):
                found[f"{prefix}{name}"] = value
            elif isinstance(value, ScriptedModule):
                found.update(value.tensors(f"{prefix}{name}."))
        return found


def load_pickle(path: Path) -> tuple[Any, str]:
    """
    What `torch.save` (`"bare"`) or `torch.jit.save` (`"torchscript"`) wrote, as tensors in plain containers and
    placeholders.
    """
    with reading(path):
        if not is_torchscript(path):
            check_pickle(path)
            return load_weights(path, BOOKKEEPING), "bare"
        file, pickled, sizes = without_code(path)
        classes = {name for name in called_names(pickled) if name.startswith(("__torch__.", "torch.jit._pickle."))}
        pickled.seek(0)
        read_claims(pickled, path.name, lambda key: sizes[f"data/{key}"], classes)
        return load_weights(file, classes).tensors(), "torchscript"


def check_pickle(path: Path) -> Any:
    """
    Compares the requests of a file of `torch.save` with its contents, without reading its tensors.

    Returns:
        The content, with `None` for each tensor and placeholders for other objects.

    Raises:
        ValueError: The file requests a call that tensors do not need, or more memory than it has bytes; or it is
            damaged.
    """
    with reading(path):
        if zipfile.is_zipfile(path):
            sizes = record_sizes(path)
            with zipfile.ZipFile(path) as archive:
                pickled = io.BytesIO(archive.read(next(name for name in archive.namelist() if is_data(name))))
            return read_claims(pickled, path.name, lambda key: sizes[f"data/{key}"])[0]
        with open(path, "rb") as file:  # of torch before 1.6, or of another program
            content, storages = read_claims(file, path.name, lambda _: path.stat().st_size)
            if file.read(1):
                file.seek(0)
                for _ in range(LEGACY_PICKLES + 1):
                    content, storages = read_claims(file, path.name, lambda _: path.stat().st_size)
                if sum(storages.values()) > path.stat().st_size:
                    raise CheckpointRefused(
                        f"{path.name} describes tensors larger than the file itself, so it was not read."
                    )
                listed, _ = read_claims(file, path.name, lambda _: 0)
                if missing := storages.keys() - set(listed):  # torch would leave their memory uninitialised
                    raise CheckpointRefused(
                        f"{path.name} lacks the values of {len(missing)} of its {len(storages)} tensors, so it was "
                        "not read."
                    )
            return content


def read_arguments(path: Path) -> dict:
    """The command-line arguments that a training script saved under `args`: only numbers and words."""
    content = check_pickle(path)
    arguments = content.get("args") if isinstance(content, dict) else None
    values = arguments.values if isinstance(arguments, Arguments) else {}
    return {name: value for name, value in values.items() if isinstance(value, (bool, int, float, str))}


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns any exception from reading a damaged or hostile file into a CheckpointRefused."""
    try:
        yield
    except CheckpointRefused:
        raise
    except Exception as error:
        raise CheckpointRefused(
            f"{path.name} cannot be read: it is damaged, cut short, or not a file of torch.save or safetensors "
            f"({type(error).__name__})."
        ) from None


def load_weights(file: Path | io.BytesIO, names: Collection[str]) -> Any:
    """The content of a file by the `weights_only` reader of torch, with placeholders for the given names."""
    stand_ins: list = [(ScriptedModule if name.startswith("__torch__") else Placeholder, name) for name in names]
    with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickles that torch did not write; the error suffices
        return torch.load(file, map_location="cpu", weights_only=True)


def is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def is_data(record: str) -> bool:
    """Whether a record of a zip archive of torch is the pickle of its content."""
    return record.partition("/")[2] == "data.pkl"


def record_sizes(path: Path) -> dict[str, int]:
    """
    The size in bytes of each record of a zip archive of torch, by its name without the common folder.

    Raises:
        zipfile.BadZipFile: Compressed or overlapping records, or a pickle that is too long. torch does not write such
            archives.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if is_torchscript(path):  # its code is compressed, and is not read
        entries = [entry for entry in entries if not entry.filename.partition("/")[2].startswith("code/")]
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size for entry in entries):
        raise zipfile.BadZipFile("compressed data")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise zipfile.BadZipFile("overlapping data")
    if any(is_data(entry.filename) and entry.file_size > PICKLE_LIMIT for entry in entries):
        raise zipfile.BadZipFile("the pickle is too long")
    return {entry.filename.partition("/")[2]: entry.file_size for entry in entries}


def without_code(path: Path) -> tuple[io.BytesIO, io.BytesIO, dict[str, int]]:
    """
    A TorchScript archive without its code (which the `weights_only` reader accepts), its pickle, and its sizes.
    Reading it with `torch.jit.load` would run its code.
    """
    slim, sizes = io.BytesIO(), record_sizes(path)
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(slim, "w") as target:
        folder = next(name for name in archive.namelist() if is_data(name)).partition("/")[0]
        for name in sizes:
            if name in ("data.pkl", "version", "byteorder") or name.startswith("data/"):
                target.writestr(f"archive/{name}", archive.read(f"{folder}/{name}"))
        pickled = io.BytesIO(archive.read(f"{folder}/data.pkl"))
    slim.seek(0)
    return slim, pickled, sizes


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], str]:
    """
    The tensors of a file by name, and their container: `"safetensors"`, `"torchscript"`, `"state_dict"`,
    `"model_state_dict"` or `"model"` (the key of a training checkpoint that holds them), or `"bare"`.

    Raises:
        ValueError: The file cannot be read safely, or it does not hold tensors.
    """
    if path.suffix == ".safetensors":
        try:
            content, container = load_file(path), "safetensors"
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path.name} cannot be read: it is damaged or cut short ({error}).") from None
    else:
        content, container = load_pickle(path)
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content, container = content[key], key
    tensors = content if isinstance(content, dict) else {}
    if not tensors or not all(isinstance(name, str) and is_plain(value) for name, value in tensors.items()):
        raise ValueError(f"{path.name} does not hold a state dict (tensors by name), so it cannot be converted.")
    tensors = {name: tensor.detach() for name, tensor in tensors.items()}
    if sum(tensor.nbytes for tensor in tensors.values()) > 2 * path.stat().st_size:
        raise ValueError(f"{path.name} describes tensors larger than the file itself, so it was not read.")
    if all(name.startswith("module.") for name in tensors):  # of a model wrapped for distributed training
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors, container


def is_plain(value: Any) -> bool:
    """Whether it is a tensor that stores its numbers; copying from a meta tensor would silently do nothing."""
    if not isinstance(value, torch.Tensor):
        return False
    return value.layout is torch.strided and not value.is_meta and not value.is_quantized


def read_json(path: Path) -> dict:
    """The content of a JSON file; ValueError for a large file, or one that does not hold an object."""
    if path.stat().st_size > JSON_LIMIT:
        raise ValueError(f"{path} has more than {JSON_LIMIT:,} bytes; download it again.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object.")
    return content
