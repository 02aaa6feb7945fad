"""Small archives in the layouts of their owners, with real pictures, for tests of readers and of the commands."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 64, 48


def write_picture(path: Path, number: int, depth: int = 8) -> None:
    """A PNG file of grey noise, whatever its name; 16 bits as PadChest ships them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(number).integers(0, 2**depth, (HEIGHT, WIDTH))
    Image.fromarray(values.astype(np.uint16 if depth == 16 else np.uint8)).save(path, format="PNG")


def write_csv(path: Path, header: tuple[str, ...], rows: list[tuple]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def write_montgomery(root: Path) -> None:
    """
    Twelve images: a child of sex O, and two patients with several images, of whom one has no report. Three have masks,
    the last only one lung. Boxes are in pixels of copies of 1024 x 1024; one is of an image that is not there.
    """
    readings = {
        "0001_0": ("F ", "027Y", "normal"),
        "0002_0": ("M ", "040Y", "normal"),
        "0003_0": ("F ", "031Y", "normal"),
        "0004_0": ("M ", "052Y", "normal"),
        "0080_0": ("O ", "005Y", "normal"),
        "0104_1": ("M ", "046Y", "improved bilateral nodular infiltrates"),
        "0108_1": ("F ", "033Y", "miliary TB"),
        "0113_1": ("M ", "084Y", "old inactive disease in RL"),
        "0117_1": ("M ", "085Y", "stable CXR since 6M;\n off Rx since 6M (same pt as MCUCXR_0113_1)"),
        "0162_1": ("M ", "049Y", "infiltrate in LUL"),
        "0166_1": ("M ", "049Y", "NO REPORT (same pt as MCUCXR_0162_1)"),
        "0170_1": ("M ", "049Y", "prior views 1M and 2M ago; improved"),
    }
    write_nlm(root, {f"MCUCXR_{name}": "Patient's Sex: {}\nPatient's Age: {}\n{}\n".format(*parts)
                     for name, parts in readings.items()})  # fmt: skip
    for name, sides in (("0001_0", (0, 40)), ("0104_1", (0, 40)), ("0108_1", (4,))):
        for left, side in zip(sides, ("leftMask", "rightMask"), strict=False):
            write_mask(root / "ManualMask" / side / f"MCUCXR_{name}.png", left)
    boxes = [("MCUCXR_0104_1.png", 512, 256, 256, 128, "TB"), ("MCUCXR_0104_1.png", 0, 0, 64, 512, "TB"),
             ("MCUCXR_0108_1.png", 896, 896, 128.5, 128, "TB"), ("MCUCXR_0399_1.png", 1, 2, 3, 4, "TB")]  # fmt: skip
    write_csv(root / "montgomery_consensus_roi.csv", (*NLM_BOXES, "Labels"), boxes)


def write_mask(path: Path, left: int) -> None:
    """A PNG file of one bit: 20 columns of the middle rows are inside."""
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[10:30, left : left + 20] = True
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)


NLM_BOXES = ("patientId", "x_dis", "y_dis", "width_dis", "height_dis")


def write_shenzhen(root: Path) -> None:
    """Ten images, whose readings are written in all the ways that were found."""
    readings = {
        "0001_0": "male 45yrs\nnormal",
        "0044_0": "femal 32yrs\r\nnormal\r\n",
        "0115_0": "male 16month\nnormal",
        "0202_0": "female 64days\nnormal",
        "0300_0": "male 42\nnormal",
        "0327_1": "female24yrs\nSTB",
        "0328_1": "male , 29yrs  \t\nbilateral secondary PTB",
        "0329_1": "Female, 28yrs\nsecondary PTB\nATB",
        "0330_1": "male 51yrs\nright PTB with pleuritis",
        "0331_1": "",
    }
    write_nlm(root, {f"CHNCXR_{name}": text for name, text in readings.items()})
    write_csv(root / "shenzhen_consensus_roi.csv", (*NLM_BOXES, "Finding Label"),
              [("CHNCXR_0327_1.png", 256, 512, 512, 256, "TB")])  # fmt: skip


def write_nlm(root: Path, readings: dict[str, str]) -> None:
    for number, (name, text) in enumerate(readings.items()):
        write_picture(root / "CXR_png" / f"{name}.png", number)
        (root / "ClinicalReadings").mkdir(exist_ok=True)
        (root / "ClinicalReadings" / f"{name}.txt").write_bytes(text.encode())
    (root / "CXR_png" / "Thumbs.db").write_bytes(b"")


TBX11K_CATEGORIES = ("ActiveTuberculosis", "ObsoletePulmonaryTuberculosis", "PulmonaryTuberculosis")
TBX11K_EXTRA = ("mc+shenzhen/{}/MCUCXR_0{}_0.png", "mc+shenzhen/{}/CHNCXR_0{}_1.png", "da+db/{}/n11.png",
                "da+db/{}/px3.jpg")  # fmt: skip


def write_tbx11k(root: Path) -> None:
    """Twelve images in each split, with active and latent boxes, one of `tb` without a box, and four extra ones."""
    start = 1
    for split, number in (("train", "113"), ("val", "117")):
        names = [f"{kind}/{kind[0] if kind != 'tb' else 'tb'}{start + i:04}.png" for kind in ("health", "sick", "tb")
                 for i in range(4)]  # fmt: skip
        extra = ["extra/" + name.format(split, number) for name in TBX11K_EXTRA]
        start += 4
        tb = [name for name in names if name.startswith("tb/")]
        boxes = [(tb[0], 1, [3, 4, 20, 10]), (tb[0], 1, [40, 4, 10, 10]), (tb[1], 2, [1, 2, 3, 4.5]),
                 (tb[2], 1, [50, 40, 20, 8.4]), (tb[2], 2, [5, 6, 7, 8])]  # fmt: skip
        for prefix, chosen in (("TBX11K", names), ("all", names + extra)):
            ids = {name: place + 1 for place, name in enumerate(chosen)}
            content = {
                "info": {},
                "images": [{"id": i, "file_name": n, "width": WIDTH, "height": HEIGHT} for n, i in ids.items()],
                "categories": [{"id": i + 1, "name": name, "supercategory": "Tuberculosis"}
                               for i, name in enumerate(TBX11K_CATEGORIES)],
                "annotations": [{"id": i, "image_id": ids[name], "category_id": category, "bbox": box, "iscrowd": 0}
                                for i, (name, category, box) in enumerate(boxes)],
            }  # fmt: skip
            write_json(root / "annotations" / "json" / f"{prefix}_{split}.json", content)
        for place, name in enumerate(names + extra):
            write_picture(root / "imgs" / name, place + 100 * start)


def write_vindr_pcxr(root: Path) -> None:
    """Eight images in each split: one diagnosis each, two with boxes, "No finding" rows without coordinates."""
    from processing_tier.readers.vindr_pcxr import DIAGNOSES

    for split in ("train", "test"):
        ids = [f"{split}{i}" for i in range(8)]
        of = dict(zip(ids, ("No finding", "Bronchitis", "Pneumonia", "Brocho-pneumonia") * 2, strict=True))
        labels = [(image, "R1", *(int(name == of[image]) for name in DIAGNOSES)) for image in ids]
        marks: list[tuple] = [(image, "R1", "No finding", "", "", "", "") for image in ids if image not in ids[2:4]]
        marks += [(ids[2], "R1", "Consolidation", 10, 5.5, 30, 20.5), (ids[2], "R1", "Other opacity", -2, 0, 8, 9)]
        marks += [(ids[3], "R1", "Bronchectasis", 1, 2, 3, 4)]
        write_csv(root / f"image_labels_{split}.csv", ("image_id", "rad_ID", *DIAGNOSES), labels)
        columns = ("image_id", "rad_ID", "class_name", "x_min", "y_min", "x_max", "y_max")
        write_csv(root / f"annotations_{split}.csv", columns, marks)
        for number, image in enumerate(ids):
            write_picture(root / split / f"{image}.dicom", number)


def write_rexgradient(root: Path) -> None:
    """Six studies in each split, the first with three images; sections that are None, NaN or "None"."""
    views = (["PA", "LATERAL", None], ["AP"], ["POSTERO_ANTERIOR"], ["LL"], ["UNKNOWN"], ["AP"])
    for split in ("train", "valid", "test"):
        studies = {}
        for number, of_study in enumerate(views):
            patient = f"GRDN{split}{number}"
            paths = [
                f"../deid_png/{patient}/GRDNACC{number}/studies/1.2.{number}/series/1.3/instances/{split}.{number}.{i}.png"
                for i in range(len(of_study))
            ]
            for i, path in enumerate(paths):
                write_picture(root / "metadata" / path, 10 * number + i)
            studies[f"{patient}_GRDNACC{number}_1.2.{number}"] = {
                "PatientID": patient,
                "AccessionNumber": f"GRDNACC{number}",
                "StudyInstanceUid": f"1.2.{number}",
                "PatientSex": "FM"[number % 2] if number < 5 else None,
                "PatientAge": ("036Y", "007M", "002D", "101Y", None, "")[number],
                "StudyDate": 20200101 + number,
                "Indication": "Cough." if number else None,
                "Comparison": "None",
                "Findings": f"The lungs are clear. Finding {number}." if number != 2 else float("nan"),
                "Impression": f"No acute disease of kind {number}." if number != 3 else None,
                "ImagePath": paths,
                "ImageViewPosition": of_study,
                "ImageModality": ["DX"] * len(of_study),
            }
        write_json(root / "metadata" / f"{split}_metadata_view_position.json", studies)


PADCHEST_GR_COLUMNS = ("StudyID", "ImageID", "label", "locations", "sentence_en", "sentence_es", "study_is_benchmark",
                       "split", "PatientID", "PatientSex_DICOM", "PatientAge", "label_group")  # fmt: skip
HEART = {
    "sentence_en": "The heart  is enlarged.",
    "sentence_es": "Cardiomegalia.",
    "abnormal": True,
    "boxes": [[0.25, 0.5, 0.75, 1.0]],
    "extra_boxes": [[0.25, 0.5, 0.5, 0.75]],
    "labels": ["cardiomegaly", "aortic elongation"],
    "locations": [],
    "progression": None,
}
NO_EFFUSION = {"sentence_en": "No pleural effusion", "sentence_es": "Sin derrame pleural", "abnormal": False}


def write_padchest_gr(root: Path) -> None:
    """
    Six reports in each split: four with one abnormal sentence of two labels, of which the second has it twice, and two
    normal ones, which lack most keys.
    """
    reports, rows = [], []
    second_box = {**HEART, "boxes": [[0.0, 0.0, 0.125, 0.25]], "extra_boxes": []}
    for place, split in enumerate(("train", "validation", "test")):
        for i in range(6):
            image, study = f"{split}_{i}_abc.png", f"25148803455773233895960158032889873470{place}{i}"
            findings = [[HEART, NO_EFFUSION], [HEART, second_box, NO_EFFUSION]][i == 1] if i < 4 else [NO_EFFUSION]
            reports.append({"StudyID": study, "ImageID": image, "PreviousStudyID": None, "findings": findings})
            sentences = ("The heart is enlarged.", "Cardiomegalia.") if i < 4 else ("", "")
            for label in ("cardiomegaly", "aortic elongation") if i < 4 else ("normal",):
                person = (f"{place}{i}", "MF"[i % 2], 60 + i)
                rows.append((study, image, label, "[]", *sentences, True, split, *person, label))
            write_picture(root / "Padchest_GR_files" / "PadChest_GR" / image, i, depth=16)
    write_json(root / "grounded_reports_20240819.json", reports)
    write_csv(root / "master_table.csv", PADCHEST_GR_COLUMNS, rows)


SMALL_ARCHIVES: dict[str, Callable[[Path], None]] = {
    "rexgradient": write_rexgradient,
    "padchest_gr": write_padchest_gr,
    "montgomery": write_montgomery,
    "shenzhen": write_shenzhen,
    "tbx11k": write_tbx11k,
    "vindr_pcxr": write_vindr_pcxr,
}
