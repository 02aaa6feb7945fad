import math

import pytest
from archive_files import error_of, no_split
from PIL import Image
from small_archives import write_montgomery, write_shenzhen

from processing_tier.readers.nlm_tuberculosis import parse_reading, read_montgomery, read_shenzhen
from processing_tier.records.identities import patient_keys
from processing_tier.records.masks import decode_mask
from processing_tier.records.schema import finding_columns


@pytest.fixture
def montgomery(tmp_path):
    write_montgomery(tmp_path / "MontgomerySet")
    return tmp_path / "MontgomerySet"


@pytest.fixture
def shenzhen(tmp_path):
    write_shenzhen(tmp_path / "ChinaSet_AllFiles")
    return tmp_path / "ChinaSet_AllFiles"


def test_montgomery(montgomery, caplog):
    dataset = read_montgomery(montgomery)
    assert not caplog.messages and finding_columns(dataset) == ["Tuberculosis", "No Finding"]
    assert dataset["Tuberculosis"][:] == [0] * 5 + [1] * 7 and dataset["No Finding"][:] == [1] * 5 + [0] * 7
    assert dataset["image"][0]["path"] == str(montgomery / "CXR_png" / "MCUCXR_0001_0.png")
    assert set(dataset["view"]) == {"PA"} and set(dataset["split"]) == {"train"}
    assert dataset["sex"][:5] == ["F", "M", "F", "M", "O"] and dataset["age"][:5] == [27, 40, 31, 52, 5]
    assert dataset["findings"][:] == dataset["report"][:] and set(dataset["impression"]) == {""}
    assert dataset["findings"][5:7] == ["improved bilateral nodular infiltrates", "miliary TB"]
    assert dataset["findings"][8] == "stable CXR since 6M; off Rx since 6M (same pt as MCUCXR_0113_1)"


def box(*sides):
    return {"finding": "Tuberculosis", "phrase": "", **dict(zip("xywh", sides, strict=True))}


def test_boxes_are_in_pixels_of_the_image(montgomery, shenzhen, caplog):
    """Those of the archive are in pixels of copies of 1024 x 1024; these images have 64 x 48."""
    boxes = dict(zip(*(read_montgomery(montgomery)[name][:] for name in ("image_id", "boxes")), strict=True))
    assert boxes.pop("MCUCXR_0104_1") == [box(32, 12, 16, 6), box(0, 0, 4, 24)]
    assert boxes.pop("MCUCXR_0108_1") == [box(56, 42, 8, 6)]  # cut by less than half a pixel
    assert set(map(len, boxes.values())) == {0} and not caplog.messages
    assert read_shenzhen(shenzhen)["boxes"][5] == [box(16, 24, 32, 12)]


def test_without_boxes(montgomery, caplog):
    table = montgomery / "montgomery_consensus_roi.csv"
    table.write_text(table.read_text().replace("512,256,256,128", "2000,256,256,128"))
    assert set(map(len, read_montgomery(montgomery)["boxes"])) == {0}
    assert caplog.messages == [
        "montgomery_consensus_roi.csv: 1 of 4 boxes reach beyond 1024 x 1024 pixels, the copies that they belong to: "
        "all boxes are left out."
    ]
    table.unlink()
    assert "boxes" not in read_montgomery(montgomery).column_names


def test_boxes_of_an_image_that_cannot_be_read(montgomery, caplog):
    (montgomery / "CXR_png" / "MCUCXR_0108_1.png").write_bytes(b"no picture")
    boxes = read_montgomery(montgomery)["boxes"]
    assert len(boxes[5]) == 2 and boxes[6] == []
    assert caplog.messages == ["montgomery: 1 images are not readable PNG files: their boxes are left out."]


def test_masks_of_the_lungs(montgomery, caplog):
    """The lung at the left of the image is the right one, whatever its folder."""
    assert "masks" not in read_montgomery(montgomery).column_names
    left, right = (montgomery / "ManualMask" / side / "MCUCXR_0104_1.png" for side in ("leftMask", "rightMask"))
    content = left.read_bytes()
    left.write_bytes(right.read_bytes())
    right.write_bytes(content)
    masks = read_montgomery(montgomery, masks=True)["masks"]
    assert [len(of_image) for of_image in masks] == [2] + [0] * 4 + [2, 1] + [0] * 5 and not caplog.messages
    for of_image, places in ((masks[0], (0, 40)), (masks[5], (0, 40)), (masks[6], (4,))):
        for lung, mask, place in zip(("Right Lung", "Left Lung"), of_image, places, strict=False):
            inside = decode_mask(mask["counts"], mask["height"], mask["width"])
            assert mask["finding"] == lung and inside.shape == (48, 64) and inside.sum() == 400
            assert inside[10:30, place : place + 20].all()
    assert {box["finding"] for boxes in read_montgomery(montgomery)["boxes"] for box in boxes} == {"Tuberculosis"}


def test_an_empty_mask_is_left_out(montgomery):
    Image.new("1", (64, 48)).save(montgomery / "ManualMask" / "leftMask" / "MCUCXR_0001_0.png")
    assert [mask["finding"] for mask in read_montgomery(montgomery, masks=True)["masks"][0]] == ["Left Lung"]


def test_patients_with_several_images(montgomery):
    dataset = read_montgomery(montgomery)
    patients = dict(zip(dataset["image_id"], dataset["patient_id"], strict=True))
    assert patients["MCUCXR_0117_1"] == patients["MCUCXR_0113_1"] == "MCUCXR_0113"
    assert {patients[f"MCUCXR_{number}_1"] for number in ("0162", "0166", "0170")} == {"MCUCXR_0162"}
    assert len(set(patients.values())) == len(patients) - 3
    assert dataset[10]["image_id"] == "MCUCXR_0166_1" and dataset[10]["findings"] == ""  # NO REPORT


def test_shenzhen(shenzhen):
    dataset = read_shenzhen(shenzhen)
    assert dataset["Tuberculosis"][:] == [0] * 5 + [1] * 5
    assert dataset["sex"][:] == ["M", "F", "M", "F", "M", "F", "M", "F", "M", ""]
    assert dataset["age"][:3] == pytest.approx([45, 32, 16 / 12])
    assert dataset["age"][3] == pytest.approx(64 / 365.25)
    assert math.isnan(dataset["age"][4]) and math.isnan(dataset["age"][9])  # "male 42", and an empty reading
    assert dataset["age"][5:9] == [24, 29, 28, 51]
    assert dataset["findings"][5:] == ["STB", "bilateral secondary PTB", "secondary PTB ATB",
                                       "right PTB with pleuritis", ""]  # fmt: skip
    assert dataset["patient_id"][5] == "CHNCXR_0327"


def test_both_sets_in_one_folder(montgomery):
    """As Kaggle's copies ship them."""
    write_shenzhen(montgomery)
    assert len(read_montgomery(montgomery)) == 12 and len(read_shenzhen(montgomery)) == 10


def test_readings_of_other_forms():
    assert parse_reading("normal") == {"findings": "normal", "sex": "", "age": ""}
    assert parse_reading("Patient's Sex:\nPatient's Age:\n") == {"findings": "", "sex": "", "age": ""}
    assert parse_reading("male infant\nmale 3yrs\n")["findings"] == "male infant male 3yrs"


def test_missing_readings(montgomery, caplog):
    (montgomery / "ClinicalReadings" / "MCUCXR_0001_0.txt").unlink()
    dataset = read_montgomery(montgomery)
    assert dataset["findings"][:2] == ["", "normal"] and math.isnan(dataset["age"][0]) and not caplog.messages
    for path in (montgomery / "ClinicalReadings").iterdir():
        path.unlink()
    (montgomery / "ClinicalReadings").rmdir()
    assert set(read_montgomery(montgomery)["report"]) == {""}
    assert caplog.messages == ["montgomery: ClinicalReadings is not in this folder: texts, sex and age are blank."]


def test_errors(montgomery, shenzhen, tmp_path):
    assert error_of(read_montgomery, montgomery, "test") == no_split("montgomery", "test", "train")
    for wrong in (montgomery.parent, montgomery / "CXR_png"):
        assert error_of(read_montgomery, wrong) == (
            f"{wrong}: this is not the folder of montgomery, but {montgomery} is; name that one."
        )
    (tmp_path / "apart" / "folder").mkdir(parents=True)
    assert error_of(read_shenzhen, tmp_path / "apart" / "folder") == (
        f"{tmp_path}/apart/folder: CXR_png/CHNCXR_*.png of shenzhen is not in this folder; get it from "
        "https://data.lhncbc.nlm.nih.gov/public/Tuberculosis-Chest-X-ray-Datasets/."
    )
    (shenzhen / "CXR_png" / "CHNCXR_0001_0.png").rename(shenzhen / "CXR_png" / "CHNCXR_0001.png")
    assert error_of(read_shenzhen, shenzhen) == (
        "CHNCXR_0001.png: the name does not end in _0 or _1, which is the label; is this shenzhen?"
    )
    reading = montgomery / "ClinicalReadings" / "MCUCXR_0001_0.txt"
    reading.write_bytes(b"a" * 70_000)
    assert error_of(read_montgomery, montgomery) == (
        "MCUCXR_0001_0.txt: the file is larger than 65,536 bytes; it is not the file as shipped."
    )
    reading.unlink()
    (tmp_path / "secret.txt").write_text("secret")
    reading.symlink_to(tmp_path / "secret.txt")
    assert error_of(read_montgomery, montgomery) == (
        "MCUCXR_0001_0.txt: the path leaves the image folder; name the folder that holds the images."
    )


def test_errors_of_boxes_and_masks(montgomery, tmp_path):
    table = montgomery / "montgomery_consensus_roi.csv"
    good = table.read_text()
    table.write_text(good.replace("x_dis", "x"))
    assert error_of(read_montgomery, montgomery) == (
        "montgomery_consensus_roi.csv: column 'x_dis' is missing; is this the file of the archive, unchanged?"
    )
    table.write_text(good.replace("512,256,256,128", "512,wide,256,128"))
    assert error_of(read_montgomery, montgomery) == (
        "montgomery_consensus_roi.csv: 1 boxes have a coordinate that is not a number; fix or remove their rows."
    )
    table.write_text(good)
    assert error_of(read_montgomery, montgomery, masks=2) == (
        "montgomery: masks is 2; give 1 to read the masks of the lungs or 0 to leave them out."
    )
    path = montgomery / "ManualMask" / "leftMask" / "MCUCXR_0001_0.png"
    Image.new("1", (10, 12)).save(path)
    assert error_of(read_montgomery, montgomery, masks=True) == (
        "ManualMask/leftMask/MCUCXR_0001_0.png: the mask has 10 x 12 pixels and its image 64 x 48; download both "
        "again."
    )
    path.write_bytes(b"no picture")
    assert error_of(read_montgomery, montgomery, masks=True).startswith("MCUCXR_0001_0.png: ")
    (tmp_path / "secret.png").write_bytes(b"secret")
    path.unlink()
    path.symlink_to(tmp_path / "secret.png")
    assert error_of(read_montgomery, montgomery, masks=True) == (
        "MCUCXR_0001_0.png: the path leaves the image folder; name the folder that holds the images."
    )
    (montgomery / "ManualMask").rename(tmp_path / "ManualMask")
    assert error_of(read_montgomery, montgomery, masks=True) == (
        f"{montgomery}: this is not the folder of montgomery, but {tmp_path} is; name that one."
    )
    (tmp_path / "ManualMask").rename(tmp_path / "apart")
    assert error_of(read_montgomery, montgomery, masks=True) == (
        f"{montgomery}: ManualMask/leftMask of montgomery is not in this folder; get it from "
        "https://data.lhncbc.nlm.nih.gov/public/Tuberculosis-Chest-X-ray-Datasets/."
    )


def test_patients_are_those_of_tbx11k():
    """`tbx11k` holds images of both sets, so an evaluation must find their patients among those of a training."""
    ids = ["MCUCXR_0113", "CHNCXR_0327"]
    assert patient_keys(ids, "montgomery").tolist() == patient_keys(ids, "tbx11k").tolist()
    assert patient_keys(ids, "shenzhen").tolist() == patient_keys(ids, "tbx11k").tolist()
