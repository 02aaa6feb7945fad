"""Text of reports: sentences, and the marks that de-identification left behind."""

import re

# Open-i writes XXXX (with any ending, as in "x-XXXX") for what it removed, MIMIC-CXR writes ___.
DEIDENTIFIED = re.compile(r"\S*\bX{3,}\b\S*|_{2,}", re.IGNORECASE)
LIST_NUMBER = re.compile(r"(?:^|(?<=\s))\d{1,2}[.)]\s+")
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9])")


def split_sentences(text: str) -> list[str]:
    """
    The sentences of a report section, numbers of numbered lists and de-identification marks left out.

    Args:
        text (`str`): a section, such as `"1. No acute disease. 2. Stable XXXX cardiomegaly."`.

    Returns:
        `list[str]`: in their order, white space collapsed, such as `["No acute disease.", "Stable cardiomegaly."]`;
        what has no word of at least two letters is left out.
    """
    sentences = SENTENCE_END.split(LIST_NUMBER.sub("", text.strip()))
    sentences = [" ".join(DEIDENTIFIED.sub(" ", sentence).split()) for sentence in sentences]
    return [sentence for sentence in sentences if re.search(r"[^\W\d_]{2,}", sentence)]
