"""
Prompts: positive and negative sentences for each finding, from YAML files, for zero-shot scoring.

To add a prompt set, put a YAML file of the form that [`load_prompts`] describes into this folder; its name is the name
of the set. A user's file can be in any folder. The scoring with prompts is in `evaluation_tier.scoring`.
"""

import functools
import logging
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processing_tier.yaml_files import read_yaml

logger = logging.getLogger(__name__)

PROMPTS_FOLDER = Path(__file__).parent

SIDES = ("positive", "negative")

EXAMPLE = PROMPTS_FOLDER / "tier.yaml"


@dataclass(frozen=True)
class Prompts:
    """
    Sentences of reports with the finding and without it. Each side is one ensemble, which the scorer averages. Without
    negative sentences, only the positive ones are scored.
    """

    positive: list[str]
    negative: list[str]


def load_prompts(name_or_path: str | os.PathLike, findings: Sequence[str]) -> dict[str, Prompts]:
    """
    Prompts for each finding, from a YAML file of this form (both keys are optional, and so is each side):

    ```yaml
    templates: {positive: ["There is {}."], negative: ["No {}."]}      # {} is the finding's name
    findings:
      Pleural Effusion: {aliases: [Effusion], positive: ["Pleural effusion."], negative: ["No pleural effusion."]}
    ```

    A finding is looked up by name or alias; case and underscores do not count. A side that the finding does not have
    comes from the templates. With `negative: []` in the templates, findings are scored by their positive sentences
    alone.

    Args:
        name_or_path (`str` or `os.PathLike`):
            `"report"`, `"tier"`, `"tier-padchest"`, `"tier-covid"`, `"chexzero"`, `"plain"`, or a YAML file.
        findings (`Sequence[str]`): names, such as the finding columns of a data set.

    Returns:
        `dict[str, Prompts]`: in the order and with the names of `findings`.

    Raises:
        `ValueError`: an unknown file, name or key, anything but lists of text, or a finding without prompts.
    """
    path = find_prompt_file(name_or_path)
    content = read_yaml(path)
    check_keys(content, ("templates", "findings"), "the file", path)
    templates, entries = ({} if content.get(key) is None else content[key] for key in ("templates", "findings"))
    check_sentences(templates, SIDES, "templates", path)
    by_name = index_entries(entries, path)

    prompts = {}
    for finding in findings:
        entry = by_name.get(normalize_finding(finding), {})
        sides = {side: entry.get(side) or templates.get(side) or [] for side in SIDES}
        for side, sentences in sides.items():
            if not sentences and (side == "positive" or side not in templates):
                raise ValueError(f"{path}: finding {finding!r} has no {side} prompts; add them or a {side} template.")
        name = finding.replace("_", " ")
        prompts[finding] = Prompts(**{s: [text.replace("{}", name) for text in sides[s]] for s in SIDES})
    templated = [finding for finding in findings if normalize_finding(finding) not in by_name]
    if by_name and templated:  # a file without findings has templates for all of them
        warn_of_templates(path.stem, tuple(templated))
    return prompts


def prompt_findings(name_or_path: str | os.PathLike) -> list[str]:
    """
    The findings that a prompt file has sentences for, in its order; none for a file of templates alone.

    Raises:
        `ValueError`: as [`load_prompts`].
    """
    path = find_prompt_file(name_or_path)
    content = read_yaml(path)
    check_keys(content, ("templates", "findings"), "the file", path)
    entries = {} if content.get("findings") is None else content["findings"]
    index_entries(entries, path)
    return list(entries)


def find_prompt_file(name_or_path: str | os.PathLike) -> Path:
    """
    The file of a prompt set of this package, or a user's file.

    Raises:
        `ValueError`: an unknown name, or a file that does not exist.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = PROMPTS_FOLDER / f"{name_or_path}.yaml"
        names = sorted(file.stem for file in PROMPTS_FOLDER.glob("*.yaml"))
        if str(name_or_path) not in names:
            raise ValueError(
                f"prompts {str(name_or_path)!r} are not known; choose one of {', '.join(names)}, or a .yaml file."
            )
    if not path.is_file():
        raise ValueError(f"{path}: the prompt file does not exist; check the path.")
    return path


def index_entries(entries: dict, path: Path) -> dict[str, dict]:
    """
    The entries of a file by the names and aliases of their findings, as [`normalize_finding`] writes them.

    Raises:
        `ValueError`: an entry of another form, or two entries with one name.
    """
    by_name: dict[str, dict] = {}
    check_keys(entries, entries, "findings", path)
    for finding, entry in entries.items():
        check_sentences(entry, (*SIDES, "aliases"), f"finding {finding!r}", path)
        for name in (finding, *entry.get("aliases", [])):
            if normalize_finding(name) in by_name:
                raise ValueError(f"{path}: {name!r} is named twice; keep one entry for it.")
            by_name[normalize_finding(name)] = entry
    return by_name


@functools.lru_cache  # once for each set of findings, however often a training evaluates
def warn_of_templates(prompts: str, findings: tuple[str, ...]) -> None:
    logger.warning(
        "prompts %r have no sentences for %s: the templates were used. Write a .yaml file with sentences for them "
        "where the words differ.",
        prompts,
        ", ".join(map(repr, findings)),
    )


@functools.lru_cache(maxsize=1)
def known_findings() -> frozenset[str]:
    """Names and aliases of the findings that the prompts `"report"` know, as [`normalize_finding`] writes them."""
    path = PROMPTS_FOLDER / "report.yaml"
    return frozenset(index_entries(read_yaml(path)["findings"], path))


def is_known_finding(name: str) -> bool:
    """Whether the prompts `"report"` have sentences for a finding of that name."""
    return normalize_finding(name) in known_findings()


def normalize_finding(finding: str) -> str:
    """The name of a finding without differences in case, spaces and underscores."""
    return " ".join(finding.replace("_", " ").lower().split())


def check_keys(content: Any, keys: Collection, where: str, path: Path) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"{path}: {where} is not a mapping; write it as in {EXAMPLE}.")
    for key in content:
        if key not in keys or not isinstance(key, str):
            raise ValueError(f"{path}: unknown key {key!r} in {where}; use {', '.join(map(str, keys))}.")


def check_sentences(content: Any, keys: Collection[str], where: str, path: Path) -> None:
    check_keys(content, keys, where, path)
    for key, sentences in content.items():
        if not isinstance(sentences, list) or not all(isinstance(text, str) and text.strip() for text in sentences):
            raise ValueError(
                f"{path}: {key!r} of {where} is not a list of sentences; put each in quotes, in brackets."
            )
