"""
Loads what is on the Hub where none of our packages can be imported.

Takes a folder with `image.png` and `jobs.json` (name to [source, where in it]), and writes `result.json` there.
"""

import json
import sys
from pathlib import Path

import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    AutoTokenizer,
    pipeline,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor

OURS = (
    "modeling_tier",
    "processing_tier",
    "evaluation_tier",
    "training_tier",
    "tier_clip",
    "train_tier",
    "eval_zeroshot",
)


class CleanProcess:
    def __init__(self, folder: Path):
        self.folder = folder
        self.jobs = json.loads((folder / "jobs.json").read_text())
        self.sentences, self.findings = self.jobs.pop("sentences"), self.jobs.pop("findings")
        self.image = Image.open(folder / "image.png")

    def score(self, auto_class, source, where):
        model = auto_class.from_pretrained(source, trust_remote_code=True, **where)
        processor = AutoProcessor.from_pretrained(source, trust_remote_code=True, **where)
        inputs = processor(text=self.sentences, images=self.image, return_tensors="pt")
        with torch.no_grad():
            return model, processor, inputs, model(**inputs).logits_per_image.tolist()

    def score_image(self, source, where):
        model = AutoModelForImageClassification.from_pretrained(source, trust_remote_code=True, **where)
        image_processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=True, **where)
        with torch.no_grad():
            logits = model(**image_processor(self.image, return_tensors="pt")).logits.tolist()
        return (model, image_processor), logits

    def classify(self, name, source, where) -> dict:
        parts, logits = self.score_image(source, where)
        for part in parts:
            part.push_to_hub(f"user/again-{name}")
        return {"logits": logits, "pushed again": self.score_image(f"user/again-{name}", {})[1]}

    def run_pipelines(self, source) -> dict:
        classify = pipeline("zero-shot-image-classification", model=source, trust_remote_code=True)
        scores = classify(self.image, candidate_labels=self.sentences, hypothesis_template="{}")
        stock = {score["label"]: score["score"] for score in scores}
        classify = pipeline(model=source, trust_remote_code=True)  # the task is in the configuration
        own = [classify.task, type(classify).__module__.split(".")[0], classify(self.image, self.findings)]
        return {"stock": stock, "own": own}

    def load(self, name, source, where) -> dict:
        model, processor, inputs, logits = self.score(AutoModel, source, where)
        config = AutoConfig.from_pretrained(source, trust_remote_code=True, **where)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=True, **where)
        image_processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=True, **where)
        zero_shot = self.score(AutoModelForZeroShotImageClassification, source, where)
        things = (config, model, processor, image_processor)
        result = {
            "logits": [logits, zero_shot[3]],
            "classes": [type(thing).__name__ for thing in things],
            "modules": [type(thing).__module__.split(".")[0] for thing in things],
            "same_ids": tokenizer(self.sentences, padding=True)["input_ids"] == inputs["input_ids"].tolist(),
            "same_pixels": torch.equal(
                image_processor(self.image, return_tensors="pt").pixel_values, inputs.pixel_values
            ),
        }
        if name.endswith(("-folder", "-parts")):
            result |= self.save_again(name, model, processor)
        return result

    def save_again(self, name, model, processor) -> dict:
        """What came as remote code: saved, saved over itself, and pushed."""
        again = str(self.folder / "again" / name)
        for part in (model, processor):
            part.save_pretrained(again)
        for part in self.score(AutoModel, again, {})[:2]:
            part.save_pretrained(again)
        saved = self.score(AutoModelForZeroShotImageClassification, again, {})[3]
        for part in (model, processor):
            part.push_to_hub(f"user/again-{name}")
        return {"saved again": saved, "pushed again": self.score(AutoModel, f"user/again-{name}", {})[3]}

    def run(self) -> dict:
        result = {}
        for name, (source, where) in self.jobs.items():
            result[name] = {}
            if name.startswith("classifier"):
                result[name] = self.classify(name, source, where)
                continue
            if not where:
                result[name] |= self.run_pipelines(source)
            # the stock pipeline saves image processor and tokenizer apart, without their processor
            if not name.endswith("-stock"):
                result[name] |= self.load(name, source, where)
        return result


if __name__ == "__main__":
    for package in OURS:
        assert package not in sys.modules
        sys.modules[package] = None
    place = Path(sys.argv[1])
    (place / "result.json").write_text(json.dumps(CleanProcess(place).run()))
