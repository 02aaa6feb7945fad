"""Reads YAML files of unknown origin safely: with limits, and without YAML's surprises (repeated keys, aliases)."""

import os
from pathlib import Path
from typing import Any, NoReturn

import yaml

MAX_BYTES = 2**20
MAX_VALUES = 20_000  # an alias counts as all values that it stands for
MAX_DEPTH = 16
MAX_DIGITS = 100  # of a number


class Refused(Exception):
    """The reason why a file is refused: a sentence that begins with a line number."""

    def __init__(self, node_or_event: yaml.Node | yaml.Event, what: str) -> None:
        super().__init__(f"line {node_or_event.start_mark.line + 1} {what}")


class BoundedLoader(yaml.SafeLoader):
    """
    [`yaml.SafeLoader`] that refuses deep nesting, long numbers, aliases that stand for too many values (ten lines can
    stand for a billion), and repeated keys, of which YAML would silently take the last.
    """

    depth = written = 0

    def compose_node(self, parent: yaml.Node | None, index: yaml.Node | int | None) -> yaml.Node:
        self.depth, self.written = self.depth + 1, self.written + 1
        if self.depth > MAX_DEPTH:
            self.refuse_depth(self.peek_event())
        if self.written > MAX_VALUES:
            raise Refused(self.peek_event(), f"is beyond the {MAX_VALUES:,} values that a file may have; shorten it")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def refuse_depth(self, where: yaml.Node | yaml.Event) -> NoReturn:
        raise Refused(where, f"is nested more than {MAX_DEPTH} levels deep; write it flatter")

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            self.measure(node, {})
        return node

    def measure(self, node: yaml.Node, known: dict[yaml.Node, tuple[int, int] | None]) -> tuple[int, int]:
        """How many values and levels a node stands for. An alias counts like the node that it names."""
        if node in known:
            if known[node] is None:
                raise Refused(node, "contains itself; write the values out")
            return known[node]
        known[node] = None  # until it is measured
        children = []
        if isinstance(node, yaml.MappingNode):
            check_keys_differ(node)
            children = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        values, levels = 1, 0
        for child in children:
            child_values, child_levels = self.measure(child, known)
            values, levels = values + child_values, max(levels, child_levels)
        if values > MAX_VALUES:
            raise Refused(node, f"stands for more than {MAX_VALUES:,} values; shorten it")
        if levels >= MAX_DEPTH:
            self.refuse_depth(node)
        known[node] = values, levels + 1
        return known[node]

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > MAX_DIGITS:
            raise Refused(node, f"has a number of {len(node.value)} digits; shorten it")
        return super().construct_yaml_int(node)


BoundedLoader.add_constructor("tag:yaml.org,2002:int", BoundedLoader.construct_yaml_int)


def check_keys_differ(node: yaml.MappingNode) -> None:
    names = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode):
            if (key.tag, key.value) in names:
                raise Refused(key, f"names {key.value!r} twice; keep one of them")
            names.add((key.tag, key.value))


def read_yaml(path: str | os.PathLike) -> Any:
    """
    The content of a YAML file of at most 1 MiB.

    Args:
        path (`str` or `os.PathLike`): the file.

    Raises:
        `ValueError`: the file does not exist, is not UTF-8 or valid YAML, is too large or too deeply nested, or
        repeats
            a key.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: the file does not exist; check the path.")
    with open(path, "rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"{path}: the file is larger than {MAX_BYTES // 2**20} MiB; shorten it.")
    try:
        return yaml.load(content.decode("utf-8-sig"), Loader=BoundedLoader)
    except Refused as error:
        raise ValueError(f"{path}: {error}.") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" (line {mark.line + 1}: {error.problem})" if mark else ""
        raise ValueError(f"{path}: the file is not valid YAML{where}; fix it.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: the file is not UTF-8 text; save it as UTF-8.") from error
    except (yaml.YAMLError, ArithmeticError, ValueError, TypeError, LookupError, AttributeError) as error:
        # a control character, a date such as 2024-13-45, or a tag on a value of another type
        raise ValueError(f"{path}: the file is not valid YAML ({' '.join(str(error).split())}); fix it.") from error
