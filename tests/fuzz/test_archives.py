"""Damaged annotations of archives (XML, JSON, masks as run lengths, boxes): records, or one sentence."""

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from fuzz.mutations import VALUES, fuzz, run_child

from processing_tier.readers import READERS, read_records
from processing_tier.readers.cxr_lt_2026 import KNOWN
from processing_tier.readers.vindr_pcxr import DIAGNOSES
from processing_tier.records.annotations import read_annotations
from processing_tier.records.masks import counts_from_coco_string, counts_from_row_pairs, counts_from_siim, decode_mask
from processing_tier.records.table_options import TableOptions

OPENI = """<?xml version="1.0" encoding="utf-8"?>
<eCitation><uId id="CXR1"/><MedlineCitation><Article><Abstract>
<AbstractText Label="FINDINGS">Heart &lt; normal. Clear &amp; dry.</AbstractText>
<AbstractText Label="IMPRESSION">No edema.</AbstractText></Abstract></Article></MedlineCitation>
<MeSH><major>Cardiomegaly/borderline</major></MeSH>
<parentImage id="CXR1_1_IM-0001-4001"><caption>PA</caption></parentImage></eCitation>
"""
FINDINGS = "No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,"
FINDINGS += "Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
HEAD = f"Path,Sex,Age,Frontal/Lateral,AP/PA,{FINDINGS}\n"
STUDY = "patient64541/study1/view1_frontal.jpg"
ROW = f"CheXpert-v1.0/valid/{STUDY},Male,73,Frontal,AP" + ",0.0,1.0" * 7 + "\n"
SEGMENTATIONS = {
    "patient64541_study1_view1_frontal": {"Cardiomegaly": {"size": [50, 40], "counts": "T8d0n0000002Lb^1"}}
}
MS_CXR = "files/p10/p10000032/s50414267/a-1.jpg"
COCO = {
    "info": {},
    "categories": [{"id": 0, "name": "Edema"}],
    "images": [{"id": 0, "file_name": "a-1.jpg", "path": MS_CXR, "width": 99, "height": 99}],
    "annotations": [{"image_id": 0, "category_id": 0, "bbox": [1, 2, 3, 4], "label_text": "edema"}],
}
DET10 = [
    {"file_name": "00000042_006.png", "syms": ["Fibrosis"], "boxes": [[632, 721, 909, 969]]},
    {"file_name": "00000003_003.png", "syms": [], "boxes": []},
]
TBX11K = {**COCO, "categories": [{"id": 0, "name": "ActiveTuberculosis"}]}
TBX11K["images"] = [{**COCO["images"][0], "file_name": "tb/tb0003.png"}]
GROUNDED = {"sentence_en": "The heart is enlarged.", "sentence_es": "x", "abnormal": True, "labels": ["cardiomegaly"]}
REXGRADIENT = dict.fromkeys(("Indication", "Comparison", "Findings", "Impression", "PatientSex", "PatientAge"), "x")
REXGRADIENT |= {"PatientID": "G1", "ImagePath": ["../deid_png/G1/1.png"], "ImageViewPosition": ["PA"]}
# By reader: the split that is read, and its files
ARCHIVES = {
    "openi": ("train", {"ecgen-radiology/1.xml": OPENI, "NLMCXR_png/CXR1_1_IM-0001-4001.png": "png"}),
    "chexpert": ("validation", {"valid.csv": HEAD + ROW, "train.csv": HEAD + ROW, f"valid/{STUDY}": "jpeg"}),
    "chexlocalize": (
        "validation",
        {
            "CheXpert/val_labels.csv": HEAD + ROW,
            "CheXlocalize/gt_segmentations_val.json": json.dumps(SEGMENTATIONS),
            f"CheXpert/val/{STUDY}": "jpeg",
        },
    ),
    "chestx_det10": (
        "train",
        {"train.json": json.dumps(DET10), **{f"train_data/{entry['file_name']}": "png" for entry in DET10}},
    ),
    "siim": (
        "train",
        {
            "train-rle.csv": "ImageId, EncodedPixels\na.1, -1\nb.2, 1024 3 1021 2\nb.2, 0 5\n",
            "dicom-images-train/a.1.dcm": "DICM",
            "dicom-images-train/b.2.dcm": "DICM",
        },
    ),
    "rsna": (
        "train",
        {
            "stage_2_train_labels.csv": "patientId,x,y,width,height,Target\np-a,,,,,0\np-b,264.0,152,213,379,1\n",
            "stage_2_detailed_class_info.csv": "patientId,class\np-a,Normal\np-b,Lung Opacity\n",
            "pneumonia-challenge-dataset-mappings_2018.json": json.dumps(
                [{"subset_img_id": "p-a", "img_id": "00000001_000.png"}]
            ),
            "stage_2_train_images/p-a.dcm": "DICM",
            "stage_2_train_images/p-b.dcm": "DICM",
        },
    ),
    "tbx11k": (
        "train",
        {"annotations/json/TBX11K_train.json": json.dumps(TBX11K), "imgs/tb/tb0003.png": "png"},
    ),
    "padchest_gr": (
        "train",
        {
            "grounded_reports_20240819.json": json.dumps(
                [{"ImageID": "a.png", "StudyID": "1", "findings": [{**GROUNDED, "boxes": [[0.1, 0.2, 0.3, 0.4]]}]}]
            ),
            "master_table.csv": "StudyID,ImageID,PatientID,split,label_group,sentence_en,PatientSex_DICOM,PatientAge\n"
            "1,a.png,7,train,cardiomegaly,The heart is enlarged.,M,70\n",
            "Padchest_GR_files/PadChest_GR/a.png": "png",
        },
    ),
    "rexgradient": (
        "train",
        {
            "metadata/train_metadata_view_position.json": json.dumps({"G1_A1": REXGRADIENT}),
            "deid_png/G1/1.png": "png",
        },
    ),
    "ms_cxr": (
        "test",
        {"MS_CXR_Local_Alignment_v0.1.json": json.dumps(COCO), **{f"jpg/{MS_CXR}": "jpeg"}},
    ),
}
SPLIT = f"subject_id,study_id,dicom_id,path,ViewPosition\n10000032,50414267,a-1,{MS_CXR},PA\n"
GRAPH = {
    "objects": [{"bbox_name": "right lung", **dict.fromkeys(("original_x1", "original_y1"), 1), "original_x2": 9}]
}
GRAPH["objects"][0]["original_y2"] = 9
ARCHIVES |= {
    "brax": (
        "train",
        {
            "master_spreadsheet.csv": "PngPath,PatientID,PatientSex,PatientAge,AccessionNumber,ViewPosition,"
            f"{FINDINGS}\nimages/a.png,id_1,M,85 or more,77,PA{',1.0,' * 7}\n",
            "images/a.png": "png",
        },
    ),
    "chest_imagenome": (
        "train",
        {
            "silver_dataset/splits/train.csv": SPLIT,
            "silver_dataset/splits/images_to_avoid.csv": SPLIT.replace("a-1", "g-1"),
            "silver_dataset/scene_graph/a-1_SceneGraph.json": json.dumps(GRAPH),
            "jpg/mimic-cxr-2.0.0-chexpert.csv": f"subject_id,study_id,{FINDINGS}\n10000032,50414267{',1.0,' * 7}\n",
            f"jpg/{MS_CXR}": "jpeg",
        },
    ),
    "chestxray14_experts": (
        "test",
        {
            "four_findings_expert_labels/test_labels.csv": "Image Index,Patient ID,Fracture,Pneumothorax,"
            "Airspace opacity,Nodule or mass\n00000001_000.png,1,YES,NO,,NO\n",
            "images/00000001_000.png": "png",
        },
    ),
    "cxr_lt_2026": (
        "train",
        {
            "CXRLT_2026_training.csv": f"ImageID,{','.join(KNOWN)}\na.png{',0' * 15}{',1' * 15}\n",
            "Removal.csv": "ImageID\nb.png\n",
            "PADCHEST_labels_160K.csv": "ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,"
            "PatientSex_DICOM,Projection,Report,MethodLabel,Labels\n"
            "a.png,0,20140915,S1,839,1930.0,F,PA,x,Physician,\"['goiter', 'loc right']\"\n",
            "0/a.png": "png",
        },
    ),
    "montgomery": (
        "train",
        {
            "CXR_png/MCUCXR_0104_1.png": "png",
            "ClinicalReadings/MCUCXR_0104_1.txt": "Patient's Sex: M\nPatient's Age: 046Y\nmiliary TB\n",
            "montgomery_consensus_roi.csv": "patientId,x_dis,y_dis,width_dis,height_dis,Labels\n"
            "MCUCXR_0104_1.png,512,256,256,128.5,TB\n",
        },
    ),
    "vindr_pcxr": (
        "test",
        {
            "image_labels_test.csv": f"image_id,rad_ID,{','.join(DIAGNOSES)}\na,R1{',0' * (len(DIAGNOSES) - 1)},1\n",
            "annotations_test.csv": "image_id,rad_ID,class_name,x_min,y_min,x_max,y_max\n"
            "a,R1,Consolidation,1,2,3,4.5\n",
            "test/a.dicom": "DICM",
        },
    ),
    "vindr_cxr": (
        "test",
        {
            "annotations/annotations_test.csv": "image_id,class_name,x_min,y_min,x_max,y_max\na,Edema,1,2,3,4\n",
            "annotations/image_labels_test.csv": "image_id,Edema,No finding\na,1,0\n",
            "test/a.dicom": "DICM",
            "VinDr-CXR.csv": "image_id,Dice RCA (Mean),Left Lung,Right Lung,Heart,Height,Width\n"
            "a,0.9,1 3,7 2 9 4,,5,6\n",
        },
    ),
}
ANNOTATIONS = {
    "boxes.json": [{"label": "Edema", "bbox_xywh": [1, 2, 3, 4]}, {"finding": "x", "x": 1, "y": 2, "w": 3, "h": 4}],
    "masks.json": [{"finding": "Edema", "height": 4, "width": 5, "counts": [3, 5, 12]}],
}


def read(path: Path) -> None:
    if path.suffix == ".json":
        kind = path.stem
        text = path.read_bytes().decode("utf-8", errors="surrogateescape")
        annotations = read_annotations(kind, text, "table")
        for mask in annotations if kind == "masks" else ():
            assert decode_mask(mask["counts"], mask["height"], mask["width"]).shape == (mask["height"], mask["width"])
        return
    split = ARCHIVES[path.name][0]
    data = f"{path.name}:{path}" + (f",chexmask={path / 'VinDr-CXR.csv'}" if path.name == "vindr_cxr" else "")
    beside = path.name in ("ms_cxr", "chest_imagenome")
    records = read_records(data, split, TableOptions(image_root=path / "jpg" if beside else None))
    assert len(records["image_id"][:]) > 0
    for record in records:
        for mask in record.get("masks") or ():
            decode_mask(mask["counts"], mask["height"], mask["width"])


def victims(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return [file for file in sorted(path.rglob("*")) if file.suffix in (".xml", ".csv", ".json")]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_damaged_archives_are_read_or_refused(tmp_path):
    assert ARCHIVES.keys() <= READERS.keys()
    for reader, (_, files) in ARCHIVES.items():
        for name, content in files.items():
            (tmp_path / reader / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / reader / name).write_text(content)
    for name, content in ANNOTATIONS.items():
        (tmp_path / name).write_text(json.dumps(content))
    seeds = sorted(tmp_path.iterdir())
    for seed in seeds:
        read(seed)
    found = run_child(__file__, seeds, 100)
    assert found["read"] > 100 and found["refused"] > 100


@pytest.mark.slow
def test_run_lengths_of_any_kind_are_read_or_refused():
    rng = random.Random(0)
    numbers = [0, 1, -1, 2, 5, 20, 40, 2**31, 2**62, 2**63, 2**64, 2**70, 1.0, 0.5, float("nan"), None, True, "3", []]
    outcomes = {"read": 0, "refused": 0}
    for _ in range(20_000):
        counts = rng.choice(([rng.choice(numbers) for _ in range(rng.randrange(6))], rng.choice(VALUES)))
        if rng.random() < 0.5:  # nearly right
            cuts = sorted(rng.sample(range(21), 3))
            counts = [cuts[0], cuts[1] - cuts[0], cuts[2] - cuts[1], 20 - cuts[2] + rng.choice((0, 0, 1, -1))]
        height, width = rng.choice(((4, 5), (4, 5), (4, 5), (0, 5), (-4, -5), (2**40, 2**40)))
        text = "".join(
            chr(rng.choice((48, 49, 50, 52, 79, 80, 111, 0, 200, 0x1F600))) for _ in range(rng.randrange(9))
        )
        words = " ".join(str(rng.choice((0, 1, 3, -1, 10**12, "x", "\u0664"))) for _ in range(rng.randrange(7)))
        forms = (
            (list, counts),
            (counts_from_coco_string, text),
            (counts_from_siim, words),
            (counts_from_row_pairs, words),
        )
        for read_counts, value in forms:
            try:
                found = value if read_counts is list else read_counts(value, height, width)
                mask = decode_mask(found, height, width)
            except ValueError as error:
                assert type(error) is ValueError and str(error).endswith(".")
                outcomes["refused"] += 1
            else:
                assert mask.shape == (height, width) and mask.dtype == np.bool_
                outcomes["read"] += 1
    assert outcomes["read"] > 1000 and outcomes["refused"] > 1000


if __name__ == "__main__":
    fuzz(read, victims)
