"""Splits a section of a report into sentences."""

import re
from collections.abc import Iterable

from processing_tier.reports.deidentification import without_marks
from processing_tier.reports.markup import repair_markup

OTHER_SPACE = re.compile(r"[^\S\n\t]")

RULE = re.compile(r"^[ \t]*[_=*~-]{5,}[ \t]*$", re.MULTILINE)

PARAGRAPH = re.compile(r"\n[ \t]*\n")

ABBREVIATIONS = frozenset(  # never the end of a sentence
    "approx ca cf dept dr drs e.g fig hosp i.e mr mrs ms nos pgs prev prof pt resp st viz vs".split()
)

UNITS = frozenset("a.m cm etc ft hr hrs in lb lbs m.d min mm p.m sec yr yrs".split())  # the end before a capital

SENTENCE_STOP = re.compile(r"(?P<stop>[.!?]+)(?P<close>[\"')\]\u201d\u2019]*)(?P<gap>\s*)(?=(?P<next>\S?))")

LIST_NUMBER = re.compile(r"(?<!\S)(?:\(?(\d{1,2})\)|(\d{1,2})\.)(?:\s+|(?=[^\W\d_]))")

NUMBER_OF = re.compile(r"\bnos?\.$", re.IGNORECASE)  # "image no. 5."

INITIAL = re.compile(r"[A-Za-z]\.")


def split_sentences(text: str) -> list[str]:
    """
    The sentences of a report section, without list numbers and de-identification marks.

    Args:
        text (`str`): a section, such as `"1. No acute disease. 2. Stable XXXX cardiomegaly."`.

    Returns:
        `list[str]`: in order, white space collapsed, such as `["No acute disease.", "Stable cardiomegaly."]`. A
        sentence without a word of at least two letters is left out.
    """
    sentences = []
    for paragraph in PARAGRAPH.split(plain_lines(text)):
        for item in list_items(paragraph):
            start = 0
            for end in _sentence_ends(item):
                sentences.append(item[start:end])
                start = end
            sentences.append(item[start:])
    sentences = [without_marks(sentence) for sentence in sentences]
    return [sentence for sentence in sentences if re.search(r"[^\W\d_]{2,}", sentence)]


def plain_lines(text: str) -> str:
    """
    The text with \\n as its only line end and no white space but blanks and tabs; drawn rules become empty lines.
    """
    text = "\n".join(repair_markup(text).removeprefix("\ufeff").splitlines())
    return RULE.sub("", OTHER_SPACE.sub(" ", text))


def ends_sentence(text: str) -> bool:
    if not text or text[-1] not in ".!?":
        return False
    if text[-1] != ".":
        return True
    word = re.search(r"([\w.]*)\.$", text[-20:]).group(1).lower()
    return word not in ABBREVIATIONS


def list_items(text: str) -> list[str]:
    """The items of numbered lists, without their numbers. A number at the end of a sentence does not begin an item."""
    items, start, last = [], 0, None
    if any((match.group(1) or match.group(2)) == "2" for match in LIST_NUMBER.finditer(text)):
        last = 0  # "radiograph 1. No effusion 2. Normal heart"
    for match in LIST_NUMBER.finditer(text):
        number = int(match.group(1) or match.group(2))
        before = text[max(start, match.start() - 40) : match.start()]
        following = text[match.end() : match.end() + 1]
        words = before.rstrip()
        begins = not words or "\n" in before[len(words) :] or ends_sentence(words)
        follows = last is not None and number == last + 1
        if (begins and not NUMBER_OF.search(words)) or (follows and (following.isupper() or following == "_")):
            items.append(text[start : match.start()])
            start, last = match.end(), number
    items.append(text[start:])
    return items


def _sentence_ends(text: str) -> Iterable[int]:
    for match in SENTENCE_STOP.finditer(text):
        following = match["next"]
        if not following:
            continue
        before = text[max(0, match.start() - 24) : match.start()]
        word = re.search(r"\S*$", before).group().strip("(\"'[").lower()
        if not match["gap"]:  # "apex.There"
            capital = following.isupper() and match["stop"] == "."
            if capital and re.search(r"[^\W\d_]{3}$|X{3}$|_{2}$", before) and word not in ABBREVIATIONS | UNITS:
                yield match.end("close")
            continue
        if match["stop"][0] in "!?" and not word:  # "? pneumonia"
            continue
        if match["stop"] == "." and not match["close"]:
            initial = len(word) == 1 and word.isalpha()  # "S. O. B.", "Dr. J. Smith", but "hepatitis C. The"
            if initial and not re.search(r"(?:\b[A-Za-z]|\b[Dd]r)\.\s*\S$", before):
                initial = INITIAL.match(text, match.end())
            if word in ABBREVIATIONS or initial or (word == "no" and following.isdigit()):
                continue
            if word in UNITS and not following.isupper():
                continue
        if following.islower() and not re.search(r"[^\W\d_]{3}[.!?]?$", before):
            continue
        yield match.end("close")
