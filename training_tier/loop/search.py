"""
Random search of the two entropy weights, as TIER's authors did it (Modeling/random_lambda_search.py at ce1e171): 30
trials of one epoch, the first with both weights 0, the others with each weight drawn uniformly from 0 to 0.5.

It uses [`Trainer.hyperparameter_search`] with Optuna. The seed alone decides all pairs of weights before the first
trial. A search that was stopped therefore has the same trials when you start it again, and runs only the missing ones.
"""

import copy
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from transformers.utils import logging

from evaluation_tier.output.writing import write_beside
from modeling_tier.checkpoints.tensor_files import read_json
from training_tier.loop.changed_options import flatten
from training_tier.options.search import SearchArguments
from training_tier.options.training import TierTrainingArguments

if TYPE_CHECKING:
    import optuna

logger = logging.get_logger(__name__)

WEIGHTS = ("token_entropy_weight", "patch_entropy_weight")

STUDY_FILE, OPTIONS_FILE, TABLE_FILE = "search.db", "search_options.json", "trials.csv"  # in output_dir

OWN_OPTIONS = ("search_trials", "search_epochs", "search_max_weight", "output_dir", *WEIGHTS)


@dataclass(frozen=True)
class Study:
    """
    The trials of a search, and where Optuna and we keep them.

    Args:
        folder (`Path`): `output_dir`.
        metric (`str`): the metric that compares the trials, with `eval_`.
        direction (`str`): `"maximize"` or `"minimize"`.
        pairs (`list[dict]`): the weights of each trial.
    """

    folder: Path
    metric: str
    direction: str
    pairs: list[dict[str, float]]

    @property
    def storage(self) -> str:
        return f"sqlite:///{(self.folder / STUDY_FILE).resolve()}"


def prepare_search(search: SearchArguments, arguments: TierTrainingArguments) -> None:
    """Changes the options of the training to those of a trial: short, evaluated once at the end, without saving."""
    arguments.num_train_epochs, arguments.min_train_steps = search.search_epochs, 0
    arguments.eval_strategy, arguments.save_strategy = IntervalStrategy.NO, SaveStrategy.NO
    arguments.load_best_model_at_end = arguments.average_top_k = False
    arguments.save_top_k = arguments.early_stopping_patience = None


def draw_weights(search: SearchArguments, seed: int) -> list[dict[str, float]]:
    """The weights of all trials, with four decimals. The first ones do not depend on the number of trials."""
    rng = np.random.default_rng(seed)
    drawn = rng.uniform(0, search.search_max_weight, size=(search.search_trials - 1, len(WEIGHTS)))
    pairs = [[0.0, 0.0], *drawn.round(4).clip(max=search.search_max_weight).tolist()]
    return [dict(zip(WEIGHTS, pair, strict=True)) for pair in pairs]


def run_search(trainer: Trainer, search: SearchArguments, options: Mapping, command: Sequence[str]) -> list[str]:
    """
    Runs the trials that are not done yet, and writes their table into `output_dir`.

    Args:
        trainer ([`TierTrainer`]): not trained yet; each trial starts from a copy of its model.
        search ([`SearchArguments`]): how many trials, and which weights.
        options (`Mapping`): of the run, see `run_options`; a search continues only with the same options.
        command (`Sequence[str]`): the words that the user typed, from which the best command is made.

    Returns:
        `list[str]`: in the main process, the best pair of weights and the command that trains with it.

    Raises:
        `ValueError`: the folder holds a search with other options.
    """
    arguments = trainer.args
    study = Study(
        folder=Path(arguments.output_dir),
        metric=f"eval_{str(arguments.metric_for_best_model).removeprefix('eval_')}",
        direction="minimize" if arguments.greater_is_better is False else "maximize",
        pairs=draw_weights(search, arguments.seed),
    )
    missing = [0]
    if trainer.is_world_process_zero():
        study.folder.mkdir(parents=True, exist_ok=True)
        own = {
            "search_max_weight": search.search_max_weight,
            **flatten(json.loads(trainer.model.config.to_json_string(use_diff=False)), "config."),
        }
        check_search_options(study.folder, json.loads(json.dumps({**options, **own}, default=str)))
        missing = [enqueue_missing(study)]
    missing = broadcast_object_list(missing)[0]
    logger.info(f"Search of the entropy weights: {missing} of {len(study.pairs)} trials to do.")
    table = None
    try:
        if missing:
            run_trials(trainer, study, missing, search.search_max_weight)
    finally:
        if trainer.is_world_process_zero():
            table = write_table(study)
    return [] if table is None else describe_best(study, table, command)


def run_trials(trainer: Trainer, study: Study, count: int, max_weight: float) -> None:
    """Trains `count` times, each time a copy of the Trainer's model with the next pair of weights in the queue."""
    start = copy.deepcopy(trainer.model).cpu()

    def fresh_model(trial: "optuna.Trial | None" = None) -> PreTrainedModel:
        model = copy.deepcopy(start)
        for name in WEIGHTS:
            setattr(model.config, name, trial.suggest_float(name, 0, max_weight))
        trainer._terms.clear()  # of the previous trial
        return model

    # So that every process knows the weights; they belong to the model, not to the Trainer
    def draw(trial: "optuna.Trial") -> dict:
        for name in WEIGHTS:
            trial.suggest_float(name, 0, max_weight)
        return {}

    trainer.model_init = fresh_model
    trainer.hyperparameter_search(
        hp_space=draw,
        compute_objective=lambda metrics: metrics[study.metric],
        n_trials=count,
        direction=study.direction,
        backend="optuna",
        storage=study.storage,
        study_name=STUDY_FILE,
        load_if_exists=True,
    )


def check_search_options(folder: Path, options: Mapping) -> None:
    """Stores the options of a new search. ValueError if those of a continued search differ."""
    path = folder / OPTIONS_FILE
    if not path.is_file():
        text = json.dumps(options, indent=2) + "\n"
        write_beside(path, lambda partial: partial.write_text(text, encoding="utf-8"))
        return
    before = read_json(path)
    ignored = {*WEIGHTS, *(f"config.{name}" for name in WEIGHTS)}  # the search draws these
    changed = [name for name in sorted({*before, *options} - ignored) if before.get(name) != options.get(name)]
    if changed:
        raise ValueError(
            f"{folder} holds a search with another {changed[0]}; set it back, or choose another --output_dir."
        )


def enqueue_missing(study: Study) -> int:
    """Creates or opens Optuna's study, and queues the trials that are not complete. Their number."""
    import optuna  # an extra

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    opened = optuna.create_study(
        storage=study.storage, study_name=STUDY_FILE, direction=study.direction, load_if_exists=True
    )
    for trial in opened.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        opened.tell(trial.number, state=optuna.trial.TrialState.FAIL)  # its process is gone
    waiting = opened.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,))
    queued = {trial.user_attrs["trial"] for trial in waiting}
    done = {pair for pair, _, _ in finished_trials(opened)}
    missing = [number for number, pair in enumerate(study.pairs) if tuple(pair.values()) not in done]
    for number in missing:
        if number not in queued:
            opened.enqueue_trial(dict(study.pairs[number]), user_attrs={"trial": number})
    return len(queued.union(missing))


def finished_trials(opened: "optuna.Study") -> list[tuple[tuple[float, ...], float, float]]:
    """Weights, value and seconds of the complete trials in Optuna's study."""
    return [
        (tuple(trial.params[name] for name in WEIGHTS), trial.value, trial.duration.total_seconds())
        for trial in opened.get_trials(deepcopy=False)
        if trial.state.name == "COMPLETE"
    ]


def write_table(study: Study) -> pd.DataFrame:
    """The table of all trials, done or not, in their order; also as `trials.csv`."""
    import optuna

    opened = optuna.load_study(storage=study.storage, study_name=STUDY_FILE)
    done = {pair: (value, seconds) for pair, value, seconds in finished_trials(opened)}
    rows = []
    for number, pair in enumerate(study.pairs):
        value, seconds = done.get(tuple(pair.values()), (float("nan"), float("nan")))
        state = "complete" if tuple(pair.values()) in done else "to do"
        rows.append({"trial": number, **pair, study.metric: value, "seconds": round(seconds, 1), "state": state})
    table = pd.DataFrame(rows)
    write_beside(study.folder / TABLE_FILE, lambda partial: table.to_csv(partial, index=False))
    return table


def describe_best(study: Study, table: pd.DataFrame, command: Sequence[str]) -> list[str]:
    """The best pair of weights, compared with plain CLIP, and the command that trains with it."""
    values = table[study.metric]
    best = table.loc[values.idxmax() if study.direction == "maximize" else values.idxmin()]
    weights = {name: f"{best[name]:g}" for name in WEIGHTS}
    best_pair = (
        f"Best of {len(table)} trials: trial {best['trial']}, "
        + ", ".join(f"{name}={value}" for name, value in weights.items())
        + f": {study.metric} {best[study.metric]:.4f} (both weights 0: {values[0]:.4f}). "
        + f"All trials: {study.folder / TABLE_FILE}"
    )
    words = without_options(command, OWN_OPTIONS)
    for name, value in weights.items():
        words += [f"--{name}", value]
    return [best_pair, f"Train with them: {shlex.join([*words, '--output_dir', f'{study.folder}-best'])}"]


def without_options(argv: Sequence[str], names: Sequence[str]) -> list[str]:
    """A command line without some options, each of which takes one value."""
    kept, skip = [], False
    for word in argv:
        name, _, value = word.partition("=")
        if skip:
            skip = False
        elif word.startswith("--") and name[2:].replace("-", "_") in names:
            skip = not value
        else:
            kept.append(word)
    return kept
