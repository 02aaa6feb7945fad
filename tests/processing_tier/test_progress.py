"""Progress in a log and on a terminal."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from processing_tier import progress as module
from processing_tier.progress import PlainLines, describe_seconds, progress

ROOT = Path(module.__file__).parents[1]


@pytest.fixture
def clock(monkeypatch):
    """The seconds that the loops see."""
    now = [100.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_each_tenth(clock, capsys):
    lines = progress(description="hashing images", unit="image", total=2000)
    assert isinstance(lines, PlainLines)
    for _ in range(2000):
        clock[0] += 0.06
        lines.update()
    told = capsys.readouterr().err.splitlines()
    # nothing in the first ten seconds
    assert told[0] == "hashing images: 10 % (200 of 2,000 images) in 12 s, about 2 min left"
    assert told[-1] == "hashing images: 100 % (2,000 of 2,000 images) in 2 min"
    assert len(told) == 10


def test_a_short_loop_shows_nothing(clock, capsys):
    for _ in progress([1, 2, 3], "reading", "file"):
        clock[0] += 3
    assert capsys.readouterr().err == ""


def test_a_loop_of_hours_is_never_silent_for_long(clock, capsys):
    lines = progress(description="preparing", unit="image", total=10**6)
    for _ in range(13):
        clock[0] += 300
        lines.update(1000)
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "preparing: 0 % (2,000 of 1,000,000 images) in 10 min, about 83.2 h left"
    assert len(told) == 6


def test_what_an_earlier_run_has_done_does_not_count_as_speed(clock, capsys):
    lines = PlainLines(None, "training", "step", total=100, initial=50)
    clock[0] += 100
    lines.update(10)
    assert capsys.readouterr().err == "training: 60 % (60 of 100 steps) in 2 min, about 7 min left\n"


def test_silent_shows_nothing(clock, capsys):
    for _ in progress(range(10), "reading", "file", silent=True):
        clock[0] += 100
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "told"), [(0.2, "0 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (9000, "2.5 h")]
)
def test_durations(seconds, told):
    assert describe_seconds(seconds) == told


LOOP = """
from processing_tier import progress as module
module.BAR_AFTER = module.LINES_AFTER = 0
for _ in module.progress(range(1000), "reading", "file"): pass
"""


@pytest.mark.slow
def test_a_terminal_gets_a_bar_and_a_file_lines(tmp_path):
    own, other = pty.openpty()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    subprocess.run([sys.executable, "-c", LOOP], cwd=ROOT, stderr=other, check=True)
    shown = os.read(own, 10**6).decode()
    assert "\r" in shown and "reading" in shown and "%|" in shown
    with open(tmp_path / "log", "wb") as log:
        subprocess.run([sys.executable, "-c", LOOP], cwd=ROOT, stderr=log, check=True)
    lines = (tmp_path / "log").read_bytes()
    assert b"\r" not in lines and lines.count(b"\n") == 10


def test_all_packages_use_this_owner():
    """Only the shipped pipeline, which a model carries to the Hub, has the library's own bar."""
    users = [
        path.relative_to(ROOT).as_posix()
        for package in ("modeling_tier", "processing_tier", "evaluation_tier", "training_tier", "examples")
        for path in (ROOT / package).rglob("*.py")
        if any(line.startswith(("from", "import")) and "tqdm" in line for line in path.read_text().splitlines())
    ]
    assert sorted(users) == ["modeling_tier/encoding_tier.py", "processing_tier/progress.py"]
