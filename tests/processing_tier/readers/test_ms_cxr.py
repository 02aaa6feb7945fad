import json
import math

import pytest
from archive_files import error_of, no_split, write

from processing_tier.readers.ms_cxr import FINDINGS, read_ms_cxr
from processing_tier.records.schema import finding_columns

HEADER = "dicom_id,category_name,label_text,path,x,y,w,h,image_width,image_height,split"
PATH = "files/p10/p10000032/s50414267/{}.jpg"
A, B, C = PATH.format("a-1"), PATH.format("b-2"), "files/p11/p11000011/s51029426/c-3.jpg"
ROWS = [
    f"a-1,Pneumonia,right lower lobe pneumonia,{A},10,20,300,400,2544,3056,train",
    f'a-1,Pleural Effusion,"small effusion, left",{A},1000,2000,500,600,2544,3056,train',
    f'a-1,Pleural Effusion,"small effusion, left",{A},2000,2000,1000,600,2544,3056,train',
    f"b-2,Edema,mild edema,{B},1,2,3,4,2544,3056,val",
    f"c-3,Edema,,{C},1,2,3,4,2544,3056,test",
    f"c-3,Edema,,{C},1,2,3,4,2544,3056,test",
]


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "ms-cxr"
    write(root / "MS_CXR_Local_Alignment_v1.1.0.csv", [HEADER, *ROWS])
    for path in (A, B, C):
        write(tmp_path / "jpg" / path)
    return root


def to_coco() -> dict:
    """The rows of version 0.1 in COCO's form."""
    images, annotations, names = {}, [], sorted({row.split(",")[1] for row in ROWS})
    for row in ROWS[3:5]:
        dicom_id, name, text, path, *numbers, _ = row.split(",")
        x, y, w, h, width, height = map(int, numbers)
        images[dicom_id] = {
            "id": len(images),
            "file_name": f"{dicom_id}.jpg",
            "path": path,
            "width": width,
            "height": height,
        }
        annotations.append(
            {
                "image_id": images[dicom_id]["id"],
                "category_id": names.index(name),
                "bbox": [x, y, w, h],
                "label_text": text,
            }
        )
    categories = [{"id": index, "name": name} for index, name in enumerate(names)]
    return {"info": {}, "categories": categories, "images": list(images.values()), "annotations": annotations}


def test_phrases_and_boxes(root, tmp_path, caplog):
    dataset = read_ms_cxr(root, "train", image_root=tmp_path / "jpg")
    assert caplog.messages == [
        "MS_CXR_Local_Alignment_v1.1.0.csv: 1 boxes reach beyond their image and are cut, 0 have no area inside it "
        "and are left out.",
    ]
    assert len(dataset) == 1 and finding_columns(dataset) == list(FINDINGS)
    record = dataset[0]
    assert (record["image_id"], record["patient_id"], record["study_id"]) == ("a-1", "10000032", "50414267")
    assert record["image"]["path"] == str((tmp_path / "jpg" / A).resolve()) and record["report"] == ""
    assert record["Pneumonia"] == record["Pleural Effusion"] == 1
    assert all(math.isnan(record[name]) for name in FINDINGS if name not in ("Pneumonia", "Pleural Effusion"))
    phrase = "small effusion, left"
    assert record["boxes"] == [
        {"finding": "Pneumonia", "phrase": "right lower lobe pneumonia", "x": 10, "y": 20, "w": 300, "h": 400},
        {"finding": "Pleural Effusion", "phrase": phrase, "x": 1000, "y": 2000, "w": 500, "h": 600},
        {"finding": "Pleural Effusion", "phrase": phrase, "x": 2000, "y": 2000, "w": 544, "h": 600},
    ]
    assert read_ms_cxr(root, "validation", image_root=tmp_path / "jpg")["image_id"][:] == ["b-2"]
    test = read_ms_cxr(root, "test", image_root=tmp_path / "jpg")
    assert test["boxes"][:] == [[{"finding": "Edema", "phrase": "", "x": 1.0, "y": 2.0, "w": 3.0, "h": 4.0}]]


def test_coco_form_and_where_the_images_are(root, tmp_path):
    (root / "MS_CXR_Local_Alignment_v1.1.0.csv").unlink()
    (root / "MS_CXR_Local_Alignment_v1.0.0.json").write_text(json.dumps(to_coco()))
    dataset = read_ms_cxr(root, "test", image_root=tmp_path / "jpg")
    assert dataset["image_id"][:] == ["b-2", "c-3"] and dataset["patient_id"][:] == ["10000032", "11000011"]
    assert dataset["boxes"][0] == [{"finding": "Edema", "phrase": "mild edema", "x": 1, "y": 2, "w": 3, "h": 4}]
    assert read_ms_cxr(root, "test", image_root=tmp_path / "jpg" / "files")["image"][:] == dataset["image"][:]
    with pytest.raises(ValueError) as error:
        read_ms_cxr(root, "train", image_root=tmp_path / "jpg")
    assert str(error.value) == (
        "MS_CXR_Local_Alignment_v1.0.0.json: this version has no splits; read 'test', which holds all images, or get "
        "1.1.0."
    )
    for path in (B, C):  # MIMIC-CXR itself, beside the table
        write((root / path).with_suffix(".dcm"))
    assert {path["path"][-4:] for path in read_ms_cxr(root, "test")["image"]} == {".dcm"}


def test_errors(root, tmp_path):
    def message(folder, split="train"):
        return error_of(read_ms_cxr, folder, split, image_root=tmp_path / "jpg")

    name = "MS_CXR_Local_Alignment_v1.1.0"
    assert message(root, "dev") == no_split("ms_cxr", "dev", "train, validation, test")
    assert message(tmp_path) == f"{tmp_path}: this is not the folder of ms_cxr, but {root} is; name that one."
    with pytest.raises(
        ValueError,
        match="1 of 1 images are missing, the first is files/p10/p10000032/s50414267/a-1.jpg; check the image ",
    ):
        read_ms_cxr(root, "train")
    for change, reason in [
        (("Pneumonia", "Fracture"), f"a finding is not one of {', '.join(FINDINGS)}; is this the table?"),
        (
            ("files/p10/p10000032", "p10000032"),
            "a path is not files/p10/p1000.../s5000.../....jpg; is this the table as shipped?",
        ),
        ((",10,20,", ",ten,20,"), "1 boxes have a coordinate that is not a number; fix or remove their rows."),
        (("label_text", "phrase"), "column 'label_text' is missing; is this the file of the archive, unchanged?"),
    ]:
        write(root / f"{name}.csv", [line.replace(*change) for line in (HEADER, *ROWS)])
        assert message(root) == f"{name}.csv: {reason}"
    (root / f"{name}.csv").unlink()
    for text, reason in [
        ("", "the file is empty, cut short or not JSON; download it again."),
        ("[]", "images, annotations and categories are not as shipped; download it again."),
        ("{}", "images, annotations and categories are not as shipped; download it again."),
        *(
            (
                json.dumps(to_coco()).replace(*change, 1),
                "images, annotations and categories are not as shipped; download it again.",
            )
            for change in (('"bbox": [1,', '"bbox": [{},'), ('"width": 2544', '"width": []'))
        ),
        (
            json.dumps(to_coco()).replace("mild", "\\ud800"),
            "the file is empty, cut short or not JSON; download it again.",
        ),
        (
            json.dumps({**to_coco(), "images": []}),
            "images, annotations and categories are not as shipped; download it again.",
        ),
        (json.dumps({**to_coco(), "annotations": []}), "it has no annotations; download it again."),
    ]:
        (root / f"{name}.json").write_text(text)
        assert message(root, "test") == f"{name}.json: {reason}"
    (root / f"{name}.json").unlink()
    assert message(root).startswith(f"{root}: MS_CXR_Local_Alignment_v*.csv of ms_cxr is not in this folder; get it")
