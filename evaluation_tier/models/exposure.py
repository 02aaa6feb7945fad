"""
Whether evaluated data are of a data set that a published model was trained on, as its owners state it.

`trained_on.py` knows the images of a training by this package, one by one. Other models come without such a list. For
them, `published_models.yaml` has the names of the data sets. Two models may have used different images of a data set,
so this says what may be the case, never that an image was seen.
"""

import fnmatch
import json
import logging
import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from evaluation_tier.models.adapters import AdapterName
from processing_tier.readers import READERS
from processing_tier.records.identities import TrainedOn, family
from processing_tier.yaml_files import read_yaml

logger = logging.getLogger(__name__)

TABLE = Path(__file__).with_name("published_models.yaml")

MAX_CONFIG_BYTES = 2**20


class PublishedModel(NamedTuple):
    """A row of the table, see the comments at its head."""

    title: str
    names: tuple[str, ...]
    trained_on: tuple[str, ...]
    complete: bool
    source: str
    starts_from: str | None = None

    def has_name(self, name: str) -> bool:
        """Whether it is called so; a name without an owner is that of a folder, or of tier-convert."""
        own = self.names if "/" in name else (pattern.rpartition("/")[2] for pattern in self.names)
        return any(fnmatch.fnmatchcase(name.lower(), pattern.lower()) for pattern in own)

    def describe(self) -> str:
        """Its training data, in a sentence without a full stop."""
        if not self.trained_on:
            return f"the owners of {self.title} do not name its training data ({self.source})"
        return f"{self.title} was trained on {', '.join(self.trained_on)} ({self.source})"


@cache
def published_models() -> dict[str, PublishedModel]:
    """The rows of the table, by their titles."""
    return {
        title: PublishedModel(
            title,
            tuple(row["names"]),
            tuple(row["trained_on"]),
            row["complete"],
            row["source"],
            row.get("starts_from"),
        )
        for title, row in read_yaml(TABLE).items()
    }


def find_published(name: str) -> list[PublishedModel]:
    """The row of a model and those of the weights that it started from, in this order; empty if it is not known."""
    rows = published_models()
    found = [row for row in rows.values() if row.has_name(name)][:1]
    while found and found[-1].starts_from:
        found.append(rows[found[-1].starts_from])
    return found


def possible_names(name: str | os.PathLike, listed: TrainedOn | None) -> list[str]:
    """
    What the published weights of a model may be called: those that its list of training images does not cover, or,
    without a list, the model itself. Empty if its list covers all.
    """
    if listed is not None:
        return list(listed.unlisted)
    if isinstance(name, AdapterName):
        return [str(name)] if name.argument is None else possible_names(name.argument.removeprefix("hf-hub:"), None)
    if not os.path.isdir(name):
        return [os.fspath(name).partition("@")[0]]
    return [Path(name).resolve().name, *name_of_config(Path(name, "config.json"))]


def name_of_config(path: Path) -> list[str]:
    """The name on the Hub that older versions of transformers left in a config; empty without one."""
    try:
        if path.stat().st_size <= MAX_CONFIG_BYTES:
            name = json.loads(path.read_text(encoding="utf-8")).get("_name_or_path")
            return [name] if isinstance(name, str) and name.count("/") == 1 else []
    except (OSError, ValueError, AttributeError, RecursionError):  # loading the model reports it
        pass
    return []


def evaluated_archive(data: str, reader: str | None) -> str | None:
    """
    The archive that the evaluated data are of; None if that is not known.

    Args:
        data: its name, see `origin_name`.
        reader: of the benchmark, if there is one.
    """
    archives = {family(name) for name in READERS}
    return next((family(name) for name in (reader, data) if name and family(name) in archives), None)


class Exposure(NamedTuple):
    """What is known of the published training data of one model."""

    told: str  # sentences, without the last full stop
    overlaps: bool  # whether the evaluated archive is among these data


def find_exposures(
    names: Mapping[str | Path, str], lists: Mapping[str, TrainedOn | None], data: str, reader: str | None = None
) -> dict[str, Exposure]:
    """
    The published training data of the models; the log warns of an archive that was used.

    Args:
        names: of the models, as the user named them, to their names in the results.
        lists: of `trained_on.read_lists`.
        data, reader: see [`evaluated_archive`].

    Returns:
        By the name in the results; without models whose list covers all training images. Empty for the phantom.
    """
    if data.partition(":")[0] == "phantom":  # drawn by this package
        return {}
    archive = evaluated_archive(data, reader)
    exposures = {}
    for name, shown in names.items():
        if possible := possible_names(name, lists.get(shown)):
            found = [(candidate, find_published(candidate)) for candidate in possible]
            if lists.get(shown) is None:  # all are names of the same model
                found = next(([pair] for pair in found if pair[1]), [(shown, [])])
            exposures[shown] = judge(found, archive)
            if exposures[shown].overlaps:
                logger.warning("The evaluated data may be training data of %s: %s.", shown, exposures[shown].told)
    return exposures


def judge(found: Sequence[tuple[str, Sequence[PublishedModel]]], archive: str | None) -> Exposure:
    """
    Whether the evaluated data are among the training data.

    Args:
        found: names of weights and the rows of each, see [`find_published`].
        archive: of [`evaluated_archive`].
    """
    rows = list(dict.fromkeys(row for _, of_name in found for row in of_name))
    sentences = [row.describe() for row in rows]
    sentences += [f"the table of published models does not know {name}" for name, of_name in found if not of_name]
    data_sets = {family(data_set) for row in rows for data_set in row.trained_on}
    is_complete = all(row.complete for row in rows) and all(of_name for _, of_name in found)
    if rows and (archive is None or not data_sets):
        sentences.append("whether the evaluated data were among its training data is not known")
    elif archive in data_sets:
        sentences.append(f"the evaluated data are of {archive} too, so it may have seen these images or patients")
    elif rows and is_complete:
        sentences.append(f"the evaluated data are of another data set ({archive})")
    elif rows:
        sentences.append(f"the evaluated data ({archive}) are not among those named, which need not be all")
    return Exposure("; ".join(sentences), archive in data_sets)


def describe_exposures(exposures: Mapping[str, Exposure]) -> dict[str, Any]:
    """
    What `metrics.json` says of [`find_exposures`]: `exposure`, a text, and where the evaluated archive is among the
    training data of models, `exposure_overlap`, their names.
    """
    texts = [
        f"{name}: {exposure.told}" if len(exposures) > 1 else exposure.told for name, exposure in exposures.items()
    ]
    overlapping = [name for name, exposure in exposures.items() if exposure.overlaps]
    described: dict[str, Any] = {"exposure": ". ".join(texts)} if texts else {}
    return described | ({"exposure_overlap": overlapping} if overlapping else {})
