"""Escapes text of unknown origin (names of findings, files, patients) for terminals, spreadsheets and Markdown."""

import re
import unicodedata

# Bidirectional marks, embeddings, overrides and isolates: they change the order in which a text is shown
BIDIRECTIONAL = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def printable(text: object) -> str:
    """Text for a terminal, with control characters (but not line feeds) and bidirectional marks as escapes."""
    return "".join(
        character.encode("unicode_escape").decode()
        if character != "\n" and (unicodedata.category(character) == "Cc" or character in BIDIRECTIONAL)
        else character
        for character in str(text)
    )


def spreadsheet_cell(text: object) -> str:
    """Text for a CSV file: an apostrophe precedes a text that a spreadsheet would read as a formula."""
    text = str(text)
    return f"'{text}" if text.startswith(FORMULA) else text


def markdown_text(text: object) -> str:
    """Text on one line of a Markdown page, shown literally: without links, images, HTML, emphasis or table cells."""
    text = re.sub(r"([\\`*<>|\[\]])", r"\\\1", " ".join(str(text).split()))
    return printable(re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text))  # within a word, an underscore is shown anyway
