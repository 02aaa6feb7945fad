"""Finds the sections of a report, above all findings and impression. The names of headings are in `headings`."""

import re
import unicodedata
from collections.abc import Iterable

from processing_tier.reports.deidentification import MARK
from processing_tier.reports.headings import HEADINGS, LINE_ONLY, LONGEST_HEADING, READ_TEXT
from processing_tier.reports.sentences import PARAGRAPH, ends_sentence, plain_lines

STYLES = ("standard", "chexzero", "tier")

WORD = re.compile(r"[^\W\d_]+")

# But not in a time, 10:54.
COLON = re.compile(r"[ \t*)_]{0,4}(?:(?<!\d):|:(?!\d)|\uff1a)[.:*\]-]{0,3}")

# "[IMPRESSION]" is a heading without a colon; "IMPRESSION #2:" continues the first one.
BRACKETED = re.compile(r"[\[<]([^\[\]<>:\n]{3,60})[\]>][ \t]{0,3}:?")

NUMBERED = re.compile(r"[ \t]{0,3}(#[ \t]?|no\.? ?)?(\d{1,2})[ \t]{0,3}", re.IGNORECASE)

# Between a heading and its text without a colon. After capitals, two blanks are enough.
NO_COLON = re.compile(r"[*_)]{0,3}(?:[ \t]{0,3}$|[ \t]{0,3}[-\u2013\u2014]{1,2}[ \t]|[ \t]{0,2};[ \t]|\t)")

BLANKS = re.compile(r"[*_)]{0,3}[ \t]{2}")

JOINT = re.compile(r"[ \t/&,()'\u2019-]{1,4}")

# "FINDINGS, TWO VIEWS:" or "IMPRESSION (PRELIM):" up to its colon. Another heading may stand only in brackets.
QUALIFIED = re.compile(r"[ \t*#]*(findings?|impressions?)[ \t]*[,(\[](?:[^.!?]|[.!?](?!\s))*$", re.IGNORECASE)

IN_BRACKETS = re.compile(r"[^,(\[]*[(\[][^)\]]*\]?$")

CLAUSE_END = re.compile(r"[.!?:;](?=\s)|\n")

VIEW_TITLE = re.compile(r"\b(?:CHEST|VIEWS?|PORTABLE|RADIOGRAPHS?|LATERAL|X-?RAYS?|CXR)\b")

SIGNATURE = re.compile(
    r"\b(?:I have personally reviewed|I, the attending|The study and the report were reviewed"
    r"|Electronically signed|This report has been anonymized|Physician to Physician Radiology"
    r"|END OF IMPRESSION|SUMMARY ?:? ?\d)\b|^[ \t*#_-]*FINAL REPORT\b",
    re.MULTILINE,
)

# Words before a heading that show that it is not one: "NO COMPARISON:", "OTHER FINDINGS:".
QUALIFIERS = frozenset(
    "a above abnormal additional an and any below critical earlier family for from gi important in incidental last "
    "medical my new no of on or other our past positive previous prior psychiatric recent same significant social "
    "surgical the these this those to with without".split()
)

CONTINUED = "#"  # behind the name of a section whose heading has a number after the first


def split_sections(report: str) -> dict[str, str]:
    """
    The sections of a report under their canonical names.

    A heading is one of [`SPELLINGS`] with a colon or in square brackets: at the start of a line, after the end of a
    sentence, or in capitals. Alone on its line, or with a dash, it must begin a line with a capital. A word such as
    "findings" or "comparison" inside a sentence is not a heading.

    Args:
        report (`str`): the report as its archive has it, with any line ends.

    Returns:
        `dict[str, str]`: names among `findings`, `impression`, `indication`, `comparison`, `technique`, `history`,
        `recommendation`, `notification`, `addendum`, `examination` and `provisional` (a wet read) to text that is not
        empty, white space collapsed. Of several impressions, the last one counts; other sections with one name are
        joined. Text outside all sections (before the first heading, signatures) is under `""`.

    Example:

    ```python
    >>> split_sections("FINDINGS: Clear lungs.\\n\\nIMPRESSION:\\n1. Normal.\\n\\nRECOMMENDATION(S):  None.")
    {'findings': 'Clear lungs.', 'impression': '1. Normal.', 'recommendation': 'None.'}
    ```
    """
    sections: dict[str, str] = {}
    for name, text in _segments(plain_lines(report)):
        text = " ".join(text.split())
        is_new = name == "impression"
        name = "" if name in ("body", "signature") else name.removesuffix(CONTINUED)
        sections[name] = text if is_new or name not in sections else f"{sections[name]} {text}"
    return sections


def extract_sections(report: str, style: str = "standard") -> dict[str, str]:
    """
    Findings and impression of a report.

    Args:
        report (`str`): the report as its archive has it.
        style (`str`, *optional*, defaults to `"standard"`):
            - `"standard"`: those of [`split_sections`]. For a report with neither, the findings are the last section
              without its first paragraph (as in the official section code of MIMIC-CXR), the whole text of a report
              without headings, or the provisional reading.
            - `"chexzero"`: the texts that CheXzero trains on. The impression is the words after the last `IMPRESSION:`
              up to the first `RECOMMENDATION(S):` or `NOTIFICATION:`. Like its loader, it gives `"NO IMPRESSION"`
              without that word and `" "` for an empty one. The findings are always `""`.
            - `"tier"`: the result of TIER's parser, in lower case. A title is letters, digits and brackets from the
              start of a line to a colon. Only the last title that is exactly `impression` (or `findings`) counts. A
              single line end becomes a backslash and an n, times become `TIME`, and `___` is deleted. Its words for
              `[**...**]` are not reproduced: MIMIC-CXR does not contain them.

    Returns:
        `dict[str, str]`: with exactly the keys `findings` and `impression`; a missing one is `""`.

    Raises:
        `ValueError`: an unknown style.
    """
    if style not in STYLES:
        raise ValueError(f"report style {style!r} is not known; choose one of {', '.join(STYLES)}.")
    if style == "chexzero":
        return {"findings": "", "impression": _chexzero_impression(report)}
    if style == "tier":
        return _tier_sections(report)
    sections = split_sections(report)
    findings, impression = sections.get("findings", ""), sections.get("impression", "")
    if not findings and not impression:
        findings = _last_paragraphs(plain_lines(report)) or sections.get("provisional", "")
    return {"findings": findings, "impression": impression}


def _phrase(words: list[re.Match]) -> str:
    """Words as in [`HEADINGS`]: lower case, without accents."""
    phrase = " ".join(word.group() for word in words).lower()
    if phrase.isascii():
        return phrase
    return "".join(c for c in unicodedata.normalize("NFKD", phrase) if not unicodedata.combining(c))


def _heading_before(text: str, start: int, end: int) -> tuple[int, str] | None:
    """Start and section of the longest heading that ends at `end`; it may not begin before `start`."""
    start = max(start, end - 80)
    words = list(WORD.finditer(text, start, end))[-LONGEST_HEADING - 1 :]
    if words and words[0].start() == start > 0 and WORD.match(text, start - 1):
        del words[0]  # cut short by the window
    if not words:
        return None
    number = NUMBERED.fullmatch(text, words[-1].end(), end)
    if not number and text[words[-1].end() : end].strip("s() \t"):
        return None
    first = len(words) - 1
    while first > 0 and JOINT.fullmatch(text, words[first - 1].end(), words[first].start()):
        first -= 1
    for i in range(first, len(words)):
        name = HEADINGS.get(_phrase(words[i:]))
        if name is not None and (not number or number[1] or name in READ_TEXT):
            more = CONTINUED if number and int(number[2]) > 1 else ""
            return _opening(text, words[i].start()), name + more
    return None


def _opening(text: str, start: int) -> int:
    """Where the bracket before a heading begins."""
    return start - 1 if start and text[start - 1] in "[<" else start


def _bracketed(text: str) -> Iterable[tuple[int, int, str, bool]]:
    """Candidates as in [`_candidates`] that stand in square or angle brackets and begin with a capital."""
    for match in BRACKETED.finditer(text):
        words = list(WORD.finditer(match[1]))
        number = NUMBERED.search(match[1])
        if words and words[0].group()[0].isupper() and len(words) <= LONGEST_HEADING:
            name = HEADINGS.get(_phrase(words))
            if name:
                yield match.start(), match.end(), name + (CONTINUED if number and int(number[2]) > 1 else ""), True


def _heading_of_line(line: str) -> tuple[int, int, str] | None:
    """Start, end and section of a heading without a colon at the start of a line."""
    indent = len(line) - len(line.lstrip())
    first = WORD.search(line, indent, indent + 10)
    if not first or not first.group()[0].isupper():
        return None
    words: list[re.Match[str]] = []
    for word in WORD.finditer(line, first.start(), indent + 100):
        if words and (len(words) == LONGEST_HEADING or not JOINT.fullmatch(line, words[-1].end(), word.start())):
            break
        words.append(word)
    while words:
        name = HEADINGS.get(_phrase(words))
        if name is not None:
            start, end = words[0].start(), words[-1].end()
            gap = NO_COLON.match(line, end + 3 if line.startswith("(S)", end) else end)
            if not gap and line[start:end].isupper():
                gap = BLANKS.match(line, end)
            if gap:
                return start, gap.end(), name
        words.pop()
    return None


def _candidates(text: str) -> list[tuple[int, int, str, bool]]:
    """All possible headings in order: start, end, section, and whether there is a colon."""
    found = []
    previous = 0
    for colon in COLON.finditer(text):
        heading = _heading_before(text, previous, colon.start())
        line = max(text.rfind("\n", previous, colon.start()) + 1, previous)
        title = text[line : colon.start()] if colon.start() - line <= 100 else ""
        qualified = QUALIFIED.match(title) if line == 0 or text[line - 1] == "\n" else None
        if qualified and heading and (heading[0] <= line + qualified.start(1) or not IN_BRACKETS.match(title)):
            qualified = None
        if qualified:
            found.append((line + qualified.start(1), colon.end(), HEADINGS[qualified[1].lower()], True))
        elif heading:
            found.append((heading[0], colon.end(), heading[1], True))
        elif title:
            if title.isupper() and VIEW_TITLE.search(title) and len(title.split()) <= 14:
                found.append((line, colon.end(), "view", True))
        previous = colon.end()
    start = 0
    for line in text.split("\n"):
        if heading := _heading_of_line(line):
            found.append((start + heading[0], start + heading[1], heading[2], False))
        start += len(line) + 1
    found += _bracketed(text)
    for match in SIGNATURE.finditer(text):
        name = "body" if match.group().endswith("FINAL REPORT") else "signature"
        found.append((match.start(), match.end() if match.group().isupper() else match.start(), name, True))
    return sorted(found, key=lambda candidate: (candidate[0], -candidate[1]))


def _is_heading(text: str, start: int, end: int, colon: bool, previous: int, read: bool) -> bool:
    """
    Whether a candidate is a heading.

    `previous` is the start of the text under the last heading; `read` tells whether somebody who saw the image wrote
    that text.
    """
    before = text[max(previous, start - 120) : start].rstrip(" \t#*>_-\u2022")
    words = before.rstrip()
    if not words:
        return True  # first of all, or right after a heading
    line_start = before.endswith("\n")
    ended = before.count("\n", len(words)) > 1 or ends_sentence(words)
    heading = list(WORD.finditer(text, start, end))
    if not line_start and (not colon or _phrase(heading) in LINE_ONLY):
        return False
    if ended:
        return True
    if not heading[0].group()[0].isupper():
        return False
    last = words[-40:].split()[-1].strip("()[]\"'")
    capitals = heading[0].group().isupper()
    if last.lower() in QUALIFIERS and (last.isupper() if capitals else not line_start):
        return False
    if not colon and capitals and last.isupper():
        return False
    if line_start or not read or not last.isalpha() or MARK.search(last):
        return True
    # Among findings, "there is no effusion IMPRESSION:" begins a section, "PULMONARY FINDINGS:" is a longer title.
    return not (last.isupper() if capitals else last[0].isupper()) or len(CLAUSE_END.split(words)[-1].split()) > 3


def _segments(text: str) -> list[tuple[str, str]]:
    """Name and text of each section in order. `body` follows "FINAL REPORT"; `signature` belongs to no section."""
    pieces = []
    name, begin, read = "", 0, False
    for start, end, candidate, colon in _candidates(text):
        if start < begin or (candidate == "view" and read):
            continue
        if candidate not in ("body", "signature") and not _is_heading(text, start, end, colon, begin, read):
            continue
        pieces.append((name, text[begin:start]))
        name, begin = candidate, end
        read = candidate.removesuffix(CONTINUED) in READ_TEXT or (read and candidate not in ("examination", "body"))
    pieces.append((name, text[begin:]))
    pieces = [(name, piece.strip(" \t\n*#")) for name, piece in pieces]
    pieces = [(name, piece) for name, piece in pieces if piece]
    # "CHEST, TWO VIEWS: Heart size is normal." has its findings under the title of the examination.
    described = any(name == "findings" for name, _ in pieces)
    for i, (name, piece) in enumerate(pieces):
        if name == "view":
            pieces[i] = ("examination" if described or len(WORD.findall(piece)) < 5 else "findings", piece)
    return pieces


def _last_paragraphs(text: str) -> str:
    pieces = [(name, piece) for name, piece in _segments(text) if name != "signature"]
    name, piece = pieces[-1] if pieces else ("", "")
    if name in READ_TEXT:
        return ""
    first, *rest = PARAGRAPH.split(piece)
    if name in ("", "body") and not (rest and (first.isupper() or not re.search(r"[.!?]", first))):
        rest.insert(0, first)  # no title
    return " ".join(" ".join(rest).split())


def _chexzero_impression(report: str) -> str:
    words = report.split()
    if "IMPRESSION:" not in words:
        return "NO IMPRESSION"
    begin = len(words) - words[::-1].index("IMPRESSION:")
    # The first word of each kind in the whole report, in this order, even if it stands before the impression
    ends = []
    for kind in (("RECOMMENDATION(S):", "RECOMMENDATION:", "RECOMMENDATIONS:"), ("NOTIFICATION:", "NOTIFICATIONS:")):
        end = next((words.index(word) for word in kind if word in words), 0)
        if end:  # a report that begins with such a word is kept whole
            ends.append(end)
    return " ".join(words[begin : min(ends, default=len(words))]) or " "


def _tier_sections(report: str) -> dict[str, str]:
    text = report.replace("\r\n", "\n").replace("\r", "\n").lower()
    text = re.sub(r"_{2,}", "", re.sub(r"\d{1,2}:\d{2}", "TIME", text))
    text = re.sub(r"the study and the report were reviewed by the staff radiologist.", "", text)
    titles = list(re.finditer(r"^([ \w()]+):", text, re.MULTILINE))
    sections = {"findings": "", "impression": ""}
    for i, title in enumerate(titles):
        name = title.group(1).strip()
        if name in sections:
            section = text[title.end() : titles[i + 1].start() if i + 1 < len(titles) else len(text)]
            sections[name] = re.sub(r"\s{2,}", " ", section).strip().replace("\n", "\\n")
    return sections
