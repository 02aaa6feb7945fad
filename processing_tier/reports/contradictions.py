"""
Sentences that contradict a sentence of a report: its negation, or the same finding on the other side.

The rules know the plain forms in which reports state findings. A sentence that doubts is left alone, and one that
compares with an earlier image is not negated: its opposite need not be wrong. Nothing here understands a report, so a
few of the results are bad English, and a few are true.
"""

import re
from collections.abc import Callable, Iterable, Sequence

from processing_tier.reports.duplicates import text_hash
from processing_tier.reports.sentences import split_sentences
from processing_tier.reports.sides import LEFT, NO_SIDE, RIGHT, SIDE, SIDED, mirror, named_side

UNCERTAIN = re.compile(
    r"\b(?:may|might|could|can|cannot|possib\w+|probab\w+|(?:un)?likely|suspect\w*|suspicio\w+|suggest\w*|suspected"
    r"|question\w*|consider\w*|exclud\w+|rule[ds]?|versus|vs|if|correlat\w+|recommend\w*|differential)\b|\?",
    re.IGNORECASE,
)

COMPARED = re.compile(
    r"\b(?:(?:un)?chang\w+|stable|stab\w+ly|prior\w*|previous\w*|compar\w+|interval|again|still|remain\w*|longer|new(?:ly)?"
    r"|increas\w+|decreas\w+|improv\w+|wors\w+|resol\w+|clearing|since|persist\w+|progress\w+|redemonstrat\w+)\b",
    re.IGNORECASE,
)

DENIES = re.compile(
    r"\b(?:no(?!\.)|not|without|negative|free|absen\w+|den(?:y|ies)|none|nor|neither)\b", re.IGNORECASE
)

VERB = re.compile(
    r"\b(?:is|are|was|were|has|have|had|be|been|appears?|shows?|demonstrates?|seen|noted)\b", re.IGNORECASE
)

BOTH_SIDES = re.compile(r"\b(?:bilateral\w*|both)\b", re.IGNORECASE)

FINDING = re.compile(
    rf"\b(?:{'|'.join(dict.fromkeys(SIDED.values()))}|cardiomegaly|edema|congestion|emphysema|infiltrates?|scarring"
    r"|thickening|hernia|hyperinflation|calcifi\w+|scoliosis|spondylosis|osteophyt\w+|disease)\b",
    re.IGNORECASE,
)

# Pattern and replacement of each way to lift a denial, and to deny a sentence that denies nothing. The first one that
# applies is used.
LIFTED = (
    (re.compile(r"\b(is|are|was|were) not\b", re.IGNORECASE), r"\1"),
    (re.compile(r"\b(is|are|was|were) free of\b", re.IGNORECASE), r"\1 not free of"),
    (re.compile(r"\bwithout (?:any )?", re.IGNORECASE), "with "),
    (re.compile(r"\bnegative for\b", re.IGNORECASE), "positive for"),
    (re.compile(r"\bno(?!\.|ne|r\b)\s+", re.IGNORECASE), ""),
)

DENIED = (
    (re.compile(r"\bthere (is|are|was|were) (?:an? |some )?", re.IGNORECASE), r"there \1 no "),
    (re.compile(r"\b(is|are|was|were) ", re.IGNORECASE), r"\1 not "),
    (re.compile(r"\bappear ", re.IGNORECASE), "do not appear "),
    (re.compile(r"\bappears ", re.IGNORECASE), "does not appear "),
)

DENIED_WITHOUT_VERB = (
    (re.compile(r"\bwithin normal limits\b", re.IGNORECASE), "not within normal limits"),
    (re.compile(r"\b(?:normal|unremarkable)\b", re.IGNORECASE), "abnormal"),
    (re.compile(r"\bclear\b", re.IGNORECASE), "not clear"),
    (re.compile(r"\bintact\b", re.IGNORECASE), "not intact"),
)


def contradict(sentence: str) -> list[str]:
    """
    The sentences that say the opposite of a sentence, as far as the rules find any: the finding denied or the denial
    lifted, and the side swapped.

    Args:
        sentence (`str`): of a report, such as `"No pleural effusion."`.

    Returns:
        `list[str]`: at most two, such as `["Pleural effusion."]`. Swapped sides come last.
    """
    if UNCERTAIN.search(sentence):
        return []
    found = [None if COMPARED.search(sentence) else negate(sentence), swap_sides(sentence)]
    return [other for other in found if other is not None]


def negate(sentence: str) -> str | None:
    """The sentence with its finding denied, or with the denial lifted; None where no rule applies."""
    if DENIES.search(sentence):
        return apply_first(LIFTED, sentence)
    if VERB.search(sentence):
        return apply_first(DENIED, sentence)
    other = apply_first(DENIED_WITHOUT_VERB, sentence)
    if other is None and FINDING.search(sentence):
        first = sentence.split()[0]
        is_name = sum(letter.isupper() for letter in first) > 1  # "CHF"
        other = f"No {sentence if is_name else sentence[0].lower() + sentence[1:]}"
    return other


def swap_sides(sentence: str) -> str | None:
    """The sentence with left for right; None for one that denies, names no side or both, or names a view."""
    other = mirror(sentence)
    unnamed = SIDE.sub("", sentence)  # a side may also be called "RLL"
    if other is None or any(pattern.search(unnamed) for pattern in (LEFT, RIGHT, BOTH_SIDES)):
        return None
    return None if DENIES.search(sentence) or NO_SIDE.search(sentence) else other


def apply_first(rules: Iterable[tuple[re.Pattern, str]], sentence: str) -> str | None:
    """The sentence after the first rule that matches, once; None if none matches."""
    for pattern, replacement in rules:
        changed, count = pattern.subn(replacement, sentence, count=1)
        if count:
            return changed[:1].upper() + changed[1:] if sentence[0].isupper() else changed
    return None


def contradict_text(texts: Sequence[str], report: str, choose: Callable[[int], int]) -> str | None:
    """
    One of [`contradict_texts`].

    Args:
        choose (`Callable[[int], int]`): gives a number below its argument, such as `rng.integers`.

    Returns:
        `str`, *optional*: `None` where no rule applies.
    """
    found = contradict_texts(texts, report)
    return found[choose(len(found))] if found else None


def contradict_texts(texts: Sequence[str], report: str) -> list[str]:
    """
    Some texts of a report with one of their sentences contradicted, in every way that the rules find. The results have
    the form of the texts, so that only their content tells them apart.

    Args:
        texts (`Sequence[str]`): sentences or whole texts, all of them from the report.
        report (`str`):
            all that the report says. A sentence that it says elsewhere is not taken, nor another side that it names.
    """
    said = split_sentences(report)
    hashes = {text_hash(sentence) for sentence in said}
    sides = {side for sentence in said if (side := named_side(sentence))}
    one_side = len(sides) < 2 and not any(BOTH_SIDES.search(sentence) for sentence in said)
    found = []
    for text in texts:
        for sentence in split_sentences(text):
            if sentence not in text:  # a list number or a mark of de-identification within it
                continue
            for other in contradict(sentence):
                is_swap = named_side(other) != named_side(sentence)
                if text_hash(other) not in hashes and (one_side or not is_swap):
                    found.append(text.replace(sentence, other, 1))
    return found
