"""Tables of text, for the terminal, in Markdown and in LaTeX.

A table is built once, as text cells, and then written in each format, so that formats cannot differ.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from processing_tier.escaping import markdown_text, printable

NOT_MEASURED = "not measured"

DASH = "–"  # stands for "not measured" in narrow cells

# Titles of keys and of parts of keys; the other keys are words already
NAMES = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "mcc": "MCC",
    "f1": "F1",
    "ece": "ECE",
    "iou": "IoU",
    "miou": "mIoU",
    "cnr": "CNR",
    "n_bootstrap": "Bootstrap resamples",
    "images_skipped": "Images that did not decode",
}

MAX_LIST = 8  # numbers of a list in a cell; longer lists are curves, which figures show


class Table(NamedTuple):
    """A table as text.

    Args:
        name: letters, digits and hyphens; the label in LaTeX and the anchor in HTML.
        title: its caption.
        note: the meaning of the numbers, in plain sentences.
        header: of each column.
        rows: text cells; the first of each row names the row.
        align: per column "l", "r", or "p" for text of many words.
        num_summary: number of last rows that summarize the others.
    """

    name: str
    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    align: str
    num_summary: int = 0

    @property
    def sortable(self) -> bool:
        """Whether the reader of a page may sort its rows: there are several, with numbers."""
        return "r" in self.align and len(self.rows) - self.num_summary > 1


# Cells
def format_number(value: float | None, digits: int = 3, missing: str = NOT_MEASURED) -> str:
    """A number as text; `missing` for None and NaN."""
    if value is None or math.isnan(value):
        return missing
    return f"{round(value, digits) + 0.0:.{digits}f}"  # no minus before a zero


def format_interval(interval: Sequence[float | None] | None) -> str:
    """An interval as "0.912 - 0.954"; "not measured" when a bound is missing."""
    low, high = (None, None) if interval is None else interval
    bounds = format_number(low), format_number(high)
    return NOT_MEASURED if NOT_MEASURED in bounds else " - ".join(bounds)


def format_estimate(value: float | None, interval: Sequence[float | None] | None = None, digits: int = 3) -> str:
    """A number with its interval as "0.934 (0.912, 0.954)", without one as "0.934"; a dash for None and NaN."""
    number = format_number(value, digits, DASH)
    low, high = (None, None) if interval is None else interval
    bounds = format_number(low, digits, DASH), format_number(high, digits, DASH)
    return number if number == DASH or DASH in bounds else f"{number} ({bounds[0]}, {bounds[1]})"


def format_cell(value: Any) -> str:
    """Any JSON value as one cell: counts with commas, other numbers with 3 digits, null as a dash."""
    if value is None or isinstance(value, float) and math.isnan(value):
        return DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) >= 0.001 or value == 0 else f"{value:.2g}"
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {format_cell(item)}" for key, item in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        if len(value) > MAX_LIST:
            return f"{len(value):,} values"
        return ", ".join(map(format_cell, value)) or "none"
    return " ".join(str(value).split())


def column_name(key: str) -> str:
    """The title of a key of `metrics.json` in a table: "n_images" becomes "Images", "pixel_auroc" "Pixel AUROC"."""
    words = [NAMES.get(word, word) for word in NAMES.get(key, key).removeprefix("n_").split("_")]
    text = " ".join(words).strip()
    return text if text.split(" ")[0] in NAMES.values() else text[:1].upper() + text[1:]


def anchor(text: str) -> str:
    """Text as the name of a table: lower-case letters and digits, hyphens between."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "table"


def is_interval_key(key: str, mapping: Mapping) -> bool:
    """Whether a key holds the interval of another key."""
    return key.endswith("_ci95") and key.removesuffix("_ci95") in mapping


def matrix_table(
    name: str, title: str, note: str, mapping: Mapping[str, Mapping], first: str = "", digits: int = 3
) -> Table:
    """A row for each mapping, a column for each key; intervals follow their numbers."""
    keys = list(dict.fromkeys(key for item in mapping.values() for key in item))
    keys = [key for key in keys if not is_interval_key(key, dict.fromkeys(keys))]
    rows = []
    for row, item in mapping.items():
        cells = []
        for key in keys:
            interval = item.get(f"{key}_ci95")
            cells.append(
                format_cell(item.get(key)) if interval is None else format_estimate(item.get(key), interval, digits)
            )
        rows.append((str(row), *cells))
    headers = (
        f"{column_name(key)} (95 % CI)"
        if any(f"{key}_ci95" in item for item in mapping.values())
        else column_name(key)
        for key in keys
    )
    return Table(name, title, note, (first, *headers), tuple(rows), "l" + "r" * len(keys))


# Formats
def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], align: str, num_summary: int = 0) -> str:
    """A table for the terminal, with lines of hyphens under the header and above the summary rows."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = (
            text.rjust(width) if side == "r" else text.ljust(width)
            for text, width, side in zip(row, widths, align, strict=True)
        )
        return "  ".join(cells).rstrip()

    rule = "  ".join("-" * width for width in widths)
    lines = [line(header), rule, *map(line, rows)]
    if num_summary:
        lines.insert(-num_summary, rule)
    return "\n".join(lines)


def markdown_cell(text: str) -> str:
    """Escapes text for a cell of a Markdown table."""
    return markdown_text(text)


def markdown_table(table: Table) -> str:
    """A table in GitHub's Markdown, without its title and note."""
    lines = [
        [markdown_cell(cell) for cell in table.header],
        ["---:" if side == "r" else "---" for side in table.align],
    ]
    rows = [[markdown_cell(cell) for cell in row] for row in table.rows]
    for row in rows[len(rows) - table.num_summary :]:
        row[:] = [f"**{cell}**" if cell else "" for cell in row]
    lines += rows
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


LATEX_ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "–": "--",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def latex_cell(text: str) -> str:
    """Text with LaTeX's special characters escaped; numbers get a minus, and "95 %" does not break."""
    text = " ".join(str(text).split())
    text = "".join(LATEX_ESCAPES.get(character, character) for character in text).replace(r" \%", r"~\%")
    return re.sub(r"(?<![\w.-])-(?=\d)", "$-$", text)


def latex_table(table: Table) -> str:
    r"""A `table` environment with the rules of the package booktabs; `\label{tab:<name>}`."""

    def line(cells: Sequence[str]) -> str:
        return " & ".join(map(latex_cell, cells)) + r" \\"

    rows = [line(row) for row in table.rows]
    if table.num_summary:
        rows.insert(-table.num_summary, r"\midrule")
    caption = latex_cell(f"{table.title}. {table.note}".strip())
    columns = table.align.replace("p", r"p{0.7\linewidth}")
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{caption}}}",
            rf"\label{{tab:{table.name}}}",
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            line(table.header),
            r"\midrule",
            *rows,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def markdown_tables(sections: Mapping[str, Sequence[Table]]) -> str:
    """All tables with their titles and notes as one Markdown text."""
    parts = [
        f"## {markdown_cell(table.title)}\n\n"
        + (f"{markdown_cell(table.note)}\n\n" if table.note else "")
        + markdown_table(table)
        for tables in sections.values()
        for table in tables
    ]
    return "\n".join(parts)


def latex_tables(sections: Mapping[str, Sequence[Table]]) -> str:
    """All tables as one LaTeX text, to be input or copied from."""
    parts = ["% Needs \\usepackage{booktabs}; wide tables may need a smaller font.\n"]
    parts += [latex_table(table) for tables in sections.values() for table in tables]
    return "\n".join(parts)
