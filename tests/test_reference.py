"""The reference of the documentation: no option and no public class is left out. The site itself: `make docs`."""

import importlib
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "hooks" / "reference.py")
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)


@pytest.fixture(scope="module")
def pages() -> dict[str, tuple[str, str]]:
    return reference.pages(ROOT)


@pytest.mark.parametrize("command", reference.commands(ROOT))
def test_every_option_of_every_command_has_a_row(pages, command):
    title, text = pages[f"reference/{command}.md"]
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    module = importlib.import_module(reference.commands(ROOT)[command])
    actions = [action for group in reference.option_groups(module).values() for action in group]
    assert title == command and len(rows) == len(actions)
    assert {row.split("`")[1].split()[0] for row in rows if row.startswith("| `--")} == {
        action.option_strings[0] for action in actions if action.option_strings
    }
    assert not [row for row in rows if row.count(" | ") != 2 or row.endswith("| |")], "an option without a help"


def test_the_training_page_has_the_options_of_transformers_too(pages):
    text = pages["reference/tier-train.md"][1]
    assert "| `--token_entropy_weight X` |" in text and "| `--lr_scheduler_type " in text
    assert text.index("## Task and model") < text.index(f"## {reference.LIBRARY[:1].upper()}{reference.LIBRARY[1:]}")


def test_every_public_name_is_on_a_page_and_exists(pages):
    import modeling_tier
    import processing_tier

    named = set(re.findall(r"^::: (\S+)$", "\n".join(text for _, text in pages.values()), re.MULTILINE))
    for package in (modeling_tier, processing_tier):
        assert {f"{package.__name__}.{name}" for name in package.__all__} <= named
    assert {"evaluation_tier.scoring.zeroshot.evaluate_zero_shot", "processing_tier.readers.read_records"} & named
    for name in named:
        module, _, attribute = name.rpartition(".")
        assert getattr(importlib.import_module(module), attribute).__doc__, f"{name} has no docstring"
