"""
CheXmask: masks of both lungs and the heart for the frontal images of five archives, an option `chexmask` of their
readers (`chestxray14`, `chexpert`, `mimic_cxr`, `mimic_cxr_jpg`, `padchest`, `vindr_cxr`).

Where: https://physionet.org/content/chexmask-cxr-segmentation-data/, version 1.0.0 (Gaggion et al., Scientific Data
2024), 657,566 images. Terms: on that page. The images stay with their archives.

The files as PhysioNet ships them (plain or gzipped), one for each archive:

    OriginalResolution/ChestX-Ray8.csv  CheXpert.csv  MIMIC-CXR-JPG.csv  Padchest.csv  VinDr-CXR.csv
    Preprocessed/...  (masks of padded copies of 1024 x 1024 pixels, which are refused)

Each row has the image in the archive's own column (`Image Index`, `Path`, `dicom_id`, `ImageID`, `image_id`), two
scores, the landmarks (over several lines), a run-length string for each organ, `Height` and `Width`. A string has
pairs of a first pixel, counted from 1, and a length, row by row (get_mask_from_RLE of
https://github.com/ngaggion/CheXmask-Database). Left and right are the patient's.

A program drew the masks (HybridGNet). Those with `Dice RCA (Mean)` below 0.7 are left out, as the owners advise. Only
the rows of wanted images are decoded, and the file is never in memory as a whole. In memory, masks take some 30 KB for
each image of 2500 x 3000 pixels.

Written from the owners' README, data dictionary and code; not checked against a full copy.
"""

import csv
import gzip
import logging
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

import datasets
import numpy as np

from processing_tier.records.annotations import MASKS
from processing_tier.records.masks import counts_from_row_pairs
from processing_tier.records.more_columns import add_columns

from .archive_tables import find_in_archive

logger = logging.getLogger(__name__)

SOURCE = "https://physionet.org/content/chexmask-cxr-segmentation-data/"
TABLES = {  # by reader: the file, and its column of images
    "chestxray14": ("ChestX-Ray8", "Image Index"),
    "chexpert": ("CheXpert", "Path"),
    "mimic_cxr": ("MIMIC-CXR-JPG", "dicom_id"),
    "mimic_cxr_jpg": ("MIMIC-CXR-JPG", "dicom_id"),
    "padchest": ("Padchest", "ImageID"),
    "vindr_cxr": ("VinDr-CXR", "image_id"),
}
ORGANS = ("Left Lung", "Right Lung", "Heart")
SCORE, LOWEST_SCORE = "Dice RCA (Mean)", 0.7
MAX_LINE = 2**21  # characters; lines of the largest images have some 150 thousand
SUFFIX = re.compile(r"\.(?:png|jpe?g|dcm|dicom)$", re.IGNORECASE)


def add_masks(records: datasets.Dataset, chexmask: str | os.PathLike | None, reader: str) -> datasets.Dataset:
    """
    Records of an archive with the masks of CheXmask, or as they are.

    Args:
        records (`datasets.Dataset`): of the reader, without masks.
        chexmask (`str` or `os.PathLike`, *optional*):
            The archive's table (`OriginalResolution/VinDr-CXR.csv`), or the folder of CheXmask; `None` for no masks.
        reader (`str`): one of `TABLES`.

    Raises:
        `ValueError`: a missing or unreadable file, a missing column, a broken mask, masks of other images, or those of
        the preprocessed copies.
    """
    if chexmask is None:
        return records
    path = find_table(Path(chexmask), reader)
    masks, poor, repeated = read_masks(path, TABLES[reader][1], set(records["image_id"][:]))
    if not masks:
        raise ValueError(f"{path.name}: it has no usable mask of these images; is it CheXmask's table of {reader}?")
    if poor or repeated:
        logger.warning(
            "%s: masks of %d images with %s below %s are left out; %d repeated rows are dropped.",
            path.name,
            poor,
            SCORE,
            LOWEST_SCORE,
            repeated,
        )
    logger.info("%s: %d of %d images have masks.", path.name, len(masks), len(records))
    return add_columns(records, {"masks": MASKS}, ({"masks": masks.get(name, [])} for name in records["image_id"][:]))


def find_table(path: Path, reader: str) -> Path:
    """The table of a reader's archive, which is given itself or in the folder of CheXmask."""
    if not path.is_file():
        name = TABLES[reader][0]
        path = find_in_archive(path, [f"OriginalResolution/{name}.csv*", f"{name}.csv*"], "chexmask", SOURCE)
    if path.resolve().parent.name == "Preprocessed":
        raise ValueError(
            f"{path.name}: the masks in Preprocessed are not in the pixels of the archive's images; name the table in "
            "OriginalResolution."
        )
    return path


def read_masks(path: Path, column: str, wanted: set[str]) -> tuple[dict[str, list[dict]], int, int]:
    """The masks of the wanted images by `image_id`, and how many were too poor, or repeated."""
    masks: dict[str, list[dict]] = {}
    seen: set[str] = set()
    poor = repeated = 0
    for number, row in enumerate(read_rows(path, column), 1):
        image_id = "_".join(PurePosixPath(SUFFIX.sub("", row[column].strip())).parts[-3:])
        if image_id not in wanted:
            continue
        if image_id in seen:
            repeated += 1
            continue
        seen.add(image_id)
        try:
            is_poor = not to_number(row[SCORE]) >= LOWEST_SCORE
            found = [] if is_poor else parse_row(row)
        except ValueError as error:
            raise ValueError(f"{path.name}, row {number}: {error}") from None
        poor += is_poor
        if found:
            masks[image_id] = found
    return masks, poor, repeated


def parse_row(row: dict[str, str]) -> list[dict]:
    """The masks of one image. An organ without a string has none."""
    height, width = (to_number(row[side]) for side in ("Height", "Width"))
    if not (height.is_integer() and width.is_integer()):
        raise ValueError("a size is not a whole number; download the file again.")
    size = {"height": int(height), "width": int(width)}
    return [
        {"finding": organ, **size, "counts": np.asarray(counts_from_row_pairs(row[organ], **size), dtype=np.int32)}
        for organ in ORGANS
        if row[organ].strip()
    ]


def to_number(text: str) -> float:
    """A size or a score; a blank is NaN."""
    try:
        return float(text) if text.strip() else float("nan")
    except ValueError:
        raise ValueError("a size or a score is not a number; download the file again.") from None


def read_rows(path: Path, column: str) -> Iterator[dict[str, str]]:
    """
    The needed columns of each row.

    Raises:
        `ValueError`: a missing column, or a file that is not such a table.
    """
    needed = (column, SCORE, *ORGANS, "Height", "Width")
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(bounded_lines(file))
            header = next(rows, [])
            missing = [name for name in needed if name not in header]
            if not missing:
                places = {name: header.index(name) for name in needed}
                last = max(places.values())
                for row in rows:
                    if row:
                        if len(row) <= last:
                            raise csv.Error
                        yield {name: row[place] for name, place in places.items()}
    except (OSError, EOFError, UnicodeDecodeError, zlib.error, csv.Error):
        raise ValueError(f"{path.name}: the file is cut short or not a table of masks; download it again.") from None
    if missing:
        raise ValueError(f"{path.name}: column {missing[0]!r} is missing; is it CheXmask's table of these images?")


def bounded_lines(file: IO[str]) -> Iterator[str]:
    """The lines of a file, none longer than any of CheXmask; csv bounds the length of a value."""
    while line := file.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            raise csv.Error
        yield line
