import pytest

from processing_tier.phantom import PHANTOM_FINDINGS, make_phantom
from processing_tier.readers import read_records
from processing_tier.records import check_columns, check_disjoint_patients, finding_columns


def test_phantom():
    dataset = read_records("phantom:num_images=6,seed=3,image_size=64", "validation")
    expected = make_phantom(6, seed=3, image_size=64, split="validation")
    check_columns(dataset)
    assert finding_columns(dataset) == list(PHANTOM_FINDINGS)
    assert dataset["image"][:] == expected["image"][:] and dataset["report"][:] == expected["report"][:]
    train = read_records("phantom:num_images=6,seed=3,image_size=64", "train")
    check_disjoint_patients(train=train, validation=dataset)


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (
            "phantom:images=3",
            {},
            "phantom option 'images=3' is not known; use num_images, seed, image_size with a whole number each.",
        ),
        (
            "phantom:seed=x",
            {},
            "phantom option 'seed=x' is not known; use num_images, seed, image_size with a whole number each.",
        ),
        (
            "phantom",
            {"columns": {"image": "x"}},
            "columns and image_root have no effect on 'phantom'; leave them out.",
        ),
        ("nowhere", {}, "nowhere: there is no such folder; check the path of the data."),
    ],
)
def test_bad_data(data, options, message):
    with pytest.raises(ValueError) as error:
        read_records(data, "train", **options)
    assert str(error.value) == message
