"""Files that end in _tier.py are copied into model repositories: what they may be called, and what they may import."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = sorted(
    path for package in ("modeling_tier", "processing_tier") for path in (ROOT / package).rglob("*_tier.py")
)
ALLOWED = {"torch", "transformers", "numpy", "PIL", "huggingface_hub", *sys.stdlib_module_names}
OPTIONAL = {
    "pydicom",
    "onnxruntime",
    "openvino",
}  # where `except ImportError` says what is missing; transformers asks for no import in a `try`


def forbidden_imports(source: str, siblings: set[str]) -> list[str]:
    """The import statements of a file, at whatever depth, that would not work in a model repository."""
    found, tree = [], ast.parse(source)
    guarded = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Try) and any(ast.unparse(h.type or h) == "ImportError" for h in node.handlers):
            guarded.update(inside for statement in node.body for inside in ast.walk(statement))
    for node in ast.walk(tree):
        allowed = ALLOWED | OPTIONAL if node in guarded else ALLOWED
        if isinstance(node, ast.Import):
            wrong = any(alias.name.split(".")[0] not in allowed for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            wrong = node.level > 1 or node.module not in siblings
        elif isinstance(node, ast.ImportFrom):
            wrong = node.module.split(".")[0] not in allowed
        else:
            continue
        if wrong:
            found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_files_import_only_what_a_model_repository_has(path):
    siblings = {other.stem for other in SHIPPED if other.parent == path.parent}
    assert forbidden_imports(path.read_text(encoding="utf-8"), siblings) == []


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_no_line_of_a_docstring_reads_like_an_import(path):
    """transformers finds relative imports by a regular expression over the text and would look for such a file."""
    source = path.read_text(encoding="utf-8")
    imports = {node.lineno for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom) and node.level}
    lines = {
        number
        for number, line in enumerate(source.splitlines(), start=1)
        if line.lstrip().startswith(("from .", "import ."))
    }
    assert lines == imports


def test_shipped_files_lie_flat_under_names_that_can_share_a_folder():
    names = [path.name for path in SHIPPED]
    assert {"configuration_tier.py", "losses_tier.py", "modeling_tier.py"} <= set(names)
    assert len(set(names)) == len(names)
    assert not [name for name in names if name.startswith("_")]
    assert {path.parent.name for path in SHIPPED} == {"modeling_tier", "processing_tier"}


@pytest.mark.parametrize(
    "line",
    [
        "import modeling_tier",
        "from modeling_tier.losses_tier import masked_entropy",
        "from . import losses_tier",
        "from .. import modeling_tier",
        "from .readers.table import read_table",
        "from .radiograph import read_radiograph",
        "import pydicom",
        "try:\n    pass\nexcept ImportError:\n    import pydicom",
        "try:\n    import pydicom\nexcept ValueError:\n    pass",
        "try:\n    import torchvision\nexcept ImportError:\n    pass",
        "try:\n    from .radiograph import read_radiograph\nexcept ImportError:\n    pass",
        "def f():\n    import torchvision.transforms",
    ],
)
def test_the_rule_catches(line):
    assert forbidden_imports(line, {"losses_tier"})


@pytest.mark.parametrize(
    "line",
    [
        "import math",
        "import torch.distributed as dist",
        "from .losses_tier import x",
        "try:\n    import pydicom\nexcept ImportError:\n    pass",
    ],
)
def test_the_rule_lets_through(line):
    assert not forbidden_imports(line, {"losses_tier"})
