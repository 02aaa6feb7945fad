"""The tokenizer of a converted model. Its name or folder is checked by the caller."""

from transformers import (
    AutoTokenizer,
    BertTokenizer,
    CLIPConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

TIER_MAX_LENGTH = 128  # tokens (authors' code, Modeling/CLIP_Embedding.py:79-82)


def load_checkpoint_tokenizer(name: str, config: PreTrainedConfig, kind: str) -> PreTrainedTokenizerBase:
    """
    Loads a tokenizer that truncates texts to the length the model was trained on, with their begin and end tokens.

    Args:
        name (`str`): A folder, or a name on the Hub.
        config ([`TierCLIPConfig`] or [`TierDualEncoderConfig`]):
            Of the model. A CLIP text configuration gets the tokenizer's special tokens.
        kind (`str`): The kind of checkpoint, one of `KINDS`.

    Raises:
        ValueError: The tokenizer cannot be loaded, or its tokens are not the model's.
    """
    is_clip, text_config = isinstance(config, CLIPConfig), config.text_config
    try:
        if is_clip:
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        else:  # CXR-BERT's own class is remote code, and equals BERT's in all that matters here
            tokenizer = BertTokenizer.from_pretrained(name)
    except Exception as error:  # transformers raises many kinds for damaged files
        files = "tokenizer.json, or vocab.json and merges.txt" if is_clip else "vocab.txt"
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ValueError(
            f"the tokenizer {name!r} cannot be loaded ({reason}). Pass --tokenizer with a folder that holds {files}."
        ) from None
    if len(tokenizer) > text_config.vocab_size:
        raise ValueError(
            f"the tokenizer {name!r} has {len(tokenizer)} tokens, the model {text_config.vocab_size}. Pass the "
            "model's own with --tokenizer."
        )
    if not is_clip:
        longest = TIER_MAX_LENGTH if kind == "tier" else text_config.max_position_embeddings
        tokenizer.model_max_length = min(longest, text_config.max_position_embeddings)
        return tokenizer
    # 2 marks an old configuration, which pools the text at its highest token id.
    end = text_config.vocab_size - 1 if text_config.eos_token_id == 2 else text_config.eos_token_id
    if tokenizer.eos_token_id != end:
        raise ValueError(
            f"the tokenizer {name!r} ends a text with the token {tokenizer.eos_token_id}, the model with {end}. Pass "
            "the model's own with --tokenizer."
        )
    for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(text_config, token, getattr(tokenizer, token))
    tokenizer.model_max_length = text_config.max_position_embeddings
    return tokenizer
