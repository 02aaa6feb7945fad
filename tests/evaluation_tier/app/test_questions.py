"""What the page accepts of a visitor, and its sentences about the rest."""

import base64
import json

import pytest

from evaluation_tier.app.questions import (
    MAX_SENTENCES,
    MAX_UPLOAD_BYTES,
    Upload,
    negate,
    read_sentences,
    read_upload,
)

SAMPLES = [Upload("synthetic-1.png", b"one"), Upload("synthetic-2.png", b"two")]
DAMAGED = "^The page did not send an image: reload it, and choose the radiograph again.$"


def message(name: object, content: bytes) -> str:
    return json.dumps({"name": name, "content": base64.b64encode(content).decode()})


def test_an_upload_is_its_bytes_and_its_name_without_folders():
    assert read_upload(message("chest.dcm", b"pixels"), SAMPLES) == ("chest.dcm", b"pixels")
    assert read_upload(message("/home/me/a.png", b"x"), SAMPLES).name == "a.png"
    assert read_upload(message("C:\\patients\\a.png", b"x"), SAMPLES).name == "a.png"
    assert len(read_upload(message("a" * 1000, b"x"), SAMPLES).name) == 100
    assert read_upload('{"sample": 1}', SAMPLES) == SAMPLES[1]


@pytest.mark.parametrize(
    "sent",
    [
        *("[]", "1", "null", "{", "{}", '{"sample": 2}', '{"sample": "1"}', '{"sample": [0]}', '{"name": "a.png"}'),
        *('{"name": "a.png", "content": 5}', '{"name": "a.png", "content": "not base64!"}', "[" * 100_000),
    ],
)
def test_messages_that_are_not_of_the_page(sent):
    with pytest.raises(ValueError, match=DAMAGED):
        read_upload(sent, SAMPLES)


def test_images_that_are_missing_empty_or_too_large():
    for nothing in ("", None):
        with pytest.raises(ValueError, match="^Choose a radiograph first: drop a file on the page, or click"):
            read_upload(nothing, SAMPLES)
    with pytest.raises(ValueError, match="^The file is empty: choose another.$"):
        read_upload(message("a.png", b""), SAMPLES)
    with pytest.raises(ValueError, match="^The file is larger than 40 MiB: export it as a smaller PNG.$"):
        read_upload(message("a.png", bytes(MAX_UPLOAD_BYTES + 1)), SAMPLES)


def test_sentences_and_what_they_are_scored_against():
    told = read_sentences("Small left effusion.\n\n  The heart is large. | The heart is normal.  \nCOPD\n")
    assert told == {
        "Small left effusion.": {"positive": "Small left effusion.", "negative": "No small left effusion."},
        "The heart is large.": {"positive": "The heart is large.", "negative": "The heart is normal."},
        "COPD": {"positive": "COPD", "negative": "No COPD"},
    }
    assert read_sentences(None) == read_sentences(" \n") == {}
    assert negate("A nodule.") == "No a nodule." and negate("X-ray.") == "No X-ray."


def test_sentences_that_are_refused():
    with pytest.raises(ValueError, match="^9 sentences are too many: at most 8, one a line.$"):
        read_sentences("Edema.\n" * (MAX_SENTENCES + 1))
    with pytest.raises(ValueError, match="^A sentence has 301 characters: at most 300.$"):
        read_sentences("a" * 301)
    for text in ("| Normal.", "Edema. |"):
        with pytest.raises(ValueError, match="^A side of '|' is empty: write a sentence, |, and its opposite.$"):
            read_sentences(text)
