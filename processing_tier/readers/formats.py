"""
File formats of tables: CSV with any delimiter and encoding, Excel, JSON lines, Parquet. The meaning of the columns is
in `table`.

All values of CSV and Excel files are read as text, so that the patient `00061` does not become the number 61. Bounds
hold for a small file that inflates to a large one, too.
"""

import bz2
import codecs
import csv
import gzip
import io
import logging
import lzma
import re
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Features

from ..bounded_json import parse_json

logger = logging.getLogger(__name__)

MAX_TABLE_BYTES = 2 * 2**30  # the reports of CheXpert Plus are the largest
MAX_ROWS = 5_000_000  # the largest archives have less than a million images
MAX_COLUMNS = 10_000
MAX_HEADER_BYTES = 2**23  # about 800 for each column
DELIMITED = (".csv", ".tsv", ".tab", ".txt")
EXCEL = (".xlsx", ".xlsm")
JSON = (".jsonl", ".ndjson", ".json")
TABLES = (*DELIMITED[:3], *EXCEL, ".xls", *JSON, ".parquet")
OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
DELIMITERS = ",;\t|"
SNIFFED_BYTES, SNIFFED_ROWS = 2**18, 50
DECODED_BYTES = 2**24
UTF16 = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
UNREADABLE = (
    ValueError,
    OSError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    pa.ArrowException,
    KeyError,
    csv.Error,
)
IMAGE_NAME = re.compile(r"\.(?:png|jpe?g|dcm|dicom|tiff?|bmp|webp)\b", re.IGNORECASE)


class TableError(ValueError):
    """A specific reason why a table is refused, which replaces the general one."""


def suffix_of(path: Path) -> tuple[str, str]:
    """The suffix of the format and that of the compression, in lower case: `(".csv", ".gz")`."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in OPENERS:
        return (suffixes[-2] if len(suffixes) > 1 else ""), suffixes[-1]
    return (suffixes[-1] if suffixes else ""), ""


def is_table_name(path: Path) -> bool:
    """Whether a file is a table, by the suffix of its name."""
    return suffix_of(path)[0] in TABLES


def read_frame(path: Path, usecols: Callable[[str], bool] | None = None, sheet: str | None = None) -> pd.DataFrame:
    """
    A table as a data frame. The delimiter (comma, semicolon, tab, bar) and the encoding (UTF-8, UTF-16, Windows-1252)
    are detected.

    Args:
        path (`Path`):
            CSV, TSV, JSON lines or JSON, plain or compressed (gzip, bzip2, xz), Excel (`.xlsx`), or Parquet.
        usecols (`Callable[[str], bool]`, *optional*): which columns of a CSV file to read.
        sheet (`str`, *optional*): the sheet of an Excel file that has several.

    Raises:
        `ValueError`: a missing file, a file that is not a table, a table that is larger than any of radiographs, a
        quotation mark that swallows rows, two columns with one name, or a missing sheet.
    """
    if not path.is_file():
        raise ValueError(f"{path}: the file does not exist; check the path.")
    form, compression = suffix_of(path)
    if sheet is not None and form not in EXCEL:
        raise ValueError(f"{path}: sheet={sheet!r} is for Excel files only; leave it out.")
    try:
        if form == ".parquet":
            frame = read_parquet(path)
        elif form in EXCEL:
            frame = read_excel(path, sheet)
        elif form == ".xls":
            raise TableError(f"{path}: the old Excel format .xls is not supported; save the file as .xlsx or .csv.")
        else:
            size = check_size(path)
            with (OPENERS[compression] if compression else open)(path, "rb") as file:
                data = file.read(size)  # Python allocates as many bytes as are asked for
            frame = read_json_rows(data, path) if form in JSON else read_delimited(data, path, form, usecols)
    except TableError:
        raise
    except pd.errors.EmptyDataError:
        raise ValueError(f"{path}: the file is empty; give a table with a header line.") from None
    except UNREADABLE as error:
        kind = (form or path.suffix or ".csv")[1:]
        raise ValueError(f"{path}: the file is not a readable {kind} table{reason(error)}; export it again.") from None
    return check_names(frame, path)


def reason(error: Exception) -> str:
    """The place of an error by pandas's message: the line, without its content, which may name a patient."""
    text = str(error)
    if match := re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", text):
        return f" (line {match[2]} has {match[3]} fields, the header {match[1]})"
    if "EOF inside string" in text:
        return " (a quotation mark is not closed)"
    return ""


def check_size(path: Path) -> int:
    """
    The number of bytes of a text table after decompression.

    Raises:
        `ValueError`: the table is larger than any table of radiographs.
    """
    size = path.stat().st_size
    compression = suffix_of(path)[1]
    if compression:
        with OPENERS[compression](path) as file:
            size = file.seek(MAX_TABLE_BYTES + 1)  # or where it ends
    if size > MAX_TABLE_BYTES:
        raise TableError(f"{path}: the table is larger than {MAX_TABLE_BYTES:,} bytes; is it the right file?")
    return size


def check_names(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """
    The table with its column names as text, without white space around them.

    Raises:
        `ValueError`: a name with a control character, or two columns with one name.
    """
    if not isinstance(frame.index, pd.RangeIndex):  # pandas would shift all columns by one
        raise ValueError(f"{path}: the rows have more fields than the header; remove the comma at their ends.")
    names = [unicodedata.normalize("NFC", str(name)).strip().removeprefix("\ufeff") for name in frame.columns]
    check_control_characters(names, path)
    repeated = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if repeated is not None:
        raise ValueError(f"{path}: two columns are called {repeated!r}; rename one of them.")
    frame.columns = names
    return frame


def check_control_characters(names: Sequence[str], path: Path) -> None:
    """
    Raises:
        `ValueError`: a column's name has a control character.
    """
    for name in names:
        if any(unicodedata.category(character) == "Cc" for character in name):
            raise TableError(f"{path}: the column name {name!r} has a control character; rename the column.")


# --- Delimited text


def read_delimited(data: bytes, path: Path, form: str, usecols: Callable[[str], bool] | None) -> pd.DataFrame:
    encoding = find_encoding(data, path)
    delimiter = find_delimiter(data, encoding, "\t" if form in (".tsv", ".tab") else ",")
    start = io.TextIOWrapper(io.BytesIO(data[:MAX_HEADER_BYTES]), encoding, "replace", newline="")
    if "\0" in (line := start.readline()):  # pandas 2 would end the name there
        check_control_characters([name.strip() for name in line.split(delimiter)], path)
    start.seek(0)
    header = next(csv.reader(start, delimiter=delimiter), [])
    if len(data) > MAX_HEADER_BYTES and not start.read(1):
        raise TableError(f"{path}: the header is longer than {MAX_HEADER_BYTES:,} bytes; is it the right file?")
    named = [name.strip() for name in header if name.strip()]
    if len(set(named)) < len(named):  # pandas would call the second "Edema.1"
        repeated = next(name for name in named if named.count(name) > 1)
        raise TableError(f"{path}: two columns are called {repeated!r}; rename one of them.")
    if len(header) > MAX_COLUMNS:
        raise TableError(f"{path}: the table has more than {MAX_COLUMNS:,} columns; is it the right file?")
    if usecols is not None:
        wanted = usecols
        usecols = lambda name: wanted(name.strip())  # noqa: E731
    check_nul_bytes(data, encoding, path)
    frame = pd.read_csv(io.BytesIO(data), dtype=str, usecols=usecols, sep=delimiter, encoding=encoding)
    if len(header) > 1 and header[0] in frame.columns and isinstance(frame.index, pd.RangeIndex):
        check_quotes(frame, frame[header[0]], delimiter, len(header), path)
    return frame


def check_nul_bytes(data: bytes, encoding: str, path: Path) -> None:
    """
    Raises:
        `ValueError`: a NUL character, where pandas 2 would end the value.
    """
    if b"\0" not in data:
        return
    text = data.decode(encoding if encoding.startswith("utf-16") else "latin-1", errors="replace")
    if (found := text.find("\0")) >= 0:
        line = text.count("\n", 0, found) + 1
        raise TableError(f"{path}: line {line} has a NUL character; remove it or export the table again.")


def find_encoding(data: bytes, path: Path) -> str:
    """
    UTF-8 or UTF-16, with or without a byte order mark. Otherwise Windows-1252 (which includes Latin-1), with a
    warning.

    Raises:
        `ValueError`: UTF-8 with a few broken characters: another encoding would garble all the others.
    """
    if data[:2] in UTF16:
        return UTF16[data[:2]]
    head = data[:1000]
    if len(head) >= 4 and head.count(0) > len(head) // 4:
        return "utf-16-le" if head[1] == 0 else "utf-16-be"
    if (line := first_line_that_is_not_utf8(data)) is None:
        return "utf-8-sig"
    text = data.decode("utf-8", errors="replace")
    if sum(1 for _ in re.finditer(r"[^\x00-\x7f\ufffd]", text)) > text.count("\ufffd"):
        raise TableError(f"{path}: line {line} is not UTF-8, which the rest of the file is; export it again as UTF-8.")
    try:
        data.decode("cp1252")
        encoding = "cp1252"
    except UnicodeDecodeError:
        encoding = "latin-1"
    logger.warning("%s: the file is not UTF-8; read as %s.", path, {"cp1252": "Windows-1252"}.get(encoding, encoding))
    return encoding


def first_line_that_is_not_utf8(data: bytes) -> int | None:
    """Its number from 1, or `None`. Decodes a part at a time, because the file may be large."""
    decoder, start = codecs.getincrementaldecoder("utf-8")(), 0
    while start < len(data):
        try:
            decoder.decode(data[start : start + DECODED_BYTES], final=start + DECODED_BYTES >= len(data))
        except UnicodeDecodeError as error:
            return data.count(b"\n", 0, start + error.start) + 1
        start += DECODED_BYTES
    return None


def find_delimiter(data: bytes, encoding: str, usual: str) -> str:
    """The delimiter with which the first rows have as many fields as the header; of several, the usual one."""
    text = data[:SNIFFED_BYTES].decode(encoding, errors="replace")
    best, most = usual, (0.0, 1)
    for delimiter in sorted(DELIMITERS, key=lambda candidate: candidate != usual):
        try:
            rows = list(islice(csv.reader(io.StringIO(text), delimiter=delimiter), SNIFFED_ROWS))
        except csv.Error:
            continue
        counts = [len(row) for row in rows if row]
        if not counts or counts[0] < 2:
            continue
        share = sum(count == counts[0] for count in counts[1:]) / len(counts[1:]) if counts[1:] else 1.0
        if (round(share, 1), counts[0]) > most:
            best, most = delimiter, (round(share, 1), counts[0])
    return best


def check_quotes(frame: pd.DataFrame, first: pd.Series, delimiter: str, num_columns: int, path: Path) -> None:
    """
    Raises:
        `ValueError`: a field holds other rows of the table, because a quotation mark before them is not closed. A line
            in a field counts as a row if it has as many delimiters, and a first field like those of the column
            `first`.
    """
    shapes = {first_shape(value) for value in first.iloc[:SNIFFED_ROWS].dropna()}
    for column in frame.columns:
        values = frame[column]
        for index, value in values[values.str.contains("\n", regex=False, na=False)].items():
            lines = (line for line in value.splitlines()[1:] if line.count(delimiter) >= num_columns - 1)
            rows = sum(first_shape(line.partition(delimiter)[0]) in shapes for line in lines)
            if rows:
                raise TableError(
                    f"{path}: row {index + 1} has {rows} other rows in its column {str(column).strip()!r}: a "
                    "quotation mark there is not closed. Close it, or export the table again."
                )


def first_shape(value: str) -> str:
    """
    The shape of a value, such as `a9` for `p17`: one character for a run of letters or digits; of images the suffix.
    """
    value = value.strip().strip('"')
    if found := IMAGE_NAME.search(value):
        return found[0].lower()
    return re.sub(r"\d+", "9", re.sub(r"[^\W\d_]+", "a", value))


# --- Excel, JSON, Parquet


def read_excel(path: Path, sheet: str | None) -> pd.DataFrame:
    with zipfile.ZipFile(path) as archive:
        if sum(member.file_size for member in archive.infolist()) > MAX_TABLE_BYTES:
            raise TableError(f"{path}: the table is larger than {MAX_TABLE_BYTES:,} bytes; is it the right file?")
    try:
        import openpyxl  # noqa: F401
    except ImportError:
        raise TableError(
            f"{path}: Excel files need openpyxl; run pip install openpyxl, or save the file as .csv."
        ) from None
    with pd.ExcelFile(path, engine="openpyxl") as file:
        sheets = list(map(str, file.sheet_names))
        if sheet is not None and sheet not in sheets:
            raise TableError(f"{path}: the sheet {sheet!r} does not exist; it has {', '.join(sheets)}.")
        if sheet is None and len(sheets) > 1:
            raise TableError(f"{path}: which sheet? It has {', '.join(sheets)}; name one with --sheet.")
        return pd.read_excel(file, sheet_name=sheet or sheets[0], dtype=str)


def read_json_rows(data: bytes, path: Path) -> pd.DataFrame:
    """The objects of JSON lines, or of one list, as rows."""
    text = data.decode(find_encoding(data, path))
    if text.lstrip().startswith("["):
        rows = parse_json(text)
    else:
        rows = list(parse_lines(text, path))
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise TableError(f"{path}: the file is not a list of JSON objects, one for each image; export it again.")
    try:
        return pd.DataFrame.from_records(rows).astype(object)
    except OverflowError:  # pandas 2: integers that no float can hold
        return pd.DataFrame(rows, dtype=object)


def parse_lines(text: str, path: Path) -> Iterator[dict]:
    for number, line in enumerate(io.StringIO(text), 1):
        if line.strip():
            try:
                yield parse_json(line)
            except ValueError:
                raise TableError(f"{path}: line {number} is not a JSON object; fix or remove it.") from None


def read_parquet(path: Path) -> pd.DataFrame:
    """A Parquet table, read a few rows at a time, so that the bound holds before a small file has expanded."""
    with pq.ParquetFile(path) as file:
        check_rows(file.metadata.num_rows, path)
        if len(file.schema_arrow) > MAX_COLUMNS:
            raise TableError(f"{path}: the table has more than {MAX_COLUMNS:,} columns; is it the right file?")
        size, batches = 0, []
        for batch in file.iter_batches(batch_size=1024):
            size += batch.nbytes
            if size > MAX_TABLE_BYTES:
                raise TableError(f"{path}: the table is larger than {MAX_TABLE_BYTES:,} bytes; is it the right file?")
            batches.append(batch)
        table = pa.Table.from_batches(batches, file.schema_arrow)
    frame = table.to_pandas(ignore_metadata=True)
    frame = frame.drop(columns=[name for name in frame.columns if re.fullmatch(r"__index_level_\d+__", name)])
    return name_classes(frame, table.schema)


def check_rows(rows: int, path: Path) -> None:
    if rows > MAX_ROWS:
        raise TableError(f"{path}: the table has {rows:,} rows, more than {MAX_ROWS:,}; is it the right file?")


def name_classes(frame: pd.DataFrame, schema: pa.Schema) -> pd.DataFrame:
    """The table with names of classes in place of the numbers that `datasets` stores."""
    if b"huggingface" not in (schema.metadata or {}):
        return frame
    for column, feature in Features.from_arrow_schema(schema).items():
        if isinstance(feature, ClassLabel) and column in frame.columns:
            names = dict(enumerate(feature.names))
            frame[column] = frame[column].map(lambda value, names=names: names.get(value)).astype(object)
    return frame
