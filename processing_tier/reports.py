"""
Text of reports: sections, sentences, marks that de-identification left behind, and duplicates.

What counts as a heading, and what each heading is called here, is in docs/reports.md. Every function runs in time
linear in the length of its text: reports are data, and some archives hold strange ones.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable

import numpy as np

STYLES = ("standard", "chexzero", "tier")
DEIDENTIFIED_MODES = ("keep", "remove", "replace")

# The canonical name of a section, and its headings: letters only, lower case, without accents. Of MIMIC-CXR, Open-i,
# CheXpert-Plus, PadChest (Spanish) and other archives, with the typing errors that MIMIC-CXR is known for.
SPELLINGS = {
    "findings": """
        findings, finding, report, body of report, description, radiographic findings, chest findings,
        findins, findindgs, findgings, findngs, findnings, finidngs, fidnings, fndings, finding s, reference findings,
        hallazgos, hallazgo, descripcion, informe, informe radiologico""",
    "impression": """
        impression, impressions, conclusion, conclusions, final impression, opinion, summary, interpretation,
        diagnosis, assessment, findings and impression, findings impression, impression and findings,
        findings and impressions, findings conclusion, findings and conclusion, imp, impression s, conclusion s,
        imprssion, impresson, imprression, imoression, impressoin, impresion, imperssion, mpression, pression,
        impession, impresssion, impressio, impressin, imppression, inpression, conclsion, concusion,
        impresion diagnostica, conclusiones, juicio diagnostico, diagnostico, juicio clinico, resumen""",
    "indication": """
        indication, indications, clinical indication, clinical indications, reason for exam, reason for examination,
        reason for study, reason for this exam, reason for this examination, reason, reason for procedure,
        indication for exam, indication for examination, indication for study, indications for exam,
        underlying medical condition, clinical question, idication, indicaton, inidcation, ndication, indcation,
        indication s, history indication, indication history, history and indication,
        indicacion, indicacion clinica, motivo, motivo de consulta, motivo de la exploracion, motivo de exploracion""",
    "comparison": """
        comparison, comparisons, comparison exam, comparison exams, comparison film, comparison films,
        comparison study, comparison studies, comparison s, comparison radiograph, comparison radiographs,
        reference exam, reference study, prior, priors, prior study, prior studies, prior exam, prior exams,
        prior comparison, prior comparisons, comparision, comparsion, comparrison, comparisions, comparions,
        comparacion, estudio previo, estudios previos""",
    "technique": """
        technique, techniques, procedure, procedures, procedure comments, protocol, view, views, number of views,
        techinique, technqiue, tecnica, proyeccion, proyecciones""",
    "history": """
        history, clinical history, patient history, medical history, clinical information, clinical data,
        clinical background, clinical details, relevant history, relevant clinical information, clinical statement,
        pertinent history, brief history, history of present illness, clinical diagnosis, clinical hx, hx,
        histroy, hisotry, admit comments,
        antecedentes, historia clinica, datos clinicos, informacion clinica""",
    "recommendation": """
        recommendation, recommendations, recommendation s, recommended follow up, follow up recommendations,
        recommedation, recommedations, recomendation, recomendations, recomendacion, recomendaciones""",
    "notification": """
        notification, notifications, notification s, communication, communications, critical results,
        critical result, critical communication, communication of critical results, notificiation""",
    "addendum": """
        addendum, addenda, addendum begins, addendum report, addendum to report, final addendum, adendum""",
    "examination": """
        examination, exam, examinations, exams, type of examination, type of exam, study, exam type, procedure name,
        exam description, study type, narrative, examiantion, exmination, title of exam,
        exploracion, estudio, prueba, tipo de exploracion""",
    # Written before the radiologist had read it: used only where nothing better is there.
    "provisional": """
        wet read, wetread, provisional findings impression pfi, provisional findings impression, pfi,
        provisional impression, provisional findings, preliminary report, preliminary read, preliminary findings,
        preliminary impression, prelim""",
    # The end of a section without the beginning of one that is used.
    "": """
        final report, end of impression, end of impression summary, end of report, accession number, accession,
        radiologist, dictated by, electronically signed by, signed by, signed, attending radiologist, attending,
        resident, transcribed by, transcriptionist, approved by, date, date of exam, date of service, dictated, by,
        addendum ends, end of addendum, note, disclaimer, reference, references""",
}
HEADINGS = {" ".join(heading.split()): name for name, headings in SPELLINGS.items() for heading in headings.split(",")}
LONGEST_HEADING = max(len(heading.split()) for heading in HEADINGS)
SECTIONS = tuple(name for name in SPELLINGS if name)
READ_TEXT = ("findings", "impression", "recommendation", "notification", "addendum")  # written by who read the image

WORD = re.compile(r"[^\W\d_]+")
COLON = re.compile(r"[ \t*)_]{0,4}[:\uff1a][ \t*.:\-]{0,4}")
# Between a heading and its text where there is no colon. Two blanks are enough after capitals alone.
NO_COLON = re.compile(r"[*_)]{0,3}(?:[ \t]{0,3}(?:\n|$)|[ \t]{0,3}[-\u2013\u2014]{1,2}[ \t]|[ \t]{0,2};[ \t]|\t)")
BLANKS = re.compile(r"[*_)]{0,3}[ \t]{2}")
JOINT = re.compile(r"[ \t/&,()-]{1,4}")
RULE = re.compile(r"^[ \t]*[_=*~-]{5,}[ \t]*$", re.MULTILINE)
PARAGRAPH = re.compile(r"\n[ \t]*\n")
VIEW_TITLE = re.compile(r"\b(?:CHEST|VIEWS?|PORTABLE|RADIOGRAPHS?|LATERAL|X-?RAYS?|CXR)\b")
SIGNATURE = re.compile(
    r"\b(?:I have personally reviewed|I, the attending|The study and the report were reviewed"
    r"|Electronically signed|This report has been anonymized|Physician to Physician Radiology"
    r"|END OF IMPRESSION|SUMMARY ?:? ?\d|FINAL REPORT\b)",
)
# Words that make "NO COMPARISON:" or "OTHER FINDINGS:" something else than a heading.
QUALIFIERS = frozenset(
    "a above abnormal additional an and any below critical earlier family for from gi important in incidental last "
    "medical my new no of on or other our past positive previous prior psychiatric recent same significant social "
    "surgical the these this those to with without".split()
)

ABBREVIATIONS = frozenset(  # never the end of a sentence
    "approx ca cf dept dr drs e.g fig hosp i.e mr mrs ms nos pgs prof resp st viz vs".split()
)
UNITS = frozenset("a.m cm etc ft hr hrs in lb lbs m.d min mm p.m sec yr yrs".split())  # the end before a capital
SENTENCE_STOP = re.compile(r"(?P<stop>[.!?]+)(?P<close>[\"')\]\u201d\u2019]*)(?P<gap>\s*)(?P<next>\S?)")
LIST_NUMBER = re.compile(r"(?<!\S)(?:\(?(\d{1,2})\)|(\d{1,2})\.)(?:\s+|(?=[^\W\d_]))")
BREAK = re.compile(r"\s*\n[ \t]*\n\s*")

# Open-i writes XXXX, MIMIC-CXR ___, MIMIC-III [**Hospital 12**], CheXpert-Plus surrogates and now and then a class.
LONG_MARK = re.compile(
    r"\[\*\*[^\]\n]{0,120}\]|<(?:unk|hcw|[A-Z]{4,20})>"
    r"|\[(?:REDACTED|REMOVED|NAME|PERSONALNAME|PATIENT|DATE|TIME|AGE|ID|PHONE|LOCATION|HOSPITAL|HCW"
    r"|ALPHANUMERICID|UNK)\]"
)
MARK = re.compile(r"X{3,}|x{3,}|_{2,}")
RUN = re.compile(r"[^\s/,;:.()\[\]<>!?\"]+")
STOPS = frozenset(".,;:!?")
MARK_HINT = re.compile(r"XXX|xxx|__|\[|<")


def split_sections(report: str) -> dict[str, str]:
    """
    The sections of a report under their canonical names.

    A heading is one of [`SPELLINGS`] with a colon: at the start of a line, after the end of a sentence, or in
    capitals. Alone on its line, or with a dash, it needs the start of a line and a capital. A word such as "findings"
    or "comparison" inside a sentence is none.

    Args:
        report (`str`): the report as its archive has it, any line ends.

    Returns:
        `dict[str, str]`: names among `findings`, `impression`, `indication`, `comparison`, `technique`, `history`,
        `recommendation`, `notification`, `addendum`, `examination` and `provisional` (a wet read) to text that is not
        empty, white space collapsed. Of several impressions the last, of other sections all in their order. What
        belongs to no section (before the first heading, signatures) is under `""`.

    Example:

    ```python
    >>> split_sections("FINDINGS: Clear lungs.\\n\\nIMPRESSION:\\n1. Normal.\\n\\nRECOMMENDATION(S):  None.")
    {'findings': 'Clear lungs.', 'impression': '1. Normal.', 'recommendation': 'None.'}
    ```
    """
    sections: dict[str, str] = {}
    for name, text in _segments(_plain(report)):
        text = " ".join(text.split())
        if not text:
            continue
        sections[name] = text if name == "impression" or name not in sections else f"{sections[name]} {text}"
    return sections


def extract_sections(report: str, style: str = "standard") -> dict[str, str]:
    """
    Findings and impression of a report.

    Args:
        report (`str`): the report as its archive has it.
        style (`str`, *optional*, defaults to `"standard"`):
            - `"standard"`: those of [`split_sections`]. Where a report has neither, the findings are the paragraphs
              after the first one of its last section (as in the official section code of MIMIC-CXR), or the whole
              text where there are no headings at all, or what was read provisionally.
            - `"chexzero"`: what CheXzero trains on. The impression is the words after the last `IMPRESSION:` up to the
              first `RECOMMENDATION(S):` or `NOTIFICATION:`, `"NO IMPRESSION"` without that word, `" "` where nothing
              is left, as its loader has it. The findings are `""`: it has none.
            - `"tier"`: what TIER's parser gives. Lower case; titles are letters, digits and brackets from the start of
              a line to a colon, whatever they say; only the last one that is exactly `impression` (`findings`) counts;
              a single line end becomes a backslash and an n; times become `TIME`; `___` are cut. Not reproduced: its
              words for `[**...**]`, which MIMIC-CXR does not contain.

    Returns:
        `dict[str, str]`: with exactly the keys `findings` and `impression`, `""` where there is none.

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
        findings = _last_paragraphs(_plain(report)) or sections.get("provisional", "")
    return {"findings": findings, "impression": impression}


def split_sentences(text: str) -> list[str]:
    """
    The sentences of a report section, numbers of numbered lists and de-identification marks left out.

    Args:
        text (`str`): a section, such as `"1. No acute disease. 2. Stable XXXX cardiomegaly."`.

    Returns:
        `list[str]`: in their order, white space collapsed, such as `["No acute disease.", "Stable cardiomegaly."]`;
        what has no word of at least two letters is left out.
    """
    sentences = []
    for paragraph in BREAK.split(text):
        for item in _list_items(paragraph):
            start = 0
            for end in _sentence_ends(item):
                sentences.append(item[start:end])
                start = end
            sentences.append(item[start:])
    sentences = [_without_marks(sentence) for sentence in sentences]
    return [sentence for sentence in sentences if re.search(r"[^\W\d_]{2,}", sentence)]


def clean_text(text: str, deidentified: str = "keep") -> str:
    """
    One line of text: white space collapsed, brackets without a partner left out.

    Args:
        text (`str`): a section or a whole report.
        deidentified (`str`, *optional*, defaults to `"keep"`): what becomes of the marks of de-identification
            (`XXXX`, `___`, `[**...**]`, `[DATE]`, `<hcw>`): `"keep"` leaves them, `"remove"` leaves them out with the
            rest of their word (`x-XXXX`, `___-year-old`), `"replace"` writes `___` for each.

    Raises:
        `ValueError`: an unknown value of `deidentified`.
    """
    if deidentified not in DEIDENTIFIED_MODES:
        raise ValueError(f"deidentified={deidentified!r} is not known; choose one of {', '.join(DEIDENTIFIED_MODES)}.")
    if deidentified == "remove":
        text = _without_marks(text)
    elif deidentified == "replace" and MARK_HINT.search(text):
        text = MARK.sub("___", LONG_MARK.sub("___", text))
    return " ".join(_balanced(text).split())


def duplicate_groups(texts: Iterable[str]) -> np.ndarray:
    """
    Which texts are the same report, and so false negatives of one another in a contrastive loss.

    The same means the same letters and digits in the same words: case, white space, punctuation, numbers of lists and
    marks of de-identification do not count; compatible Unicode forms are one (NFKC). A text costs 8 bytes (a 64-bit
    hash; among 400,000 texts two different ones share it with a chance of 4e-9).

    Args:
        texts (`Iterable[str]`): sections or reports; read once and not kept.

    Returns:
        `np.ndarray`: int64 (texts,), the number of each text's group in order of first appearance, -1 where no word is
        left.
    """
    hashes = np.fromiter((_text_hash(text) for text in texts), dtype=np.uint64)
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    words = hashes[np.sort(first)] != 0  # which of the groups, in order of first appearance, have words
    numbers = np.where(words, np.cumsum(words) - 1, -1)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = numbers
    return rank[inverse.reshape(-1)]


def _plain(text: str) -> str:
    """Line ends are \\n, blanks and tabs are the only other white space, and lines that only draw a rule are empty."""
    text = "\n".join(text.removeprefix("\ufeff").splitlines()).replace("\xa0", " ")
    return RULE.sub("", text)


def _phrase(words: list[re.Match]) -> str:
    letters = unicodedata.normalize("NFKD", " ".join(word.group() for word in words).lower())
    return "".join(letter for letter in letters if not unicodedata.combining(letter))


def _heading_before(text: str, start: int, end: int) -> tuple[int, str] | None:
    """Where the longest heading that ends at `end` begins, and its section; looks back no further than `start`."""
    start = max(start, end - 80)
    words = list(WORD.finditer(text, start, end))[-LONGEST_HEADING - 1 :]
    if words and words[0].start() == start > 0 and WORD.match(text, start - 1):
        del words[0]  # cut short by the window
    if not words or text[words[-1].end() : end].strip("s() \t"):
        return None
    first = len(words) - 1
    while first > 0 and JOINT.fullmatch(text, words[first - 1].end(), words[first].start()):
        first -= 1
    for i in range(first, len(words)):
        name = HEADINGS.get(_phrase(words[i:]))
        if name is not None:
            return words[i].start(), name
    return None


def _candidates(text: str) -> list[tuple[int, int, str, bool]]:
    """Start, end, section, and whether there is a colon, of all that may be a heading, in order of their start."""
    found = []
    previous = 0
    for colon in COLON.finditer(text):
        heading = _heading_before(text, previous, colon.start())
        line = max(text.rfind("\n", previous, colon.start()) + 1, previous)
        if heading:
            found.append((heading[0], colon.end(), heading[1], True))
        elif colon.start() - line <= 100:
            title = text[line : colon.start()]
            if title.isupper() and VIEW_TITLE.search(title) and len(title.split()) <= 14:
                found.append((line, colon.end(), "view", True))
        previous = colon.end()
    start = 0
    for line in text.split("\n"):
        words = []
        for word in WORD.finditer(line[:100]):
            if len(words) == LONGEST_HEADING or (
                words and not JOINT.fullmatch(line, words[-1].end(), word.start()) and word.start() > words[-1].end()
            ):
                break
            words.append(word)
        if words and words[0].start() <= 8 and words[0].group()[0].isupper():
            for count in range(len(words), 0, -1):
                name = HEADINGS.get(_phrase(words[:count]))
                if name is None:
                    continue
                end = words[count - 1].end()
                if text[start + end : start + end + 3] == "(S)":
                    end += 3
                gap = NO_COLON.match(text, start + end)
                if not gap and line[words[0].start() : end].isupper():
                    gap = BLANKS.match(text, start + end)
                if gap:
                    found.append((start + words[0].start(), gap.end(), name, False))
                break
        start += len(line) + 1
    found += [
        (m.start(), m.end() if m.group().isupper() else m.start(), "signature", True) for m in SIGNATURE.finditer(text)
    ]
    return sorted(found)


def _is_heading(text: str, start: int, end: int, name: str, colon: bool, previous: int) -> bool:
    """Whether a candidate is a heading; `previous` is where the text after the last heading begins."""
    floor = max(previous, start - 120)
    before = text[floor:start]
    blank = before.rstrip(" \t#*>_-\u2022")
    if not blank.strip():
        return True  # first of all, or right after a heading
    line_start = blank.endswith("\n")
    paragraph = PARAGRAPH.search(before, max(0, len(blank.rstrip()))) is not None
    clause_end = blank.rstrip()
    sentence_end = paragraph or _ends_sentence(clause_end)
    heading = text[start:end]
    upper = heading.rstrip(" \t*.:-)(s").isupper()
    if not colon:
        return line_start and sentence_end
    if sentence_end:
        return True
    last = re.search(r"(\S+)$", clause_end[-40:])
    last_word = last.group(1).strip("()[]\"'") if last else ""
    if last_word.lower() in QUALIFIERS:
        return False
    if line_start:
        return heading[:1].isupper()
    if not upper:
        return False
    if not last_word.isupper() or MARK.search(last_word) or not last_word.isalpha():
        return True
    # Capitals before capitals: the end of what a heading was followed by, or a longer title of its own.
    clause = re.split(r"[.!?:;\n]", before)[-1].split()
    return len(clause) > 3 or (floor == previous and previous > 0 and not re.search(r"[.!?:;\n]", before))


def _ends_sentence(text: str) -> bool:
    if not text or text[-1] not in '.!?:;)]"':
        return False
    if text[-1] != ".":
        return True
    word = re.search(r"([\w.]*)\.$", text[-20:]).group(1).lower()
    return word not in ABBREVIATIONS


def _segments(text: str) -> list[tuple[str, str]]:
    """Section name and text, in their order; the text of a signature is of no section."""
    pieces = []
    name, begin = "", 0
    read = False  # whether the report has come to what was seen
    for start, end, candidate, colon in _candidates(text):
        if start < begin or not (candidate == "signature" or _is_heading(text, start, end, candidate, colon, begin)):
            continue
        if candidate == "view" and read:
            continue
        pieces.append((name, text[begin:start]))
        name, begin = candidate, end
        read = read or candidate in READ_TEXT
    pieces.append((name, text[begin:]))
    # "CHEST, TWO VIEWS: Heart size is normal." has its findings under the title of the examination.
    described = any(name == "findings" and text.strip() for name, text in pieces)
    result = []
    for name, text in pieces:
        text = text.strip(" \t\n*#")
        if name == "view":
            name = "examination" if described or len(WORD.findall(text)) < 5 else "findings"
        result.append(("" if name == "signature" else name, text))
    return result


def _last_paragraphs(text: str) -> str:
    segments = [(name, piece) for name, piece in _segments(text) if piece.strip()]
    if not segments:
        return ""
    name, piece = segments[-1]
    if name in ("recommendation", "notification", "addendum", "provisional"):
        return ""
    first, *rest = PARAGRAPH.split(piece.strip())
    if not name and (len(segments) == 1) and not (rest and (first.isupper() or not re.search(r"[.!?]", first))):
        rest = [first, *rest]
    return " ".join(" ".join(rest).split())


def _chexzero_impression(report: str) -> str:
    words = report.split()
    if "IMPRESSION:" not in words:
        return "NO IMPRESSION"
    begin = len(words) - words[::-1].index("IMPRESSION:")
    # The first word of each kind in the whole report, in this order of preference, wherever the impression begins.
    ends = []
    for kind in (("RECOMMENDATION(S):", "RECOMMENDATION:", "RECOMMENDATIONS:"), ("NOTIFICATION:", "NOTIFICATIONS:")):
        end = next((words.index(word) for word in kind if word in words), 0)
        if end:  # a report that begins with one is not cut
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


def _list_items(text: str) -> list[str]:
    """The items of numbered lists without their numbers; a number that ends a sentence is none."""
    items, start, last = [], 0, 0
    for match in LIST_NUMBER.finditer(text):
        number = int(match.group(1) or match.group(2))
        before = text[max(0, match.start() - 40) : match.start()].rstrip()
        following = text[match.end() : match.end() + 1]
        opens = not before or "\n" in text[len(before) + max(0, match.start() - 40) : match.start()]
        if opens or _ends_sentence(before) or (number == last + 1 and last and following.isupper()):
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
            initial = len(word) == 1 and word.isalpha() and re.search(r"(?:\b[A-Za-z]\.|\bDr\.?)\s*\S$", before)
            if word in ABBREVIATIONS or initial or (word == "no" and following.isdigit()):
                continue
            if word in UNITS and not following.isupper():
                continue
        if following.islower() and not re.search(r"[^\W\d_]{3}[.!?]?$", before):
            continue
        yield match.end("close")


def _without_marks(text: str) -> str:
    if MARK_HINT.search(text):
        words: list[str] = []
        for word in LONG_MARK.sub("___", text).split():
            rest = RUN.sub(lambda run: "" if MARK.search(run.group()) else run.group(), word)
            if rest == word or WORD.search(rest) or any(c.isdigit() for c in rest):
                words.append(rest)
            elif words and words[-1][-1] not in STOPS:  # the stop of a sentence outlives its last word
                words[-1] += "".join(c for c in rest if c in STOPS)[:1]
        return " ".join(words)
    return " ".join(text.split())


def _balanced(text: str) -> str:
    if not any(bracket in text for bracket in "()[]"):
        return text
    open_brackets: dict[str, list[int]] = {"(": [], "[": []}
    drop = set()
    for match in re.finditer(r"[()\[\]]", text):
        bracket, i = match.group(), match.start()
        if bracket in open_brackets:
            open_brackets[bracket].append(i)
        elif open_brackets["(" if bracket == ")" else "["]:
            open_brackets["(" if bracket == ")" else "["].pop()
        elif not re.search(r"(?:^|\s)\w{1,2}$", text[max(0, i - 3) : i]):  # "1)" needs no partner
            drop.add(i)
    drop.update(i for positions in open_brackets.values() for i in positions)
    return "".join(" " if i in drop else c for i, c in enumerate(text)) if drop else text


def _text_hash(text: str) -> int:
    text = _without_marks(" ".join(_list_items(text)))
    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold())
    if not words:
        return 0
    return int.from_bytes(
        hashlib.blake2b(" ".join(words).encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big"
    )
