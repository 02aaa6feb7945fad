"""Archives with labels, boxes of anatomy and CheXmask's masks, from `NAME:FOLDER` through the commands."""

import io
import json
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from archive_files import write
from PIL import Image
from tiny_models import save_tiny_clip

import eval_zeroshot
import prepare_tier
import train_tier
from evaluation_tier.test_sets.loader import load_benchmark
from processing_tier.readers import read_records
from processing_tier.readers.chexpert import CHEXPERT_FINDINGS
from processing_tier.readers.cxr_lt_2026 import KNOWN
from processing_tier.readers.taix_ray import GRADES
from processing_tier.records.masks import decode_mask

WIDTH, HEIGHT, IMAGES = 64, 48, 6
QUICK = [
    *("--task", "classification", "--max_steps", "1", "--per_device_train_batch_size", "2", "--report_to", "none"),
    *("--use_cpu", "true", "--dataloader_pin_memory", "false", "--disable_tqdm", "true", "--min_positives", "1"),
]


def picture(number: int) -> bytes:
    """A PNG file of grey noise."""
    file = io.BytesIO()
    values = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
    Image.fromarray(values).save(file, format="PNG")
    return file.getvalue()


def write_picture(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(number))


def write_brax(root: Path) -> str:
    header = "PngPath,PatientID,PatientSex,PatientAge,AccessionNumber,ViewPosition," + ",".join(CHEXPERT_FINDINGS)
    rows = []
    for number in range(IMAGES):
        path = f"images/id_{number}/Study_{number}/Series_1/image-{number}.png"
        write_picture(root / path, number)
        rows.append(f"{path},{number},F,85 or more,{number},PA,,,{number % 2}.0" + "," * 11)
    write(root / "master_spreadsheet_update.csv", [header, *rows])
    return f"brax:{root}"


def write_taix_ray(root: Path) -> str:
    for split in ("train", "val"):
        columns = {
            "UID": [f"{split}{number}" for number in range(IMAGES)],
            "PatientID": [f"{split}{number}" for number in range(IMAGES)],
            "Age": [20_000] * IMAGES,
            "Sex": ["M"] * IMAGES,
            **{name: [3 * (number % 2) for number in range(IMAGES)] for name in GRADES},
            "Image": [{"bytes": picture(number), "path": None} for number in range(IMAGES)],
        }
        path = root / "data" / f"{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(columns).cast_column("Image", datasets.Image(decode=False)).to_parquet(path)
    return f"taix_ray:{root}"


def write_chest_imagenome(root: Path) -> str:
    splits = root / "silver_dataset" / "splits"
    header, box = "subject_id,study_id,dicom_id,path,ViewPosition", {"bbox_name": "right lung", "original_x1": 4}
    box |= {"original_y1": 6, "original_x2": 24, "original_y2": 30}
    rows, labels = [], []
    with zipfile.ZipFile(write_folder(root / "silver_dataset") / "scene_graph.zip", "w") as archive:
        for number in range(IMAGES):
            path = f"files/p10/p1000000{number}/s5000000{number}/a-{number}"
            write_picture(root / f"{path}.jpg", number)
            rows.append(f"{number},1000000{number},5000000{number},a-{number},{path}.dcm,PA")
            labels.append(f"1000000{number},5000000{number},,,{number % 2}.0" + "," * 11)
            archive.writestr(f"scene_graph/a-{number}_SceneGraph.json", json.dumps({"objects": [box]}))
    write(splits / "train.csv", [f",{header}", *rows])
    write(splits / "images_to_avoid.csv", [header])
    write(root / "mimic-cxr-2.0.0-chexpert.csv", ["subject_id,study_id," + ",".join(CHEXPERT_FINDINGS), *labels])
    return f"chest_imagenome:{root}"


def write_experts(root: Path) -> str:
    header = "Image Index,Patient ID,View Position,Fracture,Pneumothorax,Airspace opacity,Nodule or mass"
    for start, split in enumerate(("validation", "test")):
        numbers = [start * IMAGES + number for number in range(IMAGES)]
        rows = [f"{n:08}_000.png,{n},PA,NO,{'NO' if n % 2 else 'YES'},NO,NO" for n in numbers]
        write(root / "four_findings_expert_labels" / f"{split}_labels.csv", [header, *rows])
        for number in numbers:
            write_picture(root / "images_001" / "images" / f"{number:08}_000.png", number)
    return f"chestxray14_experts:{root}"


def write_masked_nih(root: Path) -> str:
    header = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"
    names = [f"{number:08}_000.png" for number in range(IMAGES)]
    rows = [f"{name},{'Mass' if n % 2 else 'No Finding'},0,{n},58,M,PA" for n, name in enumerate(names)]
    write(root / "Data_Entry_2017_v2020.csv", [header, *rows])
    write(root / "BBox_List_2017.csv", ["Image Index,Finding Label,Bbox [x,y,w,h],,,"])
    write(root / "train_val_list.txt", names)
    for number, name in enumerate(names):
        write_picture(root / "images" / name, number)
    runs = " ".join(f"{row * WIDTH + 11} 20" for row in range(12, 36))  # columns 10 to 29, rows 12 to 35
    masks = [f'{name},0.9,0.9,"1,2",{runs},,,{HEIGHT},{WIDTH}' for name in names]
    titles = "Image Index,Dice RCA (Mean),Dice RCA (Max),Landmarks,Left Lung,Right Lung,Heart,Height,Width"
    write(root / "chexmask" / "OriginalResolution" / "ChestX-Ray8.csv", [titles, *masks])
    return f"chestxray14:{root},chexmask={root / 'chexmask'}"


def write_cxr_lt(root: Path) -> str:
    header = "ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,Projection,Report,"
    rows, labels = [], []
    for number in range(IMAGES):
        write_picture(root / "0" / f"{number}.png", number)
        rows.append(f"{number}.png,0,20140915,S{number},{number},1950,F,PA,x,Physician,\"['normal']\"")
        labels.append(f"{number}.png,20140915,3.2e+38,{1 - number % 2},{int(number == 0)},{number % 2}" + ",0" * 27)
    write(root / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv", [f"{header}MethodLabel,Labels", *rows])
    write(root / "CXRLT_2026_training.csv", [f"ImageID,StudyDate_DICOM,PatientID,{','.join(KNOWN)}", *labels])
    return f"cxr_lt_2026:{root}"


def write_folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


# The archive, its split, and a finding that every second image has
CASES = {
    "brax": (write_brax, "train", "Cardiomegaly"),
    "taix_ray": (write_taix_ray, "validation", "Pleural Effusion"),
    "chest_imagenome": (write_chest_imagenome, "train", "Cardiomegaly"),
    "chestxray14_experts": (write_experts, "test", "Pneumothorax"),
    "chestxray14": (write_masked_nih, "train", "Mass"),
    "cxr_lt_2026": (write_cxr_lt, "train", "cardiomegaly"),
}


def call(command, *words) -> None:
    command.main([str(word) for word in words])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_clip(tmp_path_factory.mktemp("model") / "tiny", 0, image_pooling="patch_mean")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name in ("brax", "chestxray14_experts", "cxr_lt_2026")))
        for name in CASES
    ],
)
def test_every_command_reads_it(name, model, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_archive, split, finding = CASES[name]
    data = write_archive(tmp_path / "the archive")
    read = read_records(data, split).sort("image_id")
    assert sorted(read[finding][:]) == [0, 0, 0, 1, 1, 1]

    call(prepare_tier, "--data", data, "--output_dir", tmp_path / "prepared", "--size", 24, "--num_workers", 1,
         "--splits", split, "--views", "all")  # fmt: skip
    prepared = read_records(tmp_path / "prepared", split).sort("image_id")  # they are shuffled
    for column in ("image_id", "patient_id", "study_id", "view", finding):
        assert prepared[column][:] == read[column][:]
    if name == "chest_imagenome":
        sides = {side: prepared["boxes"][0][0][side] for side in "xywh"}
        assert sides == {"x": 2, "y": 3, "w": 10, "h": 12} and prepared["boxes"][0][0]["finding"] == "right lung"
    if name == "chestxray14":
        (mask,) = prepared["masks"][0]
        rows, columns = np.nonzero(decode_mask(mask["counts"], mask["height"], mask["width"]))
        assert [rows.min(), rows.max(), columns.min(), columns.max()] == [6, 17, 5, 14] and len(rows) == 12 * 10

    held_out = ("--train_split", split, "--eval_fraction", "0.5")
    call(train_tier, "--data", data, "--model", model, "--output_dir", tmp_path / "run", "--findings", finding,
         *held_out, *QUICK)  # fmt: skip
    assert (tmp_path / "run" / "model.safetensors").is_file()
    call(eval_zeroshot, model, "--data", data, "--split", split, "--findings", finding, "--min_positives", 1,
         "--n_bootstrap", 10, "--output_dir", tmp_path / "evaluation")  # fmt: skip
    metrics = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert metrics["dataset"] == name and metrics["findings"][finding]["n_positive"] == 3


@pytest.mark.parametrize(
    ("name", "benchmark", "findings"),
    [
        ("brax", "brax", ["Cardiomegaly"]),
        ("taix_ray", "taix-ray", list(load_benchmark("taix-ray").findings)),
        ("chestxray14_experts", "chestxray14-experts-4", ["Pneumothorax"]),
        ("cxr_lt_2026", "cxr-lt-2026-task1", ["Normal", "Aortic elongation", "Cardiomegaly"]),
    ],
)
def test_its_test_set(name, benchmark, findings, model, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_archive, split, _ = CASES[name]
    data = write_archive(tmp_path / "archive")
    call(eval_zeroshot, model, "--data", data, "--benchmark", benchmark, "--split", split, "--n_bootstrap", 10,
         "--output_dir", tmp_path / "evaluation")  # fmt: skip
    metrics = json.loads((tmp_path / "evaluation" / "metrics.json").read_text())
    assert metrics["protocol"]["benchmark"] == benchmark and list(metrics["findings"]) == findings
    tables = (tmp_path / "evaluation" / "tables.md").read_text()
    if name == "cxr_lt_2026":
        assert {group: part["findings"] for group, part in metrics["groups"].items()} == {"head": findings}
        mean = np.mean([metrics["findings"][finding]["auprc"] for finding in findings])
        assert metrics["groups"]["head"]["auprc"] == pytest.approx(mean) == metrics["mean"]["auprc"]
        assert metrics["protocol"]["groups"] == {"head": 0.1, "medium": 0.01, "tail": 0.0}
        assert "Frequent and rare findings" in tables
    else:
        assert "groups" not in metrics and "Frequent and rare findings" not in tables
