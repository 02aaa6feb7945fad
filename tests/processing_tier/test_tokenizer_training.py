import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer, CLIPTokenizer

from processing_tier import train_tokenizer

REPORTS = [
    "No acute cardiopulmonary abnormality.",
    "Heart size is normal. The lungs are clear. No pleural effusion or pneumothorax.",
    "Small left pleural effusion. Bibasilar atelectasis.",
    "Right upper lobe opacity, 3 cm, concerning for pneumonia; the heart isn't enlarged.",
] * 3


def test_layout_is_clips():
    tokenizer = train_tokenizer(REPORTS)
    assert type(tokenizer) is CLIPTokenizer
    size = len(tokenizer)
    assert 514 < size < 4000
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (size - 2, size - 1, size - 1)
    assert sorted(tokenizer.get_vocab().values()) == list(range(size))
    assert tokenizer.model_max_length == 77
    encoded = tokenizer(["No pleural effusion.", "Pneumothorax"], padding=True)
    assert encoded["input_ids"][0][0] == size - 2 and encoded["input_ids"][0][-1] == size - 1
    assert encoded["attention_mask"][1] == [1, 1, 1, 0, 0, 0]
    assert encoded["input_ids"][1][2:] == [size - 1] * 4


def test_frequent_words_are_one_token_and_case_does_not_count():
    tokenizer = train_tokenizer(REPORTS)
    assert tokenizer.tokenize("PLEURAL effusion.") == ["pleural</w>", "effusion</w>", ".</w>"]
    assert tokenizer("Heart") == tokenizer("heart")


@pytest.mark.parametrize("text", ["no effusion", "42 mm, r/o t.b.", "naïve \u2603 \u4e2d", "x" * 300, ""])
def test_any_text_comes_back(text):
    tokenizer = train_tokenizer(["no"])
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.eos_token_id not in ids[:-1]  # nothing unknown
    plain = tokenizer.decode(ids, skip_special_tokens=True)
    assert plain.replace(" ", "") == text.lower().replace(" ", "")


def test_truncation_keeps_the_end_mark():
    tokenizer = train_tokenizer(REPORTS, model_max_length=10)
    ids = tokenizer(REPORTS[1], truncation=True)["input_ids"]
    assert len(ids) == 10 and ids[-1] == tokenizer.eos_token_id


def test_vocab_size_is_a_bound():
    assert len(train_tokenizer(REPORTS, vocab_size=520)) == 520
    assert len(train_tokenizer(["a"], vocab_size=4000)) == 514
    with pytest.raises(ValueError) as error:
        train_tokenizer(REPORTS, vocab_size=513)
    assert str(error.value) == "vocab_size=513 is too small; use at least 514 (all bytes and two marks)."


@pytest.mark.parametrize("texts", [[], ["", "  \n"]])
def test_no_text(texts):
    with pytest.raises(ValueError) as error:
        train_tokenizer(texts)
    assert str(error.value) == (
        "a tokenizer needs training texts, but all are empty; check the text column of the training data."
    )


def test_save_and_load(tmp_path):
    tokenizer = train_tokenizer(REPORTS, model_max_length=20)
    tokenizer.save_pretrained(tmp_path)
    for loaded in (AutoTokenizer.from_pretrained(tmp_path), CLIPTokenizer.from_pretrained(tmp_path)):
        assert type(loaded) is CLIPTokenizer
        assert loaded.get_vocab() == tokenizer.get_vocab()
        assert loaded.model_max_length == 20
        options = {"padding": "max_length", "truncation": True}
        assert loaded(REPORTS, **options).data == tokenizer(REPORTS, **options).data
        assert loaded.decode(loaded(REPORTS[3])["input_ids"]) == tokenizer.decode(tokenizer(REPORTS[3])["input_ids"])


@pytest.mark.slow
def test_the_same_in_every_process(shared_data):
    """Hash seeds differ from one process to the next, and none may show in the vocabulary."""
    script = """
import hashlib, sys
from processing_tier import train_tokenizer
from processing_tier.readers import read_records
texts = read_records(sys.argv[1], "validation")["report"]
print(hashlib.sha256(train_tokenizer(texts).backend_tokenizer.to_str().encode()).hexdigest())
"""
    command = [sys.executable, "-c", script, str(shared_data / "iu_cxr")]
    root = Path(__file__).resolve().parents[2]
    runs = [subprocess.run(command, cwd=root, capture_output=True, text=True, check=True) for _ in range(3)]
    assert len({run.stdout for run in runs}) == 1
