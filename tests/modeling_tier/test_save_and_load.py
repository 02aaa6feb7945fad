"""A saved folder gives the same model back, where this package is and where only transformers is."""

import json
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForZeroShotImageClassification,
    CLIPImageProcessorPil,
    CLIPProcessor,
    CLIPTokenizer,
    pipeline,
)

from modeling_tier import TierCLIPConfig, TierCLIPModel

AUTO_MAP = {
    "AutoConfig": "configuration_tier.TierCLIPConfig",
    "AutoModel": "modeling_tier.TierCLIPModel",
    "AutoModelForZeroShotImageClassification": "modeling_tier.TierCLIPModel",
}
SHIPPED = {"configuration_tier.py", "losses_tier.py", "modeling_tier.py", "pipeline_tier.py"}
LABELS = ["edema", "effusion", "normal"]

# Runs where `import modeling_tier` fails, as it does for somebody who has only transformers.
CLEAN_PROCESS = """
import json, sys
from pathlib import Path

sys.modules["modeling_tier"] = None
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForZeroShotImageClassification, pipeline

folder = Path(sys.argv[1])
batch = load_file(folder / "batch.safetensors")
result = {"config": AutoConfig.from_pretrained(folder, trust_remote_code=True).token_entropy_weight, "models": []}

def load(auto_class, name):
    model = auto_class.from_pretrained(folder / name, trust_remote_code=True)
    output = model(**batch, return_loss=True)
    module = type(model).__module__.split(".")[0]
    result["models"].append([module, output.loss.item(), output.logits_per_image.tolist()])
    return model

load(AutoModel, ".").save_pretrained(folder / "second")
load(AutoModelForZeroShotImageClassification, "second").save_pretrained(folder / "third")
load(AutoModel, "third").save_pretrained(folder / "third")  # over itself
load(AutoModelForZeroShotImageClassification, "third")

classify = pipeline("zero-shot-image-classification", model=str(folder), trust_remote_code=True)
scores = classify(Image.open(folder / "image.png"), candidate_labels=LABELS)
result["pipeline"] = [type(classify.model).__name__, scores]
print("RESULT" + json.dumps(result))
"""


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    """CLIP's, with letters for words."""
    letters = "abcdefghijklmnopqrstuvwxyz.,"
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=64)


@pytest.fixture
def saved(tmp_path, tiny_sizes, tokenizer, batch):
    """A folder with a model, its stock processor, an image and a batch; and the model."""
    tiny_sizes["text_config"] |= {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 64,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    model = TierCLIPModel(TierCLIPConfig(**tiny_sizes, token_entropy_weight=0.25, image_pooling="patch_mean")).eval()
    model.save_pretrained(tmp_path)
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image_processor, tokenizer).save_pretrained(tmp_path)
    Image.effect_noise((50, 40), 80).save(tmp_path / "image.png")
    texts = tokenizer(["edema.", "no effusion.", "normal", "large effusion"], padding=True, return_tensors="pt")
    batch = {**texts, "pixel_values": batch["pixel_values"]}
    save_file(batch, tmp_path / "batch.safetensors")
    return tmp_path, model, batch


def test_the_saved_folder_has_the_code_and_says_where(saved):
    folder, _, _ = saved
    assert {path.name for path in folder.glob("*.py")} == SHIPPED
    config = json.loads((folder / "config.json").read_text())
    assert config["auto_map"] == AUTO_MAP
    assert (config["model_type"], config["architectures"]) == ("tier_clip", ["TierCLIPModel"])


def test_loading_with_the_package_takes_the_package(saved):
    folder, model, batch = saved
    assert type(AutoConfig.from_pretrained(folder)) is TierCLIPConfig
    for auto_class in (AutoModel, AutoModelForZeroShotImageClassification):
        for options in ({}, {"trust_remote_code": True}):
            loaded = auto_class.from_pretrained(folder, **options)
            assert type(loaded) is TierCLIPModel
            assert torch.equal(loaded(**batch).logits_per_image, model(**batch).logits_per_image)
    assert type(pipeline("zero-shot-image-classification", model=str(folder)).model) is TierCLIPModel


def test_loading_without_the_package_gives_the_same(saved):
    folder, model, batch = saved
    environment = os.environ | {"HF_MODULES_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", CLEAN_PROCESS.replace("LABELS", repr(LABELS)), str(folder)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.split("RESULT")[1])
    assert result["config"] == 0.25
    expected = model(**batch, return_loss=True)
    assert len(result["models"]) == 4
    for module, loss, logits in result["models"]:
        assert module == "transformers_modules"
        assert loss == pytest.approx(expected.loss.item(), rel=1e-6)
        torch.testing.assert_close(torch.tensor(logits), expected.logits_per_image, rtol=1e-6, atol=1e-6)
    for name in ("second", "third"):
        assert {path.name for path in (folder / name).glob("*.py")} == SHIPPED
        configs = [json.loads((path / "config.json").read_text()) for path in (folder / name, folder)]
        for config in configs:  # in whose parts transformers notes the dtype once they have been loaded
            config["text_config"].pop("dtype", None), config["vision_config"].pop("dtype", None)
        assert configs[0] == configs[1]

    name, scores = result["pipeline"]
    assert name == "TierCLIPModel"
    classify = pipeline("zero-shot-image-classification", model=str(folder))
    here = classify(Image.open(folder / "image.png"), candidate_labels=LABELS)
    assert [score["label"] for score in scores] == [score["label"] for score in here]
    assert [score["score"] for score in scores] == pytest.approx([score["score"] for score in here], abs=1e-6)
    assert sum(score["score"] for score in scores) == pytest.approx(1.0, abs=1e-6)
