"""
Tensors of checkpoint files, without running anything of what the files hold.

They are read with safetensors or by the `weights_only` reader of torch, which knows tensors and plain containers and
refuses everything else by name. Two things more are let through, both as placeholders that forget what they are given,
so that no code but this module's is called: what old training scripts save beside the tensors, and the modules of
TorchScript archives.

What a file asks for is compared with what it holds before that, see `pickled.py`.
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

JSON_LIMIT = 2**20  # bytes; such a file has a few kilobytes
LEGACY_PICKLES = 3  # before the one with the tensors, in files of torch before 1.6: magic number, protocol, system


class ScriptedModule(Placeholder):
    """Stands for a module of a TorchScript archive: its attributes, and none of its code."""

    attributes: Mapping = {}

    def __setstate__(self, state):
        self.attributes = state if isinstance(state, dict) else {}

    def tensors(self, prefix: str = "") -> dict[str, torch.Tensor]:
        found = {}
        attributes, self.attributes = self.attributes, {}  # once: a hostile archive has modules inside themselves
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
    Compare what a file of `torch.save` asks for with what it holds, without reading its tensors.

    Returns:
        What it holds, with `None` for each tensor and placeholders for what else is no plain data.

    Raises:
        ValueError: it asks to call something that tensors do not need, or for more memory than it has bytes; or it is
            damaged.
    """
    with reading(path):
        if zipfile.is_zipfile(path):
            sizes = record_sizes(path)
            with zipfile.ZipFile(path) as archive:
                pickled = io.BytesIO(archive.read(next(name for name in archive.namelist() if is_data(name))))
            return read_claims(pickled, path.name, lambda key: sizes[f"data/{key}"])[0]
        with open(path, "rb") as file:  # of torch before 1.6, or not of torch
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
                if missing := storages.keys() - set(listed):  # which torch would leave as the memory was
                    raise CheckpointRefused(
                        f"{path.name} lacks the values of {len(missing)} of its {len(storages)} tensors, so it was "
                        "not read."
                    )
            return content


def read_arguments(path: Path) -> dict:
    """The command-line arguments that a training script saved under `args`; numbers and words alone."""
    content = check_pickle(path)
    arguments = content.get("args") if isinstance(content, dict) else None
    values = arguments.values if isinstance(arguments, Arguments) else {}
    return {name: value for name, value in values.items() if isinstance(value, (bool, int, float, str))}


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns whatever a damaged or hostile file makes a reader raise, which can be anything, into one sentence."""
    try:
        yield
    except CheckpointRefused:
        raise
    except Exception as error:
        raise CheckpointRefused(
            f"{path.name} cannot be read: it is damaged, cut short, or no file of torch.save or safetensors "
            f"({type(error).__name__})."
        ) from None


def load_weights(file: Path | io.BytesIO, names: Collection[str]) -> Any:
    """What the `weights_only` reader of torch makes of a file, with placeholders for what it names besides tensors."""
    stand_ins: list = [(ScriptedModule if name.startswith("__torch__") else Placeholder, name) for name in names]
    with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pickles that torch did not write; the error says what matters
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
    The bytes of what is in a zip archive of torch, by name and without the folder that all names begin with.

    Raises:
        zipfile.BadZipFile: compressed or overlapping records, or too long a pickle. torch writes none of them.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if is_torchscript(path):  # whose code is compressed, and not read
        entries = [entry for entry in entries if not entry.filename.partition("/")[2].startswith("code/")]
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size for entry in entries):
        raise zipfile.BadZipFile("compressed data")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise zipfile.BadZipFile("overlapping data")
    if any(is_data(entry.filename) and entry.file_size > PICKLE_LIMIT for entry in entries):
        raise zipfile.BadZipFile("too long a pickle")
    return {entry.filename.partition("/")[2]: entry.file_size for entry in entries}


def without_code(path: Path) -> tuple[io.BytesIO, io.BytesIO, dict[str, int]]:
    """
    A TorchScript archive less its code, which the `weights_only` reader takes, the pickle in it, and its sizes.
    Reading it with `torch.jit.load` would be as good as running a program.
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
    The tensors of a file by their names, and in what they were: `"safetensors"`, `"torchscript"`, `"state_dict"` and
    `"model_state_dict"` for a training checkpoint with them under that key, or `"bare"`.

    Raises:
        ValueError: not to be read, not to be read safely, or no tensors in it.
    """
    if path.suffix == ".safetensors":
        try:
            content, container = load_file(path), "safetensors"
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path.name} cannot be read: it is damaged or cut short ({error}).") from None
    else:
        content, container = load_pickle(path)
    for key in ("state_dict", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content, container = content[key], key
    tensors = content if isinstance(content, dict) else {}
    if not tensors or not all(isinstance(name, str) and is_plain(value) for name, value in tensors.items()):
        raise ValueError(f"{path.name} holds no state dict (tensors by their names), so there is nothing to convert.")
    tensors = {name: tensor.detach() for name, tensor in tensors.items()}
    if sum(tensor.nbytes for tensor in tensors.values()) > 2 * path.stat().st_size:
        raise ValueError(f"{path.name} describes tensors larger than the file itself, so it was not read.")
    if all(name.startswith("module.") for name in tensors):  # of a model wrapped for distributed training
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors, container


def is_plain(value: Any) -> bool:
    """Whether it is a tensor with numbers of its own; copying from a meta tensor would silently do nothing."""
    if not isinstance(value, torch.Tensor):
        return False
    return value.layout is torch.strided and not value.is_meta and not value.is_quantized


def read_json(path: Path) -> dict:
    """A JSON object of moderate size."""
    if path.stat().st_size > JSON_LIMIT:
        raise ValueError(f"{path} has more than {JSON_LIMIT:,} bytes, which no such file needs.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object.")
    return content
