"""The options of a command from a recipe (a YAML file) and the command line, which overrides the recipe."""

import difflib
import logging
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers import HfArgumentParser

from processing_tier.yaml_files import read_yaml
from training_tier.start.presets import PRESETS

logger = logging.getLogger(__name__)

# configs/ lies beside the packages in a clone; the wheel carries it inside this package
RECIPE_FOLDER = next(parent / "configs" for parent in Path(__file__).parents if (parent / "configs").is_dir())

MODEL_OPTIONS = ("model", "vision_model", "text_model")

# Options of a recipe that do not fit the model that the command line names instead of the recipe's
UNFIT = {
    "random weights": (
        *("vision_model", "text_model", "frozen_text_layers", "frozen_vision_layers", "head_from_prompts"),
    ),
    "a checkpoint": ("vision_model", "text_model", "text_warmup_epochs", "tokenizer", "vocab_size"),
    "two towers": ("model", "text_warmup_epochs", "tokenizer", "vocab_size"),
}


class Parser(HfArgumentParser):
    """Says what is wrong in one sentence, as a ValueError, without the three hundred lines of its usage."""

    def error(self, message: str):
        raise ValueError(message)


def parse_arguments(argv: Sequence[str], kinds: Sequence[type], prog: str) -> tuple:
    """
    Parse the command line, whose first word may name a YAML file with values for the same options.

    Args:
        argv (`Sequence[str]`): the words of the command line.
        kinds (`Sequence[type]`): dataclasses of options; the result has one object of each.
        prog (`str`): the command's name.

    Raises:
        `ValueError`: the file or an option is unknown, or a value is refused.
    """
    parser = Parser(kinds, prog=prog, allow_abbrev=False)
    argv = list(argv)
    known = {name for cls in kinds for name in cls.__dataclass_fields__}
    if argv and argv[0].endswith((".yaml", ".yml")):
        path = Path(argv.pop(0))
        given = {word[2:].split("=")[0].replace("-", "_") for word in argv if word.startswith("--")}
        values = {name: value for name, value in read_recipe(path, kinds).items() if name not in given}
        parser.set_defaults(**without_unfit(values, argv, given, parser))
    *arguments, rest = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
    if rest:
        raise ValueError(f"Unknown option {rest[0]!r}; {nearest(rest[0].lstrip('-').split('=')[0], known)}")
    return tuple(arguments)


def nearest(name: str, known: set[str]) -> str:
    return f"did you mean {difflib.get_close_matches(str(name), sorted(known), n=1, cutoff=0.0)[0]!r}?"


def read_recipe(path: Path, kinds: Sequence[type]) -> dict:
    """
    The options in a YAML file, as their types ask for them.

    Raises:
        `ValueError`: there is no such file, it is not valid, or an option is unknown or of another type.
    """
    if not path.is_file():
        raise ValueError(f"There is no recipe {path}; see configs/ for those that come with the project.")
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path} does not hold options; write one `name: value` a line.")
    hints = {
        name: hint
        for cls in kinds
        for name, hint in typing.get_type_hints(cls).items()
        if name in cls.__dataclass_fields__
    }
    fields = {name: field for cls in kinds for name, field in cls.__dataclass_fields__.items()}
    for name, value in values.items():
        if name not in hints:
            raise ValueError(f"{path}: unknown option {name!r}; {nearest(name, set(hints))}")
        choices = fields[name].metadata.get("choices")
        if choices is not None and value not in choices:
            raise ValueError(f"{path}: {name}={value!r} is not known; choose one of {', '.join(map(str, choices))}.")
    return {name: convert(value, name, hints[name], path) for name, value in values.items()}


def convert(value, name: str, hint, path: Path):
    """
    A value of a YAML file as the type of its option asks; a number may be written as YAML 1.1 does not know it (5e-5).

    Raises:
        `ValueError`: it is of another type.
    """
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = typing.get_args(hint) if union else (hint,)
    names = {typing.get_origin(kind) or kind for kind in kinds}
    if value is None and type(None) in names:
        return None
    if isinstance(value, bool) and bool in names:
        return value
    if isinstance(value, (int, float, str)) and not isinstance(value, bool) and names & {int, float}:
        number = to_number(value, float in names)
        if number is not None:
            return number
    if isinstance(value, str) and str in names:
        return value
    if isinstance(value, dict) and dict in names:
        return value
    if isinstance(value, list) and value and list in names and all(isinstance(item, str) for item in value):
        return value
    raise ValueError(f"{path}: {name}={value!r} {describe_expected(value, names)}")


def to_number(value: int | float | str, fraction: bool) -> int | float | None:
    """The number that a value is or spells; None where it is not one, or has a fraction where that may not be."""
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    if isinstance(value, int):
        return value
    if fraction:
        return number
    return int(number) if number.is_integer() else None


def describe_expected(value, names: set) -> str:
    if list in names:
        if isinstance(value, list) and value:
            wrong = next(item for item in value if not isinstance(item, str))
            return f"holds {wrong!r}, which is not text; put each item in quotes."
        return "is not a list of texts; write for example [Edema, Cardiomegaly]."
    if bool in names:
        return "is not a truth value; write true or false."
    if int in names or float in names:
        return f"is not a {'' if float in names else 'whole '}number; write it in digits."
    if dict in names:
        return "is not a mapping; write {name: value}."
    return "is not text; put it in quotes."


def without_unfit(values: Mapping, argv: Sequence[str], given: set[str], parser: HfArgumentParser) -> dict:
    """
    The options of a recipe that fit the model which the command line names instead of the recipe's; a warning tells
    the others.

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
            "Left out, since the recipe's %s not fit %s: %s.",
            "options do" if len(unfit) > 1 else "option does",
            start if start == "two towers" else f"{start} (--model {named.model})",
            ", ".join(f"{name}={values[name]}" for name in unfit),
        )
    return {name: value for name, value in values.items() if name not in UNFIT[start]}
