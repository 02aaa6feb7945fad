import pytest
import torch
from transformers.utils import logging

from processing_tier import train_tokenizer
from training_tier.data.collator import PairCollator


def test_a_report_too_long_is_cut_before_its_end_token_and_told_once_without_its_text(monkeypatch):
    tokenizer = train_tokenizer(["small left effusion"], vocab_size=600, model_max_length=24)
    told = []
    monkeypatch.setattr(logging.get_logger("training_tier.data.collator"), "warning_once", told.append)
    pair = {"index": 0, "image_id": "a", "pixel_values": torch.zeros(1, 4, 4, dtype=torch.uint8)}
    pair["text"] = "small left effusion"
    collate = PairCollator(tokenizer)
    collate([pair])
    assert not told
    batch = collate([{**pair, "text": "effusion " * 20}, pair])
    assert batch["input_ids"].shape == (2, 24)
    assert batch["input_ids"][0, -1] == tokenizer.eos_token_id
    assert len(told) == 1 and told[0].startswith("A text is longer than the 24 tokens that the model reads")
    assert "effusion" not in told[0]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize(("words", "length"), [(3, 16), (14, 16), (15, 24), (40, 24)])
def test_texts_are_padded_to_a_multiple_but_not_beyond_what_the_model_reads(side, words, length):
    tokenizer = train_tokenizer(["small left effusion"], vocab_size=600, model_max_length=24)
    tokenizer.padding_side = side
    pairs = [
        {"index": 0, "image_id": "a", "pixel_values": torch.zeros(1, 4, 4, dtype=torch.uint8), "text": "e " * count}
        for count in (words, 1)
    ]
    plain, padded = PairCollator(tokenizer)(pairs), PairCollator(tokenizer, 16)(pairs)
    assert padded["input_ids"].shape == padded["attention_mask"].shape == (2, length)
    keep = plain["input_ids"].shape[1]
    keep = slice(keep) if side == "right" else slice(length - keep, None)
    for name in ("input_ids", "attention_mask"):
        assert torch.equal(padded[name][:, keep], plain[name])
    assert padded["attention_mask"].sum() == plain["attention_mask"].sum()
