"""What the button of the page does with a question, without a browser."""

import dataclasses
import json
import logging

import pytest

pytest.importorskip("gradio", reason="the page needs Gradio: pip install -e '.[app]'")

from evaluation_tier.app.page import COMMON, MAX_WAITING, build_page


def ask_of(page):
    """The function of the button "Ask"."""
    (function,) = page.fns.values()
    return function.fn


def test_an_answer_or_one_sentence(model, samples):
    ask = ask_of(build_page([model], samples))
    answer = ask('{"sample": 0}', ["Edema"], "Small effusion.")
    assert 'data-row="finding Edema"' in answer and 'data-row="finding Small effusion."' in answer
    assert ask("", ["Edema"], "").startswith('<div class="tier-error" role="alert">Choose a radiograph first')
    assert ask('{"sample": 0}', [], None).endswith("Choose a finding, or write a sentence.</div>")
    bad = json.dumps({"name": "/secret/notes.txt", "content": "c29tZSB0ZXh0"})
    assert ask(bad, ["Edema"], "").endswith("notes.txt: the file is text, not an image; name the image file.</div>")


def test_a_defect_shows_neither_a_path_nor_a_traceback(model, samples, caplog):
    broken = dataclasses.replace(model, pipe=None)
    with caplog.at_level(logging.ERROR):
        answer = ask_of(build_page([broken], samples))('{"sample": 0}', ["Edema"], "Of this patient.")
    sentence = "The page could not answer this question. The log of its server says where it failed."
    assert answer == f'<div class="tier-error" role="alert">{sentence}</div>'
    assert "A question was not answered: AttributeError" in caplog.text and "answers.py" in caplog.text
    assert "Of this patient." not in caplog.text


def test_the_queue_is_bounded_and_nothing_is_reported(model, samples):
    page = build_page([model, model], samples)
    config = page.get_config_file()
    assert not page.analytics_enabled and page._queue.max_size == MAX_WAITING and not page.api_open
    boxes = [component["props"] for component in config["components"] if component["type"] == "checkboxgroup"]
    assert [box["choices"] for box in boxes] == [[(name, name) for name in model.findings]]
    assert boxes[0]["value"] == [name for name in model.findings if name in COMMON]
