import datasets
import pytest

from processing_tier.records.schema import (
    check_columns,
    check_disjoint_patients,
    select_text,
)


def test_select_text():
    record = {"findings": "The heart\n is big. ", "impression": "Cardiomegaly.", "report": "both"}
    assert select_text(record) == "Cardiomegaly."
    assert select_text(record, "findings") == "The heart is big."
    assert select_text(record, "both") == "Cardiomegaly."
    assert select_text({**record, "impression": " "}, "both") == "The heart is big."
    assert select_text({**record, "impression": None}) == ""
    assert select_text({"findings": None, "impression": ""}, "both") == ""
    with pytest.raises(ValueError) as error:
        select_text(record, "report")
    assert str(error.value) == "text source 'report' is not known; choose one of impression, findings, both."


def test_patients_are_in_one_split():
    train, validation, test = (
        datasets.Dataset.from_dict({"patient_id": patients}) for patients in (["1", "2", "2"], ["3"], ["2", "4", "1"])
    )
    check_disjoint_patients(train=train, validation=validation)
    with pytest.raises(ValueError) as error:
        check_disjoint_patients(train=train, validation=validation, test=test)
    assert str(error.value) == (
        "2 patients are in both 'train' and 'test'; split by patient (the shared ones are "
        "set(a['patient_id']) & set(b['patient_id']))."
    )


def test_check_columns():
    dataset = datasets.Dataset.from_dict({"image": ["x"], "report": ["y"]})
    check_columns(dataset, ["image"])
    with pytest.raises(ValueError) as error:
        check_columns(dataset, ["image", "impression", "split"])
    assert str(error.value) == "column 'impression', 'split' is not in the data; it has image, report."
