import torch
from transformers.utils import logging

from processing_tier import train_tokenizer
from training_tier.collator import PairCollator


def test_a_report_too_long_is_cut_before_its_end_token_and_told_once_without_its_text(monkeypatch):
    tokenizer = train_tokenizer(["small left effusion"], vocab_size=600, model_max_length=24)
    told = []
    monkeypatch.setattr(logging.get_logger("training_tier.collator"), "warning_once", told.append)
    pair = {"image_id": "a", "pixel_values": torch.zeros(1, 4, 4, dtype=torch.uint8), "text": "small left effusion"}
    collate = PairCollator(tokenizer)
    collate([pair])
    assert not told
    batch = collate([{**pair, "text": "effusion " * 20}, pair])
    assert batch["input_ids"].shape == (2, 24)
    assert batch["input_ids"][0, -1] == tokenizer.eos_token_id
    assert len(told) == 1 and told[0].startswith("A report has more than the 24 tokens that the model reads")
    assert "effusion" not in told[0]
