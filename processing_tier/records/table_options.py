"""The options of a command for a user's table or image folder: `--columns`, `--image_root`, `--sheet` and
`--label_values`. Archives with a reader do not need it."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class TableOptions:
    """
    How to read a table that follows no standard.

    Args:
        columns (`Mapping[str, str]`, *optional*):
            Schema name to the table's column, such as `{"image": "path", "impression": "report_text"}`. A name outside
            the schema is a finding.
        image_root (`str` or `os.PathLike`, *optional*):
            Folder of the images of a table, or of an archive that comes without its images.
        sheet (`str`, *optional*): the sheet of an Excel table that has several.
        label_values (`Mapping[str, float]`, *optional*):
            Words of the findings and their labels, such as `{"yes": 1, "no": 0}`, see [`parse_label_values`].
    """

    columns: Mapping[str, str] | None = None
    image_root: str | os.PathLike | None = None
    sheet: str | None = None
    label_values: Mapping[str, float] | None = None

    @property
    def split_column(self) -> str:
        """The table's column that names the split of each row."""
        return (self.columns or {}).get("split", "split")


STANDARD_TABLE = TableOptions()  # its columns are called as in the schema


def parse_columns(pairs: Sequence[str] | None) -> dict[str, str] | None:
    """
    The value of `--columns`.

    Args:
        pairs (`Sequence[str]`, *optional*): each `"NAME=COLUMN"`.

    Returns:
        `dict[str, str]`, *optional*: schema name to the table's column; `None` without pairs.

    Raises:
        `ValueError`: a pair of another form, or a name that is given twice.
    """
    columns: dict[str, str] = {}
    for pair in pairs or ():
        name, mark, column = pair.partition("=")
        if not (name and mark and column):
            raise ValueError(f"--columns takes NAME=COLUMN, for example image=Path, but got {pair!r}.")
        if name in columns:
            raise ValueError(f"--columns gives {name!r} two columns, {columns[name]!r} and {column!r}; keep one.")
        columns[name] = column
    return columns or None
