"""The command tier-prepare: one sentence and exit code 2 on bad input, and a killed run that resumes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pandas as pd
import pytest
from PIL import Image
from preparation import contents

import prepare_tier
from processing_tier import read_radiograph
from processing_tier.readers.hub import read_hub

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path) -> Path:
    """An image folder of one split: four images of 20 x 30 pixels."""
    train = tmp_path / "my data" / "train"
    train.mkdir(parents=True)
    for i in range(4):
        Image.linear_gradient("L").resize((20, 30)).save(train / f"{i}.png")
    frame = pd.DataFrame({"file_name": [f"{i}.png" for i in range(4)], "patient_id": range(4), "text": "Clear."})
    frame.to_csv(train / "metadata.csv", index=False)
    return train.parent


@pytest.mark.slow
def test_prepares(folder, tmp_path, capsys):
    out = tmp_path / "out"
    prepare_tier.main(["--data", str(folder), "--output_dir", str(out), "--size", "16", "--num_workers", "1"])
    printed = capsys.readouterr()
    assert "| images " in printed.out
    assert printed.out.endswith(f"Wrote {out}; look at sheet.jpg and quarantine.csv in it.\n")
    records = read_hub(out, "train")
    assert {read_radiograph(record["image"]).size for record in records} == {(16, 24)}
    assert records["report"][:] == ["Clear."] * 4
    prepare_tier.main(
        ["--data", str(folder), "--output_dir", str(tmp_path / "png"), "--size", "original", "--format", "png"]
        + ["--quality", "90", "--shard_index", "0", "--shard_count", "1"]
    )
    assert "Note: --quality has no effect on png." in capsys.readouterr().err
    assert read_radiograph(read_hub(tmp_path / "png", "train")[0]["image"]).size == (20, 30)


@pytest.mark.slow
def test_job_of_several(folder, tmp_path, capsys):
    job = ["--data", str(folder), "--output_dir", str(tmp_path / "out"), "--shard_images", "2", "--shard_count", "2"]
    prepare_tier.main([*job, "--shard_index", "1"])
    assert "The last job to end writes the card" in capsys.readouterr().out
    with pytest.raises(ValueError, match="1 of 2 files of the split 'train' are missing; let tier-prepare finish"):
        read_hub(tmp_path / "out", "train")
    prepare_tier.main([*job, "--shard_index", "0"])
    assert len(read_hub(tmp_path / "out", "train")) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--size": "0"}, '--size 0 is not a number of pixels; use 1 or more, such as 512, or "original".'),
        ({"--size": "big"}, "--size big is not a number of pixels"),
        ({"--quality": "0"}, "--quality 0 must lie between 1 and 100."),
        ({"--shard_images": "0"}, "--shard_images 0 must be at least 1."),
        ({"--num_workers": "0"}, "--num_workers 0 must be at least 1."),
        ({"--seed": "-1"}, "--seed -1 must be at least 0."),
        ({"--max_failed": "5"}, "--max_failed 5.0 is a share; it must lie between 0 and 1."),
        ({"--shard_index": "1"}, "--shard_index and --shard_count go together; give both or neither."),
        (
            {"--shard_index": "2", "--shard_count": "2"},
            "--shard_index 2 must lie between 0 and --shard_count - 1 = 1.",
        ),
        ({"--columns": "image"}, "--columns takes NAME=COLUMN, for example image=Path, but got 'image'."),
        ({"--columns": "impression=Text"}, "column 'Text' (for 'impression') is missing; it has file_name"),
        ({"--splits": "train,validation"}, "cannot be the name of a file"),
        (
            {"--splits": "test"},
            "the split 'test' does not exist; it has train. Choose one with --split (tier-train: --train_split",
        ),
        ({"--image_root": "images"}, "image_root='images' has no effect on 'my data'; leave it out."),
        ({"--data": "mimic:folder"}, "the reader 'mimic' is not known"),
        ({"--data": "nowhere"}, "nowhere: the folder does not exist; check the path of the data."),
        ({"--text": "impression"}, "none of 4 records is left"),
        ({"--formt": "png"}, "unknown option --formt: did you mean --format?"),
        ({"--format": "gif"}, "invalid choice: 'gif'"),
    ],
)
def test_bad_input(folder, tmp_path, capsys, change, message):
    options = {"--data": str(folder), "--output_dir": str(tmp_path / "out"), **change}
    with pytest.raises(SystemExit) as error:
        prepare_tier.main([word for pair in options.items() for word in pair])
    assert error.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed and "Traceback" not in printed
    assert not (tmp_path / "out").exists()


def test_empty_folder(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as error:
        prepare_tier.main(["--data", str(tmp_path / "empty"), "--output_dir", str(tmp_path / "out")])
    assert error.value.code == 2 and not (tmp_path / "out").exists()
    assert "no metadata.csv is in it or in a folder for each split; add one." in capsys.readouterr().err


def make_large(folder: Path, images: int) -> None:
    """One image of 800 x 800 pixels, under many names."""
    (folder / "train").mkdir(parents=True)
    Image.effect_noise((800, 800), 50).save(folder / "train" / "a.png", compress_level=0)
    frame = pd.DataFrame({"file_name": ["a.png"] * images, "image_id": range(images), "patient_id": range(images)})
    frame.to_csv(folder / "train" / "metadata.csv", index=False)


def start(*arguments, **options) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "prepare_tier.py"), *map(str, arguments)]
    if os.name == "posix":  # what a shell starts in the background ignores SIGINT
        options.setdefault("preexec_fn", lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.slow
def test_killed_run_resumes(tmp_path):
    make_large(tmp_path / "data", 200)
    command = ["--data", tmp_path / "data", "--size", 400, "--shard_images", 20, "--format", "png"]
    process = start(*command, "--output_dir", tmp_path / "out", "--num_workers", 2)
    while len(list((tmp_path / "out" / "data").glob("*.parquet"))) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 30
    while workers(tmp_path / "out") and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not workers(tmp_path / "out")  # the workers have ended with it
    done = list((tmp_path / "out" / "data").glob("*.parquet"))
    times = [path.stat().st_mtime_ns for path in done]
    assert 2 <= len(done) < 10
    for output, workers_then in (("out", 1), ("whole", 2)):
        arguments = [*command, "--output_dir", tmp_path / output, "--num_workers", workers_then]
        prepare_tier.main([str(argument) for argument in arguments])
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert [path.stat().st_mtime_ns for path in done] == times


def workers(out: Path) -> list[str]:
    """Processes that have a file below `out` open."""
    links = [link for folder in Path("/proc").glob("[0-9]*/fd") for link in list_links(folder)]
    return [link for link in links if link.startswith(str(out))]


def list_links(folder: Path) -> list[str]:
    try:
        return [os.readlink(link) for link in folder.iterdir()]
    except OSError:  # it has ended
        return []


@pytest.mark.slow
def test_interrupted_run(tmp_path):
    make_large(tmp_path / "data", 4_000)  # minutes of work: the signal comes long before its end
    process = start("--data", tmp_path / "data", "--output_dir", tmp_path / "out", "--shard_images", 20)
    while not list((tmp_path / "out" / "data").glob("*.parquet")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130 and "Traceback" not in errors
    assert errors.endswith("prepare_tier.py: interrupted; run the same command again to resume.\n")
    assert not [path for path in (tmp_path / "out").rglob(".*")]


@pytest.mark.slow
def test_full_disk(tmp_path):
    """A limit on the size of files fails a write as a full disk does."""
    import resource

    make_large(tmp_path / "data", 30)
    command = ["--data", tmp_path / "data", "--output_dir", tmp_path / "out", "--format", "png", "--shard_images", 10]
    limit = (100_000, resource.RLIM_INFINITY)
    process = start(*command, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit))
    _, errors = process.communicate()
    assert process.returncode == 2 and "Traceback" not in errors
    assert "prepare_tier.py: error: " in errors and "File too large" in errors
    assert sorted(contents(tmp_path / "out")) == ["prepare.json"]
    prepare_tier.main([str(argument) for argument in command])
    assert len(list((tmp_path / "out" / "data").glob("*.parquet"))) == 3


def test_real_radiographs(shared_data, tmp_path, capsys):
    command = ["--data", str(shared_data / "nih_cxr14"), "--output_dir", str(tmp_path / "out"), "--size", "64"]
    prepare_tier.main([*command, "--splits", "validation"])
    source = {r["image_id"]: r for r in prepare_tier_records(shared_data / "nih_cxr14")}
    prepared = read_hub(tmp_path / "out", "validation")
    assert len(prepared) == len(source)
    boxed = [record for record in prepared if record["boxes"]]
    assert all(min(read_radiograph(record["image"]).size) == 64 for record in boxed)
    for record in boxed:
        original = read_radiograph(source[record["image_id"]]["image"])
        for box, first in zip(record["boxes"], source[record["image_id"]]["boxes"], strict=True):
            assert box["w"] / 64 == pytest.approx(first["w"] / original.width)


def prepare_tier_records(folder: Path) -> datasets.Dataset:
    from processing_tier.readers import read_records

    return read_records(folder, "validation").filter(lambda view: view in ("AP", "PA"), input_columns="view")
