import json
import math

import pytest
from archive_files import error_of, no_split
from small_archives import write_tbx11k

from processing_tier.readers.tbx11k import FINDINGS, read_tbx11k
from processing_tier.records.schema import check_disjoint_patients, finding_columns

JSON = "annotations/json/TBX11K_train.json"


@pytest.fixture
def root(tmp_path):
    write_tbx11k(tmp_path / "TBX11K")
    return tmp_path / "TBX11K"


def test_labels_and_boxes(root, caplog):
    dataset = read_tbx11k(root, "train")
    assert caplog.messages == [
        "TBX11K_train.json: 1 boxes reach beyond their image and are cut, 0 have no area inside it and are left out."
    ]
    assert finding_columns(dataset) == list(FINDINGS)
    assert dataset["image_id"][:] == dataset["patient_id"][:]
    assert dataset["image_id"][0:12:4] == ["h0001", "s0001", "tb0001"]
    assert dataset["image"][8]["path"] == str(root / "imgs" / "tb" / "tb0001.png")
    assert dataset["Tuberculosis"][:] == [0] * 8 + [1] * 4 and dataset["No Finding"][:] == [1] * 4 + [0] * 8
    assert dataset["Active Tuberculosis"][:11] == [0] * 8 + [1, 0, 1]
    assert dataset["Latent Tuberculosis"][:11] == [0] * 8 + [0, 1, 1]
    assert math.isnan(dataset["Active Tuberculosis"][11]) and math.isnan(dataset["Latent Tuberculosis"][11])
    assert dataset["boxes"][8:] == [
        [
            {"finding": "Active Tuberculosis", "phrase": "", "x": 3.0, "y": 4.0, "w": 20.0, "h": 10.0},
            {"finding": "Active Tuberculosis", "phrase": "", "x": 40.0, "y": 4.0, "w": 10.0, "h": 10.0},
        ],
        [{"finding": "Latent Tuberculosis", "phrase": "", "x": 1.0, "y": 2.0, "w": 3.0, "h": 4.5}],
        [
            {"finding": "Active Tuberculosis", "phrase": "", "x": 50.0, "y": 40.0, "w": 14.0, "h": 8.0},
            {"finding": "Latent Tuberculosis", "phrase": "", "x": 5.0, "y": 6.0, "w": 7.0, "h": 8.0},
        ],
        [],
    ]


def test_splits(root):
    train, validation = read_tbx11k(root, "train"), read_tbx11k(root, "validation")
    assert len(validation) == 12 and set(validation["split"]) == {"validation"}
    check_disjoint_patients(train=train, validation=validation)


def test_extra_images_of_other_sets(root):
    """Their labels are in their names; those of Montgomery and Shenzhen have the patients of these readers."""
    dataset = read_tbx11k(root, "train", extra=True)
    assert len(dataset) == 16 and len(read_tbx11k(root, "train")) == 12
    extra = dataset.select(range(12, 16))
    assert extra["image_id"][:] == ["MCUCXR_0113_0", "CHNCXR_0113_1", "extra/da+db/train/n11", "extra/da+db/train/px3"]
    assert extra["patient_id"][:] == ["MCUCXR_0113", "CHNCXR_0113", *extra["image_id"][2:]]
    assert extra["Tuberculosis"][:] == [0, 1, 0, 1] and extra["No Finding"][:] == [1, 0, 1, 0]
    kinds = extra["Active Tuberculosis"][:]
    assert kinds[0] == kinds[2] == 0 and math.isnan(kinds[1]) and math.isnan(kinds[3])
    assert extra["boxes"][:] == [[]] * 4
    other = read_tbx11k(root, "validation", extra=True)
    assert not set(dataset["image_id"]) & set(other["image_id"])
    # 0117 is the patient of 0113, who is in the other split
    assert error_of(check_disjoint_patients, train=dataset, validation=other).startswith("1 patient is in both")


def test_repeated_and_missing_images(root, caplog):
    content = json.loads((root / JSON).read_text())
    content["images"].append({**content["images"][0], "id": 99})
    (root / JSON).write_text(json.dumps(content))
    (root / "imgs/tb/tb0001.png").unlink()
    assert len(read_tbx11k(root, "train")) == 11
    assert "tbx11k, split train: 1 of 13 rows repeat a 'file_name': dropped." in caplog.messages
    assert "tbx11k, split train: 1 of 12 images are missing, the first is imgs/tb/tb0001.png: left out." in (
        caplog.messages
    )


def test_errors(root):
    def message(folder=root, split="train", **options):
        return error_of(read_tbx11k, folder, split, **options)

    assert message(split="test") == no_split("tbx11k", "test", "train, validation")
    assert message(extra=2) == "tbx11k: extra is 2; give 1 to read imgs/extra too or 0 to leave it out."
    assert message(root.parent) == f"{root.parent}: this is not the folder of tbx11k, but {root} is; name that one."
    good = json.loads((root / JSON).read_text())
    form = "images, annotations and categories are not as shipped; download it again."
    mark = good["annotations"][0]
    for change in (
        {"images": 5},
        {"images": [{"id": 1, "file_name": 7, "width": 64, "height": 48}]},
        {"images": [{"id": [], "file_name": "tb/tb0001.png", "width": 64, "height": 48}]},
        {"images": [{"id": 1, "file_name": "tb/tb0001.png", "width": "wide", "height": 48}]},
        {"categories": []},
        {"annotations": [{**mark, "image_id": 99}]},
        {"annotations": [{**mark, "bbox": [1, 2, 3]}]},
        {"annotations": [{**mark, "bbox": [1, 2, 3, "a"]}]},
        {"annotations": [{**mark, "bbox": [1, 2, 3, 10**400]}]},
    ):
        (root / JSON).write_text(json.dumps({**good, **change}))
        assert message() == f"TBX11K_train.json: {form}", change
    (root / JSON).write_text("[]")
    assert message() == f"TBX11K_train.json: {form}"
    (root / JSON).write_text('{"images": [')
    assert message() == "TBX11K_train.json: the file is empty, cut short or not JSON; download it again."
    (root / JSON).write_text(json.dumps({**good, "categories": [{"id": i, "name": "Cat"} for i in (1, 2, 3)]}))
    assert message() == (
        "TBX11K_train.json: the category 'Cat' is not one of ActiveTuberculosis, ObsoletePulmonaryTuberculosis, "
        "PulmonaryTuberculosis; is this TBX11K?"
    )
    for name, reason in (
        ("", "the path does not tell the class of the image; is this TBX11K as shipped?"),
        ("../a.png", "the path does not tell the class of the image; is this TBX11K as shipped?"),
        ("other/a.png", "the path does not tell the class of the image; is this TBX11K as shipped?"),
        ("extra/da+db/train/x1.png", "the path does not tell the class of the image; is this TBX11K as shipped?"),
        ("tb/../../../a.png", "the path leaves the image folder; name the folder that holds the images."),
    ):
        (root / JSON).write_text(
            json.dumps({**good, "images": [{**good["images"][0], "file_name": name}], "annotations": []})
        )
        assert message().partition(": ")[2] == reason, name
    (root / JSON).unlink()
    assert message() == (
        f"{root}: annotations/json/TBX11K_train.json of tbx11k is not in this folder; get it from "
        "https://github.com/yun-liu/Tuberculosis."
    )
