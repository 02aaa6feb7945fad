"""
The Hub contract: whatever is saved or pushed, by whomever and whenever, loads for somebody who has only transformers,
and gives the same numbers.

Two models are trained by the command, which pushes them to a stand-in for the Hub (hub_server.py) at each checkpoint
and at the end; they are then pushed by hand, as a model, a processor and a pipeline. One clean interpreter loads all
of that by name, saves and pushes it in its turn, and tells what it saw.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers
from hub_server import HubServer
from PIL import Image
from transformers import AutoModel, AutoProcessor, pipeline

import train_tier
from evaluation_tier.zeroshot import load_model
from training_tier.presets import PRESETS

MODEL_FILES = {
    "clip": {"configuration_tier.py", "losses_tier.py", "modeling_tier.py", "pipeline_tier.py"},
    "dual": {"configuration_tier.py", "losses_tier.py", "modeling_dual_tier.py", "modeling_tier.py", "pipeline_tier.py"},
}
PROCESSOR_FILES = {"image_processing_tier.py", "processing_tier.py", "radiograph_tier.py"}
SENTENCES = ["There is a pleural effusion.", "No pleural effusion.", "Normal chest."]
STEPS = (6, 12)  # where the two epochs of the trainings end
TINIEST = {
    "clip": {
        "projection_dim": 16,
        "text_config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        "vision_config": {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 16,
        },
    },
    "dual": {
        "projection_dim": 16,
        "image_size": 32,
        "text_config": {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        "vision_config": {
            "model_type": "resnet",
            "embedding_size": 8,
            "hidden_sizes": [8, 16],
            "depths": [1, 1],
            "layer_type": "basic",
        },
    },
}
TRAINING = [
    *("--data", "phantom:num_images=48,image_size=64"),
    *("--eval_split", "validation"),
    *("--per_device_train_batch_size", "8"),
    *("--num_train_epochs", "2"),
    *("--min_positives", "2"),
    *("--vocab_size", "700"),
    *("--report_to", "none"),
    *("--use_cpu", "true"),
    *("--disable_tqdm", "true"),
]

# Runs where none of our packages can be imported, and prints what loading gives as JSON. Takes a file with the jobs:
# name -> [source, where in it].
CLEAN_PROCESS = """
import json, sys
from pathlib import Path

for package in ("modeling_tier", "processing_tier", "evaluation_tier", "training_tier", "train_tier", "eval_zeroshot"):
    sys.modules[package] = None
import torch
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoModelForZeroShotImageClassification, AutoProcessor, AutoTokenizer
from transformers import pipeline
from transformers.models.auto.image_processing_auto import AutoImageProcessor

folder = Path(sys.argv[1])
jobs = json.loads((folder / "jobs.json").read_text())
sentences = jobs.pop("sentences")
image = Image.open(folder / "image.png")
result = {}

def score(auto_class, source, where):
    model = auto_class.from_pretrained(source, trust_remote_code=True, **where)
    processor = AutoProcessor.from_pretrained(source, trust_remote_code=True, **where)
    inputs = processor(text=sentences, images=image, return_tensors="pt")
    with torch.no_grad():
        return model, processor, inputs, model(**inputs).logits_per_image.tolist()

for name, (source, where) in jobs.items():
    result[name] = {}
    if not where:
        classify = pipeline("zero-shot-image-classification", model=source, trust_remote_code=True)
        scores = classify(image, candidate_labels=sentences, hypothesis_template="{}")
        result[name]["pipeline"] = {score["label"]: score["score"] for score in scores}
    if name.endswith("-pipeline"):  # saves image processor and tokenizer apart, without their processor
        continue
    model, processor, inputs, logits = score(AutoModel, source, where)
    config = AutoConfig.from_pretrained(source, trust_remote_code=True, **where)
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=True, **where)
    image_processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=True, **where)
    zero_shot = score(AutoModelForZeroShotImageClassification, source, where)
    result[name] |= {
        "logits": [logits, zero_shot[3]],
        "classes": [type(thing).__name__ for thing in (config, model, processor, image_processor)],
        "modules": [type(thing).__module__.split(".")[0] for thing in (config, model, processor, image_processor)],
        "same_ids": tokenizer(sentences, padding=True)["input_ids"] == inputs["input_ids"].tolist(),
        "same_pixels": torch.equal(image_processor(image, return_tensors="pt").pixel_values, inputs.pixel_values),
    }
    if where:
        continue

    # What came as remote code goes on: saved, saved over itself, and pushed
    again = str(folder / "again" / name)
    for part in (model, processor):
        part.save_pretrained(again)
    for part in score(AutoModel, again, {})[:2]:
        part.save_pretrained(again)
    result[name]["saved again"] = score(AutoModelForZeroShotImageClassification, again, {})[3]
    for part in (model, processor):
        part.push_to_hub(f"user/again-{name}")
    result[name]["pushed again"] = score(AutoModel, f"user/again-{name}", {})[3]
print("RESULT" + json.dumps(result))
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A stand-in for the Hub, empty at first, to which this process is logged in."""
    with HubServer() as server, pytest.MonkeyPatch.context() as patch:
        constants = huggingface_hub.constants  # read from the environment long before the server has a port
        patch.setattr(constants, "ENDPOINT", server.endpoint)
        patch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        patch.setattr(constants, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        patch.setattr(huggingface_hub.hf_api.api, "endpoint", server.endpoint)
        patch.setattr(transformers.utils.hub, "_hf_api", None, raising=False)
        patch.setenv("HF_TOKEN", "hf_anything")
        patch.setenv("DISABLE_SAFETENSORS_CONVERSION", "1")  # a service beyond loopback
        yield server


@pytest.fixture(scope="module")
def runs(hub, tmp_path_factory):
    """Name to the folder of a training that pushed all it saved to `user/<name>`."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        for name, strategy in (("clip", "checkpoint"), ("dual", "all_checkpoints")):
            patch.setitem(PRESETS, name, TINIEST[name])
            options = ["--model", name, "--output_dir", str(folder / name), "--push_to_hub", "true"]
            options += ["--hub_strategy", strategy, "--hub_always_push", "true", "--hub_model_id", f"user/{name}"]
            train_tier.main([*TRAINING, *options])
    return {name: folder / name for name in ("clip", "dual")}


@pytest.fixture(scope="module")
def pushed(hub, runs):
    """Name to the model, pushed by hand to `user/<name>-parts` and, in a stock pipeline, to `user/<name>-pipeline`."""
    models = {}
    for name, folder in runs.items():
        models[name], processor = load_model(folder)
        models[name].push_to_hub(f"user/{name}-parts")
        processor.push_to_hub(f"user/{name}-parts")
        classify = pipeline(
            "zero-shot-image-classification",
            model=models[name],
            image_processor=processor.image_processor,
            tokenizer=processor.tokenizer,
        )
        classify.push_to_hub(f"user/{name}-pipeline", private=True)
    return models


def commit_at(repo, message: str):
    return next(commit for commit in repo.commits if commit.message == message)


@pytest.fixture(scope="module")
def clean(hub, runs, pushed, tmp_path_factory):
    """What the clean interpreter saw, and the folder in which it saved."""
    folder = tmp_path_factory.mktemp("clean")
    Image.effect_noise((50, 40), 80).save(folder / "image.png")
    jobs = {}
    for name, run in runs.items():
        jobs[f"{name}-folder"] = [str(run), {}]
        jobs[f"{name}-trainer"] = [f"user/{name}", {}]
        jobs[f"{name}-parts"] = [f"user/{name}-parts", {}]
        jobs[f"{name}-pipeline"] = [f"user/{name}-pipeline", {}]
        for step in STEPS:
            commit = commit_at(hub.repos[f"user/{name}"], f"Training in progress, step {step}")
            jobs[f"{name}-step-{step}"] = [f"user/{name}", {"revision": commit.sha}]
    jobs["clip-last-checkpoint"] = ["user/clip", {"subfolder": "last-checkpoint"}]
    for step in STEPS:
        jobs[f"dual-checkpoint-{step}"] = ["user/dual", {"subfolder": f"checkpoint-{step}"}]
    (folder / "jobs.json").write_text(json.dumps({"sentences": SENTENCES, **jobs}))
    environment = os.environ | {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(folder / "home"),
        "HF_TOKEN": "hf_anything",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    done = subprocess.run(
        [sys.executable, "-I", "-c", CLEAN_PROCESS, str(folder)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.split("RESULT")[1]), folder


def expected_logits(model_folder: Path, image_folder: Path) -> torch.Tensor:
    model, processor = AutoModel.from_pretrained(model_folder), AutoProcessor.from_pretrained(model_folder)
    inputs = processor(text=SENTENCES, images=Image.open(image_folder / "image.png"), return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**inputs).logits_per_image


def assert_same(logits: list, expected: torch.Tensor) -> None:
    torch.testing.assert_close(torch.tensor(logits), expected, rtol=1e-6, atol=1e-6)


def code_in(files) -> set[str]:
    return {path for path in map(str, files) if path.endswith(".py")}


@pytest.mark.parametrize("source", ["folder", "trainer", "parts"])
@pytest.mark.parametrize("name", ["clip", "dual"])
def test_remote_code_gives_the_same_numbers(clean, runs, name, source):
    result, folder = clean
    seen = result[f"{name}-{source}"]
    expected = expected_logits(runs[name], folder)
    for logits in seen["logits"]:  # of AutoModel and of AutoModelForZeroShotImageClassification
        assert_same(logits, expected)
    model_class, config_class = {
        "clip": ("TierCLIPModel", "TierCLIPConfig"),
        "dual": ("TierDualEncoderModel", "TierDualEncoderConfig"),
    }[name]
    assert seen["same_ids"] and seen["same_pixels"]
    assert seen["classes"] == [config_class, model_class, "TierProcessor", "TierImageProcessor"]
    assert seen["modules"] == ["transformers_modules"] * 4


@pytest.mark.parametrize("source", ["folder", "trainer", "parts", "pipeline"])
@pytest.mark.parametrize("name", ["clip", "dual"])
def test_the_stock_pipeline_gives_the_same_probabilities(clean, runs, name, source):
    result, folder = clean
    expected = expected_logits(runs[name], folder)[0].softmax(-1).tolist()
    assert result[f"{name}-{source}"]["pipeline"] == pytest.approx(
        dict(zip(SENTENCES, expected, strict=True)), abs=1e-6
    )


@pytest.mark.parametrize("source", ["folder", "trainer", "parts"])
@pytest.mark.parametrize("name", ["clip", "dual"])
def test_what_came_as_remote_code_can_be_saved_and_pushed_again(clean, hub, runs, name, source):
    result, folder = clean
    expected = expected_logits(runs[name], folder)
    for again in ("saved again", "pushed again"):
        assert_same(result[f"{name}-{source}"][again], expected)
    saved = folder / "again" / f"{name}-{source}"
    repo = hub.repos[f"user/again-{name}-{source}"]
    files = repo.commits[-1].files
    assert code_in(path.name for path in saved.iterdir()) == code_in(files) == MODEL_FILES[name] | PROCESSOR_FILES
    assert repo.private
    for path in ("config.json", "processor_config.json", "tokenizer_config.json"):
        assert b"--" not in (saved / path).read_bytes() + files[path]  # no class that lies in another repository


@pytest.mark.parametrize("name", ["clip", "dual"])
def test_exactly_the_shipped_files_are_copied(hub, runs, pushed, tmp_path, name):
    pushed[name].save_pretrained(tmp_path)
    assert code_in(path.name for path in tmp_path.iterdir()) == MODEL_FILES[name]
    folders = [runs[name], *runs[name].glob("checkpoint-*")]
    listings = [[path.name for path in folder.iterdir()] for folder in folders]
    for listing in [*listings, hub.repos[f"user/{name}-parts"].commits[-1].files]:
        assert code_in(listing) == MODEL_FILES[name] | PROCESSOR_FILES
    config = json.loads((runs[name] / "config.json").read_text())
    module = "modeling_dual_tier" if name == "dual" else "modeling_tier"
    model_class = f"{module}.{config['architectures'][0]}"
    assert config["auto_map"] == {
        "AutoConfig": f"configuration_tier.{config['architectures'][0].replace('Model', 'Config')}",
        "AutoModel": model_class,
        "AutoModelForZeroShotImageClassification": model_class,
    }


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", ["clip", "dual"])
def test_a_push_in_mid_training_loads_like_the_last_one(clean, hub, runs, name, step):
    result, folder = clean
    checkpoint = runs[name] / f"checkpoint-{step}"
    expected = expected_logits(checkpoint, folder)
    for logits in result[f"{name}-step-{step}"]["logits"]:
        assert_same(logits, expected)

    repo = hub.repos[f"user/{name}"]
    files = commit_at(repo, f"Training in progress, step {step}").files
    final = repo.commits[-1].files
    root = {path for path in files if "/" not in path}
    assert root == {path for path in final if "/" not in path}
    assert not [path for path in root if path.endswith((".bin", ".pt", ".pth"))]
    for path in checkpoint.iterdir():
        if path.suffix not in (".bin", ".pt", ".pth"):
            assert files[path.name] == path.read_bytes()
    card = files["README.md"].decode()
    assert "**Trained on synthetic radiographs.**" in card and f'AutoModel.from_pretrained("user/{name}"' in card


@pytest.mark.parametrize("source", ["clip-last-checkpoint", "dual-checkpoint-6", "dual-checkpoint-12"])
def test_a_checkpoint_in_a_folder_of_its_own_loads_and_can_be_resumed(clean, hub, runs, source):
    result, folder = clean
    name, subfolder = source.split("-", 1)
    checkpoint = runs[name] / ("checkpoint-12" if subfolder == "last-checkpoint" else subfolder)
    for logits in result[source]["logits"]:
        assert_same(logits, expected_logits(checkpoint, folder))
    files = hub.repos[f"user/{name}"].commits[-1].files
    assert {path.name for path in checkpoint.iterdir()} <= {Path(path).name for path in files if subfolder in path}
    assert f"{subfolder}/optimizer.pt" in files


@pytest.mark.parametrize("name", ["clip", "dual"])
def test_the_last_push_is_the_folder_with_our_card(hub, runs, name):
    repo = hub.repos[f"user/{name}"]
    assert repo.commits[-1].message == "End of training"
    for path in runs[name].iterdir():
        if path.is_file():
            assert repo.commits[-1].files[path.name] == path.read_bytes()
    card = repo.commits[-1].files["README.md"].decode()
    assert "## Not for clinical use" in card and "This model card has been generated automatically" not in card
    assert "| Initial weights | random" in card


def test_everything_is_private_unless_told_otherwise(hub, runs, pushed, clean):
    assert {name for name, repo in hub.repos.items() if not repo.private} <= {"user/public"}
    assert len(hub.repos) >= 12
    pushed["clip"].push_to_hub("user/public", private=False)
    assert not hub.repos["user/public"].private


def test_help_says_what_becomes_of_credentialed_data(capsys):
    with pytest.raises(SystemExit) as stop:
        train_tier.main(["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--hub_private_repo" in text and "a model trained on credentialed data (MIMIC-CXR, CheXpert)" in text


def test_the_hub_was_asked_for_nothing_it_does_not_have(hub, clean):
    assert hub.unknown == []
