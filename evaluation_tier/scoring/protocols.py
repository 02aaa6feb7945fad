"""Named ways to score findings, since the same model differs by up to 20 points between them."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evaluation_tier.scoring.scores import SCORINGS
from evaluation_tier.statistics.thresholds import HIGHEST_MCC, ThresholdRule
from modeling_tier.score_levels_tier import LEVELS
from processing_tier.prompts.loader import Prompts, load_prompts

NO_FINDING_WAYS = ("prompts", "others")
AUTO = "auto"  # the level that the models themselves name, see `ZeroShot.score_level`


@dataclass(frozen=True)
class Protocol:
    """
    How findings are scored.

    Args:
        prompts: name or path of a prompt file, see `processing_tier.prompts`, or the prompts themselves. The sentences
            of a side are embedded, normalised, averaged and normalised again.
        scoring: see `zero_shot_scores`. An ensemble's score is the mean of its members'.
        no_finding: how "No Finding" and "Normal" are scored: by their own `"prompts"`, or by the `"others"`, see
            `evaluation_tier.scoring.scores.no_finding_scores`.
        resampling: for the intervals, see `evaluation_tier.statistics.summary.summarize`.
        rule: of the thresholds of MCC, F1 and accuracy.
        score_level: of `modeling_tier.score_levels_tier.LEVELS`, or `"auto"`: by patches (`"patches-lse"`) where the
            image embedding of every model is the mean of its patches, else by the whole image (`"global"`).
        source: where it comes from.
        name: of a named protocol, with what was overridden.
    """

    prompts: str | Path | Mapping[str, Prompts]
    scoring: str
    no_finding: str
    source: str
    resampling: str = "patients"
    rule: ThresholdRule = HIGHEST_MCC
    score_level: str = "global"
    name: str = ""


PROTOCOLS: dict[str, Protocol] = {
    # Sentences as radiologists write them, of this project
    "report": Protocol("report", "difference", "prompts", "tier-clip", score_level=AUTO),
    # Tiu et al. 2022, zero_shot.py:119-124,258-261,526 and eval.py:164-229. "No Finding" by its prompts, as there,
    # has an AUROC of 0.07 in the authors' notebook.
    "chexzero": Protocol("chexzero", "softmax", "others", "CheXzero, Tiu et al. 2022", resampling="chexzero"),
    # Palepu & Beam 2023, Modeling/CLIP_Embedding.py:221-232, utils.py:376-381 and evalMCCScores.py:22-41
    "tier": Protocol("tier", "difference", "prompts", "TIER, Palepu & Beam 2023", rule=ThresholdRule(f1="f1")),
    # The same, CLIP_Embedding.py:216 and utils.py:449-454
    "tier-padchest": Protocol(
        "tier-padchest", "softmax", "others", "TIER on PadChest, Palepu & Beam 2023", rule=ThresholdRule(f1="f1")
    ),
    # The same, zero_shot_covid.py: COVID-19 against other pneumonia
    "tier-covid": Protocol(
        "tier-covid",
        "difference",
        "prompts",
        "TIER on COVID-19, Palepu & Beam 2023",
        rule=ThresholdRule(f1="f1", accuracy="corner"),
    ),
    # One sentence and no negative, as CARZero asks (CVPR 2024)
    "plain": Protocol("plain", "sigmoid", "others", '"There is {finding}." of CARZero, 2024'),
}


def choose_protocol(
    name: str = "report",
    prompts: str | Path | Mapping[str, Prompts] | None = None,
    scoring: str | None = None,
    no_finding: str | None = None,
    score_level: str | None = None,
) -> Protocol:
    """The named protocol, with the given replacements, which its name then shows.

    Raises:
        ValueError: for an unknown protocol, scoring, way of scoring "No Finding" or score level.
    """
    if name not in PROTOCOLS:
        close = difflib.get_close_matches(str(name), PROTOCOLS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"The protocol {name!r} is not known: {hint}choose one of {', '.join(PROTOCOLS)}.")
    for given, known, what in (
        (scoring, SCORINGS, "scoring"),
        (no_finding, NO_FINDING_WAYS, "way of no_finding"),
        (score_level, (AUTO, *LEVELS), "score level"),
    ):
        if given is not None and given not in known:
            raise ValueError(f"The {what} must be one of {', '.join(known)}, but is {given!r}.")
    protocol = PROTOCOLS[name]
    given = {"prompts": prompts, "scoring": scoring, "no_finding": no_finding, "score_level": score_level}
    changes: dict[str, Any] = {
        key: value for key, value in given.items() if value is not None and value != getattr(protocol, key)
    }
    return replace(protocol, **changes, name=", ".join([name, *(f"own {key}" for key in changes)]))


def find_prompts(
    prompts: str | Path | Mapping[str, Prompts],
    findings: Sequence[str],
    replaced: Mapping[str, Prompts] | None = None,
) -> dict[str, Prompts]:
    """The prompts of each finding, those of `replaced` first; ValueError if a finding has no prompts.

    Args:
        prompts: name or path of a prompt file, or the prompts themselves.
    """
    if not isinstance(prompts, Mapping):
        prompts = load_prompts(prompts, findings)
    prompts = {**prompts, **(replaced or {})}
    lacking = [finding for finding in findings if finding not in prompts]
    if lacking:
        raise ValueError(f"There are no prompts for {lacking[0]!r}: add sentences for it or leave the finding out.")
    return {finding: prompts[finding] for finding in findings}


def prompts_name(prompts: str | Path | Mapping[str, Prompts]) -> str:
    """The name of the prompts in results, without the folders of this machine."""
    return "given sentences" if isinstance(prompts, Mapping) else Path(prompts).stem
