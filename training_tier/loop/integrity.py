"""Checks of a checkpoint before it is used: whether it is whole, unchanged since it was saved, and of this model."""

import contextlib
import json
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel, TrainerState
from transformers.core_model_loading import revert_weight_conversion
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import is_peft_available

from modeling_tier.checkpoints.model_folder import MODEL_JSON_LIMIT

if is_peft_available():
    from peft import PeftModel, get_peft_model_state_dict

CHECKSUMS = "checksums.json"  # in each checkpoint: SHA-256 of every file that resuming reads

RUN_OPTIONS = "run_options.json"  # in each checkpoint

FSDP_WEIGHTS = "pytorch_model_fsdp.bin"  # beside the model.safetensors of a checkpoint that FSDP resumes from

PICKLES = (".pt", ".pth", ".bin")

BLOCK = 2**20  # bytes read at a time


def list_resumed_files(folder: Path) -> dict[str, Path]:
    """
    Name to path of the files that resuming reads. Configuration, tokenizer and card are left out: an evaluation may
    add thresholds and results to them, and the first two are compared with the run's.
    """
    return {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and (
            path.suffix in (".safetensors", *PICKLES)
            or path.name in (TRAINER_STATE_NAME, RUN_OPTIONS)
            or (path.name.startswith("log_sums_") and path.suffix == ".json")
        )
    }


def checksum(path: Path) -> str:
    digest = sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def checksums(files: Mapping[str, Path]) -> dict[str, str]:
    """Hashes several files at a time: neither reading nor hashing holds Python's lock."""
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(files, pool.map(checksum, files.values()), strict=True))


def write_checksums(folder: Path) -> None:
    """Adds `checksums.json` to a checkpoint whose other files are written."""
    digests = checksums(list_resumed_files(folder))
    (folder / CHECKSUMS).write_text(json.dumps(digests, indent=2) + "\n", encoding="utf-8")


def find_fault(checkpoint: str | Path, only_model: bool = False) -> str | None:
    """
    The fault of a checkpoint, such as a file that is cut short; `None` for a whole one.

    Args:
        checkpoint (`str` or `Path`): Its folder.
        only_model (`bool`, *optional*, defaults to `False`): It need not hold what resuming needs beside the weights.
    """
    folder = Path(checkpoint)
    if not folder.is_dir():
        return "the folder does not exist"
    try:
        return find_missing(folder, only_model) or find_damage(folder) or find_change(folder)
    except OSError as error:
        return f"it cannot be read ({error.strerror or error})"


def find_missing(folder: Path, only_model: bool) -> str | None:
    paths = list(folder.iterdir())
    needed = [TRAINER_STATE_NAME] + ["rng_state"] * (not only_model)
    if not any(path.is_dir() for path in paths):  # DeepSpeed keeps these in its own folder
        sharded = any(path.name == FSDP_WEIGHTS for path in paths)
        needed += ["optimizer.bin" if sharded else "optimizer.pt", "scheduler.pt"] * (not only_model)
        if not any(path.suffix == ".safetensors" for path in paths):
            return "it does not hold weights"
    for name in needed:
        if not any(path.name.startswith(name) for path in paths):
            return f"it does not hold {name}"
    return None


def find_damage(folder: Path) -> str | None:
    """Damage that a file itself shows. Without `checksums.json` (of an earlier version), archives are checked too."""
    has_checksums = (folder / CHECKSUMS).is_file()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        try:
            if path.suffix == ".json":
                if path.stat().st_size > MODEL_JSON_LIMIT:
                    return f"{path.name} is larger than {MODEL_JSON_LIMIT >> 20} MiB"
                content = json.loads(path.read_text(encoding="utf-8"))
                if not is_as_expected(path.name, content):
                    return f"{path.name} has unexpected content"
            elif path.suffix == ".safetensors":
                with safe_open(path, "pt"):  # compares its length with its header
                    pass
            elif path.suffix in PICKLES:
                if not zipfile.is_zipfile(path):
                    return f"{path.name} is cut short"
                if not has_checksums and not is_archive_intact(path):
                    return f"{path.name} is damaged"
        except (ValueError, RecursionError, SafetensorError):
            return f"{path.name} is cut short"
    return None


def is_as_expected(name: str, content: Any) -> bool:
    """Whether a JSON file of a checkpoint has the content that its name promises."""
    if name == TRAINER_STATE_NAME:
        try:
            state = TrainerState(**content)
        except (AttributeError, TypeError, ValueError):
            return False
        return (
            isinstance(state.global_step, int)
            and isinstance(state.log_history, list)
            and all(isinstance(entry, dict) and "step" in entry for entry in state.log_history)
        )
    if name.startswith("log_sums_"):
        return (
            isinstance(content, dict)
            and isinstance(content.get("loss"), float)
            and isinstance(content.get("step"), int)
            and isinstance(content.get("terms", []), list)
        )
    return isinstance(content, dict) if name in (CHECKSUMS, RUN_OPTIONS, "config.json") else True


def is_archive_intact(path: Path) -> bool:
    """Whether the members of an archive by `torch.save`, which does not compress, match their checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            stored = all(part.compress_type == zipfile.ZIP_STORED for part in archive.infolist())
            return stored and archive.testzip() is None
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError):
        return False


def find_change(folder: Path) -> str | None:
    """The changes since the checkpoint was saved, by `checksums.json`; `None` without that file."""
    file = folder / CHECKSUMS
    if not file.is_file():
        return None
    saved, files = json.loads(file.read_text(encoding="utf-8")), list_resumed_files(folder)
    for name in sorted(saved.keys() - files.keys()):
        return f"it does not hold {name}"
    for name in sorted(files.keys() - saved.keys()):
        return f"{name} was not saved with it"
    for name, digest in checksums(files).items():
        if digest != saved[name]:
            return f"{name} has changed since it was saved (its checksum differs)"
    return None


def check_weights(checkpoint: str | Path, model: torch.nn.Module) -> None:
    """
    Compares the names and shapes of a checkpoint's tensors with the model's, without reading them.

    Raises:
        `ValueError`: they belong to another network.
    """
    is_adapter = is_peft_available() and isinstance(model, PeftModel)
    tensors = get_peft_model_state_dict(model) if is_adapter else model.state_dict()
    if isinstance(model, PreTrainedModel):  # the names in memory may differ from those in files (ViT, DINOv2)
        tensors = revert_weight_conversion(model, tensors)
    stored: dict[str, list[int]] = {}
    for path in Path(checkpoint).glob("adapter_model.safetensors" if is_adapter else "model*.safetensors"):
        with safe_open(path, "pt") as file:
            stored |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (not a dict)
    if not stored:  # DeepSpeed's own format, or folders of several adapters
        return
    kept = {tensors[name].data_ptr() for name in stored.keys() & tensors.keys()}  # tied weights are stored once
    missing = [name for name, tensor in tensors.items() if name not in stored and tensor.data_ptr() not in kept]
    unknown = [name for name in stored if name not in tensors]
    # FSDP turns scalars into vectors
    differing = [
        name
        for name in stored.keys() & tensors.keys()
        if list(tensors[name].shape) != stored[name] and (tensors[name].numel(), stored[name]) != (1, [])
    ]
    if missing or unknown or differing:
        example = next(iter([*missing, *unknown, *sorted(differing)]))
        raise ValueError(
            f"{checkpoint} belongs to another model: of its tensors {len(missing)} are missing, {len(unknown)} are "
            f"unknown and {len(differing)} have another shape, for example {example}."
        )


@contextlib.contextmanager
def reading(what: str, checkpoint: str | Path) -> Iterator[None]:
    """Turns any error while a part of a checkpoint is read into one sentence."""
    try:
        yield
    except Exception as error:  # libraries raise many kinds; all mean that the part is damaged
        reason = (str(error).splitlines() or [""])[0][:200]
        raise ValueError(
            f"The {what} of {checkpoint} cannot be used ({type(error).__name__}: {reason}); resume from another "
            "checkpoint, or start again."
        ) from error
