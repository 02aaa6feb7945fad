"""
The rules of the house that a program can check: who imports whom, sizes, names, and that what a text mentions exists.

Which files are shipped to the Hub, and what those may import, is in `test_shipped_files.py`.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Who may import whom, and what lives there: the packages first, then the scripts, as the arrows go
MODELS, PIXELS = "modeling_tier", "processing_tier"
JUDGE, TRAIN, ENTRY, SCRIPTS = "evaluation_tier", "training_tier", "tier_clip", "scripts"
ARROWS = {
    MODELS: (set(), "networks, losses, maps, the pipeline, checkpoints of other code bases"),
    PIXELS: (set(), "pixels, reports, records, readers, prompts, the phantom, tier-prepare"),
    JUDGE: ({MODELS, PIXELS}, "everything that judges a model: embedding, scores, statistics, analyses, output"),
    TRAIN: ({MODELS, PIXELS, JUDGE}, "everything that only training needs: options, data, start, loop, memory"),
    ENTRY: ({MODELS, PIXELS, JUDGE, TRAIN}, "the version, registration with the Auto classes, train and evaluate"),
    SCRIPTS: ({MODELS, PIXELS, JUDGE, TRAIN}, "a parser and main of each command"),
}
PACKAGES = (MODELS, PIXELS, JUDGE, TRAIN, ENTRY)
SHARED_BY_SCRIPTS = "command_line"

FILE_LINES, SCRIPT_LINES = 400, 200
FUNCTION_LINES, PARAMETERS = 60, 7
LONGER, MORE = f"# Longer than {FUNCTION_LINES} lines: ", f"# More than {PARAMETERS} parameters: "
UNTELLING_NAMES = {"utils", "util", "helpers", "helper", "misc", "common"}
SCRIPTS_NAMED_LIKE_SHIPPED = {
    "train_tier.py",
    "prepare_tier.py",
    "convert_tier.py",
    "predict_tier.py",
    "export_tier.py",
}

TEXTS = {".py", ".md", ".yaml", ".yml", ".toml", ".sh", ".txt", ".cff", ".html", ".ipynb", ""}
# The history names what was, this test what must not be
UNCHECKED = {ROOT / "CHANGELOG.md", ROOT / "tests" / "test_house.py", ROOT / ".git"}
FOLDERS = (*PACKAGES, "tests", "speed", "docs", "configs", "model_cards", "examples", ".ci", ".github")
DOTTED_NAME = re.compile(rf"(?<![\w/.-])((?:{'|'.join(PACKAGES)})(?:\.\w+)+)")
PATH = re.compile(rf"(?<![\w/.-])((?:{'|'.join(FOLDERS)})/[\w./-]+\.(?:py|yaml|md|html|png|sh))\b")
MARKDOWN_LINK = re.compile(r"\]\(([^)\s]+)\)")
MACHINE_PATH = re.compile(r"(?<![\w.~-])/(?:work|root|Users|home/(?!me\b)\w+)/\w[^\s\"'`)]*")


@cache
def python_files() -> list[Path]:
    folders = [ROOT / folder for folder in (*PACKAGES, "tests", "speed", "examples", "docs")]
    return sorted([*ROOT.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))])


@cache
def text_files() -> list[Path]:
    paths = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in TEXTS]
    paths += [path for path in ROOT.iterdir() if path.suffix in TEXTS]
    return sorted(
        path for path in paths if path.is_file() and path not in UNCHECKED and "__pycache__" not in path.parts
    )


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def room_of(path: Path) -> str:
    """The package of a file; `scripts` of one that lies at the root."""
    return path.relative_to(ROOT).parts[0] if path.parent != ROOT else SCRIPTS


def told(faults: list[str], rule: str) -> str:
    return f"{rule}\n  " + "\n  ".join(faults)


# Arrows


def imported_modules(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Lines and first names of all absolute imports, those within functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.lineno, node.module.split(".")[0]


def wrong_arrows(path: Path, tree: ast.Module) -> list[str]:
    room = room_of(path)
    allowed, purpose = ARROWS[room]
    scripts = {script.stem for script in ROOT.glob("*.py")}
    faults = []
    for line, module in imported_modules(tree):
        if module in ARROWS and module != room and module not in allowed:
            faults.append(
                f"{name_of(path)}:{line} imports {module}. {room} holds {purpose}; {module} holds "
                f"{ARROWS[module][1]}: move the code to the room where it belongs, or what both need to the lower one."
            )
        if module in scripts and (room != SCRIPTS or module != SHARED_BY_SCRIPTS) and module != path.stem:
            faults.append(f"{name_of(path)}:{line} imports the script {module}: move what both need into a package.")
    return faults


def test_imports_go_down_only():
    rooms = [path for path in python_files() if room_of(path) in ARROWS]
    faults = [fault for path in rooms for fault in wrong_arrows(path, tree_of(path))]
    rule = "Scripts import training_tier, that evaluation_tier, that processing_tier and modeling_tier; never upwards."
    assert not faults, told(faults, rule)


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("processing_tier/x.py", "import modeling_tier"),
        ("modeling_tier/x.py", "def f():\n    from processing_tier.readers import read_records"),
        ("evaluation_tier/x.py", "from training_tier.loop.trainer import RadiographTrainer"),
        ("training_tier/x.py", "from train_tier import main"),
        ("training_tier/x.py", "import tier_clip"),
        ("eval_zeroshot.py", "import train_tier"),
    ],
)
def test_the_arrows_catch(file, line):
    assert wrong_arrows(ROOT / file, ast.parse(line))


# Sizes


def test_files_are_read_in_one_sitting():
    faults = []
    for path in python_files():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if path.parent == ROOT and lines > SCRIPT_LINES:
            faults.append(
                f"{name_of(path)}: {lines} lines. A script is a parser and main; move the work to a package."
            )
        elif lines > FILE_LINES:
            faults.append(
                f"{name_of(path)}: {lines} lines. Split it by subject, into files that a reader would look for."
            )
    assert not faults, told(faults, f"At most {FILE_LINES} lines a file, {SCRIPT_LINES} a script at the root.")


def comments_above(lines: list[str], number: int) -> list[str]:
    """The comment lines that stand directly above a line (counted from 1)."""
    found = []
    while number > 1 and (line := lines[number - 2].strip()).startswith("#"):
        found.append(line)
        number -= 1
    return found


def oversized_functions(source: str) -> list[str]:
    faults, lines = [], source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        comments = comments_above(lines, min([node.lineno, *(item.lineno for item in node.decorator_list)]))
        length = node.end_lineno - node.lineno + 1
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        parameters = len([argument for argument in arguments if argument.arg not in ("self", "cls")])
        if length > FUNCTION_LINES and not any(
            len(line) > len(LONGER) and line.startswith(LONGER) for line in comments
        ):
            faults.append(
                f"{node.lineno} {node.name}: {length} lines. Split it, or write above it {LONGER!r} and why."
            )
        if parameters > PARAMETERS and not any(len(line) > len(MORE) and line.startswith(MORE) for line in comments):
            faults.append(
                f"{node.lineno} {node.name}: {parameters} parameters. Pass what belongs together as one object, or "
                f"write above it {MORE!r} and why."
            )
    return faults


def test_functions_are_short_and_take_few_parameters():
    faults = [
        f"{name_of(path)}:{fault}"
        for path in python_files()
        for fault in oversized_functions(path.read_text(encoding="utf-8"))
    ]
    assert not faults, told(faults, f"At most {FUNCTION_LINES} lines and {PARAMETERS} parameters a function.")


def test_a_comment_that_says_why_lets_a_long_function_through():
    body = "    pass\n" * FUNCTION_LINES
    many = ", ".join(f"x{number}" for number in range(PARAMETERS + 1))
    assert len(oversized_functions(f"def f({many}):\n{body}")) == 2
    assert oversized_functions(f"{LONGER}the library's signature\n{MORE}the same\n@d\ndef f({many}):\n{body}") == []
    assert oversized_functions(f"{LONGER}why\n\ndef f():\n{body}") != []
    assert oversized_functions(f"{LONGER}\ndef f():\n{body}") != []
    assert oversized_functions(f"class A:\n    def f(self, {many[:-4]}):\n    {body[:9]}") == []


# Names


def test_a_file_is_called_by_what_it_holds():
    faults = [name_of(path) for path in python_files() if path.stem in UNTELLING_NAMES]
    assert not faults, told(
        faults, "Name a file by its subject; a function for one caller belongs beside that caller."
    )


def test_only_shipped_files_end_in_tier():
    faults = [
        name_of(path)
        for path in python_files()
        if path.stem.endswith("_tier")
        and path.parent not in (ROOT / MODELS, ROOT / PIXELS)
        and name_of(path) not in SCRIPTS_NAMED_LIKE_SHIPPED
        and not path.stem.startswith("test_")
    ]
    rule = f"Files that end in _tier.py are shipped to the Hub and lie flat in {MODELS} or {PIXELS}; rename these."
    assert not faults, told(faults, rule)


def test_every_module_says_what_it_holds():
    faults = [
        name_of(path) for path in python_files() if room_of(path) in ARROWS and not ast.get_docstring(tree_of(path))
    ]
    assert not faults, told(faults, "Begin a module with a docstring: what lives here, and what does not.")


def test_tests_mirror_the_packages():
    faults = []
    for package in (MODELS, PIXELS, JUDGE, TRAIN):
        folders = {path.parent for path in (ROOT / package).rglob("*.py") if path.name != "__init__.py"}
        for folder in sorted(folders):
            mirror = ROOT / "tests" / folder.relative_to(ROOT)
            if not list(mirror.glob("test_*.py")) and not any(
                (parent.parent / f"test_{parent.name}.py").is_file() for parent in (mirror, mirror.parent)
            ):
                faults.append(f"{name_of(folder)} has no tests; write them in {name_of(mirror)}.")
        for folder in sorted({path.parent for path in (ROOT / "tests" / package).rglob("test_*.py")}):
            if not (ROOT / folder.relative_to(ROOT / "tests")).is_dir():
                faults.append(f"{name_of(folder)} tests a folder that does not exist; move it beside what it tests.")
    assert not faults, told(faults, "tests/ has the folders of the packages.")


# What texts mention


@cache
def names_in(path: Path) -> set[str]:
    """All names that a module defines or imports, at whatever depth."""
    names = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
    return names


def exists(dotted: str) -> bool:
    """Whether `package.module.name` is a module, a folder of modules, or a name in one; attributes do not count."""
    place, *parts = dotted.split(".")
    place = ROOT / place
    for part in parts:
        if (place / part).is_dir():
            place = place / part
        elif (place / f"{part}.py").is_file():
            place = place / f"{part}.py"
        elif place.suffix == ".py":
            return part in names_in(place)
        else:
            init = place / "__init__.py"
            return part.startswith("__") or init.is_file() and part in names_in(init)
    return True


def absent_names(path: Path, text: str) -> list[str]:
    faults = []
    for number, line in enumerate(text.splitlines(), start=1):
        for name in DOTTED_NAME.findall(line):
            if not name.endswith((".py", ".yaml", ".md")) and not exists(name):
                faults.append(f"{name_of(path)}:{number} {name}")
        for name in PATH.findall(line):
            if not (ROOT / name).exists():
                faults.append(f"{name_of(path)}:{number} {name}")
    return faults


def test_every_module_and_file_that_a_text_mentions_exists():
    faults = [fault for path in text_files() for fault in absent_names(path, path.read_text(encoding="utf-8"))]
    assert not faults, told(faults, "Write the name that it has now.")


def test_what_does_not_exist_is_found():
    folder = MODELS
    for text in (f"{folder}.absent", f"{folder}.losses_tier.absent", f"see {folder}/absent.py", "`docs/absent.md`"):
        assert absent_names(ROOT / "README.md", text), text
    for text in (f"{folder}.losses_tier", f"{folder}/losses_tier.py", f"x/{folder}/absent.py", f"{folder}.py"):
        assert not absent_names(ROOT / "README.md", text), text


def anchors(path: Path) -> set[str]:
    """The anchors that a page of Markdown gets from its headings."""
    headings = re.findall(r"^#+ +(.+?) *$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_between_pages_lead_somewhere():
    faults = []
    for path in (path for path in text_files() if path.suffix == ".md" and path.parent.name != "model_cards"):
        for link in MARKDOWN_LINK.findall(path.read_text(encoding="utf-8")):
            name, _, anchor = link.partition("#")
            target = path.parent / name if name else path
            if re.match(r"\w+:", link) or target.suffix == ".md" and target.is_file() and not anchor:
                continue
            if not target.exists() or anchor and anchor not in anchors(target):
                faults.append(f"{name_of(path)}: {link}")
    assert not faults, told(faults, "Correct the link.")


def test_no_path_of_one_machine():
    faults = [
        f"{name_of(path)}: {found}"
        for path in text_files()
        for found in MACHINE_PATH.findall(path.read_text(encoding="utf-8"))
    ]
    assert not faults, told(faults, "Write paths relative to the repository; tests take tmp_path.")
