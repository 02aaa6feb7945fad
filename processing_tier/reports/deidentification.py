"""Marks of de-identification in a text: kept, removed or replaced."""

import re

DEIDENTIFIED_MODES = ("keep", "remove", "replace")

# Open-i writes XXXX, MIMIC-CXR ___, MIMIC-III [**Hospital 12**], CheXpert Plus surrogates and sometimes a class.
LONG_MARK = re.compile(
    r"\[\*\*[^\[\]]*\]|<(?:unk|hcw|[A-Z]{2,20})>"
    r"|\[(?:REDACTED|REMOVED|NAME|PERSONALNAME|PATIENT|DATE|TIME|AGE|ID|PHONE|LOCATION|HOSPITAL|HCW"
    r"|ALPHANUMERICID|UNK)\]"
)

MARK = re.compile(r"(?:X{3,}|x{3,}|_{2,})+")

RUN = re.compile(r"[^\s/,;:.()\[\]<>!?\"]+")

STOPS = frozenset(".,;:!?")

MONTHS = "jan|feb|mar|apr|may|jun|jul|aug|sep|sept|oct|nov|dec"

MONTHS += "|january|february|march|april|june|july|august|september|october|november|december"

# Not two numbers only, which may be a fraction or a score: 1/2
DATE = re.compile(
    r"(?<![\w/.-])(?:\d{1,4}([/.-])\d{1,2}\1\d{2,4}"
    rf"|(?:{MONTHS})\.? \d{{1,2}}(?:st|nd|rd|th)?,? \d{{4}}|\d{{1,2}} (?:{MONTHS})\.?,? \d{{4}}|(?:{MONTHS}),? \d{{4}}"
    r"|\d{1,2}:\d{2}(?::\d{2})?(?: ?[ap]\.?m\b\.?)?)(?![\w/-])",
    re.IGNORECASE,
)

MARK_HINT = re.compile(r"XXX|xxx|__|\[|<")


def clean_text(text: str, deidentified: str = "keep") -> str:
    """
    A text on one line: white space collapsed, unbalanced brackets removed.

    Args:
        text (`str`): a section or a whole report.
        deidentified (`str`, *optional*, defaults to `"keep"`):
            The treatment of the marks of de-identification (`XXXX`, `___`, `[**...**]`, `[DATE]`, `<hcw>`): `"keep"`
            leaves them, `"remove"` deletes them with the rest of their word (`x-XXXX`, `___-year-old`), `"replace"`
            writes `___` for each.

    Raises:
        `ValueError`: an unknown value of `deidentified`.
    """
    if deidentified not in DEIDENTIFIED_MODES:
        raise ValueError(f"deidentified={deidentified!r} is not known; choose one of {', '.join(DEIDENTIFIED_MODES)}.")
    text = " ".join(text.split())
    if deidentified == "remove":
        text = without_marks(text)
    elif deidentified == "replace":
        text = MARK.sub("___", LONG_MARK.sub("___", text))
    return " ".join(balance_brackets(text).split())


def without_marks(text: str) -> str:
    text = " ".join(text.split())
    if not MARK_HINT.search(text):
        return text
    words: list[str] = []
    for word in LONG_MARK.sub("___", text).split():
        if not MARK.search(word):
            words.append(word)
            continue
        rest = RUN.sub(lambda run: "" if MARK.search(run.group()) else run.group(), word)
        if any(character.isalnum() for character in rest):
            words.append(rest)
        elif words and words[-1][-1] not in STOPS:  # keep the full stop of a sentence whose last word is removed
            words[-1] += "".join(character for character in rest if character in STOPS)[:1]
    return " ".join(words)


def balance_brackets(text: str) -> str:
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
