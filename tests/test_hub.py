"""
The Hub contract: whatever is saved or pushed, by whomever and whenever, loads for somebody who has only transformers,
and gives the same numbers.

Two models are trained by the command, which pushes them to a stand-in for the Hub (hub_server.py) at each checkpoint
and at the end; they are then pushed by hand, as a model, a processor and a pipeline. One clean interpreter loads all
of that by name, saves and pushes it in its turn, and tells what it saw.
"""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
import transformers
from hub_server import Commit, HubServer, Repo
from PIL import Image
from shipped import CLASSIFIER_CODE, CLIP_CODE, DUAL_CODE, PROCESSOR_CODE
from transformers import AutoModel, AutoModelForImageClassification, AutoProcessor, pipeline
from transformers.models.auto.image_processing_auto import AutoImageProcessor

import eval_zeroshot
import train_tier
from evaluation_tier.models.cache import hash_weights
from evaluation_tier.models.loading import load_model
from training_tier.loop.contrastive import TierTrainer
from training_tier.options.model import ModelArguments
from training_tier.options.training import TierTrainingArguments
from training_tier.start.initialization import make_model
from training_tier.start.presets import PRESETS

MODEL_CODE = {"clip": CLIP_CODE, "dual": DUAL_CODE, "classifier": CLASSIFIER_CODE}
SENTENCES = ["There is a pleural effusion.", "No pleural effusion.", "Normal chest."]
FINDINGS = ["Pleural Effusion", "Edema"]
STEPS = (3, 6)  # where the two epochs of the trainings end
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
    *("--data", "phantom:num_images=24,image_size=64"),
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
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification
from transformers import AutoModelForZeroShotImageClassification, AutoProcessor, AutoTokenizer, pipeline
from transformers.models.auto.image_processing_auto import AutoImageProcessor

folder = Path(sys.argv[1])
jobs = json.loads((folder / "jobs.json").read_text())
sentences, findings = jobs.pop("sentences"), jobs.pop("findings")
image = Image.open(folder / "image.png")
result = {}

def score(auto_class, source, where):
    model = auto_class.from_pretrained(source, trust_remote_code=True, **where)
    processor = AutoProcessor.from_pretrained(source, trust_remote_code=True, **where)
    inputs = processor(text=sentences, images=image, return_tensors="pt")
    with torch.no_grad():
        return model, processor, inputs, model(**inputs).logits_per_image.tolist()

def score_image(source, where):
    model = AutoModelForImageClassification.from_pretrained(source, trust_remote_code=True, **where)
    image_processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=True, **where)
    with torch.no_grad():
        logits = model(**image_processor(image, return_tensors="pt")).logits.tolist()
    return (model, image_processor), logits

for name, (source, where) in jobs.items():
    result[name] = {}
    if name.startswith("classifier"):
        parts, result[name]["logits"] = score_image(source, where)
        for part in parts:
            part.push_to_hub(f"user/again-{name}")
        result[name]["pushed again"] = score_image(f"user/again-{name}", {})[1]
        continue
    if not where:
        classify = pipeline("zero-shot-image-classification", model=source, trust_remote_code=True)
        scores = classify(image, candidate_labels=sentences, hypothesis_template="{}")
        result[name]["stock"] = {score["label"]: score["score"] for score in scores}
        classify = pipeline(model=source, trust_remote_code=True)  # the task is in the configuration
        result[name]["own"] = [classify.task, type(classify).__module__.split(".")[0], classify(image, findings)]
    if name.endswith("-stock"):  # this pipeline saves image processor and tokenizer apart, without their processor
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
    if not name.endswith(("-folder", "-parts")):
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
def classifier(hub, runs, tmp_path_factory):
    """The folder of a classifier trained from the first of the two, and pushed, slowly, to `user/classifier`."""
    folder = tmp_path_factory.mktemp("classifier") / "run"
    options = ["--task", "classification", "--model", "user/clip", "--output_dir", str(folder)]
    options += ["--push_to_hub", "true", "--hub_always_push", "true", "--hub_model_id", "user/classifier"]
    hub.pause = 0.5  # an epoch is shorter: the next checkpoint is there before the last one is sent
    train_tier.main([word for word in TRAINING if word not in ("--vocab_size", "700")] + options)
    hub.pause = 0.0
    return folder


@pytest.fixture(scope="module")
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


def commit_at(repo, message: str):
    return next(commit for commit in repo.commits if commit.message == message)


@pytest.fixture(scope="module")
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
        [sys.executable, "-I", "-c", CLEAN_PROCESS, str(folder)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.fail(done.stderr, pytrace=False)
    return json.loads(done.stdout.split("RESULT")[1]), folder


def expected_logits(model_folder: Path, image_folder: Path) -> torch.Tensor:
    model, processor = AutoModel.from_pretrained(model_folder), AutoProcessor.from_pretrained(model_folder)
    inputs = processor(text=SENTENCES, images=Image.open(image_folder / "image.png"), return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**inputs).logits_per_image


def assert_same(logits: list, expected: torch.Tensor) -> None:
    torch.testing.assert_close(torch.tensor(logits), expected, rtol=1e-6, atol=1e-6)


def essence(config):
    """What is left of a configuration when transformers loads and saves it."""
    if not isinstance(config, dict):
        return config
    return {key: essence(value) for key, value in config.items() if key not in ("dtype", "use_cache")}


def refused(main, arguments, capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def code_in(files) -> set[str]:
    return {path for path in map(str, files) if path.endswith(".py")}


@pytest.mark.slow
@pytest.mark.parametrize("source", ["folder", "trainer", "parts", "own"])
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


@pytest.mark.slow
@pytest.mark.parametrize("source", ["folder", "trainer", "parts", "stock", "own"])
@pytest.mark.parametrize("name", ["clip", "dual"])
def test_both_pipelines_give_the_same_numbers(clean, runs, name, source):
    result, folder = clean
    seen = result[f"{name}-{source}"]
    expected = expected_logits(runs[name], folder)[0].softmax(-1).tolist()
    assert seen["stock"] == pytest.approx(dict(zip(SENTENCES, expected, strict=True)), abs=1e-6)

    task, module, scores = seen["own"]
    assert (task, module) == ("cxr-zero-shot-classification", "transformers_modules")
    model, processor = load_model(runs[name])
    here = pipeline(task, model=model, processor=processor)(Image.open(folder / "image.png"), findings=FINDINGS)
    assert [score["label"] for score in scores] == FINDINGS
    assert [score["score"] for score in scores] == pytest.approx([score["score"] for score in here], abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["folder", "parts"])
@pytest.mark.parametrize("name", ["clip", "dual"])
def test_what_came_as_remote_code_can_be_saved_and_pushed_again(clean, hub, runs, name, source):
    result, folder = clean
    expected = expected_logits(runs[name], folder)
    for again in ("saved again", "pushed again"):
        assert_same(result[f"{name}-{source}"][again], expected)
    saved = folder / "again" / f"{name}-{source}"
    repo = hub.repos[f"user/again-{name}-{source}"]
    files = repo.commits[-1].files
    assert code_in(path.name for path in saved.iterdir()) == code_in(files) == MODEL_CODE[name] | PROCESSOR_CODE
    assert repo.private
    for path in ("config.json", "processor_config.json", "tokenizer_config.json"):
        for text in ((saved / path).read_text(), files[path].decode()):
            assert "--" not in text  # no class that lies in another repository
            if path != "tokenizer_config.json":
                assert essence(json.loads(text)) == essence(json.loads((runs[name] / path).read_text()))


@pytest.mark.parametrize("name", ["clip", "dual"])
def test_exactly_the_shipped_files_are_copied(hub, runs, pushed, tmp_path, name):
    pushed[name].save_pretrained(tmp_path)
    assert code_in(path.name for path in tmp_path.iterdir()) == MODEL_CODE[name]
    folders = [runs[name], *runs[name].glob("checkpoint-*")]
    listings = [[path.name for path in folder.iterdir()] for folder in folders]
    for listing in [*listings, hub.repos[f"user/{name}-parts"].commits[-1].files]:
        assert code_in(listing) == MODEL_CODE[name] | PROCESSOR_CODE
    config = json.loads((runs[name] / "config.json").read_text())
    module = "modeling_dual_tier" if name == "dual" else "modeling_tier"
    model_class = f"{module}.{config['architectures'][0]}"
    assert config["auto_map"] == {
        "AutoConfig": f"configuration_tier.{config['architectures'][0].replace('Model', 'Config')}",
        "AutoModel": model_class,
        "AutoModelForZeroShotImageClassification": model_class,
    }


@pytest.mark.slow
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
    assert not [path for path in root if path.endswith((".bin", ".pt", ".pth")) or path == "checksums.json"]
    for path in checkpoint.iterdir():
        if path.suffix not in (".bin", ".pt", ".pth") and path.name != "checksums.json":  # only for resuming
            assert files[path.name] == path.read_bytes()
    card = files["README.md"].decode()
    assert "**Trained on synthetic radiographs.**" in card and f'AutoModel.from_pretrained("user/{name}"' in card


@pytest.mark.slow
@pytest.mark.parametrize("source", ["clip-last-checkpoint", "dual-checkpoint-3", "dual-checkpoint-6"])
def test_a_checkpoint_in_a_folder_of_its_own_loads_and_can_be_resumed(clean, hub, runs, source):
    result, folder = clean
    name, subfolder = source.split("-", 1)
    checkpoint = runs[name] / ("checkpoint-6" if subfolder == "last-checkpoint" else subfolder)
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


@pytest.mark.slow
@pytest.mark.parametrize("source", ["trainer", "step"])
def test_a_classifier_loads_by_name_as_well(clean, hub, classifier, source):
    result, folder = clean
    where = classifier if source == "trainer" else classifier / f"checkpoint-{STEPS[0]}"
    model = AutoModelForImageClassification.from_pretrained(where)
    pixels = AutoImageProcessor.from_pretrained(where)(Image.open(folder / "image.png"), return_tensors="pt")
    with torch.no_grad():
        expected = model.eval()(**pixels).logits
    for logits in result[f"classifier-{source}"].values():
        assert_same(logits, expected)
    files = hub.repos[f"user/again-classifier-{source}"].commits[-1].files
    assert code_in(files) == MODEL_CODE["classifier"] | PROCESSOR_CODE - {"processing_tier.py"}
    assert code_in(files) == code_in(path.name for path in where.iterdir())


@pytest.mark.slow
def test_everything_is_private_unless_told_otherwise(hub, runs, pushed, clean):
    assert len(hub.repos) >= 15 and all(repo.private for repo in hub.repos.values())
    pushed["clip"].push_to_hub("user/public-model", private=False)
    assert not hub.repos["user/public-model"].private


@pytest.fixture
def make_trainer(runs, tmp_path):
    def make(**options) -> TierTrainer:
        model, processor = load_model(runs["clip"])
        no = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "report_to": "none"}
        arguments = TierTrainingArguments(output_dir=str(tmp_path / "run"), use_cpu=True, **no, **options)
        return TierTrainer(model=model, args=arguments, processing_class=processor)

    return make


def test_a_trainer_that_pushes_once_does_it_privately_and_with_our_card(hub, make_trainer):
    make_trainer(hub_model_id="user/once").push_to_hub()
    repo = hub.repos["user/once"]
    assert repo.private and "## Not for clinical use" in repo.commits[-1].files["README.md"].decode()
    make_trainer(hub_model_id="user/public-run", hub_private_repo=False, push_to_hub=True)
    assert not hub.repos["user/public-run"].private


def test_a_public_repository_is_refused_before_the_training(hub, make_trainer, capsys, tmp_path):
    hub.repos["user/seen-by-all"] = Repo(private=False)
    options = ["--push_to_hub", "true", "--hub_model_id", "user/seen-by-all", "--image_size", "32"]
    message = refused(train_tier.main, [*TRAINING, *options, "--output_dir", tmp_path / "trained"], capsys)
    assert "'user/seen-by-all' exists and is public; choose another --hub_model_id" in message
    assert len(hub.repos["user/seen-by-all"].commits) == 1 and not list(tmp_path.rglob("*.safetensors"))
    make_trainer(push_to_hub=True, hub_model_id="user/seen-by-all", hub_private_repo=False)


def test_a_link_out_of_the_folder_is_not_published(hub, make_trainer, tmp_path):
    (tmp_path / "secret.txt").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(ValueError, match="notes.txt' is a link to something outside the folder"):
        make_trainer(hub_model_id="user/linked", push_to_hub=True)
    with pytest.raises(ValueError, match="notes.txt' is a link to something outside the folder"):
        make_trainer(hub_model_id="user/linked").push_to_hub()
    assert "user/linked" not in hub.repos


def test_a_hub_that_does_not_know_us_is_one_sentence(hub, make_trainer, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ValueError, match="does not take the repository 'user/new'; log in with `hf auth login`"):
        make_trainer(hub_model_id="user/new", push_to_hub=True)
    with pytest.raises(ValueError, match="a private model needs `hf auth login`"):
        load_model("user/clip")


def test_help_says_what_becomes_of_credentialed_data(capsys):
    with pytest.raises(SystemExit) as stop:
        train_tier.main(["--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--hub_private_repo" in text and "a model trained on credentialed data (MIMIC-CXR, CheXpert)" in text


@pytest.mark.slow
def test_the_hub_was_asked_for_nothing_it_does_not_have(hub, clean):
    assert hub.unknown == []


def evaluate(model, folder: Path) -> dict:
    options = ["--data", "phantom:num_images=48,image_size=64", "--min_positives", "2", "--n_bootstrap", "10"]
    eval_zeroshot.main([str(model), *options, "--output_dir", str(folder)])
    return json.loads((folder / "metrics.json").read_text())


def test_evaluation_by_name_gives_what_the_folder_gives(runs, hub, tmp_path):
    by_name, by_folder = evaluate("user/clip", tmp_path / "name"), evaluate(runs["clip"], tmp_path / "folder")
    short = "/".join(runs["clip"].parts[-2:])
    assert by_name.pop("models") == ["user/clip"] and by_folder.pop("models") == [short]
    assert by_name.pop("commits") == {"user/clip": hub.repos["user/clip"].commits[-1].sha}
    assert "commits" not in by_folder
    [weights] = by_name.pop("weights").values()
    assert by_folder.pop("weights") == {short: weights} == {short: hash_weights(load_model(runs["clip"])[0])}
    assert by_name == by_folder
    assert load_model("user/dual")[0].state_dict().keys() == load_model(runs["dual"])[0].state_dict().keys()


def test_a_revision_may_be_named(runs, hub, tmp_path):
    commits = [commit.sha for commit in hub.repos["user/clip"].commits if "model.safetensors" in commit.files]
    name = f"user/clip@{commits[0]}"
    early = evaluate(name, tmp_path / "early")
    assert early["models"] == [name] and early["commits"] == {name: commits[0]}
    model, newest = load_model(name)[0], load_model("user/clip")[0]
    assert early["weights"] == {name: hash_weights(model)} and hash_weights(model) != hash_weights(newest)
    assert hash_weights(load_model(f"user/clip@{commits[-1]}")[0]) == hash_weights(newest)
    arguments = ModelArguments(model=name)
    assert hash_weights(make_model(arguments, [])[0]) == hash_weights(model)
    with pytest.raises(ValueError, match="There is no model folder user/clip@nothing, and from the Hub"):
        load_model("user/clip@nothing")


def test_training_goes_on_from_a_name(runs, tmp_path):
    options = ["--model", "user/clip", "--num_train_epochs", "1", "--max_train_images", "8", "--learning_rate", "1e-9"]
    train_tier.main([*TRAINING, *options, "--output_dir", str(tmp_path / "run")])
    assert (tmp_path / "run" / "tokenizer.json").read_bytes() == (runs["clip"] / "tokenizer.json").read_bytes()
    assert "| Initial weights | user/clip |" in (tmp_path / "run" / "README.md").read_text()
    before, after = load_model(runs["clip"])[0].state_dict(), load_model(tmp_path / "run")[0].state_dict()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=1e-6)


@pytest.fixture
def upload(hub, runs):
    """Function that makes a repository of the files of a run, changed."""

    def make(name: str, change: dict[str, bytes | None]) -> None:
        files = {path.name: path.read_bytes() for path in runs["clip"].iterdir() if path.is_file()} | change
        files = {path: data for path, data in files.items() if data is not None}
        hub.repos[name] = Repo(private=True, commits=[Commit("by somebody", files)])

    return make


def test_code_beside_the_weights_is_never_run(upload, runs, tmp_path, capsys):
    code = f"open({str(tmp_path / 'run')!r}, 'w')".encode()
    upload("user/tampered", {path.name: code for path in runs["clip"].glob("*.py")})
    model, _ = load_model("user/tampered")
    assert type(model).__module__ == "modeling_tier.modeling_tier"
    config = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    upload("user/evil", {"config.json": json.dumps(config).encode(), "evil.py": code})
    for main, arguments in (
        (eval_zeroshot.main, ["user/evil", "--data", "phantom"]),
        (train_tier.main, [*TRAINING, "--model", "user/evil"]),
    ):
        message = refused(main, [*arguments, "--output_dir", tmp_path / "output"], capsys)
        assert "user/evil" in message
    assert not (tmp_path / "run").exists()


class Opened:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickled_weights_are_never_opened(upload, tmp_path, capsys):
    weights = pickle.dumps(Opened(tmp_path / "opened"))
    upload("user/pickled", {"model.safetensors": None, "pytorch_model.bin": weights})
    for main, arguments in (
        (eval_zeroshot.main, ["user/pickled", "--data", "phantom"]),
        (train_tier.main, [*TRAINING, "--model", "user/pickled"]),
    ):
        message = refused(main, [*arguments, "--output_dir", tmp_path / "output"], capsys)
        assert "user/pickled" in message and "safetensors" in message
    assert not (tmp_path / "opened").exists()
    pickle.loads(weights)
    assert (tmp_path / "opened").exists()  # it would have been


@pytest.mark.parametrize("name", ["user/nothing", "runs/nothing"])
def test_a_name_that_neither_disk_nor_hub_has(hub, name, capsys, tmp_path):
    message = refused(eval_zeroshot.main, [name, "--data", "phantom", "--output_dir", tmp_path / "output"], capsys)
    asked = ", and from the Hub it does not load" if name.startswith("user/") else " on this disk, and it was not"
    assert f"There is no model folder {name}{asked}" in message
    message = refused(train_tier.main, [*TRAINING, "--model", name, "--output_dir", tmp_path / "output"], capsys)
    if name.startswith("user/"):
        assert f"'{name}' is neither a preset" in message and "nor a checkpoint that can be loaded" in message
    else:
        assert f"There is no checkpoint folder '{name}'; name one, or a preset" in message


def test_a_model_card_cannot_be_written_into_the_hub(capsys):
    message = refused(eval_zeroshot.main, ["user/clip", "--data", "phantom", "--model_card"], capsys)
    assert "--model_card writes into a model folder, and there is none user/clip" in message
