"""Evaluation and training of a model by its name on the Hub, and what is never loaded from there."""

import hashlib
import json
import pickle
from pathlib import Path

import pytest
import torch
from hub_server import Commit, Repo
from own_code import keep_modules_in, save_own_code

import eval_zeroshot
import train_tier
from evaluation_tier.models.cache import hash_weights
from evaluation_tier.models.loading import load_model
from hub.contract import (
    TRAINING,
    refused,
)
from training_tier.options.model import ModelArguments
from training_tier.start.initialization import make_model


def evaluate(model, folder: Path) -> dict:
    options = ["--data", "phantom:num_images=48,image_size=64", "--min_positives", "2", "--n_bootstrap", "10"]
    eval_zeroshot.main([str(model), *options, "--output_dir", str(folder)])
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.slow
def test_evaluation_by_name_gives_what_the_folder_gives(runs, hub, tmp_path):
    by_name, by_folder = evaluate("user/clip", tmp_path / "name"), evaluate(runs["clip"], tmp_path / "folder")
    short = "/".join(runs["clip"].parts[-2:])
    assert by_name.pop("models") == ["user/clip"] and by_folder.pop("models") == [short]
    assert by_name.pop("commits") == {"user/clip": hub.repos["user/clip"].commits[-1].sha}
    assert "commits" not in by_folder
    [weights] = by_name.pop("weights").values()
    assert by_folder.pop("weights") == {short: weights} == {short: hash_weights(load_model(runs["clip"])[0])}
    assert by_name.pop("sizes") == {"user/clip": by_folder.pop("sizes")[short]}
    assert by_name == by_folder
    assert load_model("user/dual")[0].state_dict().keys() == load_model(runs["dual"])[0].state_dict().keys()


@pytest.mark.slow
def test_a_revision_may_be_named(runs, hub, tmp_path):
    weights = {commit.sha: commit.files.get("model.safetensors") for commit in hub.repos["user/clip"].commits}
    commits = [sha for sha, content in weights.items() if content is not None]
    other = next(sha for sha in commits if weights[sha] != weights[commits[-1]])  # the best need not be the last one
    name = f"user/clip@{other}"
    early = evaluate(name, tmp_path / "early")
    assert early["models"] == [name] and early["commits"] == {name: other}
    model, newest = load_model(name)[0], load_model("user/clip")[0]
    assert early["weights"] == {name: hash_weights(model)} and hash_weights(model) != hash_weights(newest)
    assert hash_weights(load_model(f"user/clip@{commits[-1]}")[0]) == hash_weights(newest)
    arguments = ModelArguments(model=name)
    assert hash_weights(make_model(arguments, [])[0]) == hash_weights(model)
    with pytest.raises(ValueError, match="The model folder user/clip@nothing does not exist, and the model"):
        load_model("user/clip@nothing")


@pytest.mark.slow
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


def test_the_code_of_the_named_commit_alone_runs(hub, tmp_path, monkeypatch):
    keep_modules_in(tmp_path / "modules", monkeypatch)
    first, later = (save_own_code(tmp_path / name, tmp_path / f"ran_{name}") for name in ("first", "later"))
    contents = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in (first, later)]
    repo = hub.repos["user/mine"] = Repo(private=True, commits=[Commit("by its owner", files) for files in contents])
    name = f"user/mine@{repo.commits[0].sha}"
    options = ["--data", "phantom:num_images=48,image_size=64", "--min_positives", "2", "--n_bootstrap", "10"]
    eval_zeroshot.main([name, *options, "--trust_remote_code", "--output_dir", str(tmp_path / "output")])
    metrics = json.loads((tmp_path / "output" / "metrics.json").read_text())
    assert metrics["commits"] == {name: repo.commits[0].sha}
    digest = hashlib.sha256(contents[0]["modeling_mine.py"]).hexdigest()
    assert metrics["remote_code"] == {name: {"class": "MineModel", "files": {"modeling_mine.py": digest}}}
    assert (tmp_path / "ran_first").exists() and not (tmp_path / "ran_later").exists()


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
    asked = (
        " does not exist, and the model does not" if name.startswith("user/") else " is not on this disk, and was not"
    )
    assert f"The model folder {name}{asked}" in message
    message = refused(train_tier.main, [*TRAINING, "--model", name, "--output_dir", tmp_path / "output"], capsys)
    if name.startswith("user/"):
        assert f"'{name}' is neither a preset" in message and "nor a checkpoint that can be loaded" in message
    else:
        assert f"The checkpoint folder '{name}' does not exist; name one, or a preset" in message


def test_a_model_card_cannot_be_written_into_the_hub(capsys):
    message = refused(eval_zeroshot.main, ["user/clip", "--data", "phantom", "--model_card"], capsys)
    assert "--model_card writes into a model folder, but user/clip is not a folder" in message
