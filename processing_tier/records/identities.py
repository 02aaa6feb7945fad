"""
Which images and patients a model was trained on: hashes that are kept with the model, so that an evaluation can tell
when it uses them again.

An image is identified by the content of its file, not by its name; pixels are not decoded. A patient is identified by
id and data set. Only hashes are stored, but short ids can be guessed and hashed. Treat a file of these hashes as
confidentially as a list of the patients.
"""

import base64
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import datasets
import numpy as np

from processing_tier.progress import progress

FILE = "trained_on.json"  # in a model's folder

PRIVATE_FILE = "_trained_on.json"  # instead, for a model that will be public: uploads leave "_*" out

MAX_LIST_BYTES = 256 * 2**20

BLOCK, BLOCKS = 4096, 16  # bytes of a file that are hashed: all of a small one, evenly spaced blocks of a large one

HELD_OUT = "held_out"  # the split of the patients that a training set aside

EMPTY = np.empty(0, dtype=np.uint64)

# Archives that share images with another one: their patients are the same people, with the same ids
SAME_IMAGES = {
    "mimic_cxr_jpg": "mimic_cxr",
    "ms_cxr": "mimic_cxr",
    "chest_imagenome": "mimic_cxr",
    "chexpert_plus": "chexpert",
    "chexlocalize": "chexpert",
    "rsna": "chestxray14",
    "siim": "chestxray14",
    "chestx_det10": "chestxray14",
    "chestxray14_experts": "chestxray14",
    "padchest_gr": "padchest",
    "cxr_lt_2026": "padchest",
    "montgomery": "tbx11k",
    "shenzhen": "tbx11k",
}


class TrainingSource(NamedTuple):
    """The records of one training, or of an earlier training whose weights it started from."""

    dataset: str  # its name in results
    split: str
    images: np.ndarray  # (images,) uint64, ascending; see `image_keys`
    patients: np.ndarray  # (patients,) uint64, ascending; see `patient_keys`
    held_out: np.ndarray = EMPTY  # (patients,) uint64 of patients that were set aside


class TrainedOn(NamedTuple):
    """All that is known about the data that a model was trained on."""

    sources: tuple[TrainingSource, ...]
    unlisted: tuple[str, ...] = ()  # initial weights whose training images are not known


def family(dataset: str) -> str:
    """The name that data sets of the same patients share, without options that do not change the patients."""
    name, _, options = dataset.partition(":")
    if name == "phantom":
        return ":".join(
            [name, *(part for part in options.split(",") if part.startswith("seed=") and part != "seed=0")]
        )
    return SAME_IMAGES.get(dataset, dataset)


def image_key(image: Mapping) -> int:
    """
    64 bits of SHA-256 of an undecoded image: of the size of its file and all its bytes. For files of more than 64 KiB,
    16 blocks of 4,096 bytes stand for all bytes, the first and the last included. 0 for a file that cannot be read.
    """
    data = image.get("bytes")
    if data is not None:
        size, read = len(data), lambda start: data[start : start + BLOCK]
        return digest([str(size).encode(), *map(read, block_starts(size))])
    try:
        with open(image["path"], "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            parts = [str(size).encode()]
            for start in block_starts(size):
                file.seek(start)
                parts.append(file.read(BLOCK))
    except (OSError, TypeError, KeyError, ValueError):
        return 0
    return digest(parts)


def block_starts(size: int) -> list[int]:
    """Where the hashed blocks of a file begin, ascending."""
    if size <= BLOCK * BLOCKS:
        return list(range(0, size, BLOCK))
    return [(size - BLOCK) * i // (BLOCKS - 1) for i in range(BLOCKS)]


def digest(parts: Iterable[bytes]) -> int:
    return int.from_bytes(sha256(b"\0".join(parts)).digest()[:8], "little")


def image_keys(records: datasets.Dataset) -> np.ndarray:
    """[`image_key`] of each record, (images,) uint64; a few images are in memory at a time."""
    keys = np.zeros(len(records), dtype=np.uint64)
    start = 0
    bar = progress(description="hashing images", unit="image", total=len(records))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool, bar:
        for batch in records.select_columns(["image"]).iter(32):
            images = [image or {} for image in batch["image"]]
            keys[start : start + len(images)] = list(pool.map(image_key, images))
            start += len(images)
            bar.update(len(images))
    return keys


def patient_keys(patient_ids: Sequence[str], dataset: str) -> np.ndarray:
    """64 bits of SHA-256 of each patient's id under the name of the data set's [`family`], (images,) uint64."""
    patients, rows = np.unique(np.asarray(patient_ids, dtype=str), return_inverse=True)
    name = family(dataset).encode()
    return np.array([digest([name, patient.encode()]) for patient in patients], dtype=np.uint64)[rows]


def make_source(
    dataset: str, split: str, images: np.ndarray, patient_ids: Sequence[str], held_out: Sequence[str] = ()
) -> TrainingSource:
    """
    Args:
        dataset (`str`): its name in results.
        split (`str`): the split that the training read.
        images (`np.ndarray`): (images,) of [`image_keys`].
        patient_ids (`Sequence[str]`): of the images.
        held_out (`Sequence[str]`, *optional*): ids of the patients of that split that were set aside.
    """
    patients, set_aside = (
        np.unique(patient_keys(ids, dataset)) if len(ids) else EMPTY for ids in (patient_ids, held_out)
    )
    return TrainingSource(dataset, split, np.unique(images[images != 0]), patients, set_aside)


def write_trained_on(folder: str | os.PathLike, trained_on: TrainedOn, public: bool = False) -> Path:
    """
    Keep the list of a model's training images and patients in its folder.

    Args:
        folder (`str` or `os.PathLike`): the model's folder.
        trained_on ([`TrainedOn`]): what to keep.
        public (`bool`, *optional*, defaults to `False`):
            The model will be public: keep the file under the name that uploads to the Hub leave out.
    """
    sources = [
        {
            "dataset": source.dataset,
            "split": source.split,
            "n_images": len(source.images),
            "n_patients": len(source.patients),
            **{
                name: base64.b64encode(getattr(source, name).astype("<u8").tobytes()).decode()
                for name in ("images", "patients", "held_out")
            },
        }
        for source in trained_on.sources
    ]
    path = Path(folder, PRIVATE_FILE if public else FILE)
    content = {"version": 1, "sources": sources, "unlisted": list(trained_on.unlisted)}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    Path(folder, FILE if public else PRIVATE_FILE).unlink(missing_ok=True)
    return path


def keep_origin(folder: str | os.PathLike, name: str) -> None:
    """
    Note in a model's folder whose weights these are, since their training images are not known. A folder with a list
    keeps it.

    Args:
        folder (`str` or `os.PathLike`): the model's folder.
        name (`str`): of the weights, where they were published.
    """
    if find_trained_on(folder) is None:
        write_trained_on(folder, TrainedOn((), (name,)))


def find_trained_on(folder: str | os.PathLike) -> Path | None:
    """The file of [`write_trained_on`] in a folder."""
    return next((path for name in (FILE, PRIVATE_FILE) if (path := Path(folder, name)).is_file()), None)


def read_trained_on(path: str | os.PathLike) -> TrainedOn:
    """
    What [`write_trained_on`] wrote.

    Raises:
        `ValueError`: the file is damaged or too large.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_LIST_BYTES:
            raise ValueError
        content = json.loads(path.read_text(encoding="utf-8"))
        sources = []
        for source in content["sources"]:
            keys = {
                name: np.frombuffer(base64.b64decode(source[name], validate=True), dtype="<u8").astype(np.uint64)
                for name in ("images", "patients", "held_out")
            }
            if [source["n_images"], source["n_patients"]] != [len(keys["images"]), len(keys["patients"])]:
                raise ValueError
            sources.append(TrainingSource(str(source["dataset"]), str(source["split"]), **keys))
        return TrainedOn(tuple(sources), tuple(map(str, content["unlisted"])))
    except (ValueError, KeyError, TypeError, RecursionError, OSError):
        raise ValueError(
            f"{path} is damaged: the images that the model was trained on are not known; copy the file again, or "
            "delete it."
        ) from None
