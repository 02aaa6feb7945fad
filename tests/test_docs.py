"""The pages: their place in the index, the options that they name, their marks, the imports of their Python lines.

The commands on them are run in `test_page_commands.py`. Links and paths of all texts: `test_house.py`.
"""

import argparse
import ast
import importlib
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from page_commands import COMMANDS, MARK, PAGES, ROOT, SCRIPTS, blocks_of

PACKAGES = ("modeling_tier", "processing_tier", "evaluation_tier", "training_tier", "tier_clip")
# Options of torchrun, srun, sbatch, git and the like that the prose names
FOREIGN_OPTIONS = {"--nproc_per_node", "--kill-on-bad-exit", "--export", "--version", "--dist"}
OTHER_SCRIPTS = ("speed/", "examples/")
OTHER_OPTIONS = {
    option
    for folder in OTHER_SCRIPTS
    for path in ROOT.glob(f"{folder}*.py")
    for option in re.findall(r'"(--[\w-]+)"', path.read_text(encoding="utf-8"))
}

page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())


def without_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def code_spans(text: str) -> list[str]:
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", without_blocks(text))]


@pytest.fixture(scope="module")
def known_options() -> dict[str, set[str]]:
    """The options of each script, from the parser that prints its --help."""
    options = {}

    def note(parser, file=None):
        options.setdefault(module, set()).update(parser._option_string_actions)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "print_help", note)
        for module in COMMANDS.values():
            for option in ("--help", "--help_all") if module == "train_tier" else ("--help",):
                with pytest.raises(SystemExit):
                    importlib.import_module(module).main([option])
    options["rank_checkpoints"] |= options["eval_zeroshot"]  # tier-rank passes them on
    return options


def test_every_page_is_in_the_index():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for path in (ROOT / "docs").glob("*.md"):
        assert path.name == "README.md" or f"]({path.name})" in index, f"docs/README.md does not list {path.name}"


def test_every_page_begins_with_its_command():
    for path in (path for path in (ROOT / "docs").glob("*.md") if path.name != "README.md"):
        lines = path.read_text(encoding="utf-8").splitlines()
        lines = [line for line in lines if line and not line.startswith(("#", "<!-- "))]
        assert lines[0].startswith("```"), f"docs/{path.name} does not begin with its command or its Python lines"


@page
def test_marks_say_why_a_command_is_not_run(page):
    text = page.read_text(encoding="utf-8")
    marks = [line for line in text.splitlines() if line.startswith("<!--")]
    assert not [mark for mark in marks if not MARK.match(mark)], "write `not run: REASON` or `run by PATH`"
    blocks = blocks_of(page)
    assert len(marks) == len([block for block in blocks if block.mark]), "a mark stands right above its block"
    for block in blocks:
        assert not block.mark or block.kind, f"{page.name}: a mark above what nobody types: {block.text}"
        assert block.mark != "run by" or (ROOT / block.reason).exists(), f"{page.name}: {block.reason} does not exist"


def commands_in(page: Path) -> list[list[str]]:
    """The words of each command line, in blocks and in code spans."""
    text = page.read_text(encoding="utf-8")
    lines = [" ".join(span.split()) for span in code_spans(text)]
    for block in blocks_of(page):
        if block.kind == "shell" or any(f"{name} " in block.text for name in SCRIPTS):
            lines += block.text.replace("\\\n", " ").splitlines()
    words = []
    for line in lines:
        try:
            words.append(shlex.split(line, comments=True))
        except ValueError:  # a printed sentence with an apostrophe, not a command
            continue
    return words


@page
def test_options_exist(page, known_options):
    every_option = set.union(FOREIGN_OPTIONS, OTHER_OPTIONS, *known_options.values())
    for words in commands_in(page):
        script = next((Path(word).name for word in words if Path(word).name in SCRIPTS), None)
        other = next((ROOT / word for word in words if word.startswith(OTHER_SCRIPTS) and word.endswith(".py")), None)
        start = 0 if script is None else [Path(word).name for word in words].index(script)
        given = [word.split("=")[0] for word in words[start:] if re.fullmatch(r"--[a-z][\w-]*(=.*)?", word)]
        if other is not None:
            known = set(re.findall(r'"(--[\w-]+)"', other.read_text(encoding="utf-8")))
        elif script is not None:
            known = known_options[SCRIPTS[script]]
        elif words and words[0].startswith("--"):  # an option by itself in the prose
            known = every_option
        else:
            continue
        for option in given:
            assert option in known, f"{page.name}: {' '.join(words)}: there is no option {option}"


def resolve(name: str):
    """The module, or what a module holds, of a dotted name."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        module = ".".join(parts[:length])
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            found = None
        if found is not None:
            value = importlib.import_module(module)
            for attribute in parts[length:]:
                value = getattr(value, attribute)
            return value
    raise AssertionError(f"there is no module {name}")


@page
def test_imports_of_the_python_lines(page):
    for block in (block for block in blocks_of(page) if block.language == "python"):
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for name in names:
                top = name.split(".")[0]
                if top in PACKAGES or importlib.util.find_spec(top) is not None:  # else an extra that is not here
                    resolve(name)
