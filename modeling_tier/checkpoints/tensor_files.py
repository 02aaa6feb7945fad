"""
Tensors of checkpoint files, without running anything of what the files hold.

They are read with safetensors or by the `weights_only` reader of torch, which knows tensors and plain containers and
refuses everything else by name. Two things more are let through, both as placeholders that forget what they are given,
so that no code but this module's is called: what old training scripts save beside the tensors, and the modules of
TorchScript archives.
"""

import io
import json
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

JSON_LIMIT = 2**20  # bytes; such a file has a few kilobytes

# What training scripts save beside the tensors: arguments, and numbers that are numpy's. Never needed here.
BOOKKEEPING = (
    "argparse.Namespace",
    "_codecs.encode",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
)


class Placeholder:
    """Stands for an object that is not needed: whatever it is built from is forgotten."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass


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
    stand_ins: list = [(Placeholder, name) for name in BOOKKEEPING]
    file: Any = path
    try:
        records = data_records(path)
        scripted = any(name.endswith("/constants.pkl") for name in records)
        if scripted:
            file, names = without_code(path, records)
            stand_ins += [(ScriptedModule if name.startswith("__torch__") else Placeholder, name) for name in names]
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that torch did not write; the error says what matters
            content = torch.load(file, map_location="cpu", weights_only=True)
        return (content.tensors(), "torchscript") if scripted else (content, "bare")
    except Exception as error:  # a damaged or hostile pickle can fail anywhere in the reader
        asked = re.search(r"GLOBAL (\S+)", str(error))
        if asked and isinstance(error, pickle.UnpicklingError):
            raise ValueError(
                f"{path.name} asks to call {asked[1]} while it is read, which could run anything, so it was not read. "
                "Where it was made, save its tensors alone: torch.save(model.state_dict(), 'tensors.pt')."
            ) from None
        raise ValueError(
            f"{path.name} cannot be read: it is damaged, cut short, or no file of torch.save or safetensors "
            f"({type(error).__name__})."
        ) from None


def data_records(path: Path) -> list[str]:
    """The names in a zip archive, but those of code; none where the file is older than torch 1.6 and no archive."""
    if not zipfile.is_zipfile(path):
        return []
    with zipfile.ZipFile(path) as archive:
        entries = [entry for entry in archive.infolist() if "/code/" not in entry.filename]
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise zipfile.BadZipFile("compressed data")  # torch compresses none, and this could be a bomb
    return [entry.filename for entry in entries]


def without_code(path: Path, records: list[str]) -> tuple[io.BytesIO, list[str]]:
    """
    A TorchScript archive less its code, which the `weights_only` reader takes, and the classes of that code which its
    data name. Reading it with `torch.jit.load` would be as good as running a program.
    """
    slim, pickled = io.BytesIO(), b""
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(slim, "w") as target:
        for record in records:
            name = record.partition("/")[2]
            if name in ("data.pkl", "version", "byteorder") or name.startswith("data/"):
                content = archive.read(record)
                target.writestr(f"archive/{name}", content)
                pickled = content if name == "data.pkl" else pickled
    called = {argument.replace(" ", ".") for op, argument, _ in pickletools.genops(pickled) if op.name == "GLOBAL"}
    slim.seek(0)
    return slim, sorted(name for name in called if name.startswith(("__torch__.", "torch.jit._pickle.")))


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
        raise ValueError(f"{path.name} describes tensors larger than the file itself; it is no honest checkpoint.")
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
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object.")
    return content
