"""One pass over the images of each model, which feeds the scores and every analysis.

Each image is read and decoded once per model, for any number of analyses; once for all models of `evaluate_together`.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple, Protocol

import datasets
import numpy as np
import torch
from transformers import PreTrainedModel, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor

from evaluation_tier.models.embedding import Asked, Embedders, Outputs, embed_together, image_embedders, inference
from evaluation_tier.models.families import can_project_patches
from evaluation_tier.models.images import Member
from evaluation_tier.models.loading import is_classifier
from evaluation_tier.models.processes import fail_together, merge_entries, merge_rows, own_rows
from evaluation_tier.models.speed import Speed

Models = Mapping[str, Member | Callable[[], Member]]  # by name; a function loads its model when it is needed


class Consumer(Protocol):
    """A participant in the pass of one model over one data set."""

    rows: np.ndarray | None  # that it needs, ascending; None for all of the data set
    patches: bool  # whether it needs the embeddings of patches
    embedders: Embedders  # needed in addition to those of `image_embedders`

    def add(self, rows: np.ndarray, outputs: Outputs) -> None:
        """Process a batch, which may hold more rows than requested."""

    def finish(self, own: np.ndarray) -> None:
        """After the last batch, with the model in memory: gather all processes' results; `own` are this one's rows."""


class Analysis(Protocol):
    """A measurement on all models."""

    def start(self, name: str, model: PreTrainedModel, processor: ProcessorMixin) -> Sequence[Consumer]:
        """Its consumers for the next model, one for each data set; fewer where it needs only the first ones."""


def evaluate_models(
    models: Models,
    evaluated: Sequence[datasets.Dataset],
    analyses: Sequence[Analysis],
    batch_size: int = 32,
    cache_dir: str | os.PathLike | None = None,
) -> dict[str, dict[str, Any]]:
    """
    Feed the analyses with each model's outputs for the images. One model at a time is in memory.

    Where `torch.distributed` runs, every process must call this with the same arguments. Each embeds its share of the
    images, and all have the same results.

    Args:
        models: left in the mode they were in.
        evaluated: the data sets, in the order of the consumers that `Analysis.start` returns.
        batch_size: images embedded at once.
        cache_dir: where embeddings are kept between evaluations, see `evaluation_tier.models.cache`.

    Returns:
        How fast each model embedded images, see `Speed.describe`.

    Raises:
        ValueError: as the analyses and `embed_batches` say.
    """
    speeds: dict[str, dict[str, Any]] = {}
    for name, member in models.items():
        speeds |= evaluate_together({name: member}, evaluated, {name: analyses}, batch_size, cache_dir)
    return speeds


def evaluate_together(
    models: Models,
    evaluated: Sequence[datasets.Dataset],
    analyses: Mapping[str, Sequence[Analysis]],
    batch_size: int = 32,
    cache_dir: str | os.PathLike | None = None,
) -> dict[str, dict[str, Any]]:
    """`evaluate_models` for models that are in memory together, each with its own `analyses`, by name: the images are
    read once for all of them."""
    with fail_together():
        members = {name: member() if callable(member) else member for name, member in models.items()}
        started = {name: [one.start(name, *members[name]) for one in analyses[name]] for name in models}
        passes = [
            {
                name: [consumers[i] for consumers in of_model if len(consumers) > i]
                for name, of_model in started.items()
            }
            for i in range(len(evaluated))
        ]
        shares, speeds = [], {name: Speed(model, batch_size) for name, (model, _) in members.items()}
        for dataset, consumers in zip(evaluated, passes, strict=True):
            rows = asked_rows(dataset, [consumer for of_model in consumers.values() for consumer in of_model])
            shares.append(rows[own_rows(len(rows), batch_size)])
            fed = [Fed(*members[name], of_model, speeds[name]) for name, of_model in consumers.items()]
            feed(fed, dataset, shares[-1], batch_size, cache_dir, names=list(models) if len(models) > 1 else [""])
    for name, (model, _) in members.items():
        with inference(model):
            for of_dataset, own in zip(passes, shares, strict=True):
                for consumer in of_dataset[name]:
                    consumer.finish(own)
    return {name: speed.describe() for name, speed in speeds.items()}


def asked_rows(dataset: datasets.Dataset, consumers: Sequence[Consumer]) -> np.ndarray:
    """The rows that any of the consumers needs."""
    asked = [np.arange(len(dataset)) if consumer.rows is None else consumer.rows for consumer in consumers]
    return reduce(np.union1d, asked)


class Fed(NamedTuple):
    """A model in one pass, and who needs its outputs."""

    model: PreTrainedModel
    processor: ProcessorMixin | BaseImageProcessor | None
    consumers: Sequence[Consumer]
    speed: Speed | None = None


def feed(
    fed: Sequence[Fed],
    dataset: datasets.Dataset,
    rows: np.ndarray,
    batch_size: int,
    cache_dir: str | os.PathLike | None = None,
    names: Sequence[str] = ("",),
) -> None:
    """Embed these rows of a data set, in this process alone, and hand each batch to every consumer of its model.

    Args:
        names: of the models, in error messages; empty for one model.
    """
    asked = []
    for (model, processor, consumers, speed), name in zip(fed, names, strict=True):
        gives_patches = is_classifier(model) or can_project_patches(model)
        patches = any(consumer.patches for consumer in consumers) and gives_patches
        embedders = dict(image_embedders(model, patches))
        for consumer in consumers:
            embedders |= consumer.embedders
        asked.append(Asked(model, processor, embedders, name, speed))
    for i, batch_rows, outputs in embed_together(asked, dataset, batch_size, rows, cache_dir):
        with inference(fed[i].model):
            for consumer in fed[i].consumers:
                consumer.add(batch_rows, outputs)


class ImageRows:
    """Numbers of each image of a data set, (images, ...) float32, filled batch by batch; NaN where missing."""

    def __init__(self, num_images: int):
        self.num_images = num_images
        self.values: np.ndarray | None = None  # until the first batch tells the shape

    def put(self, rows: np.ndarray, values: torch.Tensor) -> None:
        if self.values is None:
            self.values = np.full((self.num_images, *values.shape[1:]), np.nan, dtype=np.float32)
        self.values[rows] = values.cpu().numpy()

    def merge(self, own: np.ndarray) -> np.ndarray:
        """Gathers the rows of every process; `own` are those of this one."""
        shapes = merge_entries({} if self.values is None else {int(own[0]): self.values.shape[1:]})
        if self.values is None:  # a process without a batch
            self.values = np.full((self.num_images, *next(iter(shapes.values()))), np.nan, dtype=np.float32)
        return merge_rows(self.values, own)
