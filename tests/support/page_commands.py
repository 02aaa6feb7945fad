"""What the pages of the documentation tell a reader to type: blocks, their marks, and commands made small."""

import glob
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = [path for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")] if path.name != "CHANGELOG.md"]
COMMANDS = dict(
    re.findall(r'^(tier-[\w-]+) = "(\w+):main"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
)
SCRIPTS = {f"{module}.py": module for module in COMMANDS.values()} | COMMANDS
SHELL_WORDS = {*SCRIPTS, "make", "python", "torchrun", "accelerate", "pip", "hf", "git", "source", "cd", "export"}

BLOCK = re.compile(r"(?:^<!-- (not run|run by):? (.+?) -->\n)?^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
MARK = re.compile(r"^<!-- (?:not run: \S.*|run by \S+) -->$")

# At the end of each command of the page: small data, few steps. A later option replaces an earlier one
SMALLER = {
    "train_tier": shlex.split(
        "--max_train_images 96 --max_steps 3 --per_device_train_batch_size 12 --min_positives 1 --logging_steps 1 "
        "--report_to none --use_cpu true --dataloader_num_workers 0"
    ),
    "eval_zeroshot": shlex.split("--n_bootstrap 50 --min_positives 1 --max_images 40"),
    "rank_checkpoints": shlex.split("--n_bootstrap 50 --min_positives 1"),
    "compare_results": shlex.split("--n_bootstrap 50"),
}
SMALL_PHANTOM = "phantom:num_images=150,image_size=64"


class Block(NamedTuple):
    """A fenced block; `mark` is "not run", "run by" or "", `reason` what stands behind it."""

    mark: str
    reason: str
    language: str
    text: str

    @property
    def kind(self) -> str:
        """ "python", "shell", or "" for anything that is not typed."""
        if self.language in ("python", "yaml", "json"):
            return "python" if self.language == "python" else ""
        first = next(
            (line for line in self.text.splitlines() if line.strip() and not line.startswith("#")), ""
        ).split()
        named = first and (first[0] in SHELL_WORDS or first[0].startswith(".venv/"))
        return "shell" if self.language in ("bash", "sh") or named else ""


def blocks_of(page: Path) -> list[Block]:
    return [Block(*found) for found in BLOCK.findall(page.read_text(encoding="utf-8"))]


def command_lines(text: str) -> list[list[str]]:
    """The words of each command of a block."""
    lines = (shlex.split(line, comments=True) for line in text.replace("\\\n", " ").splitlines())
    return [words for words in lines if words]


def made_by(page: Path) -> set[str]:
    """The folders that the page's own commands train into. They must not exist before."""
    folders = set()
    for block in blocks_of(page):
        for words in command_lines(block.text) if block.kind == "shell" and not block.mark else ():
            if any(SCRIPTS.get(word) == "train_tier" for word in words):
                named = words.index("--output_dir") + 1 if "--output_dir" in words else None
                folders.add(words[named] if named else "runs/tier")  # the default
    return folders


def made_small(words: list[str]) -> list[str]:
    """A command of this project with small data and few steps: its own options, then those of `SMALLER`."""
    place = next((i for i, word in enumerate(words) if Path(word).name in SCRIPTS), None)
    if place is None:
        return words
    module = SCRIPTS[Path(words[place]).name]
    more = [*SMALLER.get(module, [])]
    if module == "train_tier" and "--data" not in words:  # that of the recipe, or the default
        more += ["--data", SMALL_PHANTOM]
    expanded = [SMALL_PHANTOM if word == "phantom" else word for word in words]
    return [*(found for word in expanded for found in sorted(glob.glob(word)) or [word]), *more]


def run_command(words: list[str]) -> None:
    """
    Runs a command in the current folder: one of this project in this process, any other in a process of its own.

    Raises:
        `AssertionError`: its exit code is not 0.
    """
    words = made_small(words)
    module = SCRIPTS.get(words[0])
    if module is not None:
        try:
            importlib.import_module(module).main(words[1:])
        except SystemExit as stop:
            assert stop.code in (0, None), f"exit code {stop.code}: {shlex.join(words)}"
        return
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def run_python(text: str, names: dict, page: Path) -> None:
    """Runs a block of Python with the names that the blocks before it on the page have left."""
    exec(compile(text.replace('"phantom"', repr(SMALL_PHANTOM)), page.name, "exec"), names)
