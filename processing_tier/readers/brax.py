"""
BRAX: 40,967 radiographs of 24,959 studies of a hospital in Sao Paulo, with CheXpert's 14 findings.

Where: https://physionet.org/content/brax/, versions 1.0.0 and 1.1.0 (Reis et al., Scientific Data 2022). Terms:
PhysioNet Credentialed Health Data License after training and a signed agreement. The reports are not published.

The folder as PhysioNet ships it:

    master_spreadsheet_update.csv  (1.1.0; master_spreadsheet.csv in 1.0.0)
    images/id_.../Study_.../Series_.../image-....png
    Anonymized_DICOMs/id_.../Study_.../Series_.../image-....dcm

Derived fields:

- split: there is no official one, so everything is `train`.
- findings: CheXpert's, which a program found in the Portuguese reports; -1 uncertain, blank not mentioned.
- patient and study: `PatientID` and `AccessionNumber`.
- view: `ViewPosition` (`PA`, `AP`, `L`, `RL`, `AP LLD` ...); oblique views, `LT-DECUB` and blanks are `OTHER`.
- age: groups of five years; `85 or more` is 85. Sex `O` (other) stays.

Written from the owners' description (PhysioNet; Scientific Data 9:487) and from public code that reads the table
(RadHarmony, MaCheX); not checked against a copy.
"""

import os

import datasets

from processing_tier.records.from_table import make_records

from .archive_tables import drop_repeated, find_in_archive, read_columns
from .chexpert import CHEXPERT_FINDINGS
from .splits import check_split

SPLITS = ("train",)
NAME = "brax"
SOURCE = "https://physionet.org/content/brax/"
TABLES = ("master_spreadsheet_update.csv", "master_spreadsheet.csv")
PATHS = {"png": "PngPath", "dicom": "DicomPath"}
DETAILS = {"patient_id": "PatientID", "study_id": "AccessionNumber", "view": "ViewPosition", "sex": "PatientSex"}


def read_brax(root: str | os.PathLike, split: str = "train", *, images: str = "png") -> datasets.Dataset:
    """
    Read BRAX into the schema of [`records`] without opening images.

    Args:
        root (`str` or `os.PathLike`): the folder with `master_spreadsheet_update.csv`.
        split (`str`, *optional*, defaults to `"train"`): the only one.
        images (`str`, *optional*, defaults to `"png"`): `"png"` or `"dicom"`, which of the two forms to read.

    Returns:
        `datasets.Dataset`: one record per existing image, in the order of the table; no texts.

    Raises:
        `ValueError`: see [`make_records`]; also a missing table or column, or another form of images.
    """
    check_split(split, SPLITS, NAME)
    if images not in PATHS:
        raise ValueError(f"{NAME}: images are {images!r}; choose {' or '.join(PATHS)}.")
    path = PATHS[images]
    needed = (path, *DETAILS.values(), "PatientAge", *CHEXPERT_FINDINGS)
    frame = read_columns(find_in_archive(root, TABLES, NAME, SOURCE), needed)
    frame = drop_repeated(frame, path, NAME)
    frame["age"] = frame["PatientAge"].str.extract(r"^\s*(\d+)", expand=False)
    columns = {"image": path, **DETAILS, **{finding: finding for finding in CHEXPERT_FINDINGS}}
    return make_records(frame, columns, root, split, NAME, skip_missing=True)
