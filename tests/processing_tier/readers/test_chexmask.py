import gzip

import numpy as np
import pandas as pd
import pytest
from archive_files import error_of, no_split, write

from processing_tier.readers import read_records
from processing_tier.readers.chexmask import MAX_LINE, TABLES, add_masks
from processing_tier.records.from_table import make_records
from processing_tier.records.masks import decode_mask

SCORES = "Dice RCA (Mean),Dice RCA (Max),Landmarks,Left Lung,Right Lung,Heart,Height,Width"
# In OriginalResolution, landmarks are an array as numpy prints it, over several lines
LANDMARKS = '"[[3 1]\n [3 2]\n [4 4]]"'
LEFT = np.zeros((5, 6), bool)
LEFT[1:4, 3:5] = True
RIGHT = np.zeros((5, 6), bool)
RIGHT[0, 5] = RIGHT[1, :2] = True  # one run over the end of a row
HEART = np.zeros((5, 6), bool)
HEART[2:, 2:4] = HEART[4, 5] = True


def pairs(mask: np.ndarray) -> str:
    """A mask as CheXmask ships it, by the definition: first pixel from 1 and length, row by row."""
    pixels = np.concatenate([[False], mask.ravel(), [False]])
    edges = np.flatnonzero(pixels[1:] != pixels[:-1])
    return " ".join(f"{start + 1} {end - start}" for start, end in edges.reshape(-1, 2))


def row(name, score="0.85", left=None, right=None, heart=None, size="5,6"):
    organs = (pairs(LEFT) if left is None else left, pairs(RIGHT) if right is None else right)
    return f"{name},{score},0.9,{LANDMARKS},{','.join(organs)},{pairs(HEART) if heart is None else heart},{size}"


@pytest.fixture
def records(tmp_path):
    """Images of VinDr-CXR, without masks."""
    names = [f"{number:032x}" for number in range(4)]
    for name in names:
        write(tmp_path / f"{name}.dicom")
    frame = pd.DataFrame({"image": [f"{name}.dicom" for name in names], "patient_id": names, "image_id": names})
    return make_records(frame.assign(Edema=0.0), {"Edema": "Edema"}, tmp_path, "train", "vindr_cxr")


def masks_of(dataset, index):
    return {
        mask["finding"]: decode_mask(mask["counts"], mask["height"], mask["width"]) for mask in dataset["masks"][index]
    }


def test_masks(records, tmp_path, caplog):
    names = records["image_id"][:]
    rows = [
        row("f" * 32, left="no numbers"),  # of another split: not read
        row(names[1]),
        row(names[1], left="no numbers"),
        row(names[2], score="0.69", left="no numbers"),
        row(names[3], left="", size="5.0,6.0"),
    ]
    write(tmp_path / "VinDr-CXR.csv", [f"image_id,{SCORES}", *rows], end="\n")
    dataset = add_masks(records, tmp_path / "VinDr-CXR.csv", "vindr_cxr")
    assert caplog.messages == [
        "VinDr-CXR.csv: masks of 1 images with Dice RCA (Mean) below 0.7 are left out; 1 repeated rows are dropped."
    ]
    assert dataset["image_id"][:] == names and dataset["Edema"][:] == [0] * 4
    assert dataset["masks"][0] == dataset["masks"][2] == []
    for index, expected in {
        1: {"Left Lung": LEFT, "Right Lung": RIGHT, "Heart": HEART},
        3: {"Right Lung": RIGHT, "Heart": HEART},
    }.items():
        found = masks_of(dataset, index)
        assert list(found) == list(expected)
        assert all((found[organ] == mask).all() for organ, mask in expected.items())


def test_the_folder_and_gzip(records, tmp_path):
    path = tmp_path / "chexmask" / "OriginalResolution" / "VinDr-CXR.csv.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress(f"image_id,{SCORES}\n{row(records['image_id'][0])}\n".encode()))
    assert (masks_of(add_masks(records, tmp_path / "chexmask", "vindr_cxr"), 0)["Heart"] == HEART).all()
    path.write_bytes(path.read_bytes()[:-20])
    assert error_of(add_masks, records, path, "vindr_cxr") == (
        "VinDr-CXR.csv.gz: the file is cut short or not a table of masks; download it again."
    )


def test_the_readers_find_their_images(tmp_path):
    """Each archive has its own column, and its own form of an image's name."""
    nih = tmp_path / "nih"
    header = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"
    write(nih / "Data_Entry_2017_v2020.csv", [header, "00000001_000.png,Mass,0,1,58,M,PA"])
    write(nih / "BBox_List_2017.csv", ["Image Index,Finding Label,Bbox [x,y,w,h],,,"])
    write(nih / "train_val_list.txt", ["00000001_000.png"])
    write(nih / "images" / "00000001_000.png")
    chexpert = tmp_path / "chexpert"
    findings = (
        "No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,"
        "Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
    )
    path = "train/patient00001/study1/view1_frontal.jpg"
    write(chexpert / "train.csv", [f"Path,{findings}", f"CheXpert-v1.0/{path}" + "," * 14])
    write(chexpert / path)
    masks = tmp_path / "chexmask" / "OriginalResolution"
    write(masks / "ChestX-Ray8.csv", [f"Image Index,{SCORES}", row("00000001_000.png")], end="\n")
    write(masks / "CheXpert.csv", [f"Path,{SCORES}", row(path)], end="\n")
    for data in (f"chestxray14:{nih}", f"chexpert:{chexpert}"):
        assert (masks_of(read_records(f"{data},chexmask={masks.parent}", "train"), 0)["Left Lung"] == LEFT).all()
        assert "masks" not in read_records(data, "train").column_names
    assert set(TABLES) == {"chestxray14", "chexpert", "mimic_cxr", "mimic_cxr_jpg", "padchest", "vindr_cxr"}
    assert error_of(read_records, f"chestxray14:{nih},image_size=512,chexmask={masks}", "train") == (
        "chestxray14: the masks of chexmask are of images of 1024 pixels; leave image_size or chexmask out."
    )
    assert error_of(read_records, f"chexpert:{chexpert},chexmask={masks}", "dev") == no_split(
        "chexpert", "dev", "train, validation, test"
    )


def test_errors(records, tmp_path):
    table, name = tmp_path / "VinDr-CXR.csv", records["image_id"][0]

    def message(*rows, header=f"image_id,{SCORES}"):
        write(table, [header, *rows], end="\n")
        return error_of(add_masks, records, table, "vindr_cxr")

    form = "a mask is not pairs of a first pixel and a length; download its file again."
    for text in ("1", "a b", "1 -2", "1.5 2", "1 9999999999", "\u0661 2"):
        assert message(row(name, heart=text)) == f"VinDr-CXR.csv, row 1: {form}"
    for text in ("0 2", "29 3", "1 5 3 2", "5 2 1 2"):
        assert message(row("other"), row(name, heart=text)) == (
            "VinDr-CXR.csv, row 2: the run lengths of a mask overlap or leave its 5x6 pixels (height x width); "
            "download its file again."
        )
    for size in (",6", "5.5,6", "inf,6"):
        assert message(row(name, size=size)) == (
            "VinDr-CXR.csv, row 1: a size is not a whole number; download the file again."
        )
    for wrong in (row(name, size="x,6"), row(name, score="good")):
        assert message(wrong) == "VinDr-CXR.csv, row 1: a size or a score is not a number; download the file again."
    assert message(row(name, size="99999999,6")) == (
        "VinDr-CXR.csv, row 1: a mask of 99999999x6 pixels (height x width) is empty or larger than any radiograph."
    )
    broken = "VinDr-CXR.csv: the file is cut short or not a table of masks; download it again."
    assert message(f"{name},0.9") == broken
    assert message(row(name, heart="1 " * MAX_LINE)) == broken
    assert message(row(name, heart="1 1 " * 50_000)) == broken  # longer than csv allows for one value
    assert message(row(name), header=f"dicom_id,{SCORES}") == (
        "VinDr-CXR.csv: column 'image_id' is missing; is it CheXmask's table of these images?"
    )
    nothing = "VinDr-CXR.csv: it has no usable mask of these images; is it CheXmask's table of vindr_cxr?"
    assert message(row("other")) == nothing
    table.write_bytes(b"")
    assert error_of(add_masks, records, table, "vindr_cxr").startswith("VinDr-CXR.csv: column 'image_id' is missing")
    table.write_bytes(b"\xff\xfe\x00")
    assert error_of(add_masks, records, table, "vindr_cxr") == broken
    other = tmp_path / "Preprocessed" / "VinDr-CXR.csv"
    write(other, [f"image_id,{SCORES}", row(name)], end="\n")
    assert error_of(add_masks, records, other, "vindr_cxr") == (
        "VinDr-CXR.csv: the masks in Preprocessed are not in the pixels of the archive's images; name the table in "
        "OriginalResolution."
    )
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert error_of(add_masks, records, tmp_path / "a" / "b", "vindr_cxr").endswith(
        "OriginalResolution/VinDr-CXR.csv* of chexmask is not in this folder; get it from "
        "https://physionet.org/content/chexmask-cxr-segmentation-data/."
    )
