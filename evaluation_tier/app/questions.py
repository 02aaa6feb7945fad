"""What a visitor of the page sends: an image and sentences. All of it is bounded and checked here."""

import base64
import binascii
import json
from collections.abc import Sequence
from typing import NamedTuple

MAX_UPLOAD_BYTES = 40 * 2**20  # 16-bit images of the largest detectors have 30 MiB
MAX_SENTENCES, MAX_CHARACTERS = 8, 300
MAX_NAME = 100  # characters of a file's name that are shown
CONTRAST = "|"


class Upload(NamedTuple):
    """An image as the browser sends it: never a path, and never a file on this machine."""

    name: str  # of the visitor's file, without folders
    content: bytes


def read_upload(message: str | None, samples: Sequence[Upload]) -> Upload:
    """
    The image of a question.

    Args:
        message: JSON of the page's script, `{"name": ..., "content": <base64>}`, or `{"sample": <number>}`.
        samples: those that the page offers.

    Raises:
        ValueError: an image is not chosen, is too large, or the message is not one of the page.
    """
    if not message:
        raise ValueError("Choose a radiograph first: drop a file on the page, or click a synthetic one.")
    try:
        told = json.loads(message)
        if "sample" in told:
            return samples[range(len(samples))[told["sample"]]]
        name = str(told["name"]).replace("\\", "/").rpartition("/")[2][:MAX_NAME]
        content = base64.b64decode(told["content"], validate=True)
    except (ValueError, TypeError, KeyError, IndexError, RecursionError, binascii.Error) as error:
        raise ValueError("The page did not send an image: reload it, and choose the radiograph again.") from error
    if not content:
        raise ValueError("The file is empty: choose another.")
    if len(content) > MAX_UPLOAD_BYTES:
        raise ValueError(f"The file is larger than {MAX_UPLOAD_BYTES >> 20} MiB: export it as a smaller PNG.")
    return Upload(name, content)


def read_sentences(text: str | None) -> dict[str, dict[str, str]]:
    """
    The free sentences, one a line, each with the sentence that it is scored against: what stands behind `|`, or else
    its negation, "No " before the sentence.

    Returns:
        The two sides by sentence, as the pipeline takes them.

    Raises:
        ValueError: too many sentences, or one that is too long or has an empty side.
    """
    lines = [line.strip() for line in (text or "").splitlines() if line.strip()]
    if len(lines) > MAX_SENTENCES:
        raise ValueError(f"{len(lines)} sentences are too many: at most {MAX_SENTENCES}, one a line.")
    found = {}
    for line in lines:
        if len(line) > MAX_CHARACTERS:
            raise ValueError(f"A sentence has {len(line)} characters: at most {MAX_CHARACTERS}.")
        sentence, bar, against = (part.strip() for part in line.partition(CONTRAST))
        if not sentence or bar and not against:
            raise ValueError(f"A side of {CONTRAST!r} is empty: write a sentence, {CONTRAST}, and its opposite.")
        found[sentence] = {"positive": sentence, "negative": against or negate(sentence)}
    return found


def negate(sentence: str) -> str:
    """ "No " before a sentence: "Small effusion." becomes "No small effusion."; abbreviations keep their capitals."""
    rest = sentence.split()[0][1:]
    return f"No {sentence[0].lower() if not rest or rest[0].islower() else sentence[0]}{sentence[1:]}"
