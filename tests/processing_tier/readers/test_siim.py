import math

import pytest
from archive_files import error_of, no_split, write

from processing_tier.readers.siim import read_siim
from processing_tier.records.masks import decode_mask
from processing_tier.records.schema import finding_columns

UID = "1.2.276.0.7230010.3.1.4.8323329.{}.1517875252.4438"
A, B, C, D, T, U = (UID.format(number) for number in range(6))
FIRST_STAGE = ["ImageId, EncodedPixels", f"{A}, -1", f"{B}, 1024 3 1021 2", f"{B}, 0 5", f"{B}, 0 5", f"{C}, -1"]


@pytest.fixture
def root(tmp_path):
    write(tmp_path / "train-rle.csv", FIRST_STAGE)
    write(tmp_path / "dicom-images-train" / "study1" / "series1" / f"{A}.dcm")
    write(tmp_path / "dicom-images-train" / f"{B}.dcm")
    write(tmp_path / "dicom-images-test" / "study2" / "series2" / f"{T}.dcm")
    return tmp_path


def test_first_stage(root, caplog):
    dataset = read_siim(root, "train")
    first = f"dicom-images-train/{C}.dcm"
    assert caplog.messages == [f"siim, split train: 1 of 3 images are missing, the first is {first}: left out."]
    assert finding_columns(dataset) == ["Pneumothorax"]
    assert dataset["image_id"][:] == dataset["patient_id"][:] == [A, B]
    assert dataset["image"][0]["path"].endswith(f"dicom-images-train/study1/series1/{A}.dcm")
    assert dataset["Pneumothorax"][:] == [0, 1]
    assert dataset["masks"][0] == []
    first, second = dataset["masks"][1]
    assert first == {
        "finding": "Pneumothorax",
        "height": 1024,
        "width": 1024,
        "counts": [1024, 3, 1021, 2, 1024 * 1024 - 2050],
    }
    mask = decode_mask(first["counts"], 1024, 1024)
    assert mask[:3, 1].all() and mask[:2, 2].all() and mask.sum() == 5
    assert second["counts"] == [0, 5, 1024 * 1024 - 5]

    test = read_siim(root, "test")
    assert test["image_id"][:] == [T] and math.isnan(test["Pneumothorax"][0]) and test["masks"][:] == [[]]


def test_second_stage_labels_the_tests_of_the_first(root):
    write(root / "stage_2_train.csv", ["ImageId,EncodedPixels", f"{A},-1", f"{B},0 5", f"{T},7 2"], end="\n")
    write(root / "stage_2_images" / f"{U}.dcm")
    assert read_siim(root, "train")["image_id"][:] == [A, B]
    test = read_siim(root, "test")
    assert test["image_id"][:] == [T, U]
    assert test["Pneumothorax"][0] == 1 and math.isnan(test["Pneumothorax"][1])
    assert test["masks"][0][0]["counts"] == [7, 2, 1024 * 1024 - 9] and test["masks"][1] == []


def test_errors(root):
    def message(folder, split="train"):
        return error_of(read_siim, folder, split)

    assert message(root, "validation") == no_split("siim", "validation", "train, test")
    assert message(root / "dicom-images-train") == (
        f"{root}/dicom-images-train: this is not the folder of siim, but {root.resolve()} is; name that one."
    )
    for text, reason in [
        (f"{B}, 0 5 7", "a mask is not -1 or pairs of an offset and a length"),
        (f"{B},", "a mask is not -1 or pairs of an offset and a length"),
        (
            f"{B}, 0 1048577",
            "the run lengths of a mask do not fill its 1024x1024 pixels (height x width)",
        ),
    ]:
        write(root / "train-rle.csv", [*FIRST_STAGE[:2], text])
        assert message(root) == f"train-rle.csv, line 3: {reason}; download its file again."
    write(root / "train-rle.csv", ["ImageId,Pixels", f"{A},-1"])
    assert message(root) == (
        "train-rle.csv: column 'EncodedPixels' is missing; is this the file of the archive, unchanged?"
    )
    (root / "train-rle.csv").unlink()
    assert message(root) == (
        f"{root}: stage_2_train.csv of siim is not in this folder; get it from "
        "https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation."
    )
