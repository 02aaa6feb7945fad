"""Training curves from the Trainer's log."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from evaluation_tier.figures.style import COLOURS, STYLE, import_matplotlib, save_png

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


def plot_training_curves(trainer_state: str | Path, path: str | Path) -> Path:
    """The loss, its terms where it has any, and the AUROC over the epochs, from a Trainer's `trainer_state.json`.

    Raises:
        ValueError: when the file is missing, is not JSON, or logs none of these.
    """
    matplotlib = import_matplotlib()
    try:
        history = json.loads(Path(trainer_state).read_text(encoding="utf-8"))["log_history"]
        curves = {term: (read_curve(history, term), read_curve(history, f"eval_{term}")) for term in TERMS}
        last = max((float(entry.get("epoch", 0)) for entry in history), default=1.0) or 1.0
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
                handles["training"] = axes.plot(*train.T, color=COLOURS[0])[0]
            if len(evaluation):
                handles["validation"] = axes.plot(*evaluation.T, color=COLOURS[1], marker="o", markersize=3.5)[0]
            axes.set(title=TERMS[term], xlabel="Epoch")
            axes.margins(y=0.08)
            axes.set_xlim(-0.02 * last, 1.02 * last)
        if len(panels) > len(curves):
            panels[-1].legend(handles.values(), handles.keys(), loc="center", fontsize=11)
        else:
            figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2)
        return save_png(figure, path)
