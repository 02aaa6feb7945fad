"""What a training pushes, when, and who may see it."""

import pytest
from hub_server import Repo

import train_tier
from evaluation_tier.models.loading import load_model
from hub.contract import (
    STEPS,
    TRAINING,
    assert_same,
    commit_at,
    expected_logits,
    refused,
)
from training_tier.loop.contrastive import TierTrainer
from training_tier.options.training import TierTrainingArguments


@pytest.fixture
def make_trainer(runs, tmp_path):
    def make(**options) -> TierTrainer:
        model, processor = load_model(runs["clip"])
        no = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "report_to": "none"}
        arguments = TierTrainingArguments(output_dir=str(tmp_path / "run"), use_cpu=True, **no, **options)
        return TierTrainer(model=model, args=arguments, processing_class=processor)

    return make


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
def test_everything_is_private_unless_told_otherwise(hub, runs, pushed, clean):
    assert len(hub.repos) >= 15 and all(repo.private for repo in hub.repos.values())
    pushed["clip"].push_to_hub("user/public-model", private=False)
    assert not hub.repos["user/public-model"].private


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
        train_tier.main(["--help_all"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--hub_private_repo" in text and "A model trained on credentialed data (MIMIC-CXR, CheXpert)" in text
