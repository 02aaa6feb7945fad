"""Findings that a configuration keeps for the pipeline: checking them, looking them up, templates for new ones."""

import math
from collections.abc import Mapping, Sequence

from transformers.utils import logging

from .score_levels_tier import LEVELS

logger = logging.get_logger(__name__)

MEASURED = ("threshold", "scale", "bias")  # numbers that hold at one score level
FINDING_KEYS = ("positive", "negative", *MEASURED, "score_level", "measured_on")
SIDES = ("positive", "negative")
TEMPLATES = {"positive": "{}.", "negative": "No {}."}


def lookup_key(finding: str) -> str:
    """The name of a finding without case, underscores and extra spaces."""
    return " ".join(finding.replace("_", " ").lower().split())


def check_findings(findings: Mapping[str, dict]) -> None:
    """
    Raises:
        ValueError: These are not valid `zero_shot_findings` of a configuration.
    """
    for name, entry in findings.items():
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"The name of a finding must be text, not {name!r}.")
        if not isinstance(entry, dict) or not entry.keys() <= set(FINDING_KEYS):
            raise ValueError(f"The finding {name!r} must have the keys {', '.join(FINDING_KEYS)}, not {entry!r}.")
        for side in ("positive", "negative"):
            texts = entry.get(side)
            if not isinstance(texts, list) or not texts:
                raise ValueError(f"The finding {name!r} has no {side} prompts: give a list of at least one sentence.")
            if not all(isinstance(text, str) and text.strip() for text in texts):
                raise ValueError(f"The {side} prompts of the finding {name!r} must be sentences, not {texts!r}.")
        for key, fits, wanted in (
            ("threshold", lambda value: 0 <= value <= 1, "between 0 and 1"),
            ("scale", lambda value: 0 < value < math.inf, "above 0"),
            ("bias", math.isfinite, "that is finite"),
        ):
            value = entry.get(key, 0.5)
            if type(value) not in (int, float) or not fits(value):
                raise ValueError(f"The {key} of the finding {name!r} must be a number {wanted}, not {value!r}.")
        if entry.get("score_level", LEVELS[0]) not in LEVELS:
            raise ValueError(
                f"The score_level of the finding {name!r} must be one of {', '.join(LEVELS)}, not "
                f"{entry['score_level']!r}."
            )
        told = entry.get("measured_on", {})
        if not isinstance(told, dict) or not all(isinstance(value, (str, int)) for value in told.values()):
            raise ValueError(f"measured_on of the finding {name!r} must hold names and numbers, not {told!r}.")


def with_templates(finding: str, entry: Mapping) -> dict:
    """An entry whose sides are lists: a missing side becomes its template, a single sentence a list of one."""
    label = finding.replace("_", " ")
    templates = {side: template.replace("{}", label) for side, template in TEMPLATES.items()}
    if not any(side in entry for side in SIDES):
        positive, negative = templates.values()
        logger.warning_once(
            f"The model does not hold sentences for the finding {finding!r}: scored with {positive!r} and "
            f"{negative!r}, uncalibrated."
        )
    entry = {**templates, **entry}
    for side in SIDES:
        if isinstance(entry[side], (str, tuple)):
            entry[side] = [entry[side]] if isinstance(entry[side], str) else list(entry[side])
    return entry


def describe_measurement(told: Mapping | None) -> str:
    """`measured_on` of a finding in words: the images that its scale, bias and threshold come from."""
    if not told:
        return "unnamed images"
    images = f"{told.get('images', 'an unknown number of')} images of {told.get('dataset', 'unnamed data')}"
    split = f", split {told['split']!r}" if told.get("split") else ""
    return f"{images}{split}{', ' + str(told['date']) if told.get('date') else ''}"


def resolve_findings(
    findings: str | Sequence[str] | Mapping[str, Mapping] | None, stored: Mapping[str, dict], level: str = LEVELS[0]
) -> dict[str, dict]:
    """
    The complete entry of each finding that a caller asks for, by the caller's name for it. A stored entry without a
    `score_level` is of a model saved before there was a choice: it is scored by the whole image, as it was then.

    Args:
        findings (`str`, `Sequence[str]`, `Mapping[str, Mapping]` or `None`):
            Names, or names with their own entries. `None` stands for all of `stored`.
        stored (`Mapping[str, dict]`): `zero_shot_findings` of the configuration.
        level (`str`, *optional*, defaults to `"global"`): The model's default level, for findings that are not stored.

    Raises:
        ValueError: Nothing is asked for and nothing is stored, or an entry is invalid.
    """
    check_findings(stored)
    stored = {name: {"score_level": LEVELS[0], **entry} for name, entry in stored.items()}
    if findings is None:
        if not stored:
            raise ValueError(
                "The model's configuration does not hold findings. Name some, such as findings=['Pleural Effusion']."
            )
        resolved = dict(sorted(stored.items()))  # the order that a configuration file keeps
    elif isinstance(findings, Mapping):
        resolved = {
            name: with_templates(name, entry) if isinstance(name, str) and isinstance(entry, Mapping) else entry
            for name, entry in findings.items()
        }
    else:
        by_key = {lookup_key(name): entry for name, entry in stored.items()}
        resolved = {}
        for name in [findings] if isinstance(findings, str) else findings:
            # the exact name first, since "Edema" may stand beside "edema"
            entry = stored.get(str(name)) or by_key.get(lookup_key(str(name)))
            resolved[name] = with_templates(str(name), {}) if entry is None else entry
    if not resolved:
        raise ValueError("The list of findings is empty. Name at least one, or omit it to use the model's own.")
    check_findings(resolved)
    for name, entry in resolved.items():
        measured = [key for key in MEASURED if key in entry]
        if measured and "score_level" not in entry and level != LEVELS[0]:
            raise ValueError(
                f"The finding {name!r} has a {measured[0]}, but this model can be scored by patches or by the whole "
                f"image: add the score_level that it was measured at, {level!r} (the default) or {LEVELS[0]!r}."
            )
    return {name: {"score_level": level, **entry} for name, entry in resolved.items()}


def report_calibration(findings: Mapping[str, Mapping]) -> None:
    """Logs once which scores are probabilities, and for which images."""
    calibrated = {name: entry for name, entry in findings.items() if "scale" in entry}
    if not calibrated:
        return
    sources = dict.fromkeys(describe_measurement(entry.get("measured_on")) for entry in calibrated.values())
    logger.warning_once(
        "The calibrated scores are probabilities for images like those of the calibration "
        f"({'; '.join(sources)}). Calibrate again for other images."
    )
    lacking = [name for name in findings if name not in calibrated]
    if lacking:
        logger.warning_once(
            f"Not calibrated: {', '.join(lacking)}. These scores are not probabilities; do not compare them with "
            "those of the other findings."
        )
