"""Files that ask for more than they hold, links and pipes: one sentence, in little memory and time."""

import argparse
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from modeling_tier.checkpoints import load_source, open_source
from modeling_tier.checkpoints.model_folder import check_model_folder
from modeling_tier.checkpoints.pickled import PICKLE_LIMIT
from modeling_tier.checkpoints.tensor_files import read_tensors

GIGABYTES = 2 * 2**30
MEMORY = 300 * 2**20  # bytes that a child may take on top of what it has with torch loaded

# Reads each file in a process whose memory is limited, and prints the errors and the most memory that it had.
CHILD = """
import json, resource, sys
from pathlib import Path
from modeling_tier.checkpoints.tensor_files import read_tensors
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
before, errors = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, {}
for path in map(Path, sys.argv[2:]):
    try:
        read_tensors(path)
        errors[path.name] = None
    except ValueError as error:
        errors[path.name] = str(error)
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
print(json.dumps({"errors": errors, "grown": grown}))
"""

# Reads random damages of each file, in limited memory, and prints how many were read, how many refused, and the rest.
FUZZ = """
import json, random, resource, sys
from pathlib import Path
from modeling_tier.checkpoints.tensor_files import read_arguments, read_json, read_tensors
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
random.seed(0)
counts, odd = {"read": 0, "refused": 0}, []
for path in map(Path, sys.argv[3:]):
    content = path.read_bytes()
    damaged = path.with_name("damaged" + path.suffix)
    for number in range(int(sys.argv[2])):
        data = bytearray(content)
        head = min(len(data), 4000)
        for _ in range(random.choice((1, 1, 3, 20))):
            if not data:
                break
            place = random.choice((random.randrange(head), random.randrange(len(content)))) % len(data)
            kind = random.randrange(5)
            if kind < 2:
                data[place] = random.randrange(256)
            elif kind == 2:
                data[place : place + 4] = random.choice((bytes(4), bytes([255] * 4), bytes([0, 0, 0, 127])))
            elif kind == 3:
                del data[place : place + random.choice((1, 8, 300))]
            else:
                data[place:place] = data[place // 2 : place // 2 + random.choice((1, 8, 300))]
        damaged.write_bytes(data)
        readers = {".json": (read_json,), ".pt": (read_tensors, read_arguments)}.get(path.suffix, (read_tensors,))
        for read in readers:
            try:
                read(damaged)
                counts["read"] += 1
            except ValueError as error:
                counts["refused"] += 1
                if not str(error).startswith("damaged") and str(damaged) not in str(error):
                    odd.append(f"{path.name} {number}: {error}")
            except Exception as error:
                odd.append(f"{path.name} {number}: {type(error).__name__} {error}")
print(json.dumps({**counts, "odd": odd}))
"""


def call(name: str, size: int) -> bytes:
    """A pickle of a call with one number."""
    return b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\n" + pickle.dumps((size,), protocol=2)[2:-1] + b"R."


def zipped(path: Path, data: bytes, records: dict[str, bytes], compression=zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
        for name, content in records.items():
            archive.writestr(f"archive/{name}", content)


def data_of(state: dict) -> bytes:
    """The data.pkl of what torch saves of a state dict."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return archive.read("archive/data.pkl")


def overlapping(path: Path) -> None:
    """An archive of which 100 records are the same bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data_of({"a": torch.zeros(2)}))
        archive.writestr("archive/data/0", bytes(2**20))
        first = archive.infolist()[1]
        for i in range(1, 100):
            copy = zipfile.ZipInfo(f"archive/data/{i}")
            copy.file_size = copy.compress_size = first.file_size
            copy.header_offset, copy.CRC = first.header_offset, first.CRC
            archive.filelist.append(copy)


@pytest.fixture
def hostile(tmp_path):
    """Files that would take gigabytes, by name: each a few kilobytes, or 20 MB."""
    for name in ("builtins bytearray", "__builtin__ bytearray", "torch FloatTensor", "torch Tensor"):
        (tmp_path / f"{name.replace(' ', '.')}.pt").write_bytes(call(name, GIGABYTES))
    zipped(tmp_path / "zipped.pt", call("builtins bytearray", GIGABYTES), {})
    overlapping(tmp_path / "overlapping.pt")
    plain = data_of({"a": torch.zeros(2)})
    zipped(tmp_path / "compressed.pt", plain, {"data/0": bytes(2**20)}, zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "code.pt", "w") as archive:  # a key of a tensor that looks like a folder of code
        archive.writestr("archive/data.pkl", plain.replace(b"X\x01\0\0\x000", b"X\x06\0\0\0code/0"))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/data/code/0", bytes(2**20), zipfile.ZIP_DEFLATED)
    # The 7 elements of a storage and of its tensor, as numbers of a pickle: one or both become many.
    seven, many = b"K\x07", b"J" + struct.pack("<i", GIGABYTES // 4)
    start, middle, end = data_of({"a": torch.zeros(7)}).split(seven)
    zipped(tmp_path / "grown.pt", start + seven + middle + many + end, {"data/0": bytes(28)})
    zipped(tmp_path / "claimed.pt", start + many + middle + many + end, {"data/0": bytes(28)})
    old = io.BytesIO()
    torch.save({"a": torch.zeros(7)}, old, _use_new_zipfile_serialization=False)
    start, middle, end = old.getvalue().split(seven)
    (tmp_path / "old.pt").write_bytes(start + many + middle + many + end)
    text = b"X" + struct.pack("<I", PICKLE_LIMIT) + b"a" * PICKLE_LIMIT
    zipped(tmp_path / "long.pt", b"\x80\x02(" + text + b"t.", {})
    (tmp_path / "long_old.pt").write_bytes(b"\x80\x02(" + text + b"}" * 8 + b"t.")
    return sorted(tmp_path.glob("*.pt"))


def test_files_that_ask_for_gigabytes_are_refused(hostile):
    assert len(hostile) == 13
    for path in hostile:
        name = path.name
        if name.startswith(("builtins", "__builtin__", "torch", "zipped")):
            called = "builtins.bytearray" if name == "zipped.pt" else name.removesuffix(".pt")
            expected = (
                f"{name} requests a call of {called} while it is read, which tensors do not need, so it was not read."
            )
        elif name in ("grown.pt", "claimed.pt", "old.pt"):
            expected = f"{name} describes tensors larger than the file itself, so it was not read."
        else:
            expected = f"{name} cannot be read: it is damaged, cut short, or not a file of torch.save or safetensors ("
        with pytest.raises(ValueError) as error:
            read_tensors(path)
        assert str(error.value).startswith(expected)


def test_a_key_that_takes_for_ever_to_hash_is_refused(tmp_path):
    """A tuple doubled 60 times, or 100,000 within each other, which would end the process."""
    doubled = b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(60))
    zipped(tmp_path / "doubled.pt", b"\x80\x02}K\x01q\x00" + doubled + b"K\x00s.", {})
    zipped(tmp_path / "nested.pt", b"\x80\x02}K\x01" + b"\x85" * 100_000 + b"K\x00s.", {})
    zipped(tmp_path / "flat.pt", b"\x80\x02}K\x01" + b"\x85" * 5 + b"K\x00s.", {})  # is read, and holds no tensors
    for name, reason in (("doubled", "damaged"), ("nested", "damaged"), ("flat", "not hold a state dict")):
        with pytest.raises(ValueError, match=f"{name}.pt .*{reason}"):
            read_tensors(tmp_path / f"{name}.pt")


def test_sizes_that_are_no_numbers_are_refused(tmp_path):
    """A step of text, times the rows of a tensor, would take gigabytes."""
    start, middle = data_of({"a": torch.zeros(3, 4)}).split(b"K\x04K\x01\x86")  # the steps, 4 and 1
    text = b"X" + struct.pack("<I", 2**20) + b"a" * 2**20
    zipped(tmp_path / "text.pt", start + text + b"K\x01\x86" + middle, {"data/0": bytes(48)})
    with pytest.raises(ValueError, match="text.pt cannot be read: it is damaged.*UnpicklingError"):
        read_tensors(tmp_path / "text.pt")


def test_an_old_file_without_all_of_its_values_is_refused(tmp_path):
    """torch would make the tensors all the same, of whatever the memory held."""
    path = tmp_path / "old.pt"
    torch.save({"a": torch.ones(7), "b": torch.ones(9)}, path, _use_new_zipfile_serialization=False)
    assert read_tensors(path)[0]["b"].tolist() == [1] * 9
    content = path.read_bytes()
    listed = content.rindex(b"\x80\x02]")  # the names of the storages, then each with its length
    path.write_bytes(content[:listed] + b"\x80\x02]q\x00.")
    with pytest.raises(ValueError, match="old.pt lacks the values of 2 of its 2 tensors, so it was not read."):
        read_tensors(path)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the limit is set from Linux's /proc")
def test_refusing_takes_little_memory(hostile):
    result = subprocess.run(
        [sys.executable, "-c", CHILD, str(MEMORY), *map(str, hostile)],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).resolve().parents[3],
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["errors"].keys() == {path.name for path in hostile} and all(found["errors"].values())
    assert not [message for message in found["errors"].values() if "MemoryError" in message]
    assert found["grown"] < MEMORY / 2


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the limit is set from Linux's /proc")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_damaged_files_are_read_or_refused(tmp_path):
    state = {"a.weight": torch.randn(3, 4), "a.bias": torch.randn(3).half(), "count": torch.tensor(5)}
    checkpoint = {"model_state_dict": state, "args": argparse.Namespace(lam_words=0.1), "epoch": 3}
    torch.save(checkpoint, tmp_path / "zip.pt")
    torch.save(checkpoint, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "weights.safetensors")
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "scripted.pth")
    (tmp_path / "config.json").write_text(json.dumps({"a": [1, {"b": "c"}], "d": 0.5}))
    files = sorted(tmp_path.iterdir())
    result = subprocess.run(
        [sys.executable, "-c", FUZZ, str(4 * MEMORY), "100", *map(str, files)],
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).resolve().parents[3],
    )
    assert result.returncode == 0, result.stderr[-2000:]
    found = json.loads(result.stdout)
    assert found["odd"] == []
    assert found["read"] > 20 and found["refused"] > 200 and len(files) == 5


def test_a_link_to_a_device_and_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "link.pt").symlink_to("/dev/zero")
    for name in ("pipe.pt", "link.pt"):
        with pytest.raises(ValueError, match=f"{name}' is a pipe or a device, not a file or folder"):
            open_source(tmp_path / name)
    # in a folder they count as absent
    folder = tmp_path / "folder"
    folder.mkdir()
    os.mkfifo(folder / "config.json")
    with pytest.raises(ValueError, match="does not hold a model"):
        open_source(folder)


@pytest.mark.parametrize("index", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
@pytest.mark.parametrize(
    "name", ["../other/model.safetensors", "/etc/passwd", "inner/model.bin", "..\\model.bin", "..", ""]
)
def test_an_index_that_leads_outside_its_folder(tmp_path, clip, index, name):
    folder = tmp_path / "model"
    clip.save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    (tmp_path / "other").mkdir()
    save_file(clip.state_dict(), tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})
    weight_map = dict.fromkeys(clip.state_dict(), name)
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    with pytest.raises(ValueError) as error:
        load_source(open_source(folder))
    assert f"{index} names the file {name!r}, which is outside the model's folder" in str(error.value)


def test_an_index_of_files_beside_it(tmp_path, clip):
    clip.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    model = load_source(open_source(tmp_path))
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in clip.state_dict().items())
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": ["a"]}')
    with pytest.raises(ValueError, match="lacks a weight_map from tensors to files"):
        check_model_folder(tmp_path)
    check_model_folder("owner/name")  # of the Hub


def test_a_pickle_in_a_folder_of_transformers(tmp_path, clip):
    clip.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(call("builtins bytearray", GIGABYTES))
    with pytest.raises(ValueError, match="pytorch_model.bin requests a call of builtins.bytearray"):
        load_source(open_source(tmp_path))


def test_shared_storages_and_views_are_no_claims(tmp_path):
    whole = torch.arange(12.0)
    state = {
        "a": whole,
        "b": whole[3:9],
        "c": whole.view(3, 4).t(),
        "d": torch.zeros(0),
        "e": torch.zeros(2).bfloat16(),
    }
    torch.save(state, tmp_path / "a.pt")
    found = read_tensors(tmp_path / "a.pt")[0]
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
