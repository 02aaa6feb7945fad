"""Texts as each kind of model reads them, and tokenizers that do not fit."""

import shutil

import pytest
import torch
from tiny_siglip import make_siglip, make_tokenizer, save_siglip
from transformers import BatchEncoding, PreTrainedTokenizerBase

from evaluation_tier.models.loading import load_model
from modeling_tier import TierSiglipConfig, TierSiglipModel, texts_tier
from modeling_tier.texts_tier import check_tokenizer, embed_texts, text_tower_state, tokenize
from training_tier.options.model import ModelArguments
from training_tier.start.initialization import make_model

LONG = "There is a small left pleural effusion, and the heart is enlarged. " * 3


@pytest.fixture(scope="module")
def siglip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("siglip")
    save_siglip(folder)
    return folder


@pytest.fixture
def copied(siglip_folder, tmp_path):
    return shutil.copytree(siglip_folder, tmp_path / "copy")


def refusals(folder) -> set[str]:
    """What the evaluation and the training say."""
    messages = set()
    for load in (lambda: load_model(folder), lambda: make_model(ModelArguments(model=str(folder)), [])):
        with pytest.raises(ValueError) as error:
            load()
        messages.add(str(error.value))
    return messages


def test_siglips_texts_are_of_one_length_in_lower_case_without_a_mask():
    model, tokenizer = make_siglip(), make_tokenizer(model_input_names=["input_ids", "attention_mask"])
    tokenizer.backend_tokenizer.normalizer = tokenizer.backend_tokenizer.normalizer[1]  # without Lowercase
    inputs = tokenize(model, tokenizer, ["EDEMA.", "edema.", LONG])
    assert list(inputs) == ["input_ids"] and inputs["input_ids"].shape == (3, 64)
    assert torch.equal(inputs["input_ids"][0], inputs["input_ids"][1])
    assert inputs["input_ids"][:, -1].tolist() == [0, 0, inputs["input_ids"][2, -1]]
    with torch.no_grad():
        together = embed_texts(model, tokenizer, ["EDEMA.", LONG])
        torch.testing.assert_close(embed_texts(model, tokenizer, ["edema."])[0], together[0], rtol=0, atol=1e-6)


def test_a_tokenizer_in_python_warns_of_a_truncated_text(monkeypatch):
    """Such as SiglipTokenizer, which does not keep what it cuts off."""

    class Slow(PreTrainedTokenizerBase):
        model_max_length = 64

        def __init__(self):
            pass

        def tokenize(self, text):
            return text.split()

        def __call__(self, texts, **options):
            return BatchEncoding({"input_ids": torch.zeros(len(texts), 64, dtype=torch.long)})

    told: list[str] = []
    monkeypatch.setattr(texts_tier.logger, "warning_once", told.append)
    words = " ".join(["heart"] * 63)  # with the end token they just fit
    tokenize(make_siglip(), Slow(), [words, "edema"])
    assert told == []
    tokenize(make_siglip(), Slow(), [words + " small"])
    assert told == ["A text is longer than the model's 64 tokens and was truncated before its end token. Shorten it."]


def test_the_state_of_siglips_text_tower_changes_with_its_head():
    model = TierSiglipModel(TierSiglipConfig(**make_siglip().config.to_dict()))
    before = text_tower_state(model)
    assert text_tower_state(model) == before
    with torch.no_grad():
        model.text_model.head.weight.add_(1.0)
    assert text_tower_state(model) != before


def test_a_tokenizer_without_its_vocabulary_is_refused(copied):
    """Siglip2Tokenizer then loads, and reads every text as the same unknown token."""
    (copied / "tokenizer.json").unlink()
    (message,) = refusals(copied)
    assert message == (
        "The Siglip2Tokenizer knows 5 tokens and no word of 'chest radiograph': its vocabulary is missing; put the "
        "tokenizer's files (spiece.model or tokenizer.json) beside the model."
    )


def test_siglips_own_tokenizer_without_its_vocabulary_is_refused(copied):
    (copied / "tokenizer.json").unlink()
    (copied / "tokenizer_config.json").write_text('{"tokenizer_class": "SiglipTokenizer"}')
    (message,) = refusals(copied)
    assert message == (
        f"{copied} holds the tokenizer of SigLIP without its vocabulary; put the file spiece.model of the model's "
        "release into the folder."
    )


def test_a_missing_package_is_named(copied, monkeypatch):
    (copied / "tokenizer_config.json").write_text('{"tokenizer_class": "SiglipTokenizer"}')
    (copied / "spiece.model").touch()
    monkeypatch.setattr("modeling_tier.checkpoints.model_folder.is_sentencepiece_available", lambda: False)
    (message,) = refusals(copied)
    assert message == (
        f"{copied} holds the tokenizer of SigLIP, which needs the package sentencepiece: pip install "
        "'tier-clip[siglip]'."
    )


def test_the_tokenizer_of_another_model_is_refused():
    config = make_siglip().config
    config.text_config.vocab_size = 20
    with pytest.raises(ValueError, match="has the token 25, but the model knows 20: use the tokenizer that the model"):
        check_tokenizer(config, make_tokenizer())
