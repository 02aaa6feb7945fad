"""Which of the checkpoints of a run are its best ones, and the mean of their weights."""

import math
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from training_tier.loop.integrity import find_change

logger = logging.get_logger(__name__)

CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def list_checkpoints(folder: str | Path) -> dict[int, Path]:
    """Step to folder of the checkpoints of a run, the earliest first."""
    found = ((CHECKPOINT.fullmatch(path.name), path) for path in Path(folder).iterdir() if path.is_dir())
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def more_is_better(metric: str) -> bool:
    """Whether more of a metric is better: of all but losses (as in transformers) and entropies, which are lowered."""
    return not metric.endswith(("loss", "_entropy"))


def set_later_aside(folder: str | Path, step: int) -> None:
    """
    Renames the checkpoints after the step at which a run starts or resumes. They belong to a run that was given up, or
    are damaged; left where they are, the latest of them would be taken for the last one of this run.
    """
    if not Path(folder).is_dir():
        return
    for other, path in list_checkpoints(folder).items():
        if other > step:
            aside = path.with_name(f"stale-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            logger.warning(f"The run goes on from step {step}: {path} is renamed to {aside.name}, and can be deleted.")


def rank_checkpoints(
    checkpoints: Iterable[int], log_history: Sequence[dict], metric: str, greater_is_better: bool | None = None
) -> list[tuple[int, float]]:
    """
    The steps of checkpoints and their value of the metric, the best first, and of equal ones the earlier. Those that
    were not evaluated, or to NaN, are left out.

    Args:
        checkpoints (`Iterable[int]`): steps.
        log_history (`Sequence[dict]`): of the [`TrainerState`].
        metric (`str`): `metric_for_best_model`.
        greater_is_better (`bool`, *optional*): whether more of it is better; by default [`more_is_better`].
    """
    name = metric if metric.startswith("eval_") else f"eval_{metric}"
    if greater_is_better is None:
        greater_is_better = more_is_better(metric)
    values = {entry["step"]: entry[name] for entry in log_history if name in entry}
    ranked = [(step, values[step]) for step in checkpoints if not math.isnan(values.get(step, math.nan))]
    return sorted(ranked, key=lambda pair: (-pair[1] if greater_is_better else pair[1], pair[0]))


def average_weights(model: PreTrainedModel, folders: Sequence[str | Path]) -> None:
    """
    Sets the weights of a model to the mean of those of checkpoints of it ("model soup", Wortsman et al. 2022). The
    running means and variances of batch norms are averaged as well, and not measured anew; what counts (integers)
    stays as it is.

    Args:
        model ([`PreTrainedModel`]): changed in place.
        folders (`Sequence[str | Path]`): at least one, each as `save_pretrained` writes it.

    Raises:
        `ValueError`: a checkpoint is not as it was saved.
    """
    for folder in folders:
        if fault := find_change(Path(folder)):
            raise ValueError(f"{folder} cannot be averaged: {fault}; delete it and average those that are left.")
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
