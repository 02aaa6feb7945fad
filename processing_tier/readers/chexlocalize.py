"""
CheXlocalize: the validation and test images of CheXpert (234 and 668) with segmentations of ten findings.

Where: https://stanfordaimi.azurewebsites.net/datasets/23c56a0d-15de-405b-87c8-99c30138950c (Saporta et al., Nature
Machine Intelligence 2022; how to download: https://github.com/rajpurkarlab/cheXlocalize). Terms: Stanford University
Dataset Research Use Agreement: no commercial use, no copies to others, no attempt to identify anybody.

The folder as Stanford ships it:

    CheXlocalize/gt_segmentations_val.json  gt_segmentations_test.json  (and others, which are not read)
    CheXpert/val_labels.csv  test_labels.csv
    CheXpert/val/patient64541/study1/view1_frontal.jpg ...  CheXpert/test/...

Derived fields:

- split: `val` is `validation`, which is CheXpert's public validation set; `test` is CheXpert's test set.
- findings: the 14 of CheXpert as in the tables (radiologists' labels, none uncertain).
- masks: the ground truth of two radiologists, for the ten findings that have one, in pixels of the image. `Airspace
  Opacity` of the segmentations is CheXpert's `Lung Opacity`. Images without any of the ten (169 of `test`) have no
  mask.
- ids, view, sex and age as in `chexpert`; sex and age only where the table has them.

Written from the authors' repository, which has a sample of two images (strings of it are tests of
[`counts_from_coco_string`]), and from public code; not checked against a full copy.
"""

import os
from pathlib import Path

import datasets

from processing_tier.records.from_table import make_records
from processing_tier.records.masks import counts_from_coco_string

from .archive_tables import drop_repeated, find_in_archive, read_columns, read_json
from .chexpert import CHEXPERT_FINDINGS, DETAILS, add_details, add_ids
from .splits import check_split

SPLITS = ("validation", "test")
NAME = "chexlocalize"
SOURCE = "https://stanfordaimi.azurewebsites.net/datasets/23c56a0d-15de-405b-87c8-99c30138950c"
FOLDERS = {"validation": "val", "test": "test"}
LUNG_OPACITY = "Lung Opacity"
SEGMENTED = (
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    LUNG_OPACITY,
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Support Devices",
)


def read_chexlocalize(root: str | os.PathLike, split: str) -> datasets.Dataset:
    """
    Read one split of CheXlocalize into the schema of [`records`] without opening images.

    Args:
        root (`str` or `os.PathLike`): the folder that holds the folders `CheXlocalize` and `CheXpert`.
        split (`str`): `"validation"` or `"test"`.

    Returns:
        `datasets.Dataset`: one record per existing image, in the order of the table of labels.

    Raises:
        `ValueError`: see [`make_records`]; also a missing file or column, or a broken mask.
    """
    check_split(split, SPLITS, NAME)
    short = FOLDERS[split]
    path = find_in_archive(root, [f"CheXpert/{short}_labels.csv"], NAME, SOURCE)
    frame = read_columns(path, ("Path", *CHEXPERT_FINDINGS), DETAILS)
    frame = add_ids(drop_repeated(frame, "Path", f"{NAME}, split {split}"), "Path", NAME, "all")
    masks = read_segmentations(find_in_archive(root, [f"CheXlocalize/gt_segmentations_{short}.json"], NAME, SOURCE))
    frame["masks"] = [masks.get(image, []) for image in frame["image_id"]]
    image = frame["patient_id"] + "/" + frame["study"] + "/" + frame["view_name"]
    frame["image"] = f"CheXpert/{short}/" + image + ".jpg"
    columns = {**add_details(frame, *DETAILS), **{finding: finding for finding in CHEXPERT_FINDINGS}}
    return make_records(frame, columns, root, split, NAME, skip_missing=True)


def read_segmentations(path: Path) -> dict[str, list[dict]]:
    """The masks of each image, without empty ones."""
    data = read_json(path)
    try:
        entries = [
            (image, finding, int(mask["size"][0]), int(mask["size"][1]), str(mask["counts"]))
            for image, segmentations in data.items()
            for finding, mask in segmentations.items()
        ]
    except (AttributeError, TypeError, LookupError, ValueError, OverflowError):
        raise ValueError(f"{path.name}: the segmentations are not as shipped; download it again.") from None
    masks: dict[str, list[dict]] = {}
    for image, finding, height, width, text in entries:
        finding = LUNG_OPACITY if finding == "Airspace Opacity" else finding
        if finding not in SEGMENTED:
            raise ValueError(f"{path.name}: {finding!r} is not one of the ten findings.")
        try:
            counts = counts_from_coco_string(text, height, width)
        except ValueError as error:
            raise ValueError(f"{path.name}: {error}") from None
        if len(counts) > 1:
            mask = {"finding": finding, "height": height, "width": width, "counts": counts}
            masks.setdefault(image, []).append(mask)
    return masks
