"""
TAIX-Ray: 215,381 bedside radiographs of 47,724 intensive care patients of University Hospital Aachen, with eight
findings that radiologists graded.

Where: https://huggingface.co/datasets/TLAIM/TAIX-Ray, without an account: `hf download TLAIM/TAIX-Ray --repo-type
dataset --local-dir FOLDER` (Truhn et al., Scientific Data 2026, doi:10.1038/s41597-026-07271-7; code:
https://github.com/mueller-franzes/TAIX-Ray). Terms: CC BY 4.0; an earlier card says CC BY-NC 4.0, so look at it.

The folder as the Hub ships it:

    data/train-00000-of-00....parquet  val-...  test-...   (longer side 512 pixels, 62 GB)
    original/train-...  val-...  test-...                  (1.2 TB)

Derived fields:

- split: the official one by patient (`val` is `validation`), fold 0 of five.
- findings: grades as labels. `HeartSize` (0 normal, 1 borderline, 2 enlarged, 3 massively enlarged) is `Cardiomegaly`;
  the others are 0 none, 1 questionable, 2 mild, 3 moderate, 4 severe. From 2 on, a finding is present, as for the
  owners' binary models (`label > 1` in their cxr_dataset.py); 1 is uncertain, or absent as for them with
  `questionable=absent`; -1 (not assessable) is blank. Of a finding of both sides, the higher grade counts, and
  one present side is enough if the other is blank; with `sides=1`, each side is a finding of its own
  (`Left Pleural Effusion`).
- view: AP, since all images were taken at the bedside. Age is in days and becomes years. There are no reports.
- study: each image is its own.

The library datasets copies the files into its cache once. Written from the card, its viewer, and the owners' code;
not checked against a full copy.
"""

import os
from pathlib import Path

import datasets
import pandas as pd

from processing_tier.records.identifiers import normalize_identifiers
from processing_tier.records.labels import DAYS, MAX_AGE
from processing_tier.records.more_columns import add_columns
from processing_tier.records.schema import TEXT_COLUMNS

from .archive_tables import drop_repeated, find_in_archive
from .hub import check_paths, load
from .hub_records import IMAGE, make_features
from .splits import check_split

SPLITS = ("train", "validation", "test")
NAME = "taix_ray"
SOURCE = "https://huggingface.co/datasets/TLAIM/TAIX-Ray"
SIZES = {"512": "data", "original": "original"}
LEVELS = {"uncertain": -1.0, "absent": 0.0}  # of grade 1
HEART = "HeartSize"
CONGESTION = "PulmonaryCongestion"
SIDED = {"PleuralEffusion": "Pleural Effusion", "PulmonaryOpacities": "Lung Opacity", "Atelectasis": "Atelectasis"}
GRADES = (HEART, CONGESTION, *(f"{column}_{side}" for column in SIDED for side in ("Left", "Right")))
HIGHEST = {HEART: 3}
DETAILS = ("UID", "PatientID", "Age", "Sex")


def read_taix_ray(
    root: str | os.PathLike,
    split: str,
    *,
    images: str = "512",
    questionable: str = "uncertain",
    sides: bool = False,
) -> datasets.Dataset:
    """
    Read one split of TAIX-Ray into the schema of [`records`] without opening images.

    Args:
        root (`str` or `os.PathLike`): the folder with `data` or `original`.
        split (`str`): `"train"`, `"validation"` or `"test"`.
        images (`str`, *optional*, defaults to `"512"`): `"512"` (the folder `data`) or `"original"`.
        questionable (`str`, *optional*, defaults to `"uncertain"`): what grade 1 is, `"uncertain"` or `"absent"`.
        sides (`bool`, *optional*, defaults to `False`): a finding for each side in place of the higher grade.

    Returns:
        `datasets.Dataset`: one record per image, in the order of the files.

    Raises:
        `ValueError`: a missing or unreadable file, a missing column, a value that is not a grade, a repeated image
        without content, or an unknown option.
    """
    check_split(split, SPLITS, NAME)
    for name, value, known in (("images", images, SIZES), ("questionable", questionable, LEVELS)):
        if value not in known:
            raise ValueError(f"{NAME}: {name} is {value!r}; choose {' or '.join(known)}.")
    short, folder = {"validation": "val"}.get(split, split), SIZES[images]
    find_in_archive(root, [f"{folder}/{short}-*.parquet"], NAME, SOURCE)
    dataset = load(str(Path(root, folder)), short, streaming=False)
    missing = [column for column in (*DETAILS, *GRADES, "Image") if column not in dataset.column_names]
    if missing:
        raise ValueError(f"{NAME}: column {missing[0]!r} is missing; is this {SOURCE}, unchanged?")
    dataset = dataset.cast_column("Image", IMAGE)
    check_paths(dataset, "Image", root)
    frame = dataset.select_columns([*DETAILS, *GRADES]).with_format("pandas")[:]
    kept = drop_repeated(frame, "UID", f"{NAME}, split {split}")
    if len(kept) < len(frame):
        dataset = dataset.select(kept.index)
    columns = to_columns(kept, to_findings(kept[list(GRADES)], LEVELS[questionable], sides), split)
    features = {name: feature for name, feature in make_features(dict.fromkeys(columns)).items() if name != "image"}
    pictures = dataset.select_columns("Image").rename_column("Image", "image")
    return add_columns(pictures, features, columns.to_dict("records"))


def to_columns(frame: pd.DataFrame, labels: dict[str, pd.Series], split: str) -> pd.DataFrame:
    """
    All columns of the schema but the image, which has no text.

    Raises:
        `ValueError`: an image without an id or a patient.
    """
    image_ids, patients = (normalize_identifiers(frame[column], NAME, column) for column in ("UID", "PatientID"))
    if "" in patients or "" in image_ids:
        raise ValueError(f"{NAME}: an image has no UID or no PatientID; download the file again.")
    ages = pd.to_numeric(frame["Age"], errors="coerce") / DAYS["Y"]
    return pd.DataFrame(
        {
            "image_id": image_ids,
            "patient_id": patients,
            "study_id": image_ids,
            "view": "AP",
            **dict.fromkeys(TEXT_COLUMNS, ""),
            "split": split,
            **{finding: values.to_numpy() for finding, values in labels.items()},
            "sex": frame["Sex"].fillna("").to_numpy(),
            "age": ages.where(ages.between(0, MAX_AGE)).to_numpy(),
        }
    )


def to_findings(grades: pd.DataFrame, questionable: float, sides: bool) -> dict[str, pd.Series]:
    """
    The grades of radiologists as labels.

    Args:
        grades (`pd.DataFrame`): a column for each of `GRADES`.
        questionable (`float`): the label of grade 1.
        sides (`bool`): whether each side is a finding of its own.

    Raises:
        `ValueError`: a value that is not a grade.
    """
    numbers = grades.apply(pd.to_numeric, errors="coerce")
    for column in GRADES:
        allowed = numbers[column].isin(range(-1, HIGHEST.get(column, 4) + 1)) | grades[column].isna()
        if not allowed.all():
            raise ValueError(
                f"{NAME}: {(~allowed).sum()} values of {column!r} are not grades from -1 to {HIGHEST.get(column, 4)}; "
                "download the file again."
            )
    numbers = numbers.where(numbers >= 0)
    levels = {"Cardiomegaly": numbers[HEART], "Pulmonary Congestion": numbers[CONGESTION]}
    for column, finding in SIDED.items():
        each = {side: numbers[f"{column}_{side}"] for side in ("Left", "Right")}
        if sides:
            levels |= {f"{side} {finding}": values for side, values in each.items()}
        else:
            both = pd.concat(each, axis=1)
            higher = both.max(axis=1)
            levels[finding] = higher.where(both.notna().all(axis=1) | (higher > 1))  # one side alone may be present
    return {
        finding: values.map({0: 0.0, 1: questionable, 2: 1.0, 3: 1.0, 4: 1.0}) for finding, values in levels.items()
    }
