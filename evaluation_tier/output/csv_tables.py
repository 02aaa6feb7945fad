"""The tables of a page as CSV, for spreadsheets: numbers as numbers, an interval in two columns of its own."""

import csv
import io
import re

from evaluation_tier.output.tables import DASH, Table
from processing_tier.escaping import spreadsheet_cell

NUMBER = re.compile(r"-?[\d,]*\.?\d+(?:e-?\d+)?")
ESTIMATE = re.compile(
    rf"({NUMBER.pattern}) \(({NUMBER.pattern}), ({NUMBER.pattern})\)"
)  # as `format_estimate` writes it


def csv_table(table: Table) -> str:
    """
    A table in CSV, without its title and note. What was not measured is empty. A text that a spreadsheet would read as
    a formula begins with an apostrophe.
    """
    columns: list[list[str]] = []
    for i, (header, side) in enumerate(zip(table.header, table.align, strict=True)):
        cells = [row[i] for row in table.rows]
        found = [ESTIMATE.fullmatch(cell) for cell in cells] if side == "r" else [None]
        if any(found):
            name = header.removesuffix(" (95 % CI)")
            values = [match.groups() if match else (cell, "", "") for match, cell in zip(found, cells, strict=True)]
            headers = (name, f"{name}, 95 % CI low", f"{name}, 95 % CI high")
            columns += [[title, *column] for title, column in zip(headers, zip(*values, strict=True), strict=True)]
        else:
            columns.append([header, *cells])
    lines = io.StringIO()
    rows = ([plain_cell(cell) for cell in row] for row in zip(*columns, strict=True))
    csv.writer(lines, lineterminator="\n").writerows(rows)
    return lines.getvalue()


def plain_cell(cell: str) -> str:
    """A number without commas, `""` for a dash, other text as it is."""
    if NUMBER.fullmatch(cell):
        return cell.replace(",", "")
    return "" if cell == DASH else spreadsheet_cell(cell)
