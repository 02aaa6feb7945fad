"""
PadChest-GR: 4,555 frontal radiographs of PadChest with reports as sentences, in English and Spanish, and their boxes.

Where: https://bimcv.cipf.es/bimcv-projects/padchest-gr/ (Castro et al., NEJM AI 2025, arXiv:2411.05085). Terms: the
research use agreement on that page, after registration.

The folder as BIMCV ships it; join the 37 parts of the zip archive of images and extract it, to the folder that holds
them or to `PadChest_GR`:

    grounded_reports_20240819.json
    master_table.csv  (in master_table.csv.zip; a row for each sentence and label: StudyID, ImageID, PatientID, split,
        label, label_group, sentence_en, sentence_es, PatientSex_DICOM, PatientAge ...)
    Padchest_GR_files/PadChest_GR.zip.001 ... .037
    Padchest_GR_files/PadChest_GR/*.png  (16 bits)

Each report has `ImageID`, `StudyID` and `findings`, a list of `sentence_en`, `sentence_es`, `abnormal`, `labels`,
`locations`, and the boxes of up to two readers, `boxes` and `extra_boxes`: `[x1, y1, x2, y2]` as shares of width and
height. The sentences of normal findings often lack most of these.

Derived fields:

- split: the official one by patient.
- findings: a column for each `label_group` of the table, 1 if the table has a row of it for the image, otherwise 0,
  because reports are complete lists of findings; `No Finding` is 1 if no sentence is abnormal.
- boxes: one for each box of a sentence, with the sentence in `phrase` and its first group in the table as finding, in
  pixels of the stored image; its header is read for its size. Equal sentences of an image are one phrase.
- text: the sentences, one after another, in `findings` and `report`. There are no impressions.
- patient, study, sex and age: from the table. Ids are those of `padchest`.
- view: all images count as frontal; whether AP or PA is in PadChest's own table.

The earlier images in `PadChest_GR_progression_prior_studies` are not read. Written from the paper and from public code
that reads the archive (KAF-Ground and others); not checked against a copy.
"""

import logging
import os
from pathlib import Path
from typing import Any

import datasets
import pandas as pd

from processing_tier.records.boxes import group_boxes
from processing_tier.records.from_table import make_records
from processing_tier.records.schema import SCHEMA_COLUMNS

from .archive_tables import drop_repeated, find_in_archive, read_columns, read_json
from .image_sizes import read_sizes
from .splits import check_split

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
NAME = "padchest_gr"
SOURCE = "https://bimcv.cipf.es/bimcv-projects/padchest-gr/"
LANGUAGES = ("en", "es")
FOLDERS = ("Padchest_GR_files/PadChest_GR", "Padchest_GR_files", "PadChest_GR", ".")
TABLE = "master_table.csv"
FROM_TABLE = {"study_id": "StudyID", "patient_id": "PatientID", "sex": "PatientSex_DICOM", "age": "PatientAge"}
COLUMNS = ("ImageID", "split", "label_group", "sentence_en", *FROM_TABLE.values())
NORMAL, NO_FINDING = "normal", "No Finding"


def read_padchest_gr(
    root: str | os.PathLike, split: str, *, language: str = "en", second_reader: bool = False
) -> datasets.Dataset:
    """
    Read one split of PadChest-GR into the schema of [`records`]; of images with boxes, the header is read.

    Args:
        root (`str` or `os.PathLike`): the folder with `grounded_reports_20240819.json` and `master_table.csv`.
        split (`str`): `"train"`, `"validation"` or `"test"`.
        language (`str`, *optional*, defaults to `"en"`): of the sentences, `"en"` or `"es"`.
        second_reader (`bool`, *optional*, defaults to `False`): the boxes of the second reader, not of the first.

    Returns:
        `datasets.Dataset`: one record per existing image, in the order of the reports; findings from the most
        frequent to the rarest.

    Raises:
        `ValueError`: see [`make_records`]; also a missing file or column, reports of another form, or an unknown
        language.
    """
    check_split(split, SPLITS, NAME)
    if language not in LANGUAGES:
        raise ValueError(f"{NAME}: the language {language!r} is not known; choose {' or '.join(LANGUAGES)}.")
    if second_reader not in (True, False):
        raise ValueError(f"{NAME}: second_reader is {second_reader!r}; give 1 for its boxes or 0 for the first's.")
    root = Path(root)
    path = find_in_archive(root, ["grounded_reports_*.json"], NAME, SOURCE)
    table = read_columns(find_in_archive(root, [TABLE], NAME, SOURCE), COLUMNS)
    reports, marks = read_reports(read_json(path), path.name, language, "extra_boxes" if second_reader else "boxes")
    rows = table.drop_duplicates("ImageID").set_index("ImageID")
    unknown = ~reports["ImageID"].isin(rows.index)
    if unknown.any():
        logger.warning("%s: %d of %d reports are not in %s: left out.", NAME, unknown.sum(), len(reports), TABLE)
    reports = reports[reports["ImageID"].map(rows["split"]) == split]
    reports = drop_repeated(reports, "ImageID", f"{NAME}, split {split}").reset_index(drop=True)
    for name, column in FROM_TABLE.items():
        reports[name] = reports["ImageID"].map(rows[column])
    findings = add_findings(reports, table)
    reports["image"] = find_folder(root) + reports["ImageID"]
    reports["image_id"] = reports["ImageID"].str.removesuffix(".png")
    marks["finding"] = groups_of(marks, table)
    reports["boxes"] = reports["ImageID"].map(boxes_in_pixels(marks, reports, root, path.name))
    columns = {finding: finding for finding in (*findings, NO_FINDING)}
    return make_records(reports, columns, root, split, NAME, skip_missing=True)


def find_folder(root: Path) -> str:
    """The folder of the images with a slash, from `root` on."""
    found = (name for name in FOLDERS if next((root / name).glob("*.png"), None) is not None)
    folder = next(found, FOLDERS[0])
    return "" if folder == "." else f"{folder}/"


def read_reports(data: Any, name: str, language: str, reader: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """
    The reports, one row each, and the boxes of their sentences.

    Args:
        data: the content of the file.
        name (`str`): its name in errors.
        language (`str`): of the texts.
        reader (`str`): the key of the boxes.

    Returns:
        `tuple[pd.DataFrame, pd.DataFrame]`: `ImageID`, `findings`, `report`, `No Finding`; and `ImageID`, `sentence`
        (the English one), `phrase`, `label` (the first), and the corners as shares of width and height.

    Raises:
        `ValueError`: reports of another form.
    """
    reports, marks = [], []
    try:
        for report in data:
            image, sentences = report["ImageID"], report["findings"]
            if not isinstance(image, str):
                raise TypeError
            texts = dict.fromkeys(as_sentence(one.get(f"sentence_{language}")) for one in sentences)
            text = " ".join(filter(None, texts))
            abnormal = any(one.get("abnormal") for one in sentences)
            reports.append((image, text, text, float(not abnormal) if sentences else float("nan")))
            for one in sentences:
                key, phrase = (clean(one.get(f"sentence_{spoken}")) for spoken in ("en", language))
                label = clean(next(iter(one.get("labels") or ()), None))
                for left, top, right, bottom in one.get(reader) or ():
                    marks.append((image, key, phrase, label, *map(float, (left, top, right, bottom))))
    except (TypeError, KeyError, AttributeError, ValueError, OverflowError):
        raise ValueError(
            f"{name}: the reports are not ImageID and findings with sentences and boxes as shipped; download it again."
        ) from None
    corners = ["left", "top", "right", "bottom"]
    return (
        pd.DataFrame(reports, columns=["ImageID", "findings", "report", NO_FINDING]),
        pd.DataFrame(marks, columns=["ImageID", "sentence", "phrase", "label", *corners]),
    )


def clean(text: Any) -> str:
    """
    A text with single blanks; `""` for None.

    Raises:
        `TypeError`: anything but text.
    """
    if text is not None and not isinstance(text, str):
        raise TypeError
    return " ".join((text or "").split())


def as_sentence(text: Any) -> str:
    """A text that ends in a full stop, or `""`."""
    text = clean(text)
    return text if not text or text[-1] in ".!?" else f"{text}."


def add_findings(reports: pd.DataFrame, table: pd.DataFrame) -> list[str]:
    """
    Add a column for each group of the table, and return their names, the most frequent group first.

    Raises:
        `ValueError`: a group that cannot be the name of a finding.
    """
    groups = table["label_group"].map(clean, na_action="ignore").fillna("")
    counts = groups[~groups.str.lower().isin(("", NORMAL))].value_counts(sort=False)
    findings = sorted(counts.index, key=lambda name: (-counts[name], name))
    for finding in findings:
        if not finding.isprintable() or finding in (*SCHEMA_COLUMNS, NO_FINDING):
            raise ValueError(f"{TABLE}: the label_group {finding!r} cannot be a finding; download it again.")
        reports[finding] = reports["ImageID"].isin(table["ImageID"][groups == finding]).astype(float)
    return findings


def groups_of(marks: pd.DataFrame, table: pd.DataFrame) -> list[str]:
    """
    The finding of each box: the group of the first row of the table with its image and sentence, as in KAF-Ground's
    build_benchmark.py; without such a row, the first label of the sentence.
    """
    sentences = table["sentence_en"].map(clean, na_action="ignore")
    groups: dict[tuple[str, str], str] = {}
    for image, sentence, group in zip(table["ImageID"], sentences, table["label_group"], strict=True):
        if isinstance(group, str):
            groups.setdefault((image, sentence), clean(group))
    keys = zip(marks["ImageID"], marks["sentence"], marks["label"], strict=True)
    return [groups.get((image, sentence), label) for image, sentence, label in keys]


def boxes_in_pixels(marks: pd.DataFrame, reports: pd.DataFrame, root: Path, name: str) -> pd.Series:
    """The boxes of each `ImageID` of the reports, without those of images that are missing or cannot be read."""
    marked = reports[reports["ImageID"].isin(marks["ImageID"])]
    sizes = read_sizes(root, dict(zip(marked["ImageID"], marked["image"], strict=True)), NAME)
    marks = marks[marks["ImageID"].isin(list(sizes)) & (marks["finding"] != "")]
    width, height = (
        marks["ImageID"].map({image: size[side] for image, size in sizes.items()}).astype(float) for side in (0, 1)
    )
    boxes = pd.DataFrame({"image_id": marks["ImageID"], "finding": marks["finding"], "phrase": marks["phrase"]})
    boxes["x"], boxes["y"] = marks["left"] * width, marks["top"] * height
    boxes["w"], boxes["h"] = (marks["right"] - marks["left"]) * width, (marks["bottom"] - marks["top"]) * height
    return group_boxes(boxes, name, width, height)
