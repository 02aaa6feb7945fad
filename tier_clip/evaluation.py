"""`evaluate`, which is `tier-eval` as a function."""

import argparse
import difflib
import os
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from evaluation_tier.options import add_options, check_options

if TYPE_CHECKING:
    from evaluation_tier.run import EvaluationResult

Name: TypeAlias = str | os.PathLike


def evaluate(
    models: Name | Sequence[Name], data: Name, **options: Any
) -> "EvaluationResult | dict[str, EvaluationResult]":
    """
    Evaluate models zero-shot, or classifiers by their logits. It does what `tier-eval` does, with the same options,
    checks and files, and raises where the command exits.

    ```python
    from tier_clip import evaluate

    result = evaluate("runs/first", "phantom", split="test", figures=True, output_dir="runs/first-evaluation")
    print(result)
    print(result.metrics["mean"]["auroc"], result.output_dir / "report.html")
    ```

    Args:
        models: a model folder or a name on the Hub. Several form one ensemble, or with `each=True` are evaluated one
            by one.
        data: `"phantom"`, a folder, a table, or an archive, as for `--data`.
        options: the options of the command as keyword arguments, without the hyphens: `split="test"`,
            `findings=["Edema"]`, `figures=True`. `tier-eval --help` lists them. `columns` and `label_values` may be
            mappings.

    Returns:
        The result; with `each=True` the results by the names of the models, in the order of `models`. In a process of
        several, all but the first get an empty dict.

    Raises:
        ValueError: an option is unknown (the message has the nearest name) or refused, or models or data are.
    """
    args = parse(models, {"data": data, **options})
    # Imported here, so that `import tier_clip` stays quick
    from evaluation_tier.run import run
    from training_tier.fine_tuning import make_fine_tuning

    results = run(args, make_fine_tuning(args))
    if args.each or not results:
        return {result.metrics["models"][0]: result for result in results}
    return results[0]


class Parser(argparse.ArgumentParser):
    """Raises a ValueError where argparse exits."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def parse(models: Name | Sequence[Name], options: Mapping[str, Any]) -> argparse.Namespace:
    """The arguments of the command for a call from Python, after all checks that do not need models or data."""
    parser = Parser(prog="evaluate", allow_abbrev=False, add_help=False)
    add_options(parser)
    known = {name[2:]: action for name, action in parser._option_string_actions.items()}
    words = []
    for name, value in options.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0)[0]
            raise ValueError(f"evaluate(): unknown option {name!r}; did you mean {close!r}?")
        words += to_words(name, value, known[name])
    args = parser.parse_args(words)
    several = [models] if isinstance(models, (str, os.PathLike)) else models
    args.models = [os.fspath(model) for model in several]
    check_options(args)
    return args


def to_words(name: str, value: Any, action: argparse.Action) -> list[str]:
    """
    An option and its value as words of the command line.

    Raises:
        ValueError: the value is of another kind than the option.
    """
    if value is None:
        return []
    if action.nargs == 0:
        if not isinstance(value, bool):
            raise ValueError(f"evaluate(): {name}={value!r} is not a truth value; write True or False.")
        return [f"--{name}"] if value else []
    if action.nargs == "+":
        if isinstance(value, Mapping):
            value = [f"{key}={'' if item is None else item}" for key, item in value.items()]
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ValueError(f"evaluate(): {name}={value!r} is not a list of texts; write for example ['a', 'b'].")
        if wrong := [item for item in value if not isinstance(item, str) or item.startswith("-")]:
            raise ValueError(f"evaluate(): {name} holds {wrong[0]!r}, which is not a text, or begins with a hyphen.")
        return [f"--{name}", *value] if value else []
    if not isinstance(value, (str, Real, os.PathLike)) or isinstance(value, bool):
        raise ValueError(f"evaluate(): {name}={value!r} is not a text or a number.")
    return [f"--{name}={os.fspath(value) if isinstance(value, os.PathLike) else value}"]
