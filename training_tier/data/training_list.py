"""Lists the images and patients of a training before it starts; see `processing_tier.records.identities`."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
from accelerate.utils import gather_object

from evaluation_tier.models.trained_on import locate
from processing_tier.progress import progress
from processing_tier.readers import origin_name
from processing_tier.records.identities import (
    TrainedOn,
    find_trained_on,
    image_key,
    image_keys,
    make_source,
    read_trained_on,
)
from training_tier.data.streaming import open_shard
from training_tier.options.data import DataArguments
from training_tier.options.model import ModelArguments
from training_tier.start.initialization import check_start
from training_tier.start.presets import PRESETS


def list_training(
    train_records: datasets.Dataset,
    eval_records: datasets.Dataset,
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    process: tuple[int, int] = (0, 1),
) -> TrainedOn:
    """
    The images and patients of a training, and those of its initial weights. Each process hashes its share of the
    images, and all return the same list.

    Args:
        train_records (`datasets.Dataset`): with their images, or with the places of the images in shards.
        eval_records (`datasets.Dataset`): their patients are listed as held out, unless `eval_split` is given.
        model_arguments ([`ModelArguments`]): name the initial weights.
        data_arguments ([`DataArguments`]): name data and split.
        process (`tuple[int, int]`, *optional*, defaults to `(0, 1)`): index of this process, and number of processes.

    Raises:
        `ValueError`: the list of the initial weights is damaged.
    """
    index, num_processes = process
    rows = np.arange(len(train_records))[index::num_processes]
    keys = shard_keys(train_records, rows) if "shard" in train_records.column_names else None
    if keys is None:
        keys = image_keys(train_records.select(rows) if num_processes > 1 else train_records)
    if num_processes > 1:
        keys = np.array(gather_object(keys.tolist()), dtype=np.uint64)
    held_out = eval_records["patient_id"][:] if data_arguments.eval_split is None else ()
    own = make_source(
        origin_name(data_arguments.data),
        data_arguments.train_split,
        keys,
        train_records["patient_id"][:],
        held_out,
    )
    earlier: list[TrainedOn] = []
    for name in starts(model_arguments):
        if model_arguments.vision_model is None:
            check_start(name)
        path = locate(name)
        unlisted = (Path(name).resolve().name if os.path.isdir(name) else name,)
        earlier.append(read_trained_on(path) if path else TrainedOn((), unlisted))
    return join_lists(*earlier, TrainedOn((own,)))


def starts(arguments: ModelArguments) -> list[str]:
    """Names of the checkpoints that provide the initial weights."""
    if arguments.vision_model is not None:
        return [arguments.vision_model, arguments.text_model]
    return [] if arguments.model in PRESETS else [arguments.model]


def shard_keys(records: datasets.Dataset, rows: Sequence[int]) -> np.ndarray:
    """[`image_key`] of records whose images are in shards, (rows,) uint64. Holds one row group in memory."""
    place = records.select_columns(["shard", "row_group", "row"]).to_pandas().iloc[rows]
    keys = np.zeros(len(rows), dtype=np.uint64)
    bar = progress(description="hashing images", unit="image", total=len(rows))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool, bar:
        for file, of_file in place.reset_index(drop=True).groupby("shard"):
            with open_shard(file) as shard:
                for group, members in of_file.groupby("row_group"):
                    images = shard.read_row_group(group, columns=["image"], use_threads=False)["image"]
                    group_images = (images[row].as_py() or {} for row in members["row"])
                    keys[members.index] = list(pool.map(image_key, group_images))
                    bar.update(len(members))
    return keys


def resume_list(checkpoint: str | None) -> TrainedOn | None:
    """The list of the checkpoint that a run resumes from."""
    path = find_trained_on(checkpoint) if checkpoint is not None else None
    return read_trained_on(path) if path else None


def join_lists(*lists: TrainedOn) -> TrainedOn:
    """All lists in one, without duplicates."""
    sources = {
        (source.dataset, source.split, source.images.tobytes(), source.held_out.tobytes()): source
        for listed in lists
        for source in listed.sources
    }
    return TrainedOn(
        tuple(sources.values()), tuple(dict.fromkeys(name for listed in lists for name in listed.unlisted))
    )


def describe_earlier(trained_on: TrainedOn) -> str:
    """The data of the initial weights, for the model card."""
    known = [f"{source.dataset} ({source.split})" for source in trained_on.sources[:-1]]
    unknown = [f"not known ({name})" for name in trained_on.unlisted]
    return ", ".join(known + unknown) or "none"
