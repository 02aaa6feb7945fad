"""Trains a CLIP tokenizer on reports, for models that start from random weights."""

import json
from collections.abc import Iterable

from tokenizers import Tokenizer, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import CLIPTokenizer

BOS, EOS, SUFFIX = "<|startoftext|>", "<|endoftext|>", "</w>"


def train_tokenizer(texts: Iterable[str], vocab_size: int = 4000, model_max_length: int = 77) -> CLIPTokenizer:
    """
    Train CLIP's byte-level BPE (lower case, `</w>` at the end of a word) on `texts`.

    The order of the vocabulary is OpenAI's: the 256 bytes, the 256 bytes that end a word, the merges, begin of text,
    end of text. So every text can be encoded, and end of text, which is also the padding token, has the highest id.
    The same texts give the same tokenizer.

    Args:
        texts (`Iterable[str]`): reports, or the part of them that the model will see.
        vocab_size (`int`, *optional*, defaults to 4000):
            Upper bound of `len(tokenizer)`. A small corpus gives fewer tokens, because a merge must occur twice.
        model_max_length (`int`, *optional*, defaults to 77): longest sequence in tokens, with begin and end.

    Returns:
        [`CLIPTokenizer`]: give the model's text config `vocab_size=len(tokenizer)` and its `bos_token_id`,
        `eos_token_id` and `pad_token_id`.

    Raises:
        `ValueError`: no text, or a vocab_size that is too small for the bytes.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    alphabet += [character + SUFFIX for character in alphabet]
    smallest = len(alphabet) + 2
    if vocab_size < smallest:
        raise ValueError(f"vocab_size={vocab_size} is too small; use at least {smallest} (all bytes and two marks).")
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise ValueError(
            "a tokenizer needs training texts, but all are empty; check the text column of the training data."
        )

    blank = CLIPTokenizer()  # only for CLIP's normalizer and pre-tokenizer
    trained = Tokenizer(BPE(end_of_word_suffix=SUFFIX))
    trained.normalizer = blank.backend_tokenizer.normalizer
    trained.pre_tokenizer = blank.backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2,
        min_frequency=2,
        special_tokens=alphabet,  # fixes the ids of the alphabet: the trainer breaks ties between merges by id
        end_of_word_suffix=SUFFIX,
        show_progress=False,
    )
    trained.train_from_iterator(texts, trainer)

    model = json.loads(trained.to_str())["model"]  # only the JSON shows the merges
    words = sorted(model["vocab"], key=model["vocab"].__getitem__) + [BOS, EOS]
    return CLIPTokenizer(
        vocab={word: index for index, word in enumerate(words)},
        merges=[tuple(merge) for merge in model["merges"]],
        model_max_length=model_max_length,
    )
