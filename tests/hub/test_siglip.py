"""A saved TierSiglipModel loads for somebody who has only transformers, and gives the same numbers."""

import json
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image
from shipped import CLIP_CODE, PROCESSOR_CODE
from tiny_siglip import save_siglip

from hub.clean_process import OURS
from hub.contract import FINDINGS, SENTENCES
from training_tier.options.model import ModelArguments
from training_tier.start.initialization import make_model

SIGLIP_CODE = CLIP_CODE - {"modeling_tier.py", "direct_maps_tier.py"} | {
    "configuration_siglip_tier.py",
    "modeling_siglip_tier.py",
    "sigmoid_loss_tier.py",
}
CLEAN = """
import json, sys
for package in {ours}:
    sys.modules[package] = None
from PIL import Image
from transformers import AutoModel, AutoModelForZeroShotImageClassification, AutoProcessor, SiglipModel, pipeline

folder, image = sys.argv[1], Image.open(sys.argv[2])
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
inputs = processor(text={sentences}, images=image, return_tensors="pt")
result = {{"classes": [type(processor).__name__], "logits": []}}
for auto_class in (AutoModel, AutoModelForZeroShotImageClassification):
    model = auto_class.from_pretrained(folder, trust_remote_code=True).eval()
    result["classes"].append(type(model).__name__)
    result["logits"].append(model(**inputs).logits_per_image.tolist())
result["logits"].append(SiglipModel.from_pretrained(folder).eval()(**inputs).logits_per_image.tolist())
stock = pipeline("zero-shot-image-classification", model=folder, trust_remote_code=True)
scores = stock(image, candidate_labels={sentences}, hypothesis_template="{{}}")
result["stock"] = {{score["label"]: score["score"] for score in scores}}
result["own"] = pipeline(model=folder, trust_remote_code=True)(image, {findings}, return_heatmaps="lists")
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("siglip")
    save_siglip(folder / "plain")
    model, processor = make_model(ModelArguments(model=str(folder / "plain"), token_entropy_weight=0.2), [])
    for part in (model, processor):
        part.save_pretrained(folder / "tier")
    Image.effect_noise((50, 40), 80).save(folder / "image.png")
    return folder, model.eval(), processor


def test_the_folder_has_the_code_and_says_where(saved):
    folder, _, _ = saved
    code = {path.name for path in (folder / "tier").glob("*.py")}
    assert code == SIGLIP_CODE | PROCESSOR_CODE | {"processing_siglip_tier.py"}
    config = json.loads((folder / "tier" / "config.json").read_text())
    assert config["auto_map"] == {
        "AutoConfig": "configuration_siglip_tier.TierSiglipConfig",
        "AutoModel": "modeling_siglip_tier.TierSiglipModel",
        "AutoModelForZeroShotImageClassification": "modeling_siglip_tier.TierSiglipModel",
    }


@pytest.mark.slow
def test_a_clean_process_gets_the_same_numbers(saved):
    folder, model, processor = saved
    script = CLEAN.format(ours=OURS, sentences=SENTENCES, findings=FINDINGS)
    command = [sys.executable, "-I", "-c", script, str(folder / "tier"), str(folder / "image.png")]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["classes"] == ["TierSiglipProcessor", "TierSiglipModel", "TierSiglipModel"]
    inputs = processor(text=SENTENCES, images=Image.open(folder / "image.png"), return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs).logits_per_image
    for logits in result["logits"]:
        torch.testing.assert_close(torch.tensor(logits), expected, rtol=1e-6, atol=1e-6)
    probabilities = expected[0].sigmoid().tolist()  # the stock pipeline's scores of SigLIP's kinds
    assert result["stock"] == pytest.approx(dict(zip(SENTENCES, probabilities, strict=True)), abs=1e-6)
    assert [score["label"] for score in result["own"]] == FINDINGS
    assert all(len(score["heatmap"]) == 40 and 0 < score["score"] < 1 for score in result["own"])
