"""Texts as a model was trained to read them, and their embeddings, for CLIP's and SigLIP's kinds as well as TIER's."""

from collections.abc import Sequence

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import BatchEncoding, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Kinds of models (`config.model_type`) whose texts and images are embedded here as their own processors do it.
FAMILIES = ("tier_clip", "tier_dual_encoder", "clip", "siglip", "siglip2")
PADDED_TO_THE_END = ("siglip", "siglip2")  # trained on texts of one length, and they attend to the padding


def check_family(config: PreTrainedConfig) -> None:
    """Raises ValueError for a kind of model that this file may embed wrongly."""
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"Models of the kind {config.model_type!r} are not supported, because wrong scores would go unnoticed. "
            f"Use one of the kinds {', '.join(FAMILIES)}."
        )


def tokenize(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> BatchEncoding:
    """
    The texts as the model was trained to read them: token ids and an attention mask, padded to the longest text.
    SigLIP's kinds get only token ids, padded to the model's length. A longer text is truncated with a warning; it
    keeps its end token.
    """
    limit = min(tokenizer.model_max_length, model.config.text_config.max_position_embeddings)
    padding = {"padding": True}
    if getattr(model.config, "model_type", None) in PADDED_TO_THE_END:
        padding = {"padding": "max_length", "return_attention_mask": False}
    inputs = tokenizer(list(texts), truncation=True, max_length=limit, return_tensors="pt", **padding)
    if any(encoding.overflowing for encoding in inputs.encodings or ()):
        # without the text, which may come from a report
        logger.warning_once(
            f"A text is longer than the model's {limit} tokens and was truncated before its end token. Shorten it."
        )
    return inputs


def embed_texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], batch_size: int = 64
) -> torch.Tensor:
    """Text embeddings, `(texts, dim)`, L2-normalised, float32, on the device of the text tower."""
    # offloaded weights are meta tensors; their hooks move the inputs
    device = next((parameter.device for parameter in model.parameters() if not parameter.is_meta), "cpu")
    embeddings = []
    for start in range(0, len(texts), batch_size):
        inputs = tokenize(model, tokenizer, texts[start : start + batch_size]).to(device)
        inputs = {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}
        features = model.get_text_features(**inputs).pooler_output.float()
        embeddings.append(features / features.norm(dim=-1, keepdim=True))  # NaN, not 0, for a zero vector
    return torch.cat(embeddings)


def text_tower_state(model: PreTrainedModel) -> tuple | None:
    """
    The state that stored text embeddings depend on: for each parameter of the text tower, its dtype, its version
    counter and 16 of its values, because the counter misses changes through `.data` (merging LoRA weights). `None` if
    the weights are offloaded and cannot be read; nothing may be stored then.
    """
    parameters = [*model.text_model.parameters(), *model.text_projection.parameters()]
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
