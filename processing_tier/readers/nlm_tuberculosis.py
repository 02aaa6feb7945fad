"""
Montgomery and Shenzhen: 138 and 662 radiographs of tuberculosis screening, with the radiologists' short readings.

Where: https://data.lhncbc.nlm.nih.gov/public/Tuberculosis-Chest-X-ray-Datasets/ (Jaeger et al., Quant Imaging Med Surg
2014, doi:10.3978/j.issn.2223-4292.2014.11.20). Terms: public domain, no account; the National Library of Medicine asks
to name it as the source and to cite the paper.

The folders as the library ships them (`MontgomerySet`, `ChinaSet_AllFiles`):

    CXR_png/MCUCXR_0001_0.png ...           CXR_png/CHNCXR_0001_0.png ...
    ClinicalReadings/MCUCXR_0001_0.txt      ClinicalReadings/CHNCXR_0001_0.txt
    ManualMask/leftMask/  rightMask/        Annotations/  (masks of the findings)
    montgomery_consensus_roi.csv            shenzhen_consensus_roi.csv

Derived fields:

- split: there is no official one, so everything is `train`. Both sets are usually a test set.
- findings: `Tuberculosis` is 1 where the name of the file ends in `_1`, and `No Finding` where it ends in `_0`.
- text: the reading without its lines of sex and age ("normal", "bilateral PTB"), in `findings` and `report`. A reading
  that says `NO REPORT` is blank. There are no impressions.
- sex and age: from the reading. Ages in months and days are years; an age without a unit is blank.
- patient: the number in the name with its prefix (`MCUCXR_0001`). The readings say that 0117 is the patient of 0113,
  and that 0166 is the one of 0162; 0170 has the age and sex of 0162 and mentions earlier images. Each group shares
  an id.
- view: PA, as the owner states for all images.

TBX11K holds images of both sets at 512 x 512 pixels, see `tbx11k`. The masks of the lungs and the boxes of two
radiologists, which are in pixels of smaller copies, are not read. Written from the owner's description and from public
code that reads both sets (RadHarmony, and tests of parsers that quote real readings); not checked against a copy.
"""

import logging
import os
import re
from pathlib import Path

import datasets
import pandas as pd

from processing_tier.records.from_table import make_records

from ..radiograph_tier import path_under
from .archive_tables import find_in_archive, read_bounded
from .splits import check_split

logger = logging.getLogger(__name__)

SPLITS = ("train",)
SOURCE = "https://data.lhncbc.nlm.nih.gov/public/Tuberculosis-Chest-X-ray-Datasets/"
FINDINGS = ("Tuberculosis", "No Finding")
IMAGES, READINGS = "CXR_png", "ClinicalReadings"
IMAGE_NAME = re.compile(r"((?:MCU|CHN)CXR_\d+)_([01])")
SAME_PATIENT = {"MCUCXR_0117": "MCUCXR_0113", "MCUCXR_0166": "MCUCXR_0162", "MCUCXR_0170": "MCUCXR_0162"}
MAX_READING_BYTES = 2**16  # the longest has a few hundred
SEX_LINE = re.compile(r"patient's sex:\s*(\w?).*", re.IGNORECASE)
AGE_LINE = re.compile(r"patient's age:\s*(\w*).*", re.IGNORECASE)
# As found: "male 45yrs", "femal 32yrs", "female24yrs", "male , 29yrs", "male 16month", "female 64days", "male 42"
PERSON_LINE = re.compile(r"(male|femal)e?\W*(?:(\d+)\s*([a-z]?)[a-z]*\W*)?", re.IGNORECASE)


def read_montgomery(root: str | os.PathLike, split: str = "train") -> datasets.Dataset:
    """
    Read the Montgomery County set into the schema of [`records`] without opening images.

    Args:
        root (`str` or `os.PathLike`): the folder with `CXR_png` and `ClinicalReadings`.
        split (`str`, *optional*, defaults to `"train"`): the only one.

    Returns:
        `datasets.Dataset`: one record per image, in the order of the names.

    Raises:
        `ValueError`: see [`make_records`]; also a missing folder.
    """
    return read_set(root, split, "montgomery", "MCUCXR")


def read_shenzhen(root: str | os.PathLike, split: str = "train") -> datasets.Dataset:
    """Read the Shenzhen Hospital set; see [`read_montgomery`]."""
    return read_set(root, split, "shenzhen", "CHNCXR")


def read_set(root: str | os.PathLike, split: str, name: str, prefix: str) -> datasets.Dataset:
    """One of the two sets, whose names of files begin with `prefix`; the folder may hold both."""
    check_split(split, SPLITS, name)
    find_in_archive(root, [f"{IMAGES}/{prefix}_*.png"], name, SOURCE)
    root = Path(root)
    if not (root / READINGS).is_dir():
        logger.warning("%s: %s is not in this folder: texts, sex and age are blank.", name, READINGS)
    rows = []
    for path in sorted((root / IMAGES).glob(f"{prefix}_*.png")):
        match = IMAGE_NAME.fullmatch(path.stem)
        if match is None:
            raise ValueError(f"{path.name}: the name does not end in _0 or _1, which is the label; is this {name}?")
        rows.append(
            {
                "image": f"{IMAGES}/{path.name}",
                "image_id": path.stem,
                "patient_id": patient_of(match[1]),
                "view": "PA",
                "Tuberculosis": float(match[2] == "1"),
                "No Finding": float(match[2] == "0"),
                **read_reading(root / READINGS, f"{path.stem}.txt"),
            }
        )
    frame = pd.DataFrame(rows).assign(report=lambda frame: frame["findings"])
    return make_records(frame, {finding: finding for finding in FINDINGS}, root, split, name)


def patient_of(number: str) -> str:
    """The patient of an image, such as `MCUCXR_0113` of both `MCUCXR_0113` and `MCUCXR_0117`."""
    return SAME_PATIENT.get(number, number)


def read_reading(folder: Path, name: str) -> dict[str, str]:
    """`findings`, `sex` and `age` of a clinical reading, blank if it does not exist."""
    path = path_under(folder, name)
    data = read_bounded(path, MAX_READING_BYTES) if path.is_file() else b""
    return parse_reading(data.decode("utf-8-sig", errors="replace"))


def parse_reading(text: str) -> dict[str, str]:
    """
    The parts of a reading of either set.

    Returns:
        `dict[str, str]`: `findings`, the text; `sex`, `M`, `F` or as found; `age` in DICOM's form (`045Y`, `16M`).
    """
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    sex = age = ""
    rest = []
    for place, line in enumerate(lines):
        if match := SEX_LINE.fullmatch(line):
            sex = match[1]
        elif match := AGE_LINE.fullmatch(line):
            age = match[1]
        elif place == 0 and (match := PERSON_LINE.fullmatch(line)):
            sex = "M" if match[1].lower() == "male" else "F"
            age = match[2] + match[3] if match[3] else ""
        else:
            rest.append(line)
    findings = " ".join(rest)
    return {"findings": "" if findings.upper().startswith("NO REPORT") else findings, "sex": sex, "age": age}
