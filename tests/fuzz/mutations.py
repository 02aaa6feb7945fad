"""Damages files at random and reads each in limited memory and time: it is read, or refused with one sentence.

A test module is its own child: run as a program, it calls [`fuzz`] with the function that reads a file.
"""

import contextlib
import copy
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SECONDS = 20  # of processor time that one file may take
TEXT = (".csv", ".tsv", ".json", ".jsonl", ".yaml", ".xml", ".txt")
WORDS = """NaN null -1 1e999 0x7 [ ] { } " ' , : &a *a < > &amp; &x; true ../ =1+1 2024-13-45 Infinity
\\ud800 \\u0000 | %s 1_000 !!python/object:os.system""".split()
WORDS += ["- ", "? ", "<<: ", "\n", "\0", "\ufeff", "\ud800", "\u202e", "\x1b[2J", "9" * 400, "[" * 3000]
VALUES = [None, True, False, 0, -1, 7, 0.5, -1e300, float("nan"), float("inf"), 2**70, "", "x", "../x", "\0", "nan"]
VALUES += [[], {}, [[]], [None], {"a": None}, {"": ""}, [1, "a"], ["x"] * 3, {"step": "x"}, "\ud800", "9" * 400]


class TooSlow(BaseException):
    """Not an `Exception`, which code under test might catch."""


def damage_bytes(data: bytes, rng: random.Random) -> bytes:
    """Bits flipped, numbers changed, parts doubled, moved or cut off; more often in the first 400 bytes."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        if not changed:
            break
        at = rng.randrange(min(len(changed), rng.choice((40, 400, 2**40))))
        length = rng.choice((1, 4, 12, 100, 2000))
        kind = rng.randrange(7)
        if kind == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 2:
            number = rng.choice((0, 1, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1))
            changed[at : at + 4] = number.to_bytes(4, rng.choice(("little", "big")))
        elif kind == 3:
            changed[at:at] = changed[at : at + length] * rng.choice((1, 1, 50))
        elif kind == 4:
            del changed[at : at + length]
        elif kind == 5:
            part = changed[at : at + length]
            del changed[at : at + length]
            place = rng.randrange(len(changed) + 1)
            changed[place:place] = part
        else:
            del changed[at + rng.randrange(len(changed)) :]
    return bytes(changed)


def damage_text(data: bytes, rng: random.Random) -> bytes:
    """Words put in, taken out, or in place of others."""
    text = data.decode("utf-8", errors="replace")
    for _ in range(rng.choice((1, 1, 2, 5))):
        at, length = rng.randrange(len(text) + 1), rng.choice((0, 0, 1, 5, 30))
        text = text[:at] + rng.choice(WORDS) + text[at + length :]
    return text.encode("utf-8", errors="surrogatepass")


def damage_json(data: bytes, rng: random.Random) -> bytes:
    """The same JSON with one to three values replaced, removed or moved, wherever they lie."""
    content = json.loads(data)
    for _ in range(rng.choice((1, 1, 3))):
        places = list(walk(content))
        if not places:
            return json.dumps(rng.choice(VALUES)).encode()
        parent, key = rng.choice(places)
        kind = rng.randrange(8)
        if kind == 0:
            del parent[key]
        elif kind == 1:
            other, other_key = rng.choice(places)
            parent[key] = copy.deepcopy(other[other_key])
        elif kind == 2 and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[key]))
        elif kind == 3 and isinstance(parent, dict):
            parent[rng.choice(("x", "", "\0", "a" * 300))] = parent.pop(key)
        else:
            parent[key] = copy.deepcopy(rng.choice(VALUES))
    return json.dumps(content if rng.random() > 0.02 else rng.choice(VALUES)).encode()


def walk(content):
    for key in (
        list(content) if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ()
    ):
        yield content, key
        yield from walk(content[key])


def damage(path: Path, rng: random.Random) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".json" and rng.random() < 0.75:
        return damage_json(data, rng)
    return (damage_text if path.suffix in TEXT and rng.random() < 0.7 else damage_bytes)(data, rng)


def too_slow(*_) -> None:
    raise TooSlow


def fuzz(
    read: Callable[[Path], object],
    damaged: Callable[[Path], Sequence[Path]] = lambda path: [path],
    damage: Callable[[Path, random.Random], bytes] = damage,
) -> None:
    """
    The program of a child: reads damages of each file or folder that its command line names, and prints the outcomes.

    Args:
        read: what is tested; it may print.
        damaged: the files of a seed, which is a file or a folder, of which each damage changes one.
        damage: a file and a source of chance to the damaged content of the file.
    """
    mebibytes, count, *seeds = sys.argv[1:]
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + int(mebibytes) * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    signal.signal(signal.SIGVTALRM, too_slow)
    counts, odd, rng = Counter(), [], random.Random(0)
    folder = Path(tempfile.mkdtemp())
    for seed in map(Path, seeds):
        for number in range(int(count)):
            copied = folder / seed.name
            if seed.is_dir():
                shutil.copytree(seed, copied)
            else:
                shutil.copy(seed, copied)
            victim = rng.choice(damaged(copied))
            victim.write_bytes(damage(victim, rng))
            with contextlib.redirect_stdout(sys.stderr):
                outcome, said = outcome_of(read, copied)
            counts[outcome] += 1
            if outcome not in ("read", "refused"):
                name = f"{number}-{victim.name}"
                if kept := os.environ.get("FUZZ_KEEP"):  # a folder for what fails
                    shutil.copytree(copied, Path(kept, name)) if seed.is_dir() else shutil.copy(
                        copied, Path(kept, name)
                    )
                odd.append(f"{name}: {said}")
            shutil.rmtree(copied) if seed.is_dir() else copied.unlink()
    shutil.rmtree(folder)
    sys.stdout.write(json.dumps({**counts, "odd": odd}) + "\n")


def outcome_of(read: Callable[[Path], object], path: Path) -> tuple[str, str]:
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
        read(path)
        return "read", ""
    except ValueError as error:
        said = str(error)
        # JSONDecodeError, ArrowInvalid and the like are ValueErrors too, but nobody has written them for a reader
        is_ours = type(error) is ValueError or type(error).__module__.split(".")[0].endswith("_tier")
        if is_ours and said.rstrip().endswith((".", "?", "]")):
            return "refused", said
        return "undocumented", describe(error)
    except (Exception, TooSlow) as error:
        return type(error).__name__, describe(error)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def describe(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if str(REPOSITORY) in f.filename]
    where = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames[-4:]))
    return f"{type(error).__name__}: {str(error)[:300]!r} at {where}"


def run_child(module: str, seeds: Sequence[Path], count: int, mebibytes: int = 1024, *arguments: str) -> Counter:
    """
    How many damages of the files or folders a child read and how many it refused, after it was found that it did
    nothing else.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    tests = REPOSITORY / "tests"
    environment |= {"PYTHONPATH": os.pathsep.join(map(str, (REPOSITORY, tests, tests / "support")))}
    command = [sys.executable, module, str(mebibytes), str(count), *map(str, seeds), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment, cwd=REPOSITORY)
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout.splitlines()[-1])
    odd = found.pop("odd")
    assert not odd, "\n".join(odd)
    return Counter(found)
