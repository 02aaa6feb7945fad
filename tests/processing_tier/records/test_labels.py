import math

import pandas as pd
import pytest
from PIL import Image

from processing_tier.readers import read_records
from processing_tier.records.labels import parse_label_values, to_ages, to_numbers
from processing_tier.records.schema import finding_columns
from processing_tier.records.table_options import TableOptions


@pytest.fixture
def folder(tmp_path):
    for name in "abcd":
        Image.new("L", (4, 4)).save(tmp_path / f"{name}.png")
    return tmp_path


def write(folder, **columns):
    frame = pd.DataFrame({"image": [f"{name}.png" for name in "abcd"], "patient_id": [1, 2, 3, 4], **columns})
    frame.to_csv(folder / "t.csv", index=False)
    return folder / "t.csv"


def test_words_are_mapped(folder):
    values = parse_label_values(["yes=1", "No=0", "unclear=-1", "unknown="])
    table = write(folder, Edema=["Yes", " no", "UNCLEAR", "unknown"], Swelling=["1", "no", None, "yes"])
    dataset = read_records(table, "train", TableOptions(label_values=values))
    assert finding_columns(dataset) == ["Edema", "Swelling"]
    assert dataset["Edema"][:3] == [1, 0, -1] and math.isnan(dataset["Edema"][3])
    assert [dataset["Swelling"][i] for i in (0, 1, 3)] == [1, 0, 1] and math.isnan(dataset["Swelling"][2])
    german = write(folder, Ödem=["ja", "nein", "ja", None])
    dataset = read_records(german, "train", TableOptions(label_values=parse_label_values(["ja=1", "nein=0"])))
    assert dataset["Ödem"][:3] == [1, 0, 1]


def test_numbers_can_be_mapped_too(folder):
    table = write(folder, Edema=[0, 1, 2, 3.0])
    dataset = read_records(table, "train", TableOptions(label_values=parse_label_values(["2=-1", "3="])))
    assert dataset["Edema"][:3] == [0, 1, -1] and math.isnan(dataset["Edema"][3])


def test_words_without_a_label_are_named(folder, caplog):
    table = write(folder, Edema=["yes", "no", "maybe", "maybe"])
    with pytest.raises(ValueError) as error:
        read_records(table, "train", TableOptions(label_values=parse_label_values(["yes=1", "no=0"])))
    assert str(error.value) == (
        f"{table}: finding 'Edema' has 2 values other than 1 (present), 0 (absent), -1 (uncertain) and blank (not "
        "stated): 'maybe'; map words with --label_values yes=1 no=0, or drop the column."
    )
    table = write(folder, Swelling=["yes", "no", "maybe", None], Edema=["yes", "no", "no", None])
    values = parse_label_values(["yes=1", "no=0", "ja=1"])
    assert finding_columns(read_records(table, "train", TableOptions(label_values=values))) == ["Edema"]
    assert caplog.messages == [
        f"{table}: column 'Swelling' has words of --label_values and other values: 'maybe': it is not read as a "
        "finding. Map these values too, or name the column with --columns.",
        f"{table}: --label_values names 'ja', which no finding column contains.",
    ]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["yes"], "--label_values takes WORD=LABEL with 1 (present), 0 (absent), -1 (uncertain) or nothing"),
        (["yes=2"], "--label_values takes WORD=LABEL"),
        (["=1"], "--label_values takes WORD=LABEL"),
        (["yes=1", "YES=0"], "--label_values gives 'yes' two labels; keep one."),
    ],
)
def test_bad_label_values(pairs, message):
    with pytest.raises(ValueError) as error:
        parse_label_values(pairs)
    assert str(error.value).startswith(message)
    assert parse_label_values(None) is None


def test_label_values_have_no_effect_on_an_archive():
    with pytest.raises(ValueError, match="sheet and label_values have no effect on 'phantom'; leave them out."):
        read_records("phantom", "train", TableOptions(label_values={"yes": 1.0}))


@pytest.mark.parametrize("layout", ["table", "folder"])
def test_a_count_is_not_a_finding_because_one_split_has_0_and_1(folder, layout):
    counts, rest = [0, 1, 3, 2], {"device": [1, None, 0, 0], "empty_in_test": [1, 0, None, None]}
    if layout == "table":
        data = write(folder, split=["train", "train", "test", "test"], lines=counts, **rest)
    else:
        data = folder
        for split, rows in (("train", slice(0, 2)), ("test", slice(2, 4))):
            (folder / split).mkdir()
            for name in "abcd":
                Image.new("L", (4, 4)).save(folder / split / f"{name}.png")
            frame = {
                "file_name": [f"{name}.png" for name in "abcd"],
                "patient_id": list("1234"),
                "lines": counts,
                **rest,
            }
            pd.DataFrame(frame)[rows].to_csv(folder / split / "metadata.csv", index=False)
    for split in ("train", "test"):
        assert finding_columns(read_records(data, split)) == ["device", "empty_in_test"]


def test_numbers():
    assert to_numbers(pd.Series(["1,0", "0,5", "TRUE", " -1"]))[:].tolist() == [1, 0.5, 1, -1]
    numbers = to_numbers(pd.Series([10**400, 1, "1" + "0" * 400, [1], None], dtype=object))
    assert numbers[1] == 1 and numbers[[3, 4]].isna().all()
    assert not math.isfinite(numbers[0]) and not math.isfinite(numbers[2])  # which no label is


def test_ages(caplog):
    values = pd.Series(["45", "058Y", "006M", 411, -1, "old", None, "", 120, 0, "3,5"], dtype=object)
    ages = to_ages(values, "t.csv")
    assert ages[[0, 1, 2, 8, 9, 10]].tolist() == [45, 58, 0.5, 120, 0, 3.5]
    assert ages[[3, 4, 5, 6, 7]].isna().all()
    assert caplog.messages == ["t.csv: 3 of 11 ages are not years from 0 to 120: left blank."]


def test_ages_of_a_table(folder, caplog):
    table = write(folder, age=["411", "-1", "60", None], Edema=[1, 0, 0, 0])
    ages = read_records(table, "train")["age"]
    assert ages[2] == 60 and all(math.isnan(ages[i]) for i in (0, 1, 3))
    assert caplog.messages == [f"{table}: 2 of 4 ages are not years from 0 to 120: left blank."]
