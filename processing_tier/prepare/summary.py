"""The files that `tier-prepare` writes with its shards: counts, a sheet of images, and the card."""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from processing_tier.escaping import markdown_text
from processing_tier.radiograph_tier import read_radiograph
from processing_tier.records.schema import TEXT_COLUMNS, finding_columns
from processing_tier.reports.duplicates import duplicate_groups

BATCH = 100  # records in memory at a time

SHEET_COLUMNS, SHEET_ROWS, SHEET_EDGE, CAPTION = 6, 4, 256, 16  # pictures and pixels

SOURCE_HEADING = "\n## Source\n"

SECTIONS = {
    "standard": "are the sections that the reader gives",
    "chexzero": "are extracted from the whole report as CheXzero does",
    "tier": "are extracted from the whole report as TIER does",
}

TEXTS = {
    None: "all records are kept, with or without text",
    "impression": "records without an impression are left out",
    "findings": "records without findings are left out",
    "both": "records with neither impression nor findings are left out",
}


def summarize(files: Sequence[Path]) -> dict:
    """
    Counts of one split, from its shards.

    Returns:
        `dict`: `images`, `patients`, `studies`, `views`, `findings` (of each: how many are 1, 0, -1 and blank),
        `words` (of each text: the quartiles of its number of words if it is not empty), `empty` (of each text: how
        many are), and `studies_with_the_report_of_another`: the studies with the same report as another one (see
        [`duplicate_groups`]), each a false negative of the other in a contrastive loss.
    """
    features = datasets.Features.from_arrow_schema(pq.read_schema(files[0]))
    findings = finding_columns(datasets.Dataset.from_dict({name: [] for name in features}, features=features))
    columns = ["patient_id", "study_id", "view", *TEXT_COLUMNS, *findings]
    views: Counter = Counter()
    values: dict[str, Counter] = {finding: Counter() for finding in findings}
    # Hashes in place of texts: about 40 bytes per record
    images = sum(pq.read_metadata(file).num_rows for file in files)
    patients, studies = (np.zeros(images, np.int64) for _ in range(2))
    words = {column: np.zeros(images, np.int32) for column in TEXT_COLUMNS}

    def count() -> Iterator[str]:
        for index, record in enumerate(read_records_of(files, columns)):
            patients[index], studies[index] = hash_text(record["patient_id"]), hash_text(record["study_id"])
            views[record["view"]] += 1
            for column in TEXT_COLUMNS:
                words[column][index] = len((record[column] or "").split())
            for finding in findings:
                value = record[finding]
                values[finding]["blank" if value is None or value != value else f"{value:.0f}"] += 1
            yield record["report"] or ""

    groups = duplicate_groups(count())
    # Each study once: its images share a report, as they should
    pairs = np.unique(np.stack([groups, studies], axis=1)[groups >= 0], axis=0)
    _, studies_per_text = np.unique(pairs[:, 0], return_counts=True)
    return {
        "images": images,
        "patients": len(np.unique(patients)),
        "studies": len(np.unique(studies)),
        "views": dict(sorted(views.items())),
        "findings": {name: {key: found[key] for key in ("1", "0", "-1", "blank")} for name, found in values.items()},
        "words": {column: quartiles(counts) for column, counts in words.items()},
        "empty": {column: int((counts == 0).sum()) for column, counts in words.items()},
        "studies_with_the_report_of_another": int(studies_per_text[studies_per_text > 1].sum()),
    }


def read_records_of(files: Sequence[Path], columns: list[str]) -> Iterator[dict]:
    for path in files:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH, columns=columns):
                yield from batch.to_pylist()


def hash_text(text: str | None) -> int:
    return int.from_bytes(hashlib.blake2b(str(text).encode(), digest_size=8).digest(), "big", signed=True)


def quartiles(counts: np.ndarray) -> list[float] | None:
    """The quartiles of the counts that are not 0."""
    counts = counts[counts > 0]
    return [float(value) for value in np.percentile(counts, (25, 50, 75))] if len(counts) else None


def draw_sheet(files: Sequence[Path]) -> bytes:
    """
    A sheet of images with their view, split and id: the first images of each shard, which are in random order.

    Returns:
        `bytes`: a JPEG.
    """
    count = SHEET_COLUMNS * SHEET_ROWS
    per_file = -(-count // len(files))
    firsts = [
        list(islice(read_records_of([file], ["image", "image_id", "view", "split"]), per_file))
        for file in files[:count]
    ]
    records = [first[i] for i in range(per_file) for first in firsts if i < len(first)][:count]
    height = SHEET_EDGE + CAPTION
    sheet = Image.new("L", (SHEET_COLUMNS * SHEET_EDGE, -(-len(records) // SHEET_COLUMNS) * height))
    draw = ImageDraw.Draw(sheet)
    for index, record in enumerate(records):
        x, y = index % SHEET_COLUMNS * SHEET_EDGE, index // SHEET_COLUMNS * height
        image = read_radiograph(record["image"])
        image.thumbnail((SHEET_EDGE - 4, SHEET_EDGE - 4))
        sheet.paste(image, (x + (SHEET_EDGE - image.width) // 2, y + (SHEET_EDGE - image.height) // 2))
        caption = f"{record['view']} {record['split']} {record['image_id']}"
        draw.text((x + 4, y + SHEET_EDGE), caption.encode("ascii", "replace")[:40], fill=255)
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def make_card(summary: Mapping, files: Mapping[str, Sequence[Path]], source: str) -> str:
    """
    The README.md: the metadata that `datasets` reads, and a description for users of the data.

    Args:
        summary (`Mapping`): the options and the counts of the splits, as in summary.json.
        files (`Mapping[str, Sequence[Path]]`): the shards of each split.
        source (`str`): the origin of the data, their terms, and the derived fields.
    """
    lines = ["---", "configs:", "- config_name: default", "  data_files:"]
    for split in files:
        # In quotes: to YAML, 0, no and null are not text
        lines += [f"  - split: {quote(split)}", f"    path: {quote(f'data/{split}-*')}"]
    lines += ["dataset_info:", "  splits:"]
    total = 0
    for split, paths in files.items():
        metadata = [pq.read_metadata(path) for path in paths]
        size = sum(shard.row_group(i).total_byte_size for shard in metadata for i in range(shard.num_row_groups))
        examples = summary["splits"][split]["images"]
        lines += [f"  - name: {quote(split)}", f"    num_bytes: {size}", f"    num_examples: {examples}"]
        total += size
    lines += [f"  download_size: {sum(path.stat().st_size for paths in files.values() for path in paths)}"]
    lines += [f"  dataset_size: {total}", "license: other"]
    lines += ["tags:", "- medical", "- radiology", "- chest-x-ray", "---", ""]

    size, stored = summary["size"], summary["format"].upper()
    pixels = "original size" if size is None else f"shortest side {size} pixels, or smaller originals"
    quality = f" of quality {summary['quality']}" if "quality" in summary else ""
    reader = ", ".join(f"{name}={markdown_text(value)}" for name, value in summary["reader_options"].items())
    text = f"""\
# {markdown_text(summary["data"])}, prepared

Chest radiographs with reports, written by `tier-prepare` of tier-clip. The terms of the source (below) apply to these
derived data too. Keep data that need a signed agreement in a private repository.

```python
datasets.load_dataset("FOLDER_OR_REPOSITORY", split={json.dumps(next(iter(files)))}, streaming=True)
```

- Images: one channel of 8 bits, {pixels}, {stored}{quality}. Boxes and masks are in the pixels of these images.
- Options of the reader: {reader or "none"}.
- Sections: `findings` and `impression` {SECTIONS[summary["report_style"]]}; `report` is the whole text.
- Findings: 1 present, 0 absent, -1 uncertain, NaN not stated.
- Views: {"all" if summary["views"] == "all" else "only frontal (AP and PA)"}.
- Texts: {TEXTS[summary["text"]]}.
- Order: shuffled within each split, seed {summary["seed"]}. No patient is in two splits.

## Counts
"""
    lines += [text, *format_summary(summary), ""]
    lines += [
        "`quarantine.csv` lists the images that cannot be read or are blank; `sheet.jpg` shows some of the others."
    ]
    return "\n".join(lines) + f"\n{SOURCE_HEADING}\n{source}\n"


def quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def format_summary(summary: Mapping) -> list[str]:
    """The counts as the lines of two Markdown tables, of the splits and of the findings."""
    splits = summary["splits"]
    rows = {name: [split[name] for split in splits.values()] for name in ("images", "patients", "studies")}
    for view in sorted({view for split in splits.values() for view in split["views"]}):
        rows[f"view {view}"] = [split["views"].get(view, 0) for split in splits.values()]
    for column in TEXT_COLUMNS:
        words = [split["words"][column] for split in splits.values()]
        rows[f"{column}: words (quartiles)"] = [" / ".join(f"{n:g}" for n in row) if row else "-" for row in words]
        rows[f"{column}: empty"] = [split["empty"][column] for split in splits.values()]
    for name, key in (
        ("studies with the report of another", "studies_with_the_report_of_another"),
        ("left out: not frontal", "not_frontal"),
        ("left out: without text", "without_text"),
        ("left out: quarantined", "quarantined"),
        ("of these: all pixels equal", "blank"),
    ):
        rows[name] = [split[key] for split in splits.values()]
    lines = format_table(["", *splits], rows)
    findings = {
        finding: [" / ".join(f"{n:,}" for n in split["findings"][finding].values()) for split in splits.values()]
        for finding in next(iter(splits.values()))["findings"]
    }
    return (
        [*lines, "", *format_table(["present / absent / uncertain / blank", *splits], findings)] if findings else lines
    )


def format_table(header: Sequence[str], rows: Mapping[str, Sequence]) -> list[str]:
    cells = [[name, *(f"{n:,}" if isinstance(n, int) else n for n in row)] for name, row in rows.items()]
    header, cells = [*map(markdown_text, header)], [[*map(markdown_text, row)] for row in cells]
    widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]

    def line(row: Sequence[str]) -> str:
        first, *others = row
        padded = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        return f"| {' | '.join([first.ljust(widths[0]), *padded])} |"

    return [line(header), line(rule), *map(line, cells)]
