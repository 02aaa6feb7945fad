"""
CheXpert and the radiologists of its test set: 224,316 radiographs of Stanford Hospital, without reports.

Where and terms: https://aimi.stanford.edu/datasets/chexpert-chest-x-rays, and for the labels of the test set
https://github.com/rajpurkarlab/cheXpert-test-set-labels; Stanford University School of Medicine research use
agreement: no commercial use, no copies, no attempt to identify anybody. The reports are in `chexpert_plus`.

The folders as shipped (`CheXpert-v1.0-small` has the first form, the full size either):

    CheXpert-v1.0/                                   one folder of the downloaded batches
        train.csv  valid.csv                             CheXpert-v1.0 batch 1 (validate & csv)/train.csv, valid.csv,
        train/patient00001/study1/view1_frontal.jpg          valid/patient64541/study1/view1_frontal.jpg
        valid/...                                        CheXpert-v1.0 batch 2 (train 1)/patient00001/study1/...
        test/...  test_labels.csv or test.csv            test/...  groundtruth.csv
    cheXpert-test-set-labels/
        groundtruth.csv  radiologists/benchmark_radiologists/bc4.csv, bc6.csv, bc8.csv

Derived fields:

- ids: from the path, `patient00001`, `patient00001_study1`, `patient00001_study1_view1_frontal` (as CheXlocalize).
- split: train, valid (called `validation`) and the 500 studies of the test set, which share no patient with train.
- findings: the 14 of the tables, -1 uncertain, blank not mentioned. Those of the validation and test sets are votes of
  radiologists on the whole study, so every image of a study has the same labels. A record is still one image: for the
  500 images that CheXzero scores, take the first view of each study with `views="first"`, or average the scores by
  `study_id`.
- view: AP or PA for frontal images where the table says so, otherwise from the name of the file.
- age: 0 (unknown) is blank; 90 stands for 90 and above.

Written from public code that reads the archive and from the files of the test set's labels. The layout of the batches
and the columns of `test_labels.csv` and `test.csv` could not be checked against a copy.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import datasets
import pandas as pd

from processing_tier.records.from_table import make_records

from .archive_tables import drop_repeated, find_first, find_in_archive, read_columns
from .chexmask import add_masks
from .splits import check_split

SPLITS = ("train", "validation", "test")
CHEXPERT_FINDINGS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
RADIOLOGISTS = ("bc4", "bc6", "bc8")
DETAILS = ("Sex", "Age", "Frontal/Lateral", "AP/PA")
SEXES = {"Male": "M", "Female": "F"}
VIEWS = ("all", "first")
SOURCE = "https://aimi.stanford.edu/datasets/chexpert-chest-x-rays"
TEST_SOURCE = "https://github.com/rajpurkarlab/cheXpert-test-set-labels"
IMAGE_PATH = r"(?:^|/)(patient\d+)/(study\d+)/(view(\d+)_(\w+))\.\w+$"


def read_chexpert(
    root: str | os.PathLike, split: str, *, views: str = "all", chexmask: str | os.PathLike | None = None
) -> datasets.Dataset:
    """
    Read one split of CheXpert into the schema of [`records`] without opening images.

    Args:
        root (`str` or `os.PathLike`): `CheXpert-v1.0`, `CheXpert-v1.0-small`, or the folder of the downloaded batches.
        split (`str`): `"train"`, `"validation"` or `"test"`.
        views (`str`, *optional*, defaults to `"all"`): `"first"` keeps the first view of each study.
        chexmask (`str` or `os.PathLike`, *optional*):
            A table of CheXmask, or its folder, for masks of the full-size images; see [`chexmask`].

    Returns:
        `datasets.Dataset`: one record per existing image, in the order of the table; no texts.

    Raises:
        `ValueError`: see [`make_records`]; also a missing table or column.
    """
    check_split(split, SPLITS, "chexpert")
    check_views(views, "chexpert")
    if split == "test":
        frame = read_test_table(Path(root))
    else:
        table = "train.csv" if split == "train" else "valid.csv"
        path = find_in_archive(root, [table, f"*batch 1*/{table}"], "chexpert", SOURCE)
        frame = read_columns(path, ("Path", *CHEXPERT_FINDINGS), DETAILS)
    folder = {"validation": "valid"}.get(split, split)
    patients = find_patients(Path(root), [folder, f"*batch 1*/{folder}", f"*({folder} *)"])
    frame = add_ids(drop_repeated(frame, "Path", f"chexpert, split {split}"), "Path", "chexpert", views)
    frame["Path"] = [
        f"{patients.get(patient, folder)}/{patient}/{study}/{PurePosixPath(path).name}"
        for patient, study, path in zip(frame["patient_id"], frame["study"], frame["Path"], strict=True)
    ]
    columns = {"image": "Path", **add_details(frame, *DETAILS), **{finding: finding for finding in CHEXPERT_FINDINGS}}
    return add_masks(make_records(frame, columns, root, split, "chexpert", skip_missing=True), chexmask, "chexpert")


def read_radiologists(root: str | os.PathLike) -> pd.DataFrame:
    """
    The labels of the three radiologists whom models are compared with on CheXpert's test set.

    Args:
        root (`str` or `os.PathLike`): `cheXpert-test-set-labels`, or a folder that holds it.

    Returns:
        `pd.DataFrame`: index `(reader, study_id)`, as in `frame.loc["bc4"]`, one column per finding with 0.0 or 1.0;
        the columns in one order, which differs between the files.

    Raises:
        `ValueError`: a missing file or column, or other values.
    """
    frames = {}
    for reader in RADIOLOGISTS:
        names = [f"radiologists/benchmark_radiologists/{reader}.csv", f"radiologists/{reader}.csv"]
        names += [f"*/{name}" for name in names]
        frames[reader] = read_study_table(find_in_archive(root, names, "the radiologists' labels", TEST_SOURCE))
    return pd.concat(frames, names=["reader"])


def read_study_table(path: Path) -> pd.DataFrame:
    """A table of labels by study, index `study_id`, findings in the usual order."""
    frame = drop_repeated(read_columns(path, ("Study", *CHEXPERT_FINDINGS)), "Study", path.name)
    ids = frame["Study"].str.extract(r"(?:^|/)(patient\d+)/(study\d+)$")
    values = frame[list(CHEXPERT_FINDINGS)].apply(pd.to_numeric, errors="coerce")
    if ids.isna().any(axis=None) or not values.isin((0, 1)).all(axis=None):
        raise ValueError(f"{path.name}: studies or labels are not those of the archive; get it from {TEST_SOURCE}.")
    return values.astype("float32").set_index((ids[0] + "_" + ids[1]).rename("study_id"))


def read_test_table(root: Path) -> pd.DataFrame:
    """Paths and labels of the test set, from a table by image, or else of the studies that have labels."""
    by_image = find_first(root, ["test_labels.csv", "test.csv"])
    by_study = find_first(root, ["groundtruth.csv", "*/groundtruth.csv"])
    if by_image is None and by_study is None:
        by_image = find_in_archive(
            root, ["test_labels.csv"], "chexpert", f"{SOURCE} (or groundtruth.csv: {TEST_SOURCE})"
        )
    if by_study is None:
        return read_columns(by_image, ("Path", *CHEXPERT_FINDINGS), DETAILS)
    labels = read_study_table(by_study)
    if by_image is not None:
        frame = read_columns(by_image, ("Path",), DETAILS)
    else:
        find_in_archive(root, ["test"], "chexpert", SOURCE)
        images = (root / "test").glob("patient*/study*/view*.jpg")
        frame = pd.DataFrame({"Path": sorted(path.relative_to(root).as_posix() for path in images)}, dtype=str)
    ids = frame["Path"].str.extract(IMAGE_PATH)
    studies = ids[0] + "_" + ids[1]
    found = labels.reindex(studies).set_index(frame.index)
    return pd.concat([frame, found], axis=1)[studies.isin(labels.index)]


def add_ids(frame: pd.DataFrame, column: str, name: str, views: str) -> pd.DataFrame:
    """The table with facts from its paths: ids, view, frontal or lateral. `views` as for the readers."""
    ids = frame[column].str.extract(IMAGE_PATH)
    if ids[0].isna().any():
        raise ValueError(
            f"{name}: {ids[0].isna().sum()} paths are not of the form train/patient00001/study1/view1_frontal.jpg; "
            "is this the table of the archive, unchanged?"
        )
    study = ids[0] + "_" + ids[1]
    frame = frame.assign(
        patient_id=ids[0], study=ids[1], study_id=study, view_name=ids[2], image_id=study + "_" + ids[2], side=ids[4]
    )
    if views == "all":
        return frame
    number = ids[3].astype(int)
    return frame[number == number.groupby(study).transform("min")]


def add_details(frame: pd.DataFrame, sex: str, age: str, side: str, projection: str) -> dict[str, str]:
    """
    Add view, sex and age in the words of the schema; which of them the table has, as columns for [`make_records`].
    """
    lateral = (frame[side] if side in frame.columns else frame["side"]).str.lower() == "lateral"
    views = frame[projection] if projection in frame.columns else pd.Series(pd.NA, index=frame.index, dtype=object)
    frame["view"] = views.fillna("FRONTAL").mask(lateral, "LATERAL")
    columns = {"view": "view"}
    if sex in frame.columns:
        frame["sex"] = frame[sex].map(SEXES)
        columns["sex"] = "sex"
    if age in frame.columns:
        years = pd.to_numeric(frame[age], errors="coerce")
        frame["age"] = years.where(years > 0)
        columns["age"] = "age"
    return columns


def find_patients(root: Path, folders: Iterable[str]) -> dict[str, str]:
    """
    Patient to the folder below `root` that holds the patient's images; the first of `folders` that has it counts.
    """
    patients: dict[str, str] = {}
    for pattern in folders:
        for folder in sorted(filter(Path.is_dir, root.glob(pattern))):
            for name in filter(re.compile(r"patient\d+").fullmatch, os.listdir(folder)):
                patients.setdefault(name, folder.relative_to(root).as_posix())
    return patients


def check_views(views: str, name: str) -> None:
    if views not in VIEWS:
        raise ValueError(f"{name}: views are {views!r}; choose {' or '.join(VIEWS)}.")
