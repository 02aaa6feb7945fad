"""tier-eval of a model of OpenCLIP by its name on the Hub: what a folder gives, and only the files that it needs."""

import sys

import pytest
import torch
from eval_command import PHANTOM, fails
from hub_server import Commit, Repo
from open_clip_library import needs_open_clip
from seeded_checkpoints import OPEN_CLIP_BERT, TEXTS, write_biomedclip, write_open_clip
from transformers import BertConfig

from evaluation_tier.models.loading import hub_commit, load_model


@pytest.fixture
def published(hub, tmp_path, request):
    """The name of a repository with files that are not read too, the files that are, and what its model computes. The
    text tower's configuration has a repository of its own."""
    name = f"user/{request.function.__name__}"
    content = write_open_clip(tmp_path / "original", "open_clip_timm")
    files = {path.name: path.read_bytes() for path in (tmp_path / "original").iterdir()}
    unread = dict.fromkeys(("code.py", "open_clip_pytorch_model.bin", "step-1/open_clip_model.safetensors"), b"unread")
    hub.repos[name] = Repo(private=False, commits=[Commit("release", {**files, **unread})])
    BertConfig(**OPEN_CLIP_BERT).save_pretrained(tmp_path / "bert")
    config = {"config.json": (tmp_path / "bert" / "config.json").read_bytes(), "code.py": b"unread"}
    hub.repos["made/tiny-bert"] = Repo(private=False, commits=[Commit("release", config)])
    hub.sent.clear()
    return name, set(files), content


def test_the_package_is_named_where_it_is_missing(published, hub, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    name, files, _ = published
    told = fails(name, "--data", PHANTOM, capsys=capsys)
    assert told.startswith(f"The model {name} is OpenCLIP's and needs the package open_clip: pip install")
    assert set(hub.sent) == files  # no code, no pickle, no folders


def test_pickled_weights_are_refused(hub, tmp_path, capsys):
    write_biomedclip(tmp_path / "original")
    files = {path.name: path.read_bytes() for path in (tmp_path / "original").iterdir()}
    hub.repos["user/pickled"] = Repo(private=False, commits=[Commit("release", files)])
    told = fails("user/pickled", "--data", PHANTOM, capsys=capsys)
    assert told.startswith("The OpenCLIP model user/pickled has no weights as safetensors") and "tier-convert" in told


@needs_open_clip
def test_a_name_gives_what_the_folder_gives(published, hub, tmp_path):
    name, files, content = published
    model, _ = load_model(name)
    assert set(hub.sent) == files | {"config.json"} and hub_commit(name) == hub.repos[name].commits[-1].sha
    with torch.no_grad():
        assert (model.embed_texts(TEXTS) - torch.tensor(content["text_embeds"])).abs().max() < 1e-5
