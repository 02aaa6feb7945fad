"""
ChestX-ray14 (NIH): 112,120 frontal radiographs of 30,805 patients, 14 findings mined from reports, 984 boxes.

Where: https://nihcc.app.box.com/v/ChestXray-NIHCC (Wang et al., CVPR 2017). Terms: no restriction on use; name
the NIH Clinical Center as the source and cite the paper.

The folder as the NIH ships it:

    Data_Entry_2017_v2020.csv  (or Data_Entry_2017.csv)
    BBox_List_2017.csv
    train_val_list.txt  test_list.txt
    images_001/images/00000001_000.png ... images_012/images/  (or all of them in images/)

Derived fields:

- split: the official one by patient (Wang et al., 2017, version 5): `train` is train_val_list.txt (86,524 images),
  `test` is test_list.txt (25,596). CheXNet and its successors use another split, by patient at random into 70, 10 and
  20 %. Its authors ship it only as lists, which the option `lists` reads.
- findings: the 14 names and `No Finding` as shipped (`Pleural_Thickening`), 1 where the labels name it, otherwise 0.
- patient: the number with its leading zeros (`00000001`), as in the names of the files, so that patients can be
  compared with those of the data sets made from this one (ChestX-Det10, RSNA with its mapping).
- boxes: BBox_List_2017.csv, of 880 images; its `Infiltrate` is `Infiltration`. They are in pixels of the 1024 x 1024
  images as shipped: for resized copies, give their size in the option `image_size`.
- sex, view, age (`058Y` of the first version is 58 years; ages above 120, such as 414, are typing errors and become
  NaN). There are no reports.

Checked against the NIH's own tables (version 2020) and boxes. The quirks of the 2017 table are known from public code.
"""

import os
from pathlib import Path

import datasets
import pandas as pd

from processing_tier.records.boxes import group_boxes
from processing_tier.records.from_table import make_records

from .archive_tables import drop_repeated, find_in_archive, read_bounded, read_columns
from .chexmask import add_masks
from .formats import read_frame
from .splits import check_split

SPLITS = ("train", "test")
LISTS = {"train": "train_val_list.txt", "test": "test_list.txt"}
OTHER_LISTS = {"train": "train_list.txt", "validation": "val_list.txt", "test": "test_list.txt"}
NAME = "chestxray14"
SOURCE = "https://nihcc.app.box.com/v/ChestXray-NIHCC"
SIDE = 1024  # pixels of the images as shipped
MAX_LIST_BYTES = 64 * 2**20
SEX_COLUMNS = ("Patient Gender", "Patient Sex")  # of the first and the second edition
NO_FINDING = "No Finding"
FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)


def read_chestxray14(
    root: str | os.PathLike,
    split: str,
    *,
    lists: str | os.PathLike | None = None,
    image_size: int = SIDE,
    chexmask: str | os.PathLike | None = None,
) -> datasets.Dataset:
    """
    Read one split of ChestX-ray14 into the schema of [`records`] without opening images.

    Args:
        root (`str` or `os.PathLike`): the folder with `Data_Entry_2017_v2020.csv`.
        split (`str`): `"train"` or `"test"`; with `lists` also `"validation"`.
        lists (`str` or `os.PathLike`, *optional*):
            Folder of another split: `train_list.txt`, `val_list.txt` and `test_list.txt`. Each line starts with the
            name of an image; the rest of the line is ignored.
        image_size (`int`, *optional*, defaults to 1024): width and height of the stored images in pixels.
        chexmask (`str` or `os.PathLike`, *optional*): a table of CheXmask, or its folder, for masks; see [`chexmask`].

    Returns:
        `datasets.Dataset`: one record per existing image, in the order of the table.

    Raises:
        `ValueError`: see [`make_records`]; also a missing file or column, an unknown label, an impossible size, or
        masks for resized copies.
    """
    files = LISTS if lists is None else OTHER_LISTS
    check_split(split, tuple(files), NAME)
    if not isinstance(image_size, int) or image_size < 1:
        raise ValueError(f"{NAME}: image_size is {image_size!r}; give the width of the stored images in pixels.")
    if chexmask is not None and image_size != SIDE:
        raise ValueError(
            f"{NAME}: the masks of chexmask are of images of {SIDE} pixels; leave image_size or chexmask out."
        )
    table = find_in_archive(root, ["Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv"], NAME, SOURCE)
    frame = read_entries(table, find_list(root, lists, files[split]))
    frame = drop_repeated(frame, "Image Index", f"{NAME}, split {split}").reset_index(drop=True)

    images = find_images(Path(root))
    names = frame["Image Index"]
    labels = frame["Finding Labels"].fillna("").str.split("|")
    others = set().union(*labels) - {*FINDINGS, NO_FINDING}
    if others:
        raise ValueError(f"{table.name}: the label {min(others)!r} is not one of the 14; is the table as shipped?")
    records = pd.DataFrame(
        {
            "image": [images.get(name, f"images/{name}") for name in names],
            "patient_id": frame["Patient ID"].str.zfill(8),
            "view": frame["View Position"],
            "sex": frame["sex"].str.strip(),
            "age": frame["Patient Age"],
            "boxes": names.map(read_box_list(Path(root), set(names), image_size)),
        }
    )
    for finding in (*FINDINGS, NO_FINDING):
        records[finding] = [float(finding in present) for present in labels]
    columns = {finding: finding for finding in (*FINDINGS, NO_FINDING)}
    return add_masks(make_records(records, columns, root, split, NAME, skip_missing=True), chexmask, NAME)


def find_list(root: str | os.PathLike, lists: str | os.PathLike | None, name: str) -> Path:
    """The list of the images of a split: in the archive, or in the folder `lists` of another split."""
    if lists is None:
        return find_in_archive(root, [name], NAME, SOURCE)
    path = Path(lists) / name
    if not path.is_file():
        raise ValueError(f"{lists}: {name} is not in this folder of lists; name the folder that has it.")
    return path


def read_entries(table: Path, names: Path) -> pd.DataFrame:
    """The rows of the images that the list `names` has; the column of the sex is called `sex` in every edition."""
    needed = ("Image Index", "Finding Labels", "Patient ID", "Patient Age", "View Position")
    frame = read_columns(table, needed, SEX_COLUMNS)
    sex = next((column for column in SEX_COLUMNS if column in frame), None)
    if sex is None:
        raise ValueError(f"{table.name}: column {SEX_COLUMNS[0]!r} is missing; is this the table as shipped?")
    frame = frame.rename(columns={sex: "sex"})
    frame = frame[frame["Image Index"].isin(read_list(names))]
    if frame.empty:
        raise ValueError(f"{names.name}: the list names no image of {table.name}; is it the right list?")
    return frame


def read_list(path: Path) -> set[str]:
    """The images that a list names: the last part of the first word of each line."""
    lines = read_bounded(path, MAX_LIST_BYTES).decode("utf-8", errors="replace").splitlines()
    return {line.split()[0].rpartition("/")[2] for line in lines if line.strip()}


def find_images(root: Path) -> dict[str, str]:
    """Name of each image to its path below `root`."""
    images: dict[str, str] = {}
    for folder in (root / "images", *sorted(root.glob("images_*/images")), *sorted(root.glob("images_*"))):
        if folder.is_dir():
            below = folder.relative_to(root)
            for name in os.listdir(folder):
                images.setdefault(name, f"{below}/{name}")
    return images


def read_box_list(root: Path, names: set[str], image_size: int) -> pd.Series:
    """The boxes of each of the images, in pixels of images of that size."""
    path = find_in_archive(root, ["BBox_List_2017.csv"], NAME, SOURCE)
    frame = read_frame(path).iloc[:, :6]  # the header, "Bbox [x,y,w,h],,,", names three columns more than there are
    if frame.shape[1] < 6 or not str(frame.columns[2]).startswith("Bbox"):
        raise ValueError(
            f"{path.name}: the columns are not image, finding, x, y, w and h; is this the list as shipped?"
        )
    frame.columns = ["image_id", "finding", "x", "y", "w", "h"]
    frame = frame[frame["image_id"].isin(names)]
    frame["finding"] = frame["finding"].replace("Infiltrate", "Infiltration")
    for side in "xywh":
        frame[side] = pd.to_numeric(frame[side], errors="coerce") * (image_size / SIDE)
    return group_boxes(frame, path.name, image_size, image_size)
