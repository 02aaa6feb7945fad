"""A table's own names of the columns, as every command takes them."""

from collections.abc import Sequence


def read_columns(pairs: Sequence[str] | None) -> dict[str, str] | None:
    """
    Args:
        pairs (`Sequence[str]`, *optional*): each `"NAME=COLUMN"`.

    Returns:
        `dict[str, str]`, *optional*: name in the schema of the records to the table's; `None` without pairs.

    Raises:
        `ValueError`: a pair of another form, or a name that is given twice.
    """
    columns = {}
    for pair in pairs or ():
        name, mark, column = pair.partition("=")
        if not (name and mark and column):
            raise ValueError(f"--columns takes NAME=COLUMN, for example image=Path, but got {pair!r}.")
        if name in columns:
            raise ValueError(f"--columns gives {name!r} two columns, {columns[name]!r} and {column!r}; keep one.")
        columns[name] = column
    return columns or None
