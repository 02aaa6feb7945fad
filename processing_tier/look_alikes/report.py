"""What `tier-prepare --check` prints, and its CSV file."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from processing_tier.escaping import spreadsheet_cell
from processing_tier.look_alikes.images import BLANK, UNREADABLE, Images, Source
from processing_tier.look_alikes.pairs import MAX_PAIRS, RELATIONS, Pairs, shared_patients
from processing_tier.prepare.summary import format_table

COLUMNS = (
    *("what", "relation", "distance", "words"),
    *(f"{name}_{side}" for side in "ab" for name in ("dataset", "split", "patient_id", "image_id")),
)

LONG = 20  # words: shorter reports, such as "No acute disease.", are often the same by chance


def describe(images: Images, sources: Sequence[Source], look_alikes: Pairs, reports: Pairs) -> list[str]:
    """The lines for the terminal: what each split has, and what they share."""
    of_source = [images.source == number for number in range(len(sources))]
    rows: dict[str, list] = {
        "images": [int(mask.sum()) for mask in of_source],
        "patients": [len(np.unique(source.patients)) for source in sources],
        "cannot be read": [int((images.state[mask] == UNREADABLE).sum()) for mask in of_source],
        "all pixels equal": [int((images.state[mask] == BLANK).sum()) for mask in of_source],
        "with a border": [int(images.border[mask].sum()) for mask in of_source],
        "with bright marks (letters, arrows)": [int(images.marked[mask].sum()) for mask in of_source],
    }
    lines = format_table(["", *(f"{source.dataset}, {source.split}" for source in sources)], rows)
    shared: dict[str, list] = {}
    for number, relation in enumerate(RELATIONS):
        chosen = look_alikes.relation == number
        pairs = np.stack([look_alikes.first[chosen], look_alikes.second[chosen]])
        equal = int((look_alikes.value[chosen] == 0).sum())
        shared[f"look-alike images of {relation}"] = [int(chosen.sum()), equal, len(np.unique(pairs))]
    lines += ["", *format_table(["", "pairs", "with equal hashes", "images"], shared)]
    texts: dict[str, list] = {}
    for number, relation in enumerate(RELATIONS[:2]):
        chosen = reports.relation == number
        texts[f"the same report in {relation}"] = [int(chosen.sum()), int((chosen & (reports.value >= LONG)).sum())]
    lines += ["", *format_table(["", "reports", f"of {LONG} words or more"], texts)]
    patients = shared_patients(sources)
    lines += ["", f"{patients:,} patient{'s are' if patients != 1 else ' is'} in two splits of one data set."]
    if look_alikes.is_cut:
        lines.append(
            f"More than {MAX_PAIRS:,} pairs look alike; only the first ones found are counted. Remove images that are "
            "there several times, and check again."
        )
    return lines


def write_pairs(path: Path, images: Images, sources: Sequence[Source], look_alikes: Pairs, reports: Pairs) -> None:
    """One row for each pair, first the images, then the reports. The file is complete, or as it was before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(COLUMNS)
            for what, pairs in (("image", look_alikes), ("report", reports)):
                ids = identify(pairs, images, sources)
                for first, second, value, relation in zip(*(column.tolist() for column in pairs[:4]), strict=True):
                    numbers = (value, "") if what == "image" else ("", value)
                    table.writerow([what, RELATIONS[relation], *numbers, *ids[first], *ids[second]])
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def identify(pairs: Pairs, images: Images, sources: Sequence[Source]) -> dict[int, list[str]]:
    """Data set, split, patient and image of each image in the pairs, by its number."""
    numbers = np.unique(np.concatenate([pairs.first, pairs.second]))
    found: dict[int, list[str]] = {}
    for i, source in enumerate(sources):
        own = numbers[images.source[numbers] == i]
        ids = source.records.select_columns(["patient_id", "image_id"])[images.row[own]]
        for number, patient, image in zip(own.tolist(), ids["patient_id"], ids["image_id"], strict=True):
            found[number] = [spreadsheet_cell(text) for text in (source.dataset, source.split, patient, image)]
    return found
