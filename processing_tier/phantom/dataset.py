"""Records of the phantom: images, reports, labels and masks that agree with each other."""

import io
from typing import Any

import datasets
import numpy as np
from PIL import Image

from processing_tier.phantom.anatomy import Chest, draw_normal, draw_patient, film
from processing_tier.phantom.findings import DRAW, PHANTOM_FINDINGS, draw_findings
from processing_tier.phantom.wording import draw_negatives, write_findings, write_impression
from processing_tier.progress import progress
from processing_tier.records.annotations import MASKS
from processing_tier.records.masks import encode_mask

SPLITS = ("train", "validation", "test")

MINIMUM_SIZE = 64

VISIBLE = 4.0  # grey levels (of 255) by which a pixel must differ to belong to a mask; the noise has 2 to 3.5


def encode(pixels: np.ndarray, path: str | None = None) -> dict:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return {"bytes": buffer.getvalue(), "path": path}


def make_record(index: int, seed: int, image_size: int, split: str) -> dict:
    """One record of the schema. Every fourth image is a second one of the previous patient."""
    number = index // 4 * 3 + min(index % 4, 2)
    patient = draw_patient(np.random.default_rng([seed, SPLITS.index(split), 0, number]))
    rng = np.random.default_rng([seed, SPLITS.index(split), 1, index])
    view = "AP" if rng.random() < 0.3 else "PA"
    found = draw_findings(rng)
    negatives = draw_negatives(found, rng)
    findings, impression = write_findings(found, negatives, rng), write_impression(found, negatives, rng)
    heart_ratio = found["Cardiomegaly"].heart_ratio if "Cardiomegaly" in found else None
    chest = Chest(patient, view, heart_ratio, rng, image_size)
    added = {name: DRAW[name](chest, finding, rng) for name, finding in found.items()}
    total = sum(added.values(), start=draw_normal(chest, rng))
    contrast, middle = rng.uniform(4.6, 5.6), rng.uniform(0.43, 0.52)
    clean = film(total, contrast, middle)
    noise = rng.uniform(2.0, 3.5) * rng.standard_normal(clean.shape, dtype=np.float32)
    image_id = f"synthetic-{split}-{index + 1:06d}"
    record: dict[str, Any] = {
        "image": encode(np.clip(clean + noise + 0.5, 0, 255).astype(np.uint8), f"{image_id}.png"),
        "image_id": image_id,
        "patient_id": f"synthetic-{split}-patient-{number + 1:06d}",
        "study_id": f"synthetic-{split}-study-{index + 1:06d}",
        "view": view,
        "findings": findings,
        "impression": impression,
        "report": f"FINDINGS: {findings} IMPRESSION: {impression}",
        "split": split,
        "sex": patient.sex,
        "age": patient.age,
        "source": "synthetic",
        "masks": [],
    }
    for name in PHANTOM_FINDINGS:
        record[name] = float(name in found)
        if name in found:
            changed = np.abs(clean - film(total - added[name], contrast, middle)) > VISIBLE
            height, width = changed.shape
            mask = {"finding": name, "height": height, "width": width, "counts": encode_mask(changed)}
            record["masks"].append(mask)
    return record


def make_phantom(num_images: int, seed: int = 0, image_size: int = 224, split: str = "train") -> datasets.Dataset:
    """
    Draw synthetic frontal chest radiographs with reports, labels and masks.

    Args:
        num_images (`int`):
            Number of images, at least 1. Image 5 is the same however many are drawn.
        seed (`int`, *optional*, defaults to 0):
            Seed of the whole set, at least 0.
        image_size (`int`, *optional*, defaults to 224):
            Height and width in pixels, at least 64.
        split (`str`, *optional*, defaults to `"train"`):
            `"train"`, `"validation"` or `"test"`. Each patient is in one of them only.

    Returns:
        `datasets.Dataset`: the columns of the record schema. `image` is an 8-bit grey PNG, not decoded; there is one
        float column per finding of `PHANTOM_FINDINGS` (1 present, 0 absent), and `masks` has one mask for each finding
        that is present: where it changed the image by more than 4 grey levels.

    Raises:
        `ValueError`: a number of images, a seed, a size or a split out of range.
    """
    if num_images < 1:
        raise ValueError(f"num_images is {num_images}; a phantom needs at least 1 image.")
    if seed < 0:
        raise ValueError(f"seed is {seed}; give 0 or a larger whole number.")
    if image_size < MINIMUM_SIZE:
        raise ValueError(f"image_size is {image_size}; give at least {MINIMUM_SIZE}, or the findings cannot be seen.")
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; a phantom has only {', '.join(SPLITS)}.")
    text = datasets.Value("string")
    texts = ("image_id", "patient_id", "study_id", "view", "findings", "impression", "report", "split")
    features = datasets.Features(
        {"image": datasets.Image(decode=False)}
        | {name: text for name in texts}
        | {name: datasets.Value("float32") for name in PHANTOM_FINDINGS}
        | {"sex": text, "age": datasets.Value("float32"), "source": text, "masks": MASKS}
    )
    indices = progress(range(num_images), "drawing synthetic radiographs", "image")
    records = [make_record(index, seed, image_size, split) for index in indices]
    return datasets.Dataset.from_dict({name: [record[name] for record in records] for name in features}, features)
