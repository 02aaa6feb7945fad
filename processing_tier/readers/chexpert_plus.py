"""
CheXpert Plus: the radiographs of CheXpert (Stanford Hospital) with their reports.

Where and terms: https://aimi.stanford.edu/datasets/chexpert-plus; Stanford University School of Medicine research use
agreement: no commercial use, no copies, no attempt to identify anybody.

The folder as shipped:

    df_chexpert_plus_240401.csv
    chexbert_labels.zip or chexbert_labels/impression_fixed.json
    PNG/train/patient00001/study1/view1_frontal.png  (or the chunks png_chexpert_plus_chunk_0 to 4 as extracted, or
        DICOM, or the JPEG files of CheXpert itself)

Derived fields:

- ids, view, sex and age as in `chexpert`.
- split: train and valid (called `validation`).
- findings: CheXbert's 14 labels, see the option `labels`.
- text: the table's own sections; a report without either goes through [`extract_sections`].

Written from public code that reads the archive; its layout could not be checked against a copy.
"""

import io
import logging
import os
from pathlib import Path, PurePosixPath

import datasets
import pandas as pd

from processing_tier.records.from_table import make_records
from processing_tier.reports.sections import extract_sections

from .archive_tables import (
    drop_repeated,
    find_first,
    find_in_archive,
    open_zip,
    read_bounded,
    read_columns,
    read_member,
)
from .chexpert import CHEXPERT_FINDINGS, add_details, add_ids, check_views, find_patients
from .splits import check_split

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation")
NAME = "chexpert_plus"
SOURCE = "https://aimi.stanford.edu/datasets/chexpert-plus"
DETAILS = ("sex", "age", "frontal_lateral", "ap_pa")
LABELS = ("impression", "findings", "report")
MAX_LABEL_BYTES = 2**30  # of one label file; they have some 100 million


def read_chexpert_plus(
    root: str | os.PathLike, split: str, *, labels: str = "impression", views: str = "all"
) -> datasets.Dataset:
    """
    Read one split of CheXpert Plus (CheXpert with reports) into the schema of [`records`] without opening images.

    Args:
        root (`str` or `os.PathLike`): the folder with `df_chexpert_plus_240401.csv`.
        split (`str`): `"train"` or `"validation"`.
        labels (`str`, *optional*, defaults to `"impression"`):
            The text that CheXbert labelled: `"impression"`, `"findings"`, `"report"`, or `"none"`. Without
            `chexbert_labels`, the finding columns are missing, with a warning.
        views (`str`, *optional*, defaults to `"all"`): `"first"` keeps the first view of each study.

    Returns:
        `datasets.Dataset`: one record per existing image, in the order of the table.

    Raises:
        `ValueError`: see [`make_records`]; also a missing table or column, labels that cannot be read.
    """
    check_split(split, SPLITS, NAME)
    check_views(views, NAME)
    if labels not in (*LABELS, "none"):
        raise ValueError(f"{NAME}: labels are {labels!r}; choose {', '.join(LABELS)} or none.")
    path = find_in_archive(root, ["df_chexpert_plus_[0-9]*.csv*"], NAME, SOURCE)
    texts = ("report", "section_findings", "section_impression")
    frame = read_columns(path, ("path_to_image", "split", *texts), DETAILS)
    folder = "valid" if split == "validation" else split
    frame = drop_repeated(frame[frame["split"] == folder], "path_to_image", f"{NAME}, split {split}")
    frame = add_ids(frame, "path_to_image", NAME, views)
    below = [f"{base}{folder}" for base in ("", "PNG/", "PNG/PNG/", "CheXpert-v1.0*/", "DICOM/", "DICOM/*/")]
    below += [f"{base}png_chexpert_plus_chunk_*/{png}{folder}" for base in ("", "PNG/") for png in ("", "PNG/")]
    patients = find_patients(Path(root), below)
    suffixes = {base: find_suffix(Path(root) / base) for base in set(patients.values())}
    frame["path"] = [
        f"{(base := patients.get(patient, folder))}/{patient}/{study}/{view}{suffixes.get(base, '.png')}"
        for patient, study, view in zip(frame["patient_id"], frame["study"], frame["view_name"], strict=True)
    ]
    findings = []
    table = read_plus_labels(Path(root), labels) if labels != "none" else None
    if table is not None:
        findings = list(CHEXPERT_FINDINGS)
        table = drop_repeated(table, "path_to_image", f"{NAME}, labels {labels}")
        frame = frame.merge(table, how="left", on="path_to_image", validate="one_to_one")
    frame["findings"], frame["impression"] = frame["section_findings"], frame["section_impression"]
    whole = frame["findings"].isna() & frame["impression"].isna() & frame["report"].notna()
    sections = [extract_sections(text) for text in frame.loc[whole, "report"]]
    for column in ("findings", "impression"):
        frame.loc[whole, column] = [found[column] for found in sections]
        frame[column] = [" ".join(text.split()) if isinstance(text, str) else "" for text in frame[column]]
    frame["report"] = [text.replace("\r\n", "\n").strip() if isinstance(text, str) else "" for text in frame["report"]]
    columns = {"image": "path", **add_details(frame, *DETAILS)}
    columns |= {finding: finding for finding in findings}
    return make_records(frame, columns, root, split, NAME, skip_missing=True)


def read_plus_labels(root: Path, labels: str) -> pd.DataFrame | None:
    """CheXbert's labels by image; `None`, with a warning, without them."""
    name = f"{labels}_fixed.json"
    path = find_first(root, [f"chexbert_labels/{name}", name, "chexbert_labels/chexbert_labels/" + name])
    archive = find_first(root, ["chexbert_labels.zip"])
    if path is not None:
        data = read_bounded(path, MAX_LABEL_BYTES)
    elif archive is not None:
        with open_zip(archive) as file:
            members = [member for member in file.namelist() if PurePosixPath(member).name == name]
            if not members:
                raise ValueError(f"{archive.name}: {name} is not in it; get it from {SOURCE}.")
            data = read_member(file, members[0], MAX_LABEL_BYTES)
    else:
        logger.warning(
            "chexpert_plus: chexbert_labels.zip is missing, so there are no findings; get it from %s.", SOURCE
        )
        return None
    try:
        frame = pd.read_json(io.BytesIO(data), lines=True, dtype=False)[["path_to_image", *CHEXPERT_FINDINGS]]
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"{name}: these are not lines of path_to_image and the 14 findings; get it from {SOURCE}."
        ) from error
    return frame


def find_suffix(folder: Path) -> str:
    """Suffix of the images in a folder of patients."""
    image = next(folder.glob("patient*/study*/view*"), None)
    return image.suffix if image is not None else ".png"
