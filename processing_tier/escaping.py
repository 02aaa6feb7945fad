"""Text of others (names of findings, files, patients) for terminals, spreadsheets and Markdown pages."""

import re
import unicodedata

# Bidirectional marks, embeddings, overrides and isolates: they would show a text in another order than it is in
BIDIRECTIONAL = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def printable(text: object) -> str:
    """Text for a terminal: control characters but line feeds, and bidirectional marks, as escapes such as `\\x1b`."""
    return "".join(
        character.encode("unicode_escape").decode()
        if character != "\n" and (unicodedata.category(character) == "Cc" or character in BIDIRECTIONAL)
        else character
        for character in str(text)
    )


def spreadsheet_cell(text: object) -> str:
    """Text for a CSV file: what a spreadsheet would take for a formula gets an apostrophe before it."""
    text = str(text)
    return f"'{text}" if text.startswith(FORMULA) else text


def markdown_text(text: object) -> str:
    """Text for a Markdown page, in one line, that is shown as it is: no link, image, HTML, emphasis or table cell."""
    text = re.sub(r"([\\`*<>|\[\]])", r"\\\1", " ".join(str(text).split()))
    return printable(re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text))  # within a word an underscore is one
