"""
MIMIC-CXR (DICOM) and MIMIC-CXR-JPG: 377,110 radiographs of 227,835 studies of Beth Israel Deaconess Medical Center.

Where and terms: https://physionet.org/content/mimic-cxr/ and https://physionet.org/content/mimic-cxr-jpg/, versions
2.0.0 and 2.1.0, PhysioNet Credentialed Health Data License 1.5.0 after training and a signed agreement: no copies, no
attempt to identify anybody, and the same agreement for derived data (including weights).

The folders as PhysioNet ships them (tables plain or gzipped; 2.1.0 keeps most names of 2.0.0):

    mimic-cxr-jpg/2.1.0/                             mimic-cxr/2.1.0/
        mimic-cxr-2.0.0-split.csv.gz                     mimic-cxr-reports.zip
        mimic-cxr-2.0.0-metadata.csv.gz                  cxr-record-list.csv.gz   (not needed: the split table names
        mimic-cxr-2.0.0-chexpert.csv.gz                  cxr-study-list.csv.gz     the same images and studies)
        mimic-cxr-2.0.0-negbio.csv.gz                    files/p10/p10000032/s50414267.txt
        mimic-cxr-2.1.0-test-set-labeled.csv             files/p10/p10000032/s50414267/<dicom_id>.dcm
        files/p10/p10000032/s50414267/<dicom_id>.jpg

Derived fields:

- split: the official one by patient (`validate` is called `validation`). Only MIMIC-CXR-JPG has it; the DICOM reader
  takes the tables from there.
- findings: CheXpert's or NegBio's labels of the study, for each of its images, or the radiologists' of the test set.
- view: `ViewPosition`; `AP AXIAL` and the decubitus views (`AP LLD`) count as their projection, `XTABLE LATERAL` as
  lateral, blanks (some 15,000) and the oblique views as `OTHER`.
- text: [`extract_sections`] of the study's report; `report` is the whole text, including `___` marks.

Sex and age are in MIMIC-IV, not here. Written from PhysioNet's documentation; not checked against a full copy. (The
radiologists' table is read by CheXpert's names of the columns.)
"""

import logging
import os
import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import datasets
import pandas as pd

from processing_tier.progress import progress
from processing_tier.records.from_table import make_records
from processing_tier.records.paths import resolve_paths
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
from .chexmask import add_masks
from .chexpert import CHEXPERT_FINDINGS
from .splits import check_split

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
LABELS = {"chexpert": "chexpert.csv*", "negbio": "negbio.csv*", "radiologist": "test-set-labeled.csv*"}
REPORTS = ("mimic-cxr-reports.zip", "mimic-cxr-reports", "files")
NO_REPORTS = (
    "%s: the folder has no reports (mimic-cxr-reports.zip), so the texts are empty. Get the reports from "
    "https://physionet.org/content/mimic-cxr/ and name them with the option reports."
)
AIRSPACE_OPACITY = "Airspace Opacity"  # what the radiologists' table calls Lung Opacity
MAX_REPORT_BYTES = 2**20  # the longest has some 15 thousand
STUDY_FILE = re.compile(r"s(\d+)\.txt")


class Form(NamedTuple):
    """One of the two data sets: its name, its source, and the ending of its images' names."""

    name: str
    source: str
    suffix: str


JPG = Form("mimic_cxr_jpg", "https://physionet.org/content/mimic-cxr-jpg/", ".jpg")
DICOM = Form("mimic_cxr", "https://physionet.org/content/mimic-cxr/", ".dcm")


def read_mimic_cxr_jpg(
    root: str | os.PathLike,
    split: str,
    *,
    labels: str = "chexpert",
    reports: str | os.PathLike | None = None,
    chexmask: str | os.PathLike | None = None,
) -> datasets.Dataset:
    """
    Read one split of MIMIC-CXR-JPG into the schema of [`records`] without opening images.

    Args:
        root (`str` or `os.PathLike`): the folder with `mimic-cxr-2.0.0-split.csv.gz` and `files`.
        split (`str`): `"train"`, `"validation"` or `"test"`, the official ones.
        labels (`str`, *optional*, defaults to `"chexpert"`):
            The labeller whose findings are read: `"chexpert"`, `"negbio"`, `"radiologist"` (the test set's manual
            labels) or `"none"`.
        reports (`str` or `os.PathLike`, *optional*):
            `mimic-cxr-reports.zip`, or the folder that it was extracted to; by default it is looked for in `root`.
            Without it, the texts are empty, with a warning.
        chexmask (`str` or `os.PathLike`, *optional*): a table of CheXmask, or its folder, for masks; see [`chexmask`].

    Returns:
        `datasets.Dataset`: one record per existing image, in the order of the split table. All images of a study have
        its findings and texts.

    Raises:
        `ValueError`: see [`make_records`]; also a missing table or column, unknown labels, or reports that are
        missing or cannot be read.
    """
    return add_masks(read_mimic(JPG, root, split, root, labels, reports), chexmask, JPG.name)


def read_mimic_cxr(
    root: str | os.PathLike,
    split: str,
    *,
    tables: str | os.PathLike | None = None,
    labels: str = "chexpert",
    reports: str | os.PathLike | None = None,
    chexmask: str | os.PathLike | None = None,
) -> datasets.Dataset:
    """
    Read one split of MIMIC-CXR's DICOM files into the schema of [`records`] without opening images.

    Args:
        root (`str` or `os.PathLike`): the folder with `files`.
        split (`str`): `"train"`, `"validation"` or `"test"`, the official ones.
        tables (`str` or `os.PathLike`, *optional*):
            Folder of MIMIC-CXR-JPG with the tables of split, metadata and labels (its images are not needed); by
            default `root`, or `mimic-cxr-jpg` beside it, where `wget` puts both.
        labels (`str`, *optional*, defaults to `"chexpert"`): as for [`read_mimic_cxr_jpg`].
        reports, chexmask (`str` or `os.PathLike`, *optional*): as for [`read_mimic_cxr_jpg`].

    Returns:
        `datasets.Dataset`: as [`read_mimic_cxr_jpg`].

    Raises:
        `ValueError`: as [`read_mimic_cxr_jpg`].
    """
    if tables is None:
        beside = Path(root).resolve().parent.parent  # .../files/mimic-cxr/2.0.0 and .../files/mimic-cxr-jpg/2.0.0
        table = find_first(Path(root), ["*-split.csv*"]) or find_first(beside, ["mimic-cxr-jpg/*/*-split.csv*"])
        tables = root if table is None else table.parent
    return add_masks(read_mimic(DICOM, root, split, tables, labels, reports), chexmask, DICOM.name)


def read_mimic(
    form: Form,
    root: str | os.PathLike,
    split: str,
    tables: str | os.PathLike,
    labels: str,
    reports: str | os.PathLike | None,
) -> datasets.Dataset:
    """Either form of the data set: `root` has the images, `tables` the tables."""
    name = form.name
    check_split(split, SPLITS, name)
    if labels != "none" and labels not in LABELS:
        raise ValueError(f"{name}: labels are {labels!r}; choose {', '.join(LABELS)} or none.")
    if labels == "radiologist" and split != "test":
        raise ValueError(f"{name}: the radiologists labelled the test split only; leave labels out for {split!r}.")

    frame = read_columns(find_table(tables, "split.csv*", name), ("dicom_id", "study_id", "subject_id", "split"))
    find_in_archive(root, ["files"], name, form.source)
    frame = frame[frame["split"] == ("validate" if split == "validation" else split)].drop(columns="split")
    frame = drop_repeated(frame, "dicom_id", f"{name}, split {split}")
    metadata = read_columns(find_table(tables, "metadata.csv*", name), ("dicom_id", "ViewPosition"))
    frame = frame.merge(metadata.drop_duplicates("dicom_id"), how="left", on="dicom_id", validate="one_to_one")
    frame["ViewPosition"] = frame["ViewPosition"].replace("XTABLE LATERAL", "LATERAL")
    folders = "files/p" + frame["subject_id"].str[:2] + "/p" + frame["subject_id"] + "/s" + frame["study_id"]
    frame["path"] = folders + "/" + frame["dicom_id"] + form.suffix

    findings = []
    if labels != "none":
        table = read_labels(find_table(tables, LABELS[labels], name), labels, name)
        findings = [finding for finding in CHEXPERT_FINDINGS if finding in table.columns]
        frame = frame.merge(table, how="left", on="study_id", validate="many_to_one")
    add_texts(frame, dict(zip(frame["study_id"], folders, strict=True)), Path(root), reports, name)

    columns = {"image": "path", "image_id": "dicom_id", "patient_id": "subject_id", "view": "ViewPosition"}
    columns |= {finding: finding for finding in findings}
    return make_records(frame, columns, root, split, name, skip_missing=True)


def find_table(folder: str | os.PathLike, ending: str, name: str) -> Path:
    """One of the tables that come with MIMIC-CXR-JPG, of whichever version."""
    return find_in_archive(folder, [f"mimic-cxr-2.0.0-{ending}", f"mimic-cxr-*-{ending}"], name, JPG.source)


def read_labels(path: Path, labels: str, name: str) -> pd.DataFrame:
    """The labels of each study; the radiologists' table has only some of the findings."""
    if labels == "radiologist":
        table = read_columns(path, ("study_id",), (*CHEXPERT_FINDINGS, AIRSPACE_OPACITY))
    else:
        table = read_columns(path, ("study_id", *CHEXPERT_FINDINGS))
    if "Lung Opacity" not in table.columns:
        table = table.rename(columns={AIRSPACE_OPACITY: "Lung Opacity"})
    if not any(finding in table.columns for finding in CHEXPERT_FINDINGS):
        raise ValueError(f"{name}: the table of labels={labels} has no finding; is it the file of the archive?")
    return drop_repeated(table, "study_id", f"{name}, labels {labels}")


def add_texts(
    frame: pd.DataFrame, studies: dict[str, str], root: Path, reports: str | os.PathLike | None, name: str
) -> None:
    """
    Add `report` and its sections to each image of a study; `studies` as for [`read_reports`].

    Raises:
        `ValueError`: the option `reports` names something else.
    """
    source = find_first(root, REPORTS) if reports is None else find_first(Path(reports), REPORTS) or Path(reports)
    texts = read_reports(source, studies) if source is not None and source.exists() else {}
    if not texts and studies:
        if reports is not None:
            raise ValueError(
                f"{reports}: the reports do not exist; name mimic-cxr-reports.zip or the folder of its files."
            )
        logger.warning(NO_REPORTS, name)
    sections = {study: {**extract_sections(text), "report": text} for study, text in texts.items()}
    empty = {"findings": "", "impression": "", "report": ""}
    found = [sections.get(study, empty) for study in frame["study_id"]]
    for column in empty:  # of type object, so that the images of a study share its texts in memory
        frame[column] = pd.Series([texts[column] for texts in found], index=frame.index, dtype=object)


def read_reports(source: Path, studies: dict[str, str]) -> dict[str, str]:
    """
    The texts of the studies that have a report.

    Args:
        source (`Path`): `mimic-cxr-reports.zip`, or the folder that it was extracted to.
        studies (`dict[str, str]`): study to folder of its images, such as `"files/p10/p10000032/s50414267"`.
    """
    texts = {}
    with progress(description="reading reports", unit="report", total=len(studies)) as bar:
        if source.is_dir():
            base = source.parent if source.name == "files" else source
            paths = resolve_paths(base, (f"{folder}.txt" for folder in studies.values()))
            for study, path in zip(studies, map(Path, paths), strict=True):
                if path.is_file():
                    texts[study] = to_text(read_bounded(path, MAX_REPORT_BYTES))
                bar.update()
            return texts
        with open_zip(source) as archive:
            for member in archive.namelist():
                match = STUDY_FILE.fullmatch(PurePosixPath(member).name)
                if match and match[1] in studies:
                    texts[match[1]] = to_text(read_member(archive, member, MAX_REPORT_BYTES))
                    bar.update()
    return texts


def to_text(data: bytes) -> str:
    return data.decode("utf-8", errors="replace").replace("\r\n", "\n").strip()
