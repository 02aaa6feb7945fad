"""Recipes, which are YAML files with options: where they are, and their values in the types of the options."""

import difflib
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

# configs/ lies beside the packages in a clone; the wheel carries it inside this package
RECIPE_FOLDER = next(parent / "configs" for parent in Path(__file__).parents if (parent / "configs").is_dir())


def list_recipes() -> list[str]:
    """Names of the recipes that come with the project."""
    return sorted(path.stem for path in RECIPE_FOLDER.glob("*.yaml"))


def find_recipe(name: str) -> Path:
    """
    The file of a recipe.

    Args:
        name (`str`): of a recipe that comes with the project (`"indiana"`), or a path of a YAML file. Where
            `"configs/indiana.yaml"` does not exist, it means the former.

    Raises:
        `ValueError`: the recipe does not exist.
    """
    path, names = Path(name), list_recipes()
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return path
        if path.parent == Path("configs") and path.stem in names:
            return RECIPE_FOLDER / path.name
    elif name in names:
        return RECIPE_FOLDER / f"{name}.yaml"
    raise ValueError(f"The recipe {name} is not known; name a YAML file, or one of {', '.join(names)}.")


def nearest(name: str, known: Collection[str]) -> str:
    return f"did you mean {difflib.get_close_matches(str(name), sorted(known), n=1, cutoff=0.0)[0]!r}?"


def read_recipe(path: Path, kinds: Sequence[Any]) -> dict:
    """
    The options in a YAML file, in the types of the options.

    Raises:
        `ValueError`: the file is not valid, or an option is unknown or of another type.
    """
    from processing_tier.yaml_files import read_yaml  # here, so that --help needs no torch

    values = read_yaml(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path} does not hold options; write one `name: value` a line.")
    return check_values(values, path, kinds)


def check_values(values: Mapping[str, Any], source: str | Path, kinds: Sequence[Any]) -> dict:
    """
    The options in the types that they have.

    Args:
        values (`Mapping[str, Any]`): names and values.
        source (`str`): where they come from; errors begin with it.
        kinds (`Sequence[type]`): dataclasses of options.

    Raises:
        `ValueError`: an option is unknown or of another type.
    """
    hints = {
        name: hint
        for cls in kinds
        for name, hint in typing.get_type_hints(cls).items()
        if name in cls.__dataclass_fields__
    }
    fields = {name: field for cls in kinds for name, field in cls.__dataclass_fields__.items()}
    for name, value in values.items():
        if name not in hints:
            raise ValueError(f"{source}: unknown option {name!r}; {nearest(name, set(hints))}")
        choices = fields[name].metadata.get("choices")
        if choices is not None and value not in choices:
            raise ValueError(f"{source}: {name}={value!r} is not known; choose one of {', '.join(map(str, choices))}.")
    return {name: convert(value, name, hints[name], source) for name, value in values.items()}


def convert(value: Any, name: str, hint: Any, source: str | Path) -> Any:
    """
    A value of a recipe or of a call in the type of its option. Numbers that YAML 1.1 reads as text (5e-5) are numbers
    here.

    Raises:
        `ValueError`: the value has another type.
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
    raise ValueError(f"{source}: {name}={value!r} {describe_expected(value, names)}")


def to_number(value: int | float | str, fraction: bool) -> int | float | None:
    """The number that a value is or spells; None if it is not a number, or has a fraction and `fraction` is false."""
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    if isinstance(value, int):
        return value
    if fraction:
        return number
    return int(number) if number.is_integer() else None


def describe_expected(value: Any, names: set) -> str:
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
