"""Small models for the pipeline, images to show them, and what is compared of results."""

import copy
import io

import numpy as np
import pytest
import torch
from PIL import Image
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from modeling_tier import TierCLIPConfig, TierCLIPModel, TierDualEncoderConfig, TierDualEncoderModel

SENTENCES = ["Small left pleural effusion.", "No pleural effusion.", "Pulmonary edema.", "The lungs are clear."]
FINDINGS = {
    "Pleural Effusion": {
        "positive": SENTENCES[:1] + ["Effusion."],
        "negative": SENTENCES[1:2],
        "scale": 20.0,
        "bias": -0.5,
        "threshold": 0.4,
    },
    "Edema": {"positive": SENTENCES[2:3], "negative": SENTENCES[3:]},
}


def make_pipeline_model(kind: str, vocab_size: int, special: dict) -> TierCLIPModel | TierDualEncoderModel:
    torch.manual_seed(0)
    tower = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {**tower, **special, "vocab_size": vocab_size, "max_position_embeddings": 20}
    options = {"projection_dim": 24, "image_pooling": "patch_mean", "zero_shot_findings": copy.deepcopy(FINDINGS)}
    if kind == "clip":
        vision = {**tower, "image_size": 32, "patch_size": 8}
        model = TierCLIPModel(TierCLIPConfig(text_config=text, vision_config=vision, **options))
    else:
        vision = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
        vision |= {"layer_type": "basic"}
        text |= {"model_type": "bert"}
        model = TierDualEncoderModel(
            TierDualEncoderConfig(text_config=text, vision_config=vision, image_size=32, **options)
        )
    with torch.no_grad():
        for parameter in model.parameters():  # initial norms and biases are all ones and zeros
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


class Calls:
    """Counts the calls of a model's text tower."""

    def __init__(self, model, monkeypatch):
        self.texts, original = [], model.get_text_features

        def spy(input_ids, attention_mask):
            self.texts.append(len(input_ids))
            return original(input_ids=input_ids, attention_mask=attention_mask)

        monkeypatch.setattr(model, "get_text_features", spy)


def make_image(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8))


def encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def make_dicom(array: np.ndarray, **elements) -> bytes:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns = array.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    dataset.PixelData = array.astype("<u2").tobytes()
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def scores(results: list[dict]) -> list[float]:
    return [result["score"] for result in results]


def assert_same(results: list[dict], expected: list[dict]) -> None:
    """Equal labels and decisions, and scores up to the rounding of float32 in matrices of other sizes."""
    for result, other in zip(results, expected, strict=True):
        assert (result["label"], result.get("present")) == (other["label"], other.get("present"))
        assert result["score"] == pytest.approx(other["score"], abs=1e-6)
