"""
The Hub contract: whatever is saved or pushed, by whomever and whenever, loads for somebody who has only transformers,
and gives the same numbers.

The command trains two models and pushes them to a stand-in for the Hub (hub_server.py) at each checkpoint and at the
end. Then they are pushed by hand, as a model, a processor and a pipeline. A clean interpreter (clean_process.py) loads
all of that by name, saves and pushes it again, and reports what it saw.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import transformers
from hub_server import HubServer
from PIL import Image
from small_trainings import TINIEST, TINIEST_DUAL
from transformers import pipeline

import train_tier
from evaluation_tier.models.loading import load_model
from hub.contract import FINDINGS, SENTENCES, STEPS, TRAINING, commit_at
from training_tier.start.presets import PRESETS


@pytest.fixture(scope="package")
def hub(tmp_path_factory):
    """A stand-in for the Hub, empty at first, to which this process is logged in."""
    with HubServer() as server, pytest.MonkeyPatch.context() as patch:
        constants = huggingface_hub.constants  # read from the environment long before the server has a port
        patch.setattr(constants, "ENDPOINT", server.endpoint)
        patch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        )
        home = tmp_path_factory.mktemp("home")
        patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        patch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))  # not the one of whoever runs the tests
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        patch.setattr(huggingface_hub.hf_api.api, "endpoint", server.endpoint)
        patch.setattr(transformers.utils.hub, "_hf_api", None, raising=False)
        patch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
        patch.setenv("HF_TOKEN", "hf_anything")
        patch.setenv("DISABLE_SAFETENSORS_CONVERSION", "1")  # a service beyond loopback
        yield server


@pytest.fixture(scope="package")
def runs(hub, tmp_path_factory):
    """Name to the folder of a training that pushed all it saved to `user/<name>`."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "clip", TINIEST)
        patch.setitem(PRESETS, "dual", TINIEST_DUAL)
        for name, strategy in (("clip", "checkpoint"), ("dual", "all_checkpoints")):
            options = ["--model", name, "--output_dir", str(folder / name), "--push_to_hub", "true"]
            options += ["--hub_strategy", strategy, "--hub_always_push", "true", "--hub_model_id", f"user/{name}"]
            train_tier.main([*TRAINING, *options])
    return {name: folder / name for name in ("clip", "dual")}


@pytest.fixture(scope="package")
def classifier(hub, runs, tmp_path_factory):
    """The folder of a classifier trained from the first of the two, and pushed, slowly, to `user/classifier`."""
    folder = tmp_path_factory.mktemp("classifier") / "run"
    options = ["--task", "classification", "--model", "user/clip", "--output_dir", str(folder)]
    options += ["--push_to_hub", "true", "--hub_always_push", "true", "--hub_model_id", "user/classifier"]
    hub.pause = 0.5  # an epoch is shorter: the next checkpoint is there before the last one is sent
    train_tier.main([word for word in TRAINING if word not in ("--vocab_size", "700")] + options)
    hub.pause = 0.0
    return folder


@pytest.fixture(scope="package")
def pushed(hub, runs):
    """Name to a model that was pushed by hand: to `user/<name>-parts`, and in pipelines to `-stock` and `-own`."""
    models = {}
    for name, folder in runs.items():
        models[name], processor = load_model(folder)
        models[name].push_to_hub(f"user/{name}-parts")
        processor.push_to_hub(f"user/{name}-parts")
        parts = {"image_processor": processor.image_processor, "tokenizer": processor.tokenizer}
        stock = pipeline("zero-shot-image-classification", model=models[name], **parts)
        stock.push_to_hub(f"user/{name}-stock", private=True)
        own = pipeline("cxr-zero-shot-classification", model=models[name], processor=processor)
        own.push_to_hub(f"user/{name}-own")
    return models


@pytest.fixture(scope="package")
def clean(hub, runs, pushed, classifier, tmp_path_factory):
    """What the clean interpreter saw, and the folder in which it saved."""
    folder = tmp_path_factory.mktemp("clean")
    Image.effect_noise((50, 40), 80).save(folder / "image.png")
    jobs = {}
    for name, run in runs.items():
        jobs[f"{name}-folder"] = [str(run), {}]
        jobs[f"{name}-trainer"] = [f"user/{name}", {}]
        jobs |= {f"{name}-{kind}": [f"user/{name}-{kind}", {}] for kind in ("parts", "stock", "own")}
        for step in STEPS:
            commit = commit_at(hub.repos[f"user/{name}"], f"Training in progress, step {step}")
            jobs[f"{name}-step-{step}"] = [f"user/{name}", {"revision": commit.sha}]
    jobs["clip-last-checkpoint"] = ["user/clip", {"subfolder": "last-checkpoint"}]
    for step in STEPS:
        jobs[f"dual-checkpoint-{step}"] = ["user/dual", {"subfolder": f"checkpoint-{step}"}]
    jobs["classifier-trainer"] = ["user/classifier", {}]
    commit = commit_at(hub.repos["user/classifier"], f"Training in progress, step {STEPS[0]}")
    jobs["classifier-step"] = ["user/classifier", {"revision": commit.sha}]
    (folder / "jobs.json").write_text(json.dumps({"sentences": SENTENCES, "findings": FINDINGS, **jobs}))
    environment = os.environ | {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(folder / "home"),
        "HF_TOKEN": "hf_anything",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    done = subprocess.run(
        [sys.executable, "-I", str(Path(__file__).with_name("clean_process.py")), str(folder)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.fail(done.stderr, pytrace=False)
    return json.loads((folder / "result.json").read_text()), folder
