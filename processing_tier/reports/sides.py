"""The sides that reports state, and sentences with the other side."""

import re

from processing_tier.prompts.loader import normalize_finding
from processing_tier.reports.sentences import split_sentences

OTHER_SIDE = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}
SIDE = re.compile(rf"\b({'|'.join(OTHER_SIDE)})\b")

# Findings that have a side, and how reports name them. "No finding" and midline findings do not have a side.
SIDED = {
    "pleural effusion": r"effusions?",
    "effusion": r"effusions?",
    "pneumothorax": r"\w*pneumothora(?:x|ces)",
    "atelectasis": r"atelecta\w+",
    "consolidation": r"consolidati\w+",
    "pneumonia": r"pneumonias?",
    "lung opacity": r"opacit(?:y|ies)",
    "nodule/mass": r"(?:nodules?|mass(?:es)?)",
    "nodule": r"nodules?",
    "mass": r"mass(?:es)?",
    "granuloma": r"granulomas?",
    "fracture": r"fractures?",
}

LEFT = re.compile(r"\b(?:left|lt|l[ul]l|lingular?)\b", re.IGNORECASE)

RIGHT = re.compile(r"\b(?:right|rt|r[uml]l)\b", re.IGNORECASE)

BOTH = re.compile(r"\b(?:bi(?:lateral|basilar|basal|apical)\w*|both|bases|apices|lungs)\b", re.IGNORECASE)

DEVICE = re.compile(r"\b(?:picc|catheters?|lines?|tubes?|ports?|pacemakers?)\b", re.IGNORECASE)  # has a separate side

DOUBTED = re.compile(r"\b(?:may be|possibl[ey]|probabl[ey])\b", re.IGNORECASE)  # wherever it stands

NO_SIDE = re.compile(r"\b(?:left|right) lateral\b", re.IGNORECASE)  # a view of the patient

DENIED = re.compile(  # before the finding
    r"\b(?:no(?! (?:significant |interval )*change)|not|without|negative|free|absen\w+|den(?:y|ies)|exclude\w*"
    r"|rule\w* out|resol\w+|clear\w*|unlikely|former|previous\w*|questionable|versus|vs)\b",
    re.IGNORECASE,
)

UNDONE = re.compile(  # after it
    r"\b(?:not|no longer|resol\w+|absen\w+|excluded|cleared|unlikely|questionable|versus|vs)\b", re.IGNORECASE
)


def stated_side(text: str, finding: str) -> str | None:
    """
    The one side on which a report says that a finding is.

    Sentences, and their parts between semicolons, that name the finding count, but for those that deny or doubt it
    ("no", "resolved", "versus", "possible") or name a device such as a catheter, whose side it may be.
    If a sentence, or all sentences together, name both sides, the result is unknown, because the match would be a
    guess. "LLL", "RML" and the like are sides; "left lateral" is a view, not a side.

    Args:
        text (`str`): sections of the report, such as findings and impression.
        finding (`str`): one of [`SIDED`], in any case.

    Returns:
        `"left"` or `"right"`, the patient's, or `None`.
    """
    named = SIDED.get(normalize_finding(finding))
    if named is None:
        return None
    named = re.compile(rf"\b{named}\b", re.IGNORECASE)
    sides = set()
    for sentence in (part for whole in split_sentences(text) for part in whole.split(";")):
        sentence = NO_SIDE.sub("", sentence)
        if DEVICE.search(sentence) or DOUBTED.search(sentence):
            continue
        name = named.search(sentence)
        if not name or DENIED.search(sentence, 0, name.start()) or UNDONE.search(sentence, name.end()):
            continue
        if LEFT.search(sentence) or BOTH.search(sentence):
            sides.add("left")
        if RIGHT.search(sentence) or BOTH.search(sentence):
            sides.add("right")
    return sides.pop() if len(sides) == 1 else None


def named_side(sentence: str) -> str | None:
    """`"left"` or `"right"`; None for a sentence that names no side, or both."""
    sides = {side.lower() for side in SIDE.findall(sentence)}
    return sides.pop() if len(sides) == 1 else None


def mirror(sentence: str) -> str | None:
    """The sentence with the other side; None where `named_side` is."""
    if named_side(sentence) is None:
        return None
    return SIDE.sub(lambda match: OTHER_SIDE[match[0]], sentence)
