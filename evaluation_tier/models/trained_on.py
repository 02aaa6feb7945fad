"""
Whether a model was trained on the evaluated data, by its list (see `processing_tier.records.identities`), and the
split that its training held out.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
from transformers.utils import cached_file

from processing_tier.hub_names import check_hub_name
from processing_tier.readers import READERS, has_splits, is_hub, list_splits, origin_name, read_records
from processing_tier.records.identities import (
    FILE,
    HELD_OUT,
    SAME_IMAGES,
    TrainedOn,
    family,
    find_trained_on,
    image_keys,
    patient_keys,
    read_trained_on,
)
from processing_tier.records.table_options import TableOptions

logger = logging.getLogger(__name__)

ALL = "all"  # the name in results of the split of data without splits


class Overlap(NamedTuple):
    """Which images of an evaluation a training has seen, (images,) bool each."""

    images: np.ndarray  # the image itself
    patients: np.ndarray  # another image of its patient, in the same data set
    same_ids: np.ndarray  # a patient of the same id in a data set of another name

    @property
    def seen(self) -> np.ndarray:
        return self.images | self.patients


def locate(name: str | os.PathLike) -> Path | None:
    """The list that a model keeps, in its folder or its repository on the Hub; None if it is missing."""
    if os.path.isdir(name):
        return find_trained_on(name)
    check_hub_name(name, "model")
    try:
        repository, _, revision = str(name).partition("@")
        options = {"revision": revision or None, "_raise_exceptions_for_missing_entries": False}
        path = cached_file(repository, FILE, **options)
    except (OSError, ValueError):  # missing or out of reach: loading the weights reports it
        return None
    return Path(path) if path else None


def read_lists(names: Mapping[str | Path, str]) -> dict[str, TrainedOn | None]:
    """The training data of each model, by its name in the results.

    Args:
        names: folder or name on the Hub, to the model's name in the results.

    Raises:
        ValueError: for a damaged list.
    """
    paths = {shown: locate(name) for name, shown in names.items()}
    return {shown: read_trained_on(path) if path else None for shown, path in paths.items()}


def find_overlap(lists: Sequence[TrainedOn | None], dataset: datasets.Dataset, name: str) -> Overlap:
    """The images of `dataset` that the training of any of these models has seen; their pixels are not decoded."""
    sources = [source for listed in lists if listed for source in listed.sources]
    images, patients, same_ids = (np.zeros(len(dataset), dtype=bool) for _ in range(3))
    if not sources:
        return Overlap(images, patients, same_ids)
    keys, ids = image_keys(dataset), dataset["patient_id"][:]
    for source in sources:
        images |= np.isin(keys, source.images)
        known = np.isin(patient_keys(ids, source.dataset), source.patients)
        if family(source.dataset) == family(name):
            patients |= known
        elif not source.dataset.startswith("phantom") and not name.startswith("phantom"):
            same_ids |= known  # each seed gives the phantom's patients new numbers
    return Overlap(images, patients & ~images, same_ids & ~images & ~patients)


def check_overlap(
    lists: Mapping[str, TrainedOn | None], dataset: datasets.Dataset, name: str, split: str, choice: str
) -> tuple[datasets.Dataset, dict, np.ndarray]:
    """
    Refuse, leave out, or keep and tell the images of an evaluation that a model was trained on.

    Args:
        lists: of [`read_lists`].
        dataset (`datasets.Dataset`): to be evaluated.
        name (`str`): of the data, or of those that they are a copy of ([`origin_name`]).
        split (`str`): as results call it.
        choice (`str`): `"refuse"`, `"exclude"` or `"include"`.

    Returns:
        `(dataset, protocol, seen)`: the images to evaluate; what `metrics.json` says of it; and which of these images
        are of the training, (images,) bool.

    Raises:
        `ValueError`: some are, and the choice is to refuse them, or to exclude all.
    """
    overlap = find_overlap(list(lists.values()), dataset, name)
    seen, total = overlap.seen, len(dataset)
    counts = (
        f"{overlap.images.sum():,} of {total:,} images of the split {split!r} are images that the model was trained on"
    )
    if overlap.patients.any():
        counts += f", {overlap.patients.sum():,} more are of its training patients"
    if seen.any() and choice == "refuse":
        keeps_others = any(len(source.held_out) for listed in lists.values() if listed for source in listed.sources)
        remedy = (
            f"choose another --split ({HELD_OUT} is the part set aside)" if keeps_others else "choose another --split"
        )
        raise ValueError(
            f"{counts}: {remedy}, leave them out with --exclude_trained, or count them with --include_trained, and "
            "the results will say so."
        )
    if overlap.same_ids.any():
        logger.warning(
            "%d of %d images are of patients whose ids also occur in a training set of another name. If they are the "
            "same people, evaluate other patients.",
            overlap.same_ids.sum(),
            total,
        )
    protocol: dict[str, Any] = {"training_overlap": describe_overlap(lists, overlap, choice)}
    if seen.any():
        protocol["n_trained_images"] = int(overlap.images.sum())
        protocol["n_trained_patients_images"] = int(overlap.patients.sum())
        protocol["trained"] = "excluded" if choice == "exclude" else "included"
    for sentence in shared_archives(lists, name):
        logger.warning(sentence)
    if choice == "exclude" and seen.any():
        if seen.all():
            raise ValueError(f"{counts}. All images would be excluded: evaluate other data.")
        logger.warning("%s: left out.", counts)
        return dataset.select(np.flatnonzero(~seen)), protocol, np.zeros(int((~seen).sum()), dtype=bool)
    if seen.any():
        logger.warning("%s, and they count: these results do not show how well it does on other images.", counts)
    return dataset, protocol, seen


def describe_overlap(lists: Mapping[str, TrainedOn | None], overlap: Overlap, choice: str) -> str:
    """One or two sentences for `metrics.json`, page and card."""
    silent = [name for name, listed in lists.items() if listed is None]
    if not any(listed.sources for listed in lists.values() if listed):
        return "not known: the model keeps no list of its training images"
    images, patients, total = int(overlap.images.sum()), int(overlap.patients.sum()), len(overlap.images)
    if not overlap.seen.any():
        text = "none of the images is one of its training images or of its training patients"
    elif choice == "exclude":
        text = f"{images:,} training images and {patients:,} other images of training patients were left out"
    else:
        text = (
            f"{images:,} of the {total:,} images are training images and {patients:,} others are of training "
            "patients, and they count: the results flatter the model"
        )
    if overlap.same_ids.any():
        text += f"; {int(overlap.same_ids.sum()):,} have the patient id of another training set"
    unlisted = [name for listed in lists.values() if listed for name in listed.unlisted]
    if unlisted or silent:
        text += f"; the training images of {', '.join(dict.fromkeys((*silent, *unlisted)))} are not known"
    return text


def shared_archives(lists: Mapping[str, TrainedOn | None], evaluated: str) -> list[str]:
    """A sentence for each published archive that a model was trained on and that the evaluated data are of."""
    sentences = []
    for model, listed in lists.items():
        for source in dict.fromkeys((s.dataset, s.split) for s in (listed.sources if listed else ())):
            archive = source[0] if source[0] in READERS or source[0] in SAME_IMAGES else None
            if archive and family(archive) == family(evaluated):
                sentences.append(
                    f"{model} was trained on {archive} (split {source[1]}), of which {evaluated} is a part: other "
                    "data may be harder for it."
                )
    return sentences


def held_out_split(lists: Mapping[str, TrainedOn | None]) -> tuple[str, str, np.ndarray] | None:
    """
    The data set, the split and the patients that the training of all these models held out; None if they do not agree.
    """
    found = None
    for listed in lists.values():
        own = next((source for source in reversed(listed.sources if listed else ()) if len(source.held_out)), None)
        if own is None or found is not None and (own[:2] != found[:2] or not np.array_equal(own.held_out, found[2])):
            return None
        found = (own.dataset, own.split, own.held_out)
    return found


def select_held_out(held_out: tuple[str, str, np.ndarray], dataset: datasets.Dataset) -> datasets.Dataset:
    """
    The images of the patients that the training set aside.

    Raises:
        `ValueError`: the data lack all of them.
    """
    rows = np.flatnonzero(np.isin(patient_keys(dataset["patient_id"][:], held_out[0]), held_out[2]))
    if not len(rows):
        raise ValueError(
            f"The data lack all {len(held_out[2]):,} patients that the training on {held_out[0]} set aside: "
            "name the data it was trained on, or another --split."
        )
    return dataset.select(rows)


def is_remote(data: str) -> bool:
    """Whether the splits of the data are on the Hub alone, where listing them needs the network."""
    return is_hub(data) and not os.path.exists(data)


def choose_split(
    data: str,
    table: TableOptions,
    lists: Mapping[str, TrainedOn | None],
) -> str:
    """
    The default split to evaluate: validation if the data have it, else the patients that the training held out, else
    all images of data without splits.
    """
    splits = has_splits(data, table)
    if splits and (is_remote(data) or "validation" in list_splits(data, table)):
        return "validation"
    held_out = held_out_split(lists)
    if held_out and family(held_out[0]) == family(origin_name(data)):
        return HELD_OUT
    return "validation" if splits else ALL


def read_split(
    data: str,
    split: str,
    table: TableOptions,
    lists: Mapping[str, TrainedOn | None],
) -> datasets.Dataset:
    """
    The records of a split, of [`HELD_OUT`], or of [`ALL`] for data without splits.

    Raises:
        `ValueError`: a split of data without splits, a held-out part that is not known; see also [`read_records`].
    """
    held_out = held_out_split(lists) if split == HELD_OUT else None
    if split == HELD_OUT and held_out is None:
        raise ValueError(
            f"--split {HELD_OUT} needs models whose training set patients aside, the same for all: name another split."
        )
    if split not in (ALL, HELD_OUT) and not has_splits(data, table):
        raise ValueError(
            f"{data} has no column 'split', so {split!r} would be all of its images: leave --split out, or name the "
            "column with --columns split=NAME."
        )
    if held_out and not is_remote(data) and has_splits(data, table):
        if held_out[1] not in list_splits(data, table):
            raise ValueError(
                f"--split {HELD_OUT} is a part of the split {held_out[1]!r} of {held_out[0]}, but {data} does not "
                "have it: name the data that the model was trained on, or another --split."
            )
    records = read_records(data, held_out[1] if held_out else split, table)
    return select_held_out(held_out, records) if held_out else records
