import json
import math
import shutil

import pytest
from archive_files import error_of, no_split
from small_archives import write_rexgradient

from processing_tier.readers import read_records
from processing_tier.readers.rexgradient import read_rexgradient
from processing_tier.records.schema import check_disjoint_patients, finding_columns
from processing_tier.records.table_options import TableOptions

JSON = "metadata/train_metadata_view_position.json"


@pytest.fixture
def root(tmp_path):
    write_rexgradient(tmp_path / "ReXGradient-160K")
    return tmp_path / "ReXGradient-160K"


def test_schema(root, caplog):
    dataset = read_rexgradient(root, "train")
    assert not caplog.messages and len(dataset) == 8 and finding_columns(dataset) == []
    folder = root / "deid_png/GRDNtrain0/GRDNACC0/studies/1.2.0/series/1.3/instances"
    assert dataset["image"][0]["path"] == str(folder / "train.0.0.png")
    assert dataset["view"][:] == ["PA", "LATERAL", "OTHER", "AP", "PA", "LATERAL", "OTHER", "AP"]
    assert dataset["study_id"][:3] == ["GRDNtrain0_GRDNACC0_1.2.0"] * 3 and dataset["patient_id"][3] == "GRDNtrain1"
    assert dataset["sex"][2:8] == ["F", "M", "F", "M", "F", ""]
    assert dataset["age"][:5] == pytest.approx([36, 36, 36, 7 / 12, 2 / 365.25]) and dataset["age"][5] == 101
    assert math.isnan(dataset["age"][6]) and math.isnan(dataset["age"][7])


def test_reports(root):
    dataset = read_rexgradient(root, "train")
    assert dataset["findings"][3:6] == ["The lungs are clear. Finding 1.", "", "The lungs are clear. Finding 3."]
    assert dataset["impression"][3:6] == ["No acute disease of kind 1.", "No acute disease of kind 2.", ""]
    assert dataset["report"][3] == (
        "Indication: Cough.\nFindings: The lungs are clear. Finding 1.\nImpression: No acute disease of kind 1."
    )
    assert dataset["report"][0] == dataset["report"][2]  # one report for all images of a study
    assert "None" not in dataset["report"][0] and "nan" not in dataset["report"][4]


def test_splits_and_image_root(root, tmp_path):
    splits = {name: read_rexgradient(root, name) for name in ("train", "validation", "test")}
    assert [len(split) for split in splits.values()] == [8, 8, 8]
    check_disjoint_patients(**splits)
    shutil.move(root / "deid_png", tmp_path / "images" / "deid_png")
    options = TableOptions(image_root=tmp_path / "images")
    dataset = read_records(f"rexgradient:{root}", "test", options)
    assert dataset["image"][0]["path"].startswith(str(tmp_path / "images" / "deid_png"))
    assert error_of(read_rexgradient, root, "test").startswith("rexgradient: 8 of 8 images are missing, the first is")


def test_files_with_one_name_in_two_folders(root):
    """Then the path is the id."""
    content = json.loads((root / JSON).read_text())
    first, second = (content[key] for key in list(content)[1:3])
    twin = second["ImagePath"][0].rpartition("/")[0] + "/" + first["ImagePath"][0].rpartition("/")[2]
    (root / "metadata" / second["ImagePath"][0]).rename(root / "metadata" / twin)
    second["ImagePath"] = [twin]
    (root / JSON).write_text(json.dumps(content))
    ids = read_rexgradient(root, "train")["image_id"][:]
    assert len(set(ids)) == 8 and ids[3].startswith("deid_png/GRDNtrain1/")


def test_missing_and_repeated_images(root, caplog):
    content = json.loads((root / JSON).read_text())
    (root / "metadata" / list(content.values())[1]["ImagePath"][0]).unlink()
    assert len(read_rexgradient(root, "train")) == 7
    assert caplog.messages == [
        "rexgradient, split train: 1 of 8 images are missing, the first is "
        "deid_png/GRDNtrain1/GRDNACC1/studies/1.2.1/series/1.3/instances/train.1.0.png: left out."
    ]
    study = list(content.values())[0]
    (root / JSON).write_text(json.dumps({**content, "another": study}))
    message = error_of(read_rexgradient, root, "train")
    assert message.startswith("rexgradient: rows 1 and ") and "have the same image_id" in message


def test_errors(root):
    def message(folder=root, split="train"):
        return error_of(read_rexgradient, folder, split)

    assert message(split="valid") == no_split("rexgradient", "valid", "train, validation, test")
    for wrong in (root.parent, root / "metadata"):
        assert message(wrong) == f"{wrong}: this is not the folder of rexgradient, but {root} is; name that one."
    good = json.loads((root / JSON).read_text())
    key, study = next(iter(good.items()))
    form = (
        "the studies do not have PatientID, ImagePath, ImageViewPosition and the sections of a report as shipped; "
        "download it again."
    )
    for content in (
        [study],
        {key: 5},
        {key: {name: value for name, value in study.items() if name != "Findings"}},
        {key: {name: value for name, value in study.items() if name != "PatientID"}},
        {key: {**study, "ImageViewPosition": ["PA"]}},
        {key: {**study, "ImagePath": [1, 2, 3]}},
        {key: {**study, "Findings": ["The lungs are clear."]}},
        {key: {**study, "ImageViewPosition": [["PA"], "PA", "PA"]}},
    ):
        (root / JSON).write_text(json.dumps(content))
        assert message() == f"train_metadata_view_position.json: {form}"
    (root / JSON).write_text('{"a": {')
    assert message() == (
        "train_metadata_view_position.json: the file is empty, cut short or not JSON; download it again."
    )
    (root / JSON).write_text("{}")
    assert message() == "rexgradient: the split 'train' is empty; check the file and the split."
    (root / JSON).write_text(json.dumps({key: {**study, "PatientID": None}}))
    assert message() == "rexgradient: 3 rows have no 'patient_id' (for 'patient_id'); fill or remove them."
    (root / JSON).write_text(json.dumps({key: {**study, "ImagePath": ["../../a.png"] * 3}}))
    assert message() == "a.png: the path leaves the image folder; name the folder that holds the images."
    (root / JSON).unlink()
    assert message() == (
        f"{root}: {JSON} of rexgradient is not in this folder; get it from "
        "https://huggingface.co/datasets/rajpurkarlab/ReXGradient-160K."
    )
