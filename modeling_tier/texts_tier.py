"""Texts as a model was trained to read them, and their embeddings, for CLIP's and SigLIP's kinds as well as TIER's."""

from collections.abc import Sequence

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import BatchEncoding, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Kinds of models (`config.model_type`) whose texts and images are embedded here as their own processors do it.
FAMILIES = ("tier_clip", "tier_siglip", "tier_dual_encoder", "clip", "siglip", "siglip2")

# SigLIP's kinds. They were trained on lower-case texts of one length, and attend to the padding (transformers' page of
# SigLIP 2; MedSigLIP's own code, python/serving/predictor.py:138-151 at 56b1447).
PADDED_TO_THE_END = ("tier_siglip", "siglip", "siglip2")

PROBE = "chest radiograph"


def check_family(config: PreTrainedConfig) -> None:
    """Raises ValueError for a kind of model that this file may embed wrongly."""
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"Models of the kind {config.model_type!r} are not supported, because wrong scores would go unnoticed. "
            f"Use one of the kinds {', '.join(FAMILIES)}."
        )


def is_padded_to_the_end(config: PreTrainedConfig) -> bool:
    """Whether a model reads lower-case texts, padded to its length, without an attention mask: SigLIP's kinds."""
    return getattr(config, "model_type", None) in PADDED_TO_THE_END


def check_tokenizer(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """
    Raises:
        ValueError: The tokenizer does not know a word of a plain text, or has ids that the model lacks: its vocabulary
            is missing, or it belongs to another model.
    """
    ids = set(tokenizer(PROBE)["input_ids"])
    vocab_size = getattr(config.text_config, "vocab_size", None)
    if not ids - set(tokenizer.all_special_ids):
        raise ValueError(
            f"The {type(tokenizer).__name__} knows {len(tokenizer)} tokens and no word of {PROBE!r}: its vocabulary "
            "is missing; put the tokenizer's files (spiece.model or tokenizer.json) beside the model."
        )
    if vocab_size is not None and max(ids) >= vocab_size:
        raise ValueError(
            f"The {type(tokenizer).__name__} has the token {max(ids)}, but the model knows {vocab_size}: use the "
            "tokenizer that the model was trained with."
        )


def tokenize(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> BatchEncoding:
    """
    The texts as the model was trained to read them: token ids and an attention mask, padded to the longest text.
    SigLIP's kinds get only token ids, of the text in lower case, padded to the model's length. A longer text is
    truncated with a warning; it keeps its end token.
    """
    limit = min(tokenizer.model_max_length, model.config.text_config.max_position_embeddings)
    padding = {"padding": True}
    if is_padded_to_the_end(model.config):
        padding = {"padding": "max_length", "return_attention_mask": False}
        texts = [text.lower() for text in texts]
    inputs = tokenizer(list(texts), truncation=True, max_length=limit, return_tensors="pt", **padding)
    if is_any_truncated(tokenizer, inputs, texts, limit):
        # without the text, which may come from a report
        logger.warning_once(
            f"A text is longer than the model's {limit} tokens and was truncated before its end token. Shorten it."
        )
    return inputs


def is_any_truncated(
    tokenizer: PreTrainedTokenizerBase, inputs: BatchEncoding, texts: Sequence[str], limit: int
) -> bool:
    """Whether one of these texts, which became `inputs`, has more than `limit` tokens with its end token."""
    if inputs.encodings is not None or not isinstance(tokenizer, PreTrainedTokenizerBase):
        return any(encoding.overflowing for encoding in inputs.encodings or ())
    # A tokenizer in Python (SiglipTokenizer) does not keep what it cuts off. A token has at least one character.
    return any(len(tokenizer.tokenize(text)) >= limit for text in texts if len(text) >= limit - 1)


def model_inputs(tokens: BatchEncoding, device: torch.device | str) -> dict[str, torch.Tensor]:
    """What a text tower takes of tokenized texts, on `device`: the token ids and, where there is one, the mask."""
    return {name: tokens[name].to(device) for name in ("input_ids", "attention_mask") if name in tokens}


def word_positions(word_ids: Sequence[int | None]) -> dict[int, list[int]]:
    """The positions of the tokens of each word, by the number of the word; special tokens belong to none."""
    positions: dict[int, list[int]] = {}
    for position, word in enumerate(word_ids):
        if word is not None:
            positions.setdefault(word, []).append(position)
    return positions


def embed_texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], batch_size: int = 64
) -> torch.Tensor:
    """Text embeddings, `(texts, dim)`, L2-normalised, float32, on the device of the text tower."""
    # offloaded weights are meta tensors; their hooks move the inputs
    device = next((parameter.device for parameter in model.parameters() if not parameter.is_meta), "cpu")
    embeddings = []
    for start in range(0, len(texts), batch_size):
        inputs = tokenize(model, tokenizer, texts[start : start + batch_size])
        features = model.get_text_features(**model_inputs(inputs, device)).pooler_output.float()
        embeddings.append(features / features.norm(dim=-1, keepdim=True))  # NaN, not 0, for a zero vector
    return torch.cat(embeddings)


def text_tower_state(model: PreTrainedModel) -> tuple | None:
    """
    The state that stored text embeddings depend on: for each parameter of the text tower, its dtype, its version
    counter and 16 of its values, because the counter misses changes through `.data` (merging LoRA weights). `None` if
    the weights are offloaded and cannot be read; nothing may be stored then.
    """
    projection = getattr(model, "text_projection", None)  # SigLIP's is in the tower
    parameters = [*model.text_model.parameters(), *(() if projection is None else projection.parameters())]
    if any(parameter.is_meta for parameter in parameters):
        return None
    tensors = [tensor for parameter in parameters for tensor in plain_tensors(parameter)]
    versions = [(t.dtype, 0 if t.is_inference() else t._version) for t in tensors]
    samples = [tensor.detach().flatten()[:: max(1, tensor.numel() // 16)][:16].float() for tensor in tensors]
    return versions, torch.cat([sample.to(samples[0].device) for sample in samples]).tolist()


def plain_tensors(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensor itself, or the parts of a quantized tensor, which few operations accept as a whole."""
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [plain for name in names for plain in plain_tensors(getattr(tensor, name))]
