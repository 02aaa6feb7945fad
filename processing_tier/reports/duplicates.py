"""Reports that say the same."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable

import numpy as np

from processing_tier.reports.deidentification import DATE, _without_marks
from processing_tier.reports.sentences import _list_items


def duplicate_groups(texts: Iterable[str]) -> np.ndarray:
    """
    Which texts are the same report, and so false negatives of one another in a contrastive loss.

    The same means the same letters and digits in the same words: case, white space, punctuation, numbers of lists and
    marks of de-identification do not count, nor do dates and times of day, since those of de-identified reports are
    surrogates, which differ among the images of one study (CheXpert Plus). Compatible Unicode forms are one (NFKC). A
    text costs 8 bytes (a 64-bit hash; among 400,000 texts two different ones share it with a chance of 4e-9).

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


def _text_hash(text: str) -> int:
    text = DATE.sub(" ", _without_marks(" ".join(_list_items(text))))
    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold())
    if not words:
        return 0
    return int.from_bytes(
        hashlib.blake2b(" ".join(words).encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big"
    )
