"""Training curves from the Trainer's log."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from evaluation_tier.figures.style import COLOURS, DASHED, STYLE, import_matplotlib, save_png

FEW_POINTS = 20  # points of a curve that are drawn as such

TERMS = {  # key of the Trainer's log: title of its panel
    "loss": "Loss",
    "contrastive_loss": "Contrastive loss",
    "token_entropy": "Token entropy (nats)",
    "patch_entropy": "Patch entropy (nats)",
    "evidence_entropy": "Evidence entropy (nats)",
    "auroc": "AUROC, mean",
}


def read_curve(history: Sequence[Mapping], key: str) -> np.ndarray:
    """(points, 2): epoch and value of each entry of a Trainer's history that logs the key."""
    return np.array([(entry["epoch"], entry[key]) for entry in history if key in entry], dtype=float).reshape(-1, 2)


def read_chosen_epoch(trainer_state: Path, state: Mapping) -> float | None:
    """
    The epoch whose weights the folder holds: the best one, if the training loaded it at its end (`training_args.json`
    beside the log says so), else the last one. None if the log does not have its step.
    """
    arguments = trainer_state.with_name("training_args.json")
    is_end = arguments.is_file() and not trainer_state.absolute().parent.name.startswith(PREFIX_CHECKPOINT_DIR)
    loaded = is_end and json.loads(arguments.read_text(encoding="utf-8")).get("load_best_model_at_end")
    step = state.get("best_global_step") if loaded else None
    step = state.get("global_step") if step is None else step
    return next((float(entry["epoch"]) for entry in state["log_history"] if entry.get("step") == step), None)


def plot_training_curves(trainer_state: str | Path, path: str | Path) -> Path:
    """
    The loss, its terms where it has any, and the AUROC over the epochs, from a Trainer's `trainer_state.json`, with a
    line at the epoch whose weights were kept.

    Raises:
        ValueError: when the file is missing, is not JSON, or logs none of these.
    """
    matplotlib = import_matplotlib()
    try:
        state = json.loads(Path(trainer_state).read_text(encoding="utf-8"))
        history = state["log_history"]
        curves = {term: (read_curve(history, term), read_curve(history, f"eval_{term}")) for term in TERMS}
        last = max((float(entry.get("epoch", 0)) for entry in history), default=1.0) or 1.0
        chosen = read_chosen_epoch(Path(trainer_state), state)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{trainer_state} is not the trainer_state.json of a training: name that file.") from error
    curves = {term: pair for term, pair in curves.items() if len(pair[0]) or len(pair[1])}
    if not curves:
        raise ValueError(f"{trainer_state} does not log a loss: train with logging_steps below the number of steps.")
    columns = min(len(curves), 3)
    rows = -(-len(curves) // columns)
    with matplotlib.rc_context(STYLE):
        figure = matplotlib.figure.Figure(figsize=(3.9 * columns, 2.9 * rows + 0.4), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in panels[len(curves) :]:
            axes.set_axis_off()
        handles = {}
        for axes, (term, (train, evaluation)) in zip(panels, curves.items(), strict=False):
            if len(train):
                marker = "o" if len(train) <= FEW_POINTS else ""  # a single point would not be a line
                handles["training"] = axes.plot(*train.T, color=COLOURS[0], marker=marker, markersize=3.5)[0]
            if len(evaluation):
                handles["validation"] = axes.plot(*evaluation.T, color=COLOURS[1], marker="o", markersize=3.5)[0]
            if chosen is not None:
                label = f"chosen: epoch {chosen:.3g}"
                handles[label] = axes.axvline(chosen, color=COLOURS[2], linewidth=1.4, linestyle=DASHED, zorder=1)
            axes.set(title=TERMS[term], xlabel="Epoch")
            axes.margins(y=0.08)
            axes.set_xlim(-0.02 * last, 1.02 * last)
        if len(panels) > len(curves):
            panels[-1].legend(handles.values(), handles.keys(), loc="center", fontsize=11)
        else:
            figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3)
        return save_png(figure, path)
