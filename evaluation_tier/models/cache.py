"""A cache of embeddings that knows an image and a model by their content, never by a name.

CheXzero's cache was named after the checkpoint's file alone, so that a second data set got the scores of the first
(zero_shot.py:426-430). Here the key of an entry is a hash of everything that decides its numbers.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save

import modeling_tier
from evaluation_tier.models.contract import EvaluatedModel, meets_contract
from evaluation_tier.output.metrics_file import installed_versions
from evaluation_tier.output.writing import write_beside
from processing_tier.code_hash import FOLDER as PIXELS
from processing_tier.code_hash import hash_code

logger = logging.getLogger(__name__)

CHECKSUM = "sha256"

AXES = "axes of "  # before the name of an array: its axes, from the slowest in memory to the fastest

MAX_ENTRY_BYTES = 2**28

MODELS = Path(modeling_tier.__file__).parent
FAMILIES = ("contract", "clip", "siglip", "radzero", "openclip", "remote_code", "adapters")
EMBEDDING = [Path(__file__).with_name(f"{name}.py") for name in ("images", "embedding", "grey_levels", *FAMILIES)]


def hash_weights(model: torch.nn.Module) -> str:
    """SHA-256 of a model's parameters and buffers, with their names, types and shapes; the same on every device."""
    return hash_tensors(model.state_dict())


def hash_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """See `hash_weights`."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def hash_model(model: Any) -> str:
    """SHA-256 that tells the models of an evaluation apart: of the weights, or of the contract's `identity`."""
    if not meets_contract(model):
        return hash_weights(model)
    return hashlib.sha256((model.identity or str(model)).encode()).hexdigest()


def hash_image(image: Any) -> str | None:
    """SHA-256 of an undecoded image's bytes; None for one that cannot be read, or is already decoded."""
    if isinstance(image, Mapping):
        image = image["bytes"] if image.get("bytes") is not None else image.get("path")
    if isinstance(image, (str, Path)):
        try:
            with open(image, "rb") as file:
                image = file.read()
        except OSError:
            return None
    return hashlib.sha256(image).hexdigest() if isinstance(image, bytes) else None


def content_key(parts: Mapping[str, Any], files: Iterable[Path] = ()) -> str:
    """
    SHA-256 of what decides some numbers: `parts`, the code of `files`, the code that decodes images and that of the
    models, and the versions of the packages.
    """
    decided = {
        **parts,
        "versions": installed_versions(),
        "code": hash_code((PIXELS, MODELS)),
        "files": [hashlib.sha256(file.read_bytes()).hexdigest() for file in files],
    }
    return hashlib.sha256(json.dumps(decided, sort_keys=True, default=str).encode()).hexdigest()


class EmbeddingCache:
    """
    The embeddings of one model, a safetensors file per image, in a folder that any number of models, data sets and
    processes may share: an entry is written beside its place and renamed.

    Args:
        folder: where the entries of all models are.
        model: its `identity` (of a model of transformers: the weights, the config and the settings of the image
            processor) is part of the key, and so are the kind of its device, the versions of the packages and the
            code that decodes images and embeds them.
        what: the kind of outputs, such as `"image and patches"`.
    """

    def __init__(self, folder: str | os.PathLike, model: EvaluatedModel, what: str):
        parts = {"identity": model.identity, "device": model.device.type, "what": what}
        self.folder = Path(folder) / content_key(parts, EMBEDDING)
        self.writable = True

    def path(self, image_hash: str) -> Path:
        return self.folder / image_hash[:2] / f"{image_hash}.safetensors"

    def read(self, image_hash: str | None) -> dict[str, np.ndarray] | None:
        """The arrays of one image, laid out in memory as they were; None without a file, or if it is damaged."""
        if image_hash is None:
            return None
        path = self.path(image_hash)
        try:
            if path.stat().st_size > MAX_ENTRY_BYTES:
                return None
            arrays = load(path.read_bytes())
        except (OSError, SafetensorError, ValueError, KeyError):
            return None
        checksum = arrays.pop(CHECKSUM, None)
        if checksum is None or checksum.tobytes() != hash_arrays(arrays):
            return None
        order = {name: arrays.pop(AXES + name, None) for name in list(arrays) if not name.startswith(AXES)}
        if any(axes is None for axes in order.values()):  # of an earlier version
            return None
        return {name: lay_out(array, order[name]) for name, array in arrays.items()}

    def write(self, image_hash: str | None, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep the arrays of one image. After the first failure (a full disk), warn and keep nothing more."""
        if image_hash is None or not self.writable:
            return
        arrays = {**arrays, **{AXES + name: memory_order(array) for name, array in arrays.items()}}
        checksum = np.frombuffer(hash_arrays(arrays), dtype=np.uint8)
        content = save({**{name: np.ascontiguousarray(array) for name, array in arrays.items()}, CHECKSUM: checksum})
        try:
            write_beside(self.path(image_hash), lambda partial: partial.write_bytes(content))
        except OSError as error:
            self.writable = False
            logger.warning(
                f"The cache {self.folder.parent} cannot be written ({error.strerror or error}): the evaluation "
                "continues without it."
            )


def memory_order(array: np.ndarray) -> np.ndarray:
    """The axes of an array, from the slowest in memory to the fastest, int8."""
    return np.argsort([-stride for stride in array.strides], kind="stable").astype(np.int8)


def lay_out(array: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """The same numbers with this `memory_order`."""
    return np.ascontiguousarray(array.transpose(axes)).transpose(np.argsort(axes))


def stack(arrays: Sequence[np.ndarray]) -> torch.Tensor:
    """
    A batch of images' arrays, each laid out in memory as it was.

    A convolutional image tower gives its patches in another order than a transformer. The products with them round
    differently in another order, and an evaluation from the cache must equal the first one.
    """
    axes = memory_order(arrays[0])
    batch = torch.from_numpy(np.stack([array.transpose(axes) for array in arrays]))
    return batch.permute(0, *(np.argsort(axes) + 1).tolist())


def hash_arrays(arrays: Mapping[str, np.ndarray]) -> bytes:
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array))
    return digest.digest()
