import numpy as np
import pytest
from archive_files import error_of, no_split
from PIL import Image

from processing_tier.readers.covid_qu_ex import CLASSES, read_covid_qu_ex
from processing_tier.records.masks import decode_mask
from processing_tier.records.schema import finding_columns

PART = "Infection Segmentation Data"


@pytest.fixture
def lung():
    mask = np.zeros((16, 12), dtype=np.uint8)
    mask[2:10, 3:7] = 255
    return mask


@pytest.fixture
def root(tmp_path, lung):
    root = tmp_path / "covidqu"
    infection = np.zeros_like(lung)
    infection[4:6, 3:5] = 255
    for name, image, inside in [
        ("COVID-19", "covid_1", infection),
        ("COVID-19", "sub-S03044_ses-E06150_run-1_bp-chest_vp-ap_cr", infection),
        ("Non-COVID", "non_COVID (1)", infection * 0),
        ("Normal", "Normal (7)", infection * 0),
    ]:
        folder = root / PART / PART / "Train" / name
        for kind, pixels in {"images": lung + 40, "lung masks": lung, "infection masks": inside}.items():
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / kind / f"{image}.png")
    return root


def test_classes_and_masks(root, lung):
    dataset = read_covid_qu_ex(root, "train")
    assert finding_columns(dataset) == list(CLASSES)
    assert dataset["image_id"][:] == [
        "covid_1",
        "sub-S03044_ses-E06150_run-1_bp-chest_vp-ap_cr",
        "non_COVID (1)",
        "Normal (7)",
    ]
    assert dataset["patient_id"][:] == ["covid_1", "sub-S03044", "non_COVID (1)", "Normal (7)"]
    assert [dataset[name][:] for name in CLASSES] == [[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    assert [[mask["finding"] for mask in masks] for masks in dataset["masks"]] == [
        ["Lung", "COVID-19"],
        ["Lung", "COVID-19"],
        ["Lung"],
        ["Lung"],
    ]
    first, second = dataset["masks"][0]
    np.testing.assert_array_equal(decode_mask(first["counts"], 16, 12), lung > 0)
    assert decode_mask(second["counts"], 16, 12).nonzero()[0].tolist() == [4, 4, 5, 5]


def test_parts_and_options(root, lung, caplog):
    assert "masks" not in read_covid_qu_ex(root, "train", masks=False).column_names
    # Unpacked without the second folder, jagged edges of masks saved as JPEG once, an image without a mask
    folder = root / "Lung Segmentation Data" / "Val"
    for name in CLASSES:
        (folder / name / "images").mkdir(parents=True)
        (folder / name / "lung masks").mkdir()
    Image.fromarray(lung).save(folder / "Normal" / "images" / "a.png")
    Image.fromarray(lung).save(folder / "Normal" / "images" / "b.png")
    Image.fromarray(np.where(lung > 0, 250, 7).astype(np.uint8)).save(folder / "Normal" / "lung masks" / "a.png")
    dataset = read_covid_qu_ex(root, "validation", part="lung")
    assert dataset["Normal"][:] == [1, 1] and dataset["masks"][1] == []
    np.testing.assert_array_equal(decode_mask(dataset["masks"][0][0]["counts"], 16, 12), lung > 0)


def test_errors(root):
    def message(folder, split="train", **options):
        return error_of(read_covid_qu_ex, folder, split, **options)

    source = "https://www.kaggle.com/datasets/anasmohammedtahir/covidqu"
    assert message(root, "val") == no_split("covid_qu_ex", "val", "train, validation, test")
    assert message(root, part="heart") == "covid_qu_ex: the part 'heart' is not known; choose infection or lung."
    assert (
        message(root, "test")
        == f"{root}: {PART}/{PART}/Test of covid_qu_ex is not in this folder; get it from {source}."
    )
    assert (
        message(root.parent) == f"{root.parent}: this is not the folder of covid_qu_ex, but {root} is; name that one."
    )
    assert message(root, masks="no") == "covid_qu_ex: masks is 'no'; give 1 to read them or 0 to leave them out."
    folder = root / PART / PART / "Train"
    mask = folder / "Normal" / "lung masks" / "Normal (7).png"
    mask.write_bytes(mask.read_bytes()[:40])
    assert message(root).startswith("Normal (7).png: the ")
    (folder / "Normal" / "images" / "Normal (7).png").unlink()
    (folder / "Normal" / "images").rmdir()
    assert message(root).startswith(f"{folder}: Normal/images of covid_qu_ex's Train is not in this folder")
