"""The pages of the reference, made from the code: every option of every command, every public class and function."""

import argparse
import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

PACKAGES = {
    "tier_clip": "Python: train and evaluate",
    "modeling_tier": "Python: models",
    "processing_tier": "Python: images and reports",
    "evaluation_tier": "Python: evaluation",
    "training_tier": "Python: training",
}
LIBRARY = "options of transformers' Trainer"


def commands(root: Path) -> dict[str, str]:
    """The module of each command, from pyproject.toml."""
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    return dict(re.findall(r'^(tier-[\w-]+) = "(\w+):main"$', text, re.MULTILINE))


def pages(root: Path) -> dict[str, tuple[str, str]]:
    """Path, title and text of each page."""
    made = {
        f"reference/{command}.md": (command, command_page(command, module))
        for command, module in commands(root).items()
    }
    for package, title in PACKAGES.items():
        if names := public_names(root, package):
            made[f"reference/{package}.md"] = (title, python_page(title, names))
    return made


# Commands


def option_groups(module: ModuleType) -> dict[str, list[argparse.Action]]:
    """The options of a command by the groups of its --help, without --help and --version."""
    if module.__name__ == "train_tier":
        return training_groups()
    groups = {}
    for group in module.build_parser()._action_groups:
        actions = [action for action in group._group_actions if action.dest not in ("help", "version")]
        if actions:
            groups[group.title] = actions
    return groups


def training_groups() -> dict[str, list[argparse.Action]]:
    """All that `tier-train --help_all` lists, with the groups of the short --help first."""
    from training_tier.options.help import GROUPS
    from training_tier.options.parsing import build_full_parser

    parser = build_full_parser("tier-train")
    actions = {action.dest: action for action in parser._actions if action.dest not in ("help", "version")}
    groups = {title: [actions.pop(name) for name in names] for title, names in GROUPS.items()}
    return groups | {LIBRARY: list(actions.values())}


def command_page(command: str, module_name: str) -> str:
    """A page of the command's docstring and tables of its options."""
    module = importlib.import_module(module_name)
    lines = [f"# {command}", "", *description(module.__doc__)]
    for title, actions in option_groups(module).items():
        lines += [
            "",
            f"## {title[:1].upper()}{title[1:]}",
            "",
            "| Option | Default | Meaning |",
            "| --- | --- | --- |",
        ]
        lines += [option_row(action, command) for action in actions]
    if command == "tier-rank":
        lines += [
            "",
            "It takes the options of [tier-eval](tier-eval.md) too, except "
            + ", ".join(f"`--{name}`" for name in module.NOT_FOR_RANKING)
            + ".",
        ]
    return "\n".join(lines) + "\n"


def description(docstring: str) -> Iterator[str]:
    """The docstring of a script: its indented lines are commands."""
    for block in re.split(r"\n\n", inspect.cleandoc(docstring)):
        if block.startswith("    "):
            yield from ["```", inspect.cleandoc(block), "```", ""]
        else:
            yield from [inline(" ".join(block.split())), ""]


def option_row(action: argparse.Action, command: str) -> str:
    name = action.option_strings[0] if action.option_strings else ""
    value = "" if action.nargs == 0 else metavar(action)
    text = (action.help or "") % {**vars(action), "prog": command}
    choices = action.choices if action.choices is not None and not isinstance(action.metavar, str) else ()
    told = [inline(" ".join(text.split())).rstrip(".") + "."] if text else []
    missing = [str(choice) for choice in choices if str(choice) not in text]
    if missing:
        told.append("One of " + ", ".join(f"`{choice}`" for choice in choices) + ".")
    default = action.default
    shown = (
        ""
        if default in (None, False, argparse.SUPPRESS, [], "")
        else f"`{cell(str(getattr(default, 'value', default)))}`"
    )
    return f"| `{cell(' '.join(filter(None, (name, value))))}` | {shown} | {' '.join(told)} |"


def metavar(action: argparse.Action) -> str:
    many = " ..." if action.nargs in ("*", "+") else ""
    if action.metavar is not None:
        return f"{action.metavar}{many}"
    if not action.option_strings:
        return f"{action.dest}{many}"
    kind = getattr(action.type, "__name__", "")
    return {"int": "N", "float": "X", "string_to_bool": "BOOL"}.get(kind, "TEXT") + many


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def inline(text: str) -> str:
    """Plain text as Markdown for a table: options and words in backticks are code, nothing else has a meaning."""
    parts = re.split(r"(`[^`]+`)", cell(text))
    for number in range(0, len(parts), 2):
        part = re.sub(r"([*<>\[\]])", r"\\\1", parts[number])
        parts[number] = re.sub(r"(?<![\w-])(--[a-z]\w*)", r"`\1`", part)
    return "".join(parts)


# Python


def public_names(root: Path, package: str) -> list[str]:
    """What is public: the `__all__` of the package, and what a page of the documentation imports from it."""
    names = {f"{package}.{name}" for name in getattr(importlib.import_module(package), "__all__", ())}
    known = {name.rpartition(".")[2] for name in names}
    for page in [root / "README.md", *sorted((root / "docs").glob("*.md"))]:
        for block in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == package:
                    names |= {f"{node.module}.{alias.name}" for alias in node.names if alias.name not in known}
    return sorted(names, key=lambda name: (name.rpartition(".")[2].lower(), name))


def python_page(title: str, names: list[str]) -> str:
    return "\n\n".join([f"# {title}", *(f"::: {name}" for name in names)]) + "\n"
