import json
import math
import zipfile

import pytest
from archive_files import error_of, touch, write_table

from processing_tier.readers.chexpert import CHEXPERT_FINDINGS
from processing_tier.readers.chexpert_plus import read_chexpert_plus
from processing_tier.records.schema import finding_columns

HEADER = (
    "path_to_image,path_to_dcm,frontal_lateral,ap_pa,deid_patient_id,patient_report_date_order,report,"
    "section_findings,section_impression,age,sex,race,split"
)
ROW = (
    "train/patient42142/study5/view1_frontal.jpg,x.dcm,Frontal,AP,patient42142,5,"
    '"NARRATIVE:\nFINDINGS: Lines.  IMPRESSION: 1. Normal.",Lines.,\n1. Normal.,61,Male,White,train'
).replace(",\n1. Normal.", ',"\n1. Normal."')
ROWS = (
    ROW,
    ROW.replace("view1_frontal", "view2_lateral").replace("Frontal,AP", "Lateral,"),
    'train/patient00003/study1/view1_frontal.jpg,,Frontal,PA,patient00003,1,"IMPRESSION: Edema.",,,0,Female,,train',
    "train/patient00004/study1/view1_frontal.jpg,,Frontal,,patient00004,1,,,,,,,train",
    "valid/patient64541/study1/view1_frontal.jpg,,Frontal,AP,patient64541,1,Clear.,,,73,Male,Other,valid",
)


def plus_labels(**labels) -> str:
    rows = [{"path_to_image": row.split(",")[0], **dict.fromkeys(CHEXPERT_FINDINGS)} for row in ROWS[:3]]
    rows[2].update(labels)
    return "\n".join(map(json.dumps, rows)) + "\n"


@pytest.mark.parametrize(
    ("below", "suffix"),
    [
        ("", ".jpg"),
        ("PNG", ".png"),
        ("PNG/PNG", ".png"),
        ("png_chexpert_plus_chunk_0/PNG", ".png"),
        ("DICOM/Uncompressed", ".dcm"),
    ],
)
def test_chexpert_plus(tmp_path, below, suffix, caplog):
    write_table(tmp_path / "df_chexpert_plus_240401.csv", HEADER, ROWS)
    touch(tmp_path / below, ROWS, suffix)
    (tmp_path / "chexbert_labels").mkdir()
    (tmp_path / "chexbert_labels" / "impression_fixed.json").write_text(plus_labels(Edema=1.0, Pneumonia=-1.0))
    train, validation = (read_chexpert_plus(tmp_path, split) for split in ("train", "validation"))
    assert caplog.records == [] and len(train) == 4
    assert train["image"][2]["path"] == str(tmp_path / below / f"train/patient00003/study1/view1_frontal{suffix}")
    assert train["image_id"][1] == "patient42142_study5_view2_lateral" and train["view"][:2] == ["AP", "LATERAL"]
    assert train["findings"][:] == ["Lines.", "Lines.", "", ""]
    assert train["impression"][:] == ["1. Normal.", "1. Normal.", "Edema.", ""]  # the third from its report
    assert train["report"][0].startswith("NARRATIVE:\nFINDINGS") and train["report"][3] == ""
    assert train["Edema"][2] == 1 and train["Pneumonia"][2] == -1 and math.isnan(train["Edema"][0])
    assert train["sex"][:] == ["M", "M", "F", ""] and train["age"][0] == 61 and math.isnan(train["age"][2])
    assert validation["findings"][:] == ["Clear."] and math.isnan(validation["Edema"][0])


def test_labels_of_chexpert_plus(tmp_path, caplog):
    write_table(tmp_path / "df_chexpert_plus_240401.csv", HEADER, ROWS)
    touch(tmp_path / "PNG", ROWS, ".png")
    assert finding_columns(read_chexpert_plus(tmp_path, "train")) == []
    assert caplog.messages == [
        "chexpert_plus: chexbert_labels.zip is missing, so there are no findings; get it from "
        "https://aimi.stanford.edu/datasets/chexpert-plus."
    ]
    with zipfile.ZipFile(tmp_path / "chexbert_labels.zip", "w") as archive:
        archive.writestr("chexbert_labels/report_fixed.json", plus_labels(Fracture=0.0))
        archive.writestr("chexbert_labels/findings_fixed.json", "[1]")
    assert read_chexpert_plus(tmp_path, "train", labels="report")["Fracture"][2] == 0
    source = "https://aimi.stanford.edu/datasets/chexpert-plus"
    for labels, message in [
        ("impression", f"chexbert_labels.zip: impression_fixed.json is not in it; get it from {source}."),
        (
            "findings",
            f"findings_fixed.json: these are not lines of path_to_image and the 14 findings; get it from {source}.",
        ),
        ("manual", "chexpert_plus: labels are 'manual'; choose impression, findings, report or none."),
    ]:
        assert error_of(read_chexpert_plus, tmp_path, "train", labels=labels) == message
    assert finding_columns(read_chexpert_plus(tmp_path, "train", labels="none")) == []
