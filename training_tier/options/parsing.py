"""The options of a run, from the command line or from Python; they override those of a recipe."""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np
from transformers import HfArgumentParser

from training_tier.options.data import DataArguments
from training_tier.options.model import ModelArguments
from training_tier.options.recipes import check_values, find_recipe, nearest, read_recipe
from training_tier.options.search import SearchArguments
from training_tier.options.task import TaskArguments
from training_tier.options.training import TierTrainingArguments
from training_tier.start.presets import PRESETS

logger = logging.getLogger(__name__)


class Options(NamedTuple):
    """All options of a run."""

    task: TaskArguments
    model: ModelArguments
    data: DataArguments
    training: TierTrainingArguments
    search: SearchArguments


NAMED_VALUES = ("columns", "label_values")  # lists of NAME=VALUE

MODEL_OPTIONS = ("model", "vision_model", "text_model")

# Options of a recipe that do not fit the model on the command line, which replaces the recipe's
UNFIT = {
    "random weights": (
        *("vision_model", "text_model", "frozen_text_layers", "frozen_vision_layers", "head_from_prompts"),
    ),
    "a checkpoint": ("vision_model", "text_model", "text_warmup_epochs", "tokenizer", "vocab_size"),
    "two towers": ("model", "text_warmup_epochs", "tokenizer", "vocab_size"),
}


class Parser(HfArgumentParser):
    """Raises a ValueError with one sentence, instead of printing three hundred lines of usage."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def parse_options(argv: Sequence[str], command: str) -> Options:
    """The options on the command line of `command`, see [`parse_arguments`]."""
    return Options(*parse_arguments(argv, tuple(Options.__annotations__.values()), command))


def make_options(recipe: str | os.PathLike | None, given: Mapping[str, Any]) -> Options:
    """
    The options of a call from Python. They are checked as those of a recipe are, and replace the recipe's.

    Args:
        recipe (`str`, *optional*): see [`find_recipe`].
        given (`Mapping[str, Any]`): names and values. Texts may be paths. Lists of `NAME=VALUE` may be mappings.

    Raises:
        `ValueError`: the recipe or an option is unknown, or a value is refused.
    """
    kinds = tuple(Options.__annotations__.values())
    parser = Parser(kinds, prog="train", allow_abbrev=False)
    values = check_values({name: to_plain(name, value) for name, value in given.items()}, "train()", kinds)
    parser.set_defaults(**values)
    if recipe is not None:
        others = read_recipe(find_recipe(os.fspath(recipe)), kinds)
        others = {name: value for name, value in others.items() if name not in values}
        parser.set_defaults(**without_unfit(others, [], set(values), parser))
    return Options(*parser.parse_args_into_dataclasses([], look_for_args_file=False))


def to_plain(name: str, value: Any) -> Any:
    """A value of Python as a recipe has it."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping) and name in NAMED_VALUES:
        return [f"{key}={'' if item is None else item}" for key, item in value.items()]
    return list(value) if isinstance(value, tuple) else value


def command_words(recipe: str | os.PathLike | None, given: Mapping[str, Any]) -> list[str]:
    """The command line of `tier-train` with the same options as a call from Python."""
    words = ["tier-train"] if recipe is None else ["tier-train", os.fspath(recipe)]
    for name, value in given.items():
        value = to_plain(name, value)
        if value is not None:
            items = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
            words += [f"--{name}", *(str(item).lower() if isinstance(item, bool) else str(item) for item in items)]
    return words


def build_full_parser(command: str) -> Parser:
    """A parser of every option with its whole text, for --help_all and the reference of the documentation."""
    return Parser(
        tuple(Options.__annotations__.values()), prog=command, usage=f"{command} [RECIPE] [--option VALUE ...]"
    )


def parse_arguments(argv: Sequence[str], kinds: Sequence[Any], prog: str) -> tuple:
    """
    Parse a command line whose first word may be a recipe: its name, or a YAML file with values for the same options.

    Args:
        argv (`Sequence[str]`): the words of the command line.
        kinds (`Sequence[type]`): dataclasses of options; the result has one object of each.
        prog (`str`): the command's name.

    Raises:
        `ValueError`: the recipe or an option is unknown, or a value is refused.
    """
    parser = Parser(kinds, prog=prog, allow_abbrev=False)
    argv = list(argv)
    known = {name for cls in kinds for name in cls.__dataclass_fields__}
    if argv and not argv[0].startswith("-"):
        path = find_recipe(argv.pop(0))
        given = {word[2:].split("=")[0].replace("-", "_") for word in argv if word.startswith("--")}
        values = {name: value for name, value in read_recipe(path, kinds).items() if name not in given}
        parser.set_defaults(**without_unfit(values, argv, given, parser))
    *arguments, rest = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    if rest and not rest[0].startswith("-"):
        raise ValueError(f"Unknown word {rest[0]!r}; a recipe comes first: {prog} RECIPE --option VALUE.")
    if rest:
        raise ValueError(f"Unknown option {rest[0]!r}; {nearest(rest[0].lstrip('-').split('=')[0], known)}")
    return tuple(arguments)


def without_unfit(values: Mapping, argv: Sequence[str], given: set[str], parser: HfArgumentParser) -> dict:
    """
    The options of a recipe that fit the model on the command line, which replaces the recipe's. A warning names the
    options that do not fit.

    Args:
        values (`Mapping`): the recipe's, without those that the command line overrides.
        argv (`Sequence[str]`), given (`set[str]`): the command line, and the names of its options.
        parser ([`HfArgumentParser`]): knows the defaults.
    """
    if not given & set(MODEL_OPTIONS):
        return dict(values)
    named = parser.parse_known_args(argv)[0]
    if {"vision_model", "text_model"} & given:
        start = "two towers"
    else:
        start = "random weights" if named.model in PRESETS else "a checkpoint"
    unfit = [name for name in UNFIT[start] if name in values and values[name] != parser.get_default(name)]
    if unfit:
        logger.warning(
            "Ignored, because the recipe's %s not fit %s: %s.",
            "options do" if len(unfit) > 1 else "option does",
            start if start == "two towers" else f"{start} (--model {named.model})",
            ", ".join(f"{name}={values[name]}" for name in unfit),
        )
    return {name: value for name, value in values.items() if name not in UNFIT[start]}
