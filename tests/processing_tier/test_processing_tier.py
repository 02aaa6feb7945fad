import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from shipped import PROCESSOR_CODE
from transformers import AutoProcessor, AutoTokenizer, CLIPTokenizer
from transformers.models.auto.image_processing_auto import AutoImageProcessor

import processing_tier
from processing_tier import TierImageProcessor, TierProcessor, train_tokenizer

PACKAGE = Path(processing_tier.__file__).parent
TEXTS = ["No acute cardiopulmonary abnormality.", "Small left pleural effusion."]


@pytest.fixture(scope="module")
def processor() -> TierProcessor:
    return TierProcessor(TierImageProcessor(size=32), train_tokenizer(TEXTS * 2, model_max_length=12))


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8))


def test_text_is_padded_to_the_longest_and_truncated(processor, image):
    batch = processor(text=["effusion", " ".join(["effusion"] * 50)], images=image, return_tensors="pt")
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 12)
    assert batch["attention_mask"].sum(1).tolist() == [3, 12]
    assert (batch["input_ids"][:, -1] == processor.tokenizer.eos_token_id).all()
    assert batch["pixel_values"].shape == (1, 3, 32, 32)
    short = processor(text=["effusion", "pleural effusion"], return_tensors="pt")["input_ids"]
    assert short.shape[1] < 12  # the longest, not the maximum
    fixed = processor(text="effusion", padding="max_length", return_tensors="pt")["input_ids"]
    assert fixed.shape == (1, 12)


def test_image_options_reach_the_image_processor(processor, image):
    grey = processor(images=image, output_dtype="uint8", geometry="squash", return_tensors="pt")["pixel_values"]
    expected = processor.image_processor(image, output_dtype="uint8", geometry="squash", return_tensors="pt")
    assert grey.dtype == torch.uint8 and torch.equal(grey, expected["pixel_values"])


def test_parts_are_found_in_the_signature():
    assert TierProcessor.get_attributes() == ["image_processor", "tokenizer"]


def test_save_and_load_in_this_process(processor, image, tmp_path):
    processor.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.glob("*.py")} == PROCESSOR_CODE
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is TierProcessor and type(loaded.image_processor) is TierImageProcessor
    expected = processor(images=image, text=TEXTS, return_tensors="pt")
    for key, value in loaded(images=image, text=TEXTS, return_tensors="pt").items():
        assert torch.equal(value, expected[key])
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is TierImageProcessor
    assert type(AutoTokenizer.from_pretrained(tmp_path)) is CLIPTokenizer
    # Trusting remote code changes nothing where the package is: its own classes win
    assert type(AutoProcessor.from_pretrained(tmp_path, trust_remote_code=True)) is TierProcessor


def test_save_and_load_in_a_process_that_has_only_transformers(processor, image, tmp_path):
    folder = tmp_path / "model"
    processor.save_pretrained(folder)
    # A model folder also holds a config of a type that transformers does not know
    (folder / "config.json").write_text(json.dumps({"model_type": "tier_clip"}))
    image.save(tmp_path / "image.png")
    script = """
import sys
sys.modules["processing_tier"] = sys.modules["modeling_tier"] = None
folder, image, output = sys.argv[1:]
import torch
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer, CLIPTokenizer
from transformers.models.auto.image_processing_auto import AutoImageProcessor
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
assert type(processor).__name__ == "TierProcessor", type(processor)
assert type(processor).__module__.startswith("transformers_modules."), type(processor).__module__
texts = ["No acute cardiopulmonary abnormality.", "Small left pleural effusion."]
batch = dict(processor(images=Image.open(image), text=texts, return_tensors="pt"))
image_processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
assert type(image_processor).__name__ == "TierImageProcessor"
assert torch.equal(image_processor(image, return_tensors="pt")["pixel_values"], batch["pixel_values"])
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
assert type(tokenizer) is CLIPTokenizer
processor.save_pretrained(output)
torch.save(batch, output + "/batch.pt")
"""
    environment = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules"), "HOME": str(tmp_path)}
    command = [sys.executable, "-I", "-c", script, str(folder), str(tmp_path / "image.png"), str(tmp_path / "again")]
    run = subprocess.run(command, cwd=tmp_path, env=os.environ | environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    expected = processor(images=image, text=TEXTS, return_tensors="pt")
    batch = torch.load(tmp_path / "again" / "batch.pt", weights_only=True)
    assert batch.keys() == expected.keys()
    for key in expected:
        assert torch.equal(batch[key], expected[key])
    # Saved again from there, the folder still carries its code
    assert {path.name for path in (tmp_path / "again").glob("*.py")} == PROCESSOR_CODE
    assert (tmp_path / "again" / "processor_config.json").read_text() == (folder / "processor_config.json").read_text()


def test_the_package_knows_nothing_of_the_others():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            assert not {name.split(".")[0] for name in names} & {"modeling_tier", "evaluation_tier", "training_tier"}


def test_pydicom_is_imported_when_it_is_needed():
    for name in PROCESSOR_CODE:
        tree = ast.parse((PACKAGE / name).read_text())
        imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        assert "pydicom" not in ast.unparse(imports)
