"""Positive and negative sentences per finding, from YAML files, for zero-shot scoring."""

import functools
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from processing_tier.yaml_files import read_yaml

logger = logging.getLogger(__name__)

PROMPTS_FOLDER = Path(__file__).parent

SIDES = ("positive", "negative")


@dataclass(frozen=True)
class Prompts:
    """
    Sentences of reports with the finding and without it; each side is one ensemble, averaged by the scorer. Without
    negative ones the positive ones alone are scored.
    """

    positive: list[str]
    negative: list[str]


def load_prompts(name_or_path: str | os.PathLike, findings: Sequence[str]) -> dict[str, Prompts]:
    """
    Prompts for each finding, from a YAML file of this form (both keys optional, and so is each side):

    ```yaml
    templates: {positive: ["There is {}."], negative: ["No {}."]}      # {} is the finding's name
    findings:
      Pleural Effusion: {aliases: [Effusion], positive: ["Pleural effusion."], negative: ["No pleural effusion."]}
    ```

    A finding is looked up by name or alias, whatever its case and underscores; a side that is not given for it comes
    from the templates. `negative: []` in the templates says that findings are scored by their positive sentences
    alone.

    Args:
        name_or_path (`str` or `os.PathLike`):
            `"report"`, `"tier"`, `"tier-padchest"`, `"tier-covid"`, `"chexzero"`, `"plain"`, or a YAML file.
        findings (`Sequence[str]`): names, such as the finding columns of a data set.

    Returns:
        `dict[str, Prompts]`: in the order and with the names of `findings`.

    Raises:
        `ValueError`: no such file or name, an unknown key, anything but lists of text, or a finding without prompts.
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
        raise ValueError(f"{path}: there is no such prompt file; check the path.")
    content = read_yaml(path)
    check_keys(content, ("templates", "findings"), "the file", path)
    templates, entries = ({} if content.get(key) is None else content[key] for key in ("templates", "findings"))
    check_sentences(templates, SIDES, "templates", path)

    lookup = {}
    check_keys(entries, entries, "findings", path)
    for finding, entry in entries.items():
        check_sentences(entry, (*SIDES, "aliases"), f"finding {finding!r}", path)
        for name in (finding, *entry.get("aliases", [])):
            if normalize_finding(name) in lookup:
                raise ValueError(f"{path}: {name!r} is named twice; keep one entry for it.")
            lookup[normalize_finding(name)] = entry

    prompts = {}
    for finding in findings:
        entry = lookup.get(normalize_finding(finding), {})
        sides = {side: entry.get(side) or templates.get(side) or [] for side in SIDES}
        for side, sentences in sides.items():
            if not sentences and (side == "positive" or side not in templates):
                raise ValueError(f"{path}: finding {finding!r} has no {side} prompts; add them or a {side} template.")
        name = finding.replace("_", " ")
        prompts[finding] = Prompts(**{s: [text.replace("{}", name) for text in sides[s]] for s in SIDES})
    templated = [finding for finding in findings if normalize_finding(finding) not in lookup]
    if lookup and templated:  # a file without findings has templates for all of them
        warn_of_templates(path.stem, tuple(templated))
    return prompts


@functools.lru_cache  # once for each set of findings, however often a training evaluates
def warn_of_templates(prompts: str, findings: tuple[str, ...]) -> None:
    logger.warning(
        "prompts %r: no sentences of their own for %s: the templates were used. Write a .yaml file with sentences for "
        "them where the words differ.",
        prompts,
        ", ".join(map(repr, findings)),
    )


@functools.lru_cache(maxsize=1)
def known_findings() -> frozenset[str]:
    """Names and aliases of the findings that the prompts `"report"` know, as [`normalize_finding`] writes them."""
    entries = read_yaml(PROMPTS_FOLDER / "report.yaml")["findings"]
    return frozenset(
        normalize_finding(name) for finding, entry in entries.items() for name in (finding, *entry.get("aliases", []))
    )


def is_known_finding(name: str) -> bool:
    return normalize_finding(name) in known_findings()


def normalize_finding(finding: str) -> str:
    return " ".join(finding.replace("_", " ").lower().split())


def check_keys(content, keys, where: str, path: Path) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"{path}: {where} is not a mapping; use the form that load_prompts describes.")
    for key in content:
        if key not in keys or not isinstance(key, str):
            raise ValueError(f"{path}: unknown key {key!r} in {where}; use {', '.join(map(str, keys))}.")


def check_sentences(content, keys, where: str, path: Path) -> None:
    check_keys(content, keys, where, path)
    for key, sentences in content.items():
        if not isinstance(sentences, list) or not all(isinstance(text, str) and text.strip() for text in sentences):
            raise ValueError(
                f"{path}: {key!r} of {where} is not a list of sentences; put each in quotes, in brackets."
            )
