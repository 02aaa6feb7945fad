"""Text embeddings of the pipeline: computed once, dropped with the weights, and as the model embeds them."""

import copy
import sys

import pytest
import torch
from pipeline_checks import SENTENCES, Calls, assert_same, make_image, scores
from transformers import pipeline
from transformers.utils import logging

from modeling_tier import TierCLIPModel
from modeling_tier.pipeline_tier import MAX_CACHED_TEXTS, TASK
from modeling_tier.texts_tier import embed_texts, tokenize
from processing_tier import train_tokenizer


def test_a_text_embedding_is_computed_once(pipe, monkeypatch):
    image, calls = make_image(40, 50), Calls(pipe.model, monkeypatch)
    first, second = pipe([image, image])
    assert calls.texts == [5]  # the sentences of both findings, in one batch
    assert pipe(image) == first == second
    assert_same(pipe([image] * 3, "Edema")[2], first[:1])
    assert calls.texts == [5]
    pipe(image, {"Edema": {"positive": ["Oedema.", SENTENCES[2]], "negative": SENTENCES[3:]}})
    assert calls.texts == [5, 1]  # the new sentence alone


def test_cached_embeddings_end_with_the_weights(pipe, models, monkeypatch):
    image = make_image(40, 50)
    calls = Calls(pipe.model, monkeypatch)
    before = pipe(image)

    def check_recomputed():
        fresh = pipeline(TASK, model=pipe.model, processor=pipe.processor, device="cpu")
        number = len(calls.texts)
        now = pipe(image)
        assert len(calls.texts) == number + 1
        assert now == fresh(image)
        return now

    weight = next(iter(pipe.model.text_projection.parameters()))
    with torch.no_grad():
        weight[0, 0] += 1  # counted by torch
    changed = check_recomputed()
    assert scores(changed) != scores(before)
    layer = max(pipe.model.text_model.parameters(), key=lambda parameter: parameter.numel())
    layer.data += 0.1 * torch.randn(layer.shape[0], 1)  # not counted, as when LoRA weights are merged
    assert scores(check_recomputed()) != scores(changed)
    kind = "clip" if isinstance(pipe.model, TierCLIPModel) else "dual"
    pipe.model.load_state_dict(models[kind].state_dict())
    assert check_recomputed() == before
    optimizer = torch.optim.SGD(pipe.model.text_projection.parameters(), lr=10.0)
    pipe.model.get_image_features(torch.ones(1, 3, 32, 32))
    pipe.model.text_projection(torch.ones(1, 32)).sum().backward()
    optimizer.step()
    check_recomputed()
    pipe.model.double()
    check_recomputed()


def test_cached_embeddings_end_with_model_and_tokenizer(clip_pipe, models, processor):
    image = make_image(40, 50)
    before = clip_pipe(image)
    other = copy.deepcopy(models["clip"])
    torch.nn.init.normal_(other.text_projection.weight)
    clip_pipe.model = other
    assert clip_pipe(image) == pipeline(TASK, model=other, processor=processor, device="cpu")(image) != before
    clip_pipe.model = models["clip"]
    assert clip_pipe(image) == before
    clip_pipe.tokenizer = train_tokenizer(["zzz"], 600, model_max_length=20)
    assert clip_pipe(image) != before


def test_the_cache_is_bounded(clip_pipe, monkeypatch):
    monkeypatch.setattr(sys.modules["modeling_tier.pipeline_tier"], "MAX_CACHED_TEXTS", 3)
    image = make_image(40, 50)
    expected = pipeline(TASK, model=clip_pipe.model, processor=clip_pipe.processor, device="cpu")(image)
    for _ in range(2):
        assert_same(clip_pipe(image), expected)  # of five sentences
        assert len(clip_pipe._text_cache) == 3
    assert MAX_CACHED_TEXTS == 4096


def test_a_long_text_keeps_its_end_token_and_is_told_once(pipe, caplog, monkeypatch):
    logging.get_logger("modeling_tier.findings_tier").warning_once.__func__.cache_clear()
    monkeypatch.setattr(logging.get_logger("transformers"), "propagate", True)
    text = "Effusion. " * 40
    tokens = tokenize(pipe.model, pipe.tokenizer, [text, "Effusion."])
    assert tokens["input_ids"].shape == (2, 20)
    assert tokens["input_ids"][0, -1] == pipe.tokenizer.eos_token_id and tokens["attention_mask"][0].all()
    image = make_image(40, 50)
    pipe._text_cache_key = None
    with caplog.at_level("WARNING"):
        cut = pipe(image, {"A": {"positive": text, "negative": "No."}})
        pipe(image, {"A": {"positive": text, "negative": "Not."}})
        pipe._text_cache_key = None
        pipe(image, {"A": {"positive": text, "negative": "No."}})
    told = [record.message for record in caplog.records if "tokens" in record.message]
    assert told == ["A text is longer than the model's 20 tokens and was truncated before its end token. Shorten it."]
    kept = pipe.tokenizer.decode(tokens["input_ids"][0], skip_special_tokens=True)
    assert scores(pipe(image, {"A": {"positive": kept, "negative": "No."}})) == pytest.approx(scores(cut), abs=1e-6)


def test_texts_are_embedded_as_the_model_embeds_them(clip_pipe):
    tokens = clip_pipe.tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        output = clip_pipe.model(**tokens, pixel_values=torch.zeros(1, 3, 32, 32))
        embeds = embed_texts(clip_pipe.model, clip_pipe.tokenizer, SENTENCES, batch_size=3)
    torch.testing.assert_close(embeds, output.text_embeds, rtol=0, atol=1e-6)
