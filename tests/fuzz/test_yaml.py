"""Damaged recipes and prompts: options and sentences, or one sentence on what is wrong."""

import sys
from pathlib import Path

import pytest
from fuzz.mutations import REPOSITORY, fuzz, run_child

from processing_tier.prompts.loader import Prompts, load_prompts
from training_tier.options.data import DataArguments
from training_tier.options.model import ModelArguments
from training_tier.options.parsing import parse_arguments
from training_tier.options.recipes import read_recipe
from training_tier.options.task import TaskArguments
from training_tier.options.training import TierTrainingArguments

KINDS = (TaskArguments, ModelArguments, DataArguments, TierTrainingArguments)
FINDINGS = ("Edema", "Pleural Effusion", "Something Else")


def read(path: Path) -> None:
    if path.name.startswith("prompts-"):
        for prompts in load_prompts(path, FINDINGS).values():
            assert isinstance(prompts, Prompts)
            assert all(isinstance(text, str) and text for text in [*prompts.positive, *prompts.negative])
        return
    assert all(isinstance(name, str) for name in read_recipe(path, KINDS))
    arguments = ["--output_dir", str(path.parent / "run"), "--data", "phantom", "--use_cpu", "true"]
    parse_arguments([str(path), *arguments], KINDS, "tier-train")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_damaged_recipes_and_prompts_are_read_or_refused(tmp_path):
    seeds = sorted((REPOSITORY / "configs").glob("*.yaml"))
    for path in sorted((REPOSITORY / "processing_tier" / "prompts").glob("*.yaml")):
        seeds.append(tmp_path / f"prompts-{path.name}")
        seeds[-1].write_bytes(path.read_bytes()[:2000].rpartition(b"\n")[0] + b"\n")
    found = run_child(__file__, seeds, 25)
    assert found["read"] > 40 and found["refused"] > 40


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_an_anchor_bomb(shared_cases):
    with pytest.raises(ValueError, match=r"^.*anchor_bomb.yaml: line \d+ stands for more than 20,000 values; shorten"):
        read_recipe(shared_cases / "anchor_bomb.yaml", KINDS)


if __name__ == "__main__":
    fuzz(read)
