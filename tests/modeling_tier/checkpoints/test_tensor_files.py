"""Tensors come out of files of every age, and nothing that a file holds is ever run."""

import argparse
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from modeling_tier.checkpoints.tensor_files import JSON_LIMIT, read_json, read_tensors

SYSTEM = f"{os.system.__module__}.system"  # posix.system, or nt.system


@pytest.fixture
def state():
    return {"a.weight": torch.randn(3, 4), "a.bias": torch.randn(3).half(), "count": torch.tensor(5)}


def check(found, state):
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype
        assert not found[name].requires_grad


def saved(path, content, **options):
    torch.save(content, path, **options)
    return path


def rewrite(source, target, change):
    """A copy of a zip archive in which `change` maps each entry and its content to content and compression."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            content, compression = change(entry.filename, old.read(entry))
            new.writestr(entry.filename, content, compression)
    return target


@pytest.mark.parametrize("container", ["bare", "state_dict", "model_state_dict", "safetensors"])
def test_containers(tmp_path, state, container):
    if container == "safetensors":
        path = tmp_path / "weights.safetensors"
        save_file(state, path)
    else:
        path = saved(tmp_path / "weights.pt", state if container == "bare" else {"epoch": 3, container: state})
    found, name = read_tensors(path)
    assert name == container
    check(found, state)


def test_files_of_before_torch_1_6_parameters_and_wrapped_models(tmp_path, state):
    check(read_tensors(saved(tmp_path / "old.pt", state, _use_new_zipfile_serialization=False))[0], state)
    state["a.weight"] = nn.Parameter(state["a.weight"])
    path = saved(tmp_path / "wrapped.pt", {f"module.{name}": tensor for name, tensor in state.items()})
    check(read_tensors(path)[0], state)


@pytest.mark.parametrize("numpy", [b"numpy._core", b"numpy.core"])  # of numpy 2 and 1
def test_what_training_scripts_save_beside_the_tensors(tmp_path, state, numpy):
    checkpoint = {
        "model_state_dict": state,
        "val_loss": np.float64(0.5),
        "train_loss": np.array(1.5, dtype=np.float32),
        "args": argparse.Namespace(batch_size=16, model_path="models/", lam_words=0.1),
    }
    saved(tmp_path / "saved.pt", checkpoint)
    path = rewrite(
        tmp_path / "saved.pt",
        tmp_path / "best_model.pt",
        lambda name, content: (
            content.replace(b"numpy._core", numpy) if name.endswith("data.pkl") else content,
            zipfile.ZIP_STORED,
        ),
    )
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    check(read_tensors(path)[0], state)
    with pytest.raises(pickle.UnpicklingError):  # what was let through was so for that one file only
        torch.load(path, weights_only=True)


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.mask = torch.zeros(4).half()  # an attribute that is neither parameter nor buffer

    def forward(self, x):
        return self.linear(x) + self.mask


@pytest.fixture
def archive(tmp_path):
    """A TorchScript archive and the state dict of its module."""
    module = nn.Sequential(Inner(), Inner()).half().eval()
    module.register_buffer("input_resolution", torch.tensor(224))
    path = tmp_path / "archive.pt"
    torch.jit.script(module).save(path)
    return path, {**module.state_dict(), "0.mask": module[0].mask, "1.mask": module[1].mask}


filter_jit = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore:.*torch.jit:UserWarning")


@filter_jit
def test_torchscript_archives(archive):
    path, state = archive
    with pytest.raises(RuntimeError, match="TorchScript"):
        torch.load(path, weights_only=True)
    found, container = read_tensors(path)
    assert container == "torchscript"
    check(found, state)


class Hostile:
    """Would create a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("how", ["alone", "old", "in the arguments", "pickle 2", "pickle 4"])
def test_a_pickle_with_code_is_not_run(tmp_path, state, how):
    path, marker = tmp_path / "best_model.pt", tmp_path / "marker"
    hostile = Hostile(marker)
    if how.startswith("pickle"):
        path.write_bytes(pickle.dumps(hostile, protocol=int(how[-1])))
    else:
        arguments = argparse.Namespace(x=hostile)
        content = {"model_state_dict": state, "args": arguments} if how == "in the arguments" else hostile
        saved(path, content, _use_new_zipfile_serialization=how != "old")
    with pytest.raises(ValueError) as error:
        read_tensors(path)
    assert not marker.exists()
    if how == "pickle 4":  # written with operations that the reader does not know at all
        assert "best_model.pt cannot be read" in str(error.value)
    else:
        assert f"best_model.pt requests a call of {SYSTEM} while it is read" in str(error.value)
        assert "torch.save(model.state_dict(), 'tensors.pt')" in str(error.value)


def test_arguments_that_are_more_than_data_are_refused_by_name(tmp_path, state):
    checkpoint = {"model_state_dict": state, "args": argparse.Namespace(path=Path("x"))}
    with pytest.raises(ValueError, match=r"requests a call of pathlib\S*Path while"):
        read_tensors(saved(tmp_path / "best_model.pt", checkpoint))


# Pickles of a module inside itself, and of 60 modules each twice inside the next: 2 ** 60 names
LOOP = b"\x80\x02c__torch__.x\nM\n)\x81q\x00}q\x01X\x04\x00\x00\x00selfq\x02h\x00sb."
MODULE = b"c__torch__.x\nM\n)\x81"
DOUBLED = b"\x80\x02" + MODULE + b"q\x00"
for i in range(60):
    DOUBLED += MODULE + b"}(X\x01\x00\x00\x00ah%cX\x01\x00\x00\x00bh%cubq%c" % (i, i, i + 1)
DOUBLED += b"."


@filter_jit
@pytest.mark.parametrize(
    "data, message",
    [
        (pickle.dumps(Hostile("absent"), protocol=2), SYSTEM),
        (LOOP, "does not hold a state dict"),
        (DOUBLED, "does not hold a state dict"),
    ],
    ids=["code", "loop", "doubled"],
)
def test_a_hostile_torchscript_archive(tmp_path, archive, data, message):
    path = rewrite(
        archive[0],
        tmp_path / "hostile.pt",
        lambda name, content: (data if name.endswith("/data.pkl") else content, zipfile.ZIP_STORED),
    )
    with pytest.raises(ValueError, match=message):
        read_tensors(path)


@filter_jit
def test_compressed_archives_are_refused(tmp_path, archive):
    """torch compresses no data: a file of a few kilobytes could fill the memory."""
    bomb = saved(tmp_path / "bomb.pt", {"a": torch.zeros(10**6)})
    for path in (archive[0], bomb):
        small = rewrite(path, tmp_path / "small.pt", lambda _, content: (content, zipfile.ZIP_DEFLATED))
        with pytest.raises(ValueError, match="small.pt cannot be read"):
            read_tensors(small)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 0.3, 0.99])
def test_a_truncated_file(tmp_path, state, suffix, keep):
    path = tmp_path / f"weights{suffix}"
    torch.save(state, path) if suffix == ".pt" else save_file(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ValueError, match=f"weights{suffix} cannot be read: it is damaged"):
        read_tensors(path)


def test_a_text_file(tmp_path):
    (tmp_path / "weights.pt").write_text("not found")
    with pytest.raises(ValueError, match="weights.pt cannot be read"):
        read_tensors(tmp_path / "weights.pt")


@pytest.mark.parametrize("content", [[torch.zeros(2)], {}, {1: torch.zeros(2)}, {"a": 1}, torch.zeros(2)])
def test_files_without_a_state_dict(tmp_path, content):
    with pytest.raises(ValueError, match="weights.pt does not hold a state dict"):
        read_tensors(saved(tmp_path / "weights.pt", content))


@pytest.mark.parametrize(
    "tensor, message",
    [
        (torch.zeros(1).expand(10**6, 10**6), "larger than the file itself"),
        (torch.zeros(4, device="meta"), "does not hold a state dict"),
        (torch.zeros(4).to_sparse(), "does not hold a state dict"),
    ],
)
def test_tensors_without_numbers_of_their_own(tmp_path, tensor, message):
    with pytest.raises(ValueError, match=message):
        read_tensors(saved(tmp_path / "weights.pt", {"a": tensor}))


def test_json(tmp_path):
    path = tmp_path / "config.json"
    for content, message in (
        ("{", "not valid JSON"),
        ("[" * 10**5, "not valid JSON"),
        ("[1]", "not a JSON object"),
        (" " * (JSON_LIMIT + 1), "bytes"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_json(path)
    path.write_text('{"a": 1}')
    assert read_json(path) == {"a": 1}
