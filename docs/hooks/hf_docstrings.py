"""
Docstrings in the Hugging Face format as Markdown, for mkdocstrings. Its own parsers know one argument a line and one
indentation; here `Args:`, `Returns:` and the like become lists, whatever stands in them.
"""

import inspect
import re
from typing import Any

import griffe

SECTION = re.compile(r"^(Args|Returns|Raises|Yields|Attributes):$")
ITEM = re.compile(r"^(\*{0,2}\w+(?= \(|:|, \*{0,2}\w+(?:,| \(|:))|\[?`[^`]+`\]?(?= or |, |:)|[A-Z]\w+(?=: ))")
LINK = re.compile(r"\[`([^`\]]+)`\](?![\[(])")  # [`TierCLIPModel`], a link in transformers' own documentation


def indentation(line: str) -> int:
    return len(line) - len(line.lstrip())


def list_items(lines: list[str]) -> list[str]:
    """The items of a section, each one as a line of a Markdown list."""
    items, margin = [], indentation(lines[0])
    for line in lines:
        text = line.strip()
        new = indentation(line) == margin and ITEM.match(text) and not (items and items[-1].endswith(","))
        if not items or new:
            items.append(text)
        else:
            items[-1] += f"\n    {text}" if text.startswith("- ") else f" {text}"
    return [f"- {item}" for item in items]


def name_arguments(item: str) -> str:
    """`a (`int`), b (`int`): text` with the names as code; only what stands before the text is touched."""
    head, colon, text = item.partition(": ") if ": " in item else (item.rstrip(":"), "", "")
    head = re.sub(r"(^- |\), |, (?=\w+(?:,| \(|$)))\*{0,2}(\w+)", r"\1`\2`", head)
    return f"{head}{':' if text else ''} {text}".rstrip()


def to_markdown(docstring: str) -> str:
    """The docstring with its sections as lists under a bold title."""
    done, lines = [], inspect.cleandoc(docstring).splitlines()
    while lines:
        line = lines.pop(0)
        section = SECTION.match(line)
        if section is None:
            done.append(line)
            continue
        body = []
        while lines and (not lines[0].strip() or lines[0].startswith(" ")):
            body.append(lines.pop(0))
        items = list_items([line for line in body if line.strip()]) if any(line.strip() for line in body) else []
        if section[1] in ("Args", "Attributes"):
            items = [name_arguments(item) for item in items]
        title = {"Args": "Arguments"}.get(section[1], section[1])
        done += [f"**{title}**", "", *items, ""]
    return LINK.sub(r"`\1`", "\n".join(done))


class HuggingFaceDocstrings(griffe.Extension):
    """Rewrites each docstring before it is shown."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None and not obj.is_alias:
            obj.docstring.value = to_markdown(obj.docstring.value)
