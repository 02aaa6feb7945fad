"""
VinDr-PCXR (PediCXR): 9,125 PA radiographs of children under ten, 15 diagnoses and 36 findings with boxes.

Where: https://physionet.org/content/vindr-pcxr/1.0.0/ (Pham et al., Scientific Data 2023). Terms: restricted access, a
PhysioNet account and a signed data use agreement.

The folder as PhysioNet ships it:

    image_labels_train.csv  image_labels_test.csv  (image_id, rad_ID, the 15 diagnoses)
    annotations_train.csv  annotations_test.csv  (image_id, rad_ID, class_name, x_min, y_min, x_max, y_max)
    train/<image_id>.dicom  test/<image_id>.dicom

Derived fields:

- split: the official one (7,728 and 1,397 images).
- findings: the 15 diagnoses as the tables have them, one of which is `No finding`, and the 36 findings, 1 if the image
  has a box of it, otherwise 0: one radiologist read each image for all of them. Five misspelt names are corrected,
  because a name becomes a sentence: [`CORRECTED`].
- boxes: of the 36 findings, in pixels of the DICOM image. The tables do not have the sizes of the images, so a box may
  reach beyond its image.
- patient: neither the tables nor the headers name patients, so each image is its own patient.
- view: PA, as the owners state for all images. Sex and age are only in the DICOM headers, which are not opened.

Written from PhysioNet's description and from public code that reads all tables and names these columns and classes
(RadHarmony and others); not checked against a copy.
"""

import os

import datasets
import pandas as pd

from processing_tier.records.boxes import group_boxes
from processing_tier.records.from_table import make_records
from processing_tier.records.labels import to_numbers

from .archive_tables import drop_repeated, find_in_archive, read_columns
from .splits import check_split

SPLITS = ("train", "test")
NAME = "vindr_pcxr"
SOURCE = "https://physionet.org/content/vindr-pcxr/1.0.0/"
NO_FINDING = "No finding"
DIAGNOSES = (
    NO_FINDING,
    "Bronchitis",
    "Brocho-pneumonia",
    "Other disease",
    "Bronchiolitis",
    "Situs inversus",
    "Pneumonia",
    "Pleuro-pneumonia",
    "Diagphramatic hernia",
    "Tuberculosis",
    "Congenital emphysema",
    "CPAM",
    "Hyaline membrane disease",
    "Mediastinal tumor",
    "Lung tumor",
)
MARKED = (
    "Anterior mediastinal mass",
    "Aortic enlargement",
    "Atelectasis",
    "Boot-shaped heart",
    "Bronchectasis",
    "Bronchial thickening",
    "Calcification",
    "Cardiomegaly",
    "Chest wall mass",
    "Clavicle fracture",
    "Consolidation",
    "Dextro cardia",
    "Diffuse aveolar opacity",
    "Edema",
    "Egg on string sign",
    "Emphysema",
    "Enlarged PA",
    "Expanded edges of the anterior ribs",
    "Infiltration",
    "Interstitial lung disease - ILD",
    "Intrathoracic digestive structure",
    "Lung cavity",
    "Lung cyst",
    "Lung hyperinflation",
    "Mediastinal shift",
    "Other lesion",
    "Other nodule/mass",
    "Other opacity",
    "Paraveterbral mass",
    "Peribronchovascular interstitial opacity",
    "Pleural effusion",
    "Pleural thickening",
    "Pneumothorax",
    "Pulmonary fibrosis",
    "Reticulonodular opacity",
    "Stomach on the right side",
)
CORRECTED = {
    "Brocho-pneumonia": "Broncho-pneumonia",
    "Diagphramatic hernia": "Diaphragmatic hernia",
    "Bronchectasis": "Bronchiectasis",
    "Diffuse aveolar opacity": "Diffuse alveolar opacity",
    "Paraveterbral mass": "Paravertebral mass",
}


def read_vindr_pcxr(root: str | os.PathLike, split: str) -> datasets.Dataset:
    """
    Read one split of VinDr-PCXR into the schema of [`records`] without opening images.

    Args:
        root (`str` or `os.PathLike`): the folder with `image_labels_train.csv` and `train`.
        split (`str`): `"train"` or `"test"`.

    Returns:
        `datasets.Dataset`: one record per existing image, in the order of the table of labels.

    Raises:
        `ValueError`: see [`make_records`]; also a missing file or column, or an unknown class.
    """
    check_split(split, SPLITS, NAME)
    labels = read_columns(find_in_archive(root, [f"image_labels_{split}.csv"], NAME, SOURCE), ("image_id", *DIAGNOSES))
    labels = drop_repeated(labels, "image_id", f"{NAME}, split {split}").reset_index(drop=True)
    path = find_in_archive(root, [f"annotations_{split}.csv"], NAME, SOURCE)
    marks = read_columns(path, ("image_id", "class_name", "x_min", "y_min", "x_max", "y_max"))
    marks = marks[marks["class_name"] != NO_FINDING]
    others = set(marks["class_name"]) - set(MARKED)
    if others:
        raise ValueError(
            f"{path.name}: the class {min(map(str, others))!r} is not one of the 36; is the table as shipped?"
        )
    boxes = pd.DataFrame({"image_id": marks["image_id"], "finding": marks["class_name"].replace(CORRECTED)})
    boxes["x"], boxes["y"] = to_numbers(marks["x_min"]), to_numbers(marks["y_min"])
    boxes["w"], boxes["h"] = to_numbers(marks["x_max"]) - boxes["x"], to_numbers(marks["y_max"]) - boxes["y"]

    frame = labels.rename(columns=CORRECTED)
    for finding in MARKED:
        name = CORRECTED.get(finding, finding)
        frame[name] = frame["image_id"].isin(boxes["image_id"][boxes["finding"] == name]).astype(float)
    frame["image"] = f"{split}/" + frame["image_id"] + ".dicom"
    frame["patient_id"] = frame["image_id"]
    frame["view"] = "PA"
    frame["boxes"] = frame["image_id"].map(group_boxes(boxes, path.name))
    findings = [CORRECTED.get(finding, finding) for finding in (*DIAGNOSES, *MARKED)]
    return make_records(frame, {name: name for name in findings}, root, split, NAME, skip_missing=True)
