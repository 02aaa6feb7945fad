"""Who may write into an output folder: runs at once, killed runs, runs with other options."""

import json
import logging
import os
import time
from pathlib import Path

import pytest
from preparation import contents, options

import processing_tier.prepare.run
from processing_tier.prepare.claim import claim, remove_stale_folders
from processing_tier.prepare.run import prepare


@pytest.mark.slow
def test_two_runs_at_once(table, tmp_path, monkeypatch, caplog):
    """A job begun again while it still runs, and another job of its array: nobody takes another's work away."""
    once, out = tmp_path / "once", tmp_path / "out"
    prepare(options(table), once, num_workers=1)
    make = processing_tier.prepare.run.make_shards

    def others_first(*arguments) -> list[dict]:
        """What happens between the plan of a run and its shards."""
        monkeypatch.setattr(processing_tier.prepare.run, "make_shards", make)
        (mine,) = out.glob(".tier-prepare-*")
        assert prepare(options(table), out, 1, shard_index=1, shard_count=2) is None
        assert list(out.glob(".tier-prepare-*")) == [mine]  # of another part
        assert prepare(options(table), out, 1, shard_index=0, shard_count=2)["splits"]["train"]["images"] == 14
        return make(*arguments)

    monkeypatch.setattr(processing_tier.prepare.run, "make_shards", others_first)
    with caplog.at_level(logging.WARNING):
        summary = prepare(options(table), out, 1, shard_index=0, shard_count=2)
    assert summary == json.loads((once / "summary.json").read_text())
    assert caplog.messages == [f"Another run has made the same part of {out} in the meantime."]
    assert contents(out) == contents(once)


def test_left_behind(tmp_path):
    now = tmp_path / ".tier-prepare-0-of-1-now"
    old, young = tmp_path / ".tier-prepare-3-of-4-old", tmp_path / ".tier-prepare-2-of-4-young"
    for folder, hours in ((now, 0), (young, 23), (old, 25)):
        folder.mkdir()
        os.utime(folder, (time.time() - hours * 3600,) * 2)
    remove_stale_folders(tmp_path, now)
    assert set(tmp_path.iterdir()) == {now, young}


@pytest.mark.parametrize("links", [True, False])
def test_one_of_two_claims_wins(tmp_path, monkeypatch, links):
    """Also where the file comes between the look and the write."""
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: os.stat(tmp_path / "no links"))
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    claim(tmp_path, tmp_path / "a", {"data": "x", "size": 1})
    claim(tmp_path, tmp_path / "b", {"data": "x", "size": 1})
    with pytest.raises(ValueError, match="was begun with size=1, not 2; name another output"):
        claim(tmp_path, tmp_path / "b", {"data": "x", "size": 2})
    assert json.loads((tmp_path / "prepare.json").read_text()) == {"data": "x", "size": 1}


def test_killed_before_its_first_file(table, tmp_path):
    """What it leaves does not count as something else in the output."""
    work = tmp_path / "out" / ".tier-prepare-0-of-1-abc"
    work.mkdir(parents=True)
    (work / "prepare.json").write_text("{")
    prepare(options(table), tmp_path / "out", num_workers=1)
    assert not work.exists()


@pytest.mark.slow
def test_output_is_held_to_its_options(table, tmp_path):
    out = tmp_path / "out"
    prepare(options(table), out)
    expected = contents(out)
    for changed, message in (
        (
            {"size": 16},
            f"the output {out} was begun with size=32, not 16; name another output, or give the same options.",
        ),
        ({"size": None}, f"the output {out} was begun with size=32, not None; name"),
        ({"splits": ("train",)}, f"the output {out} was begun with splits=None, not ['train']; name"),
        ({"format": "jpeg"}, f"the output {out} was begun with format='png', not 'jpeg'; name"),
    ):
        with pytest.raises(ValueError) as error:
            prepare(options(table, **changed), out)
        assert str(error.value).startswith(message)
    table.write_text(table.read_text().replace("Cardiomegaly 5", "Cardiomegaly 6"))
    with pytest.raises(ValueError, match="the records of reports.csv have changed since the output"):
        prepare(options(table), out)
    assert contents(out) == expected
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and does not hold prepared data"):
        prepare(options(table), other)
    below = other / "mine.txt" / "below"
    with pytest.raises(ValueError) as error:
        prepare(options(table), below)
    assert str(error.value) == f"the output folder {below} cannot be written (Not a directory); name another one."
    if Path("/proc/self").exists():
        with pytest.raises(
            ValueError, match=r"^the output folder /proc/out cannot be written \(.*\); name another one.$"
        ):
            prepare(options(table), "/proc/out")
    assert contents(other).keys() == {"mine.txt"}
