"""
The checkpoints of a run: which exist, which is the last whole one, which are the best and are kept, and their mean.

The contents of a checkpoint are in `saving.py` and `integrity.py`, resuming is in `resuming.py`.
"""

import math
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from training_tier.loop.integrity import find_change, find_fault

logger = logging.get_logger(__name__)

CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def list_checkpoints(folder: str | os.PathLike) -> dict[int, Path]:
    """Step to folder of the checkpoints of a run, the earliest first."""
    found = ((CHECKPOINT.fullmatch(path.name), path) for path in Path(folder).iterdir() if path.is_dir())
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def last_checkpoint(output_dir: str | os.PathLike) -> str | None:
    """The newest whole checkpoint of a run, by its step. Warns of each newer one that is not whole."""
    if not os.path.isdir(output_dir):
        return None
    for folder in reversed(list_checkpoints(output_dir).values()):
        checkpoint = os.path.join(output_dir, folder.name)
        fault = find_fault(checkpoint)
        if fault is None:
            return checkpoint
        logger.warning(f"{checkpoint} is not whole and is skipped: {fault}.")
    return None


def describe_last_checkpoint(output_dir: str | os.PathLike) -> str:
    last = last_checkpoint(output_dir)
    return f"the last good checkpoint is {last}" if last else "the run has not saved a checkpoint yet"


def choose_checkpoint(checkpoint: str | None, output_dir: str | os.PathLike) -> str | None:
    """
    The folder to resume from: for `"last"` the last whole one of `output_dir`, for `None` none.

    Raises:
        `ValueError`: the named checkpoint is not whole, or `output_dir` lacks a whole one.
    """
    if checkpoint == "last":
        checkpoint = last_checkpoint(output_dir)
        if checkpoint is None:
            raise ValueError(
                f"output_dir {os.fspath(output_dir)!r} does not hold a whole checkpoint to resume from; leave out "
                "--resume_from_checkpoint to start a new run."
            )
    elif checkpoint is not None and (fault := find_fault(checkpoint)):
        raise ValueError(
            f"resume_from_checkpoint={checkpoint!r} is not a whole checkpoint: {fault}; name another, or use "
            "--resume_from_checkpoint last."
        )
    return checkpoint


def set_later_aside(folder: str | Path, step: int) -> None:
    """
    Renames the checkpoints after the step at which a run starts or resumes. They are damaged, or belong to a run that
    was abandoned; the latest of them would otherwise count as the last one of this run. A name that begins with `_` is
    not pushed to the Hub.
    """
    if not Path(folder).is_dir():
        return
    for other, path in list_checkpoints(folder).items():
        if other > step:
            aside = path.with_name(f"_stale-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            logger.warning(f"The run continues from step {step}. {path} is now {aside.name}; you can delete it.")


def more_is_better(metric: str) -> bool:
    """Whether a higher value is better: true except for losses (as in transformers) and entropies."""
    return not metric.endswith(("loss", "_entropy"))


def rank_checkpoints(
    checkpoints: Iterable[int], log_history: Sequence[dict], metric: str, greater_is_better: bool | None = None
) -> list[tuple[int, float]]:
    """
    The steps of checkpoints with their value of the metric, the best first; of equal ones the earlier first. Those
    without a value, or with NaN, are left out.

    Args:
        checkpoints (`Iterable[int]`): steps.
        log_history (`Sequence[dict]`): of the [`TrainerState`].
        metric (`str`): `metric_for_best_model`.
        greater_is_better (`bool`, *optional*): whether a higher value is better; by default [`more_is_better`].
    """
    name = metric if metric.startswith("eval_") else f"eval_{metric}"
    if greater_is_better is None:
        greater_is_better = more_is_better(metric)
    values = {entry["step"]: entry[name] for entry in log_history if name in entry}
    ranked = [(step, values[step]) for step in checkpoints if not math.isnan(values.get(step, math.nan))]
    return sorted(ranked, key=lambda pair: (-pair[1] if greater_is_better else pair[1], pair[0]))


class TopCheckpoints(TrainerCallback):
    """
    Deletes, after each save, all checkpoints except the best ones and the latest, which resuming needs.

    Args:
        count (`int`): how many of the best by `metric_for_best_model` are kept.
    """

    def __init__(self, count: int):
        self.count = count

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not args.should_save:  # another process does
            return
        checkpoints = list_checkpoints(args.output_dir)
        ranked = rank_checkpoints(checkpoints, state.log_history, args.metric_for_best_model, args.greater_is_better)
        kept = {step for step, _ in ranked[: self.count]} | {max(checkpoints, default=None)}
        for step in checkpoints.keys() - kept:
            shutil.rmtree(checkpoints[step], ignore_errors=True)


def average_weights(model: PreTrainedModel, folders: Sequence[str | Path]) -> None:
    """
    Sets the weights of a model to the mean of its checkpoints' weights ("model soup", Wortsman et al. 2022). The
    running means and variances of batch norms are averaged too, not measured again. Counters (integers) stay as they
    are.

    Args:
        model ([`PreTrainedModel`]): changed in place.
        folders (`Sequence[str | Path]`): at least one, each as `save_pretrained` writes it.

    Raises:
        `ValueError`: a checkpoint has changed since it was saved.
    """
    for folder in folders:
        if fault := find_change(Path(folder)):
            raise ValueError(f"{folder} cannot be averaged: {fault}. Delete it and average the others.")
    sums = {name: torch.zeros_like(t, dtype=torch.float64, device="cpu") for name, t in model.state_dict().items()}
    for folder in folders:
        member = type(model).from_pretrained(folder, use_safetensors=True).state_dict()
        for name in sums:
            sums[name] += member[name]
    own = model.state_dict()
    means = {
        name: total / len(folders) if own[name].is_floating_point() else own[name] for name, total in sums.items()
    }
    model.load_state_dict(means)
