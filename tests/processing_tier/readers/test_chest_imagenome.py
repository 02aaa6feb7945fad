import json
import math
import zipfile

import pytest
from archive_files import error_of, no_split, write

from processing_tier.readers.chest_imagenome import read_chest_imagenome
from processing_tier.readers.chexpert import CHEXPERT_FINDINGS
from processing_tier.records.identities import family
from processing_tier.records.schema import check_disjoint_patients, finding_columns

PATH = "files/p{0:.2}/p{0}/s{1}/{2}.dcm"
# subject, study, image, view; the splits' tables begin with a column of row numbers without a name
TRAIN = [
    ("10000032", "50414267", "a-1", "PA"),
    ("10000032", "50414267", "a-1", "PA"),
    ("10000032", "53189527", "a-2", "AP"),
    ("10000764", "57375967", "a-3", "AP"),
    ("11000011", "51029426", "g-1", "AP"),  # of a gold patient
]
GOLD = [("11000011", "51029426", "g-1", "AP"), ("11000011", "51029427", "g-2", "PA"), ("11000012", "5", "g-3", "PA")]
GOLD_HEADER = (
    "image_id,x1,y1,x2,y2,width,height,bbox_name,annot_id,original_x1,original_x2,original_y1,original_y2,"
    "original_width,original_height,annotator,coord224,coord_original"
)
GOLD_ROWS = [
    'g-1.dcm,1,2,3,4,2,2,right lung,7,120,1120,300,2300,1000,2000,C,"[1, 2, 3, 4]","[120, 300, 1120, 2300]"',
    'g-1.dcm,1,2,3,4,2,2,cardiac silhouette,8,900,1900,1200,2000,1000,800,C,"[1, 2, 3, 4]","[900, 1200, 1900, 2000]"',
    'g-2.dcm,0,0,0,0,0,0,trachea,9,5,5,5,9,0,4,W,"[0, 0, 0, 0]","[5, 5, 5, 9]"',
]
LABELS = ["subject_id,study_id," + ",".join(CHEXPERT_FINDINGS), "10000032,50414267,,,1.0,,,-1.0" + "," * 8]


def row_of(image, number=None):
    subject, study, dicom_id, view = image
    start = "" if number is None else f"{number},"
    return f"{start}{subject},{study},{dicom_id},{PATH.format(subject, study, dicom_id)},{view}"


def graph(*boxes):
    """A scene graph with its boxes, as (region, x1, y1, x2, y2)."""
    keys = ("bbox_name", "original_x1", "original_y1", "original_x2", "original_y2")
    objects = [{"object_id": "x", "x1": 1, **dict(zip(keys, box, strict=True))} for box in boxes]
    return json.dumps({"image_id": "x", "viewpoint": "PA", "objects": objects, "attributes": [], "relationships": []})


def write_graphs(root, **graphs):
    with zipfile.ZipFile(root / "silver_dataset" / "scene_graph.zip", "w") as archive:
        for name, text in graphs.items():
            archive.writestr(f"scene_graph/{name.replace('_', '-')}_SceneGraph.json", text)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "chest-imagenome"
    splits = root / "silver_dataset" / "splits"
    header = "subject_id,study_id,dicom_id,path,ViewPosition"
    write(splits / "train.csv", [f",{header}", *(row_of(image, number) for number, image in enumerate(TRAIN))])
    write(splits / "valid.csv", [f",{header}", row_of(("12000001", "58000001", "v-1", "PA"), 0)])
    write(splits / "images_to_avoid.csv", [header, *map(row_of, GOLD)])
    write(root / "gold_dataset" / "gold_bbox_coordinate_annotations_1000images.csv", [GOLD_HEADER, *GOLD_ROWS])
    write_graphs(
        root,
        a_1=graph(
            ("right lung", 120.5, -3, 1120.5, 2300), ("left lung", 1300, 290, 2300, 2310), ("spine", 7, 7, 7, 9)
        ),
        g_1=graph(("right lung", 0, 0, 1, 1)),
        v_1=graph(),
    )
    mimic = tmp_path / "mimic-cxr-jpg"
    write(mimic / "mimic-cxr-2.0.0-chexpert.csv", LABELS)
    for image in [*TRAIN[:3], *GOLD[:2], ("12000001", "58000001", "v-1", "PA")]:
        write(mimic / PATH.format(*image).replace(".dcm", ".jpg"))
    return root


def test_silver(root, tmp_path, caplog):
    dataset = read_chest_imagenome(root, "train", image_root=tmp_path / "mimic-cxr-jpg")
    assert caplog.messages == [
        "chest_imagenome, split train: 1 of 5 rows repeat a 'image_id': dropped.",
        "chest_imagenome, split train: 1 of 3 images are missing, the first is "
        "files/p10/p10000764/s57375967/a-3.jpg: left out.",
        "chest_imagenome: 1 of 2 images have no scene graph and stay without boxes; 1 boxes without area are left "
        "out.",
    ]
    assert finding_columns(dataset) == list(CHEXPERT_FINDINGS)
    assert dataset["image_id"][:] == ["a-1", "a-2"] and dataset["patient_id"][:] == ["10000032"] * 2
    assert dataset["study_id"][:] == ["50414267", "53189527"] and dataset["view"][:] == ["PA", "AP"]
    assert dataset["Cardiomegaly"][0] == 1 and dataset["Edema"][0] == -1 and math.isnan(dataset["Edema"][1])
    assert dataset["boxes"][:] == [
        [
            {"finding": "right lung", "phrase": "", "x": 120.5, "y": 0, "w": 1000, "h": 2300},
            {"finding": "left lung", "phrase": "", "x": 1300, "y": 290, "w": 1000, "h": 2020},
        ],
        [],
    ]
    validation = read_chest_imagenome(root, "validation", labels="none", image_root=tmp_path / "mimic-cxr-jpg")
    assert validation["boxes"][:] == [[]] and finding_columns(validation) == []
    assert family("chest_imagenome") == family("mimic_cxr_jpg") == "mimic_cxr"


def test_extracted_graphs(root, tmp_path):
    expected = read_chest_imagenome(root, "train", image_root=tmp_path / "mimic-cxr-jpg")["boxes"][:]
    source = root / "silver_dataset" / "scene_graph.zip"
    with zipfile.ZipFile(source) as archive:
        archive.extractall(root / "silver_dataset")
    source.unlink()
    assert read_chest_imagenome(root, "train", image_root=tmp_path / "mimic-cxr-jpg")["boxes"][:] == expected


def test_gold(root, tmp_path, caplog):
    gold = read_chest_imagenome(root, "gold", image_root=tmp_path / "mimic-cxr-jpg")
    assert caplog.messages == [
        "gold_bbox_coordinate_annotations_1000images.csv: 0 boxes reach beyond their image and are cut, 1 have no "
        "area inside it and are left out."
    ]
    assert gold["image_id"][:] == ["g-1"] and gold["patient_id"][:] == ["11000011"]
    assert gold["boxes"][0] == [
        {"finding": "right lung", "phrase": "", "x": 120, "y": 300, "w": 1000, "h": 2000},
        {"finding": "cardiac silhouette", "phrase": "", "x": 900, "y": 1200, "w": 1000, "h": 800},
    ]
    train = read_chest_imagenome(root, "train", image_root=tmp_path / "mimic-cxr-jpg")
    check_disjoint_patients(train=train, gold=gold)


def test_errors(root, tmp_path):
    def message(split="train", **options):
        return error_of(read_chest_imagenome, root, split, **{"image_root": tmp_path / "mimic-cxr-jpg", **options})

    assert message("dev") == no_split("chest_imagenome", "dev", "train, validation, test, gold")
    assert message(labels="radiologist") == (
        "chest_imagenome: labels are 'radiologist'; choose chexpert, negbio or none."
    )
    assert "mimic-cxr-2.0.0-negbio.csv* of chest_imagenome is not in this folder" in message(labels="negbio")
    assert message("test").startswith(
        f"{root}: silver_dataset/splits/test.csv of chest_imagenome is not in this folder"
    )
    form = (
        "a scene graph is not as shipped (objects with bbox_name and original_x1 to original_y2); download it again."
    )
    for text in ("", "[]", '{"objects": 5}', '{"objects": [{"bbox_name": "a"}]}', graph((5, 1, 2, 3, 4)), "[" * 99999):
        write_graphs(root, a_1=text)
        assert message() == f"scene_graph.zip: {form}"
    for corner in ("NaN", "1e300", '"a"', "null"):
        write_graphs(
            root, a_1=graph(("right lung", 1, 2, 3, 4)).replace('"original_x1": 1', f'"original_x1": {corner}')
        )
        assert message() == f"scene_graph.zip: {form}"
    (root / "silver_dataset" / "scene_graph.zip").write_bytes(b"PK")
    assert message() == "scene_graph.zip: the file is not a readable zip archive; download it again."
    table = root / "silver_dataset" / "splits" / "train.csv"
    write(table, [",subject_id,study_id,dicom_id,path,ViewPosition", "0,1,2,a,../../../etc/passwd,PA"])
    assert message() == "train.csv: a path is not files/p10/p1000.../s5000.../....dcm; is this the table?"
    write(table, [",subject_id,study_id,image_id,path,ViewPosition", "0,1,2,a,b,PA"])
    assert message() == "train.csv: column 'dicom_id' is missing; is this the file of the archive, unchanged?"
    gold = root / "gold_dataset" / "gold_bbox_coordinate_annotations_1000images.csv"
    write(gold, [GOLD_HEADER, GOLD_ROWS[0].replace("1120,", "x,")])
    assert message("gold") == (
        f"{gold.name}: 1 boxes have a coordinate that is not a number; fix or remove their rows."
    )
