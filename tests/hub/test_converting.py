"""tier-convert of a checkpoint by its name on the Hub: the model of the folder, and only the files that it needs."""

import huggingface_hub
import pytest
import torch
from convert_checks import load, refuse, run
from hub_server import Commit, Repo
from seeded_checkpoints import WRITERS


@pytest.fixture(params=WRITERS)
def published(request, hub, tmp_path):
    """The name of a repository, with files that a conversion does not read, and the folder it was uploaded from."""
    folder, name = tmp_path / "original", f"user/{request.param}"
    WRITERS[request.param](folder)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    unread = dict.fromkeys(("modeling_original.py", "tf_model.h5", "checkpoint-1/model.safetensors"), b"not read")
    hub.repos[name] = Repo(private=False, commits=[Commit("release", {**files, **unread})])
    return name, folder


@pytest.mark.slow
def test_a_name_gives_what_the_folder_gives(published, hub, tmp_path, capsys, monkeypatch):
    name, folder = published
    run(capsys, folder, tmp_path / "folder")
    hub.sent.clear()
    out = run(capsys, name, tmp_path / "name")
    assert f"Reading {name}: " in out
    assert set(hub.sent) == {path.name for path in folder.iterdir()}  # no code, no other forms, no folders
    (model, processor), (other, same) = load(tmp_path / "folder"), load(tmp_path / "name")
    assert all(torch.equal(tensor, other.state_dict()[key]) for key, tensor in model.state_dict().items())
    assert processor.image_processor.to_dict() == same.image_processor.to_dict()
    text = "No “small” EFFUSION."
    assert processor.tokenizer(text).input_ids == same.tokenizer(text).input_ids

    pinned = f"{name}@{hub.repos[name].commits[-1].sha}"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # from the cache
    for number, asked in enumerate((name, pinned)):
        run(capsys, asked, tmp_path / f"cache{number}")
        again = load(tmp_path / f"cache{number}")[0]
        assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in model.state_dict().items())


def test_one_form_of_the_weights_is_enough(hub, tmp_path, capsys):
    WRITERS["chexficient"](tmp_path / "original")
    files = {path.name: path.read_bytes() for path in (tmp_path / "original").iterdir()}
    hub.repos["user/two"] = Repo(private=False, commits=[Commit("release", {**files, "pytorch_model.bin": b"other"})])
    hub.sent.clear()
    run(capsys, "user/two", tmp_path / "out")
    assert "pytorch_model.bin" not in hub.sent and "model.safetensors" in hub.sent


def test_names_that_are_not_on_the_hub(hub, tmp_path, capsys, monkeypatch):
    message = refuse(capsys, "user/absent", tmp_path / "out")
    assert "The checkpoint 'user/absent' cannot be fetched from the Hub (RepositoryNotFoundError" in message
    hub.unknown.clear()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "downloads").mkdir()
    assert "was not looked up on the Hub" in refuse(capsys, "downloads/chexzero", tmp_path / "out")
    assert "does not exist; name a checkpoint on this machine" in refuse(capsys, "owner/best.pt", tmp_path / "out")
    assert not hub.unknown and not (tmp_path / "out").exists()
