"""
CXR-LT 2026: the 30 known and five of the six unseen classes of the challenge on radiographs of PadChest.

Where: https://cxr-lt.github.io/CXR-LT-2026/, after registration (arXiv:2602.22092, arXiv:2604.15555). Terms: research
only, no redistribution, no attempt to identify anybody; the images are PadChest's, under its terms, see `padchest`.

The folder as the organisers ship it, and PadChest's table and images in it or at `image_root`:

    CXRLT_2026_training.csv  (ImageID, StudyDate_DICOM, PatientID, a column of 0 and 1 for each known class)
    corrupted_images.csv  Removal.csv  (ImageID of images to leave out; optional)

Derived fields:

- split: `train`, the images of the training table. The 3,020 evaluation images (`CXRLT_2026_TEST_ALL_TASK1.csv`,
  `..._TASK2.csv`) are of PadChest-GR; their labels were not released.
- findings: the known classes as the table names them, found in reports. The unseen classes are not in it; they come
  from `Labels` of PadChest: `Scoliosis`, `Osteopenia`, `Bulla` (`bullas`), `Adenopathy` and `goiter`, 1 if the row
  lists it, 0 if it lists others. The sixth, infarction, is not a label of PadChest.
- patient, study, view, sex, age, text: PadChest's. `PatientID` of the training table has lost digits.

Written from the two papers and from public code that reads the tables (hieuphamha19/CXR_LT); not checked against the
files.
"""

import logging
import os
from pathlib import Path

import datasets
import pandas as pd

from processing_tier.records.from_table import make_records

from .archive_tables import drop_repeated, find_first, find_in_archive, read_columns
from .padchest import IDENTITY, add_places, parse_labels, read_images
from .splits import check_split

logger = logging.getLogger(__name__)

SPLITS = ("train",)
NAME = "cxr_lt_2026"
SOURCE = "https://cxr-lt.github.io/CXR-LT-2026/"
TABLE = "CXRLT_2026_training.csv"
LEFT_OUT = ("corrupted_images.csv", "Removal.csv")
KNOWN = (
    *(
        "Normal",
        "aortic elongation",
        "cardiomegaly",
        "pleural effusion",
        "Nodule",
        "atelectasis",
        "pleural thickening",
    ),
    *("aortic atheromatosis", "Support Devices", "alveolar pattern", "fracture", "Hernia", "Emphysema", "azygos lobe"),
    *("Hydropneumothorax", "Kyphosis", "Mass", "Pneumothorax", "Subcutaneous Emphysema", "pneumoperitoneo"),
    *("vascular hilar enlargement", "vertebral degenerative changes", "hyperinflated lung", "interstitial pattern"),
    *("central venous catheter", "hypoexpansion", "bronchiectasis", "hemidiaphragm elevation", "sternotomy"),
    "calcified densities",
)
UNSEEN = {  # to the label of PadChest
    "Scoliosis": "scoliosis",
    "Osteopenia": "osteopenia",
    "Bulla": "bullas",
    "Adenopathy": "adenopathy",
    "goiter": "goiter",
}


def read_cxr_lt_2026(
    root: str | os.PathLike,
    split: str = "train",
    *,
    image_root: str | os.PathLike | None = None,
    method: str = "all",
) -> datasets.Dataset:
    """
    Read CXR-LT 2026 into the schema of [`records`] without opening images.

    Args:
        root (`str` or `os.PathLike`): the folder with `CXRLT_2026_training.csv`.
        split (`str`, *optional*, defaults to `"train"`): the only one.
        image_root (`str` or `os.PathLike`, *optional*): the folder of PadChest; by default `root`.
        method (`str`, *optional*, defaults to `"all"`):
            As for `padchest`; `"Physician"` for the images whose labels in PadChest, and so the unseen classes, are a
            physician's.

    Returns:
        `datasets.Dataset`: one record per existing image, in the order of PadChest's table.

    Raises:
        `ValueError`: see [`make_records`]; also a missing table or column, no image in PadChest's table, or an unknown
        method.
    """
    check_split(split, SPLITS, NAME)
    root, image_root = Path(root), Path(root if image_root is None else image_root)
    path = find_in_archive(root, [TABLE], NAME, SOURCE)
    table = drop_repeated(read_columns(path, ("ImageID", *KNOWN)), "ImageID", NAME)
    table = drop_listed(table, root)
    frame = read_images(image_root, method)
    absent = ~table["ImageID"].isin(frame["ImageID"])
    if absent.all():
        raise ValueError(
            f"{NAME}: no image of {TABLE} is in the table of PadChest; name PadChest's folder in image_root."
        )
    if absent.any():
        logger.warning("%s: %d of %d images are not in PadChest's table: left out.", NAME, absent.sum(), len(table))
    frame = frame.merge(table, on="ImageID", how="inner", validate="one_to_one")
    add_places(frame, image_root)
    frame = pd.concat([frame, find_unseen(frame["Labels"])], axis=1)
    columns = {finding: finding for finding in (*KNOWN, *UNSEEN)}
    columns = {**IDENTITY, "findings": "Report", "report": "Report", **columns}
    return make_records(frame, columns, image_root, split, NAME, skip_missing=True)


def drop_listed(table: pd.DataFrame, root: Path) -> pd.DataFrame:
    """The table without the images that the organisers took back."""
    lists = [path for name in LEFT_OUT if (path := find_first(root, [name])) is not None]
    listed = [image for path in lists for image in read_columns(path, ("ImageID",))["ImageID"]]
    dropped = table["ImageID"].isin(listed)
    if dropped.any():
        names = " and ".join(path.name for path in lists)
        logger.warning("%s: %d of %d images are in %s: left out.", NAME, dropped.sum(), len(table), names)
    return table[~dropped]


def find_unseen(texts: pd.Series) -> pd.DataFrame:
    """A column for each unseen class, from the `Labels` of PadChest; NaN without labels."""
    lists = [parse_labels(text) for text in texts]
    return pd.DataFrame(
        {
            finding: [float("nan") if labels is None else float(label in labels) for labels in lists]
            for finding, label in UNSEEN.items()
        },
        index=texts.index,
    )
