"""Texts as a model of images and texts was trained to read them, and their embeddings."""

from collections.abc import Sequence

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import BatchEncoding, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

logger = logging.get_logger(__name__)

# The kinds of models (`config.model_type`) whose texts and images are embedded as their owners' processors do it.
FAMILIES = ("tier_clip", "tier_dual_encoder", "clip", "siglip", "siglip2")
PADDED_TO_THE_END = ("siglip", "siglip2")  # trained on texts of one length, whose padding is read as words are


def check_family(config: PreTrainedConfig) -> None:
    """ValueError for a model of a kind whose texts and images are not known to be embedded right here."""
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"A model of the kind {config.model_type!r} is not known to be embedded right here, and could be scored "
            f"wrongly without a sign: use one of the kinds {', '.join(FAMILIES)}."
        )


def tokenize(model: PreTrainedModel, tokenizer, texts: Sequence[str]) -> BatchEncoding:
    """
    The texts as the model was trained to read them: token ids and an attention mask, padded to the longest text, or of
    SigLIP's kinds token ids alone, padded to the model's length. A text too long keeps its end token, with a warning.
    """
    limit = min(tokenizer.model_max_length, model.config.text_config.max_position_embeddings)
    padding = {"padding": True}
    if getattr(model.config, "model_type", None) in PADDED_TO_THE_END:
        padding = {"padding": "max_length", "return_attention_mask": False}
    inputs = tokenizer(list(texts), truncation=True, max_length=limit, return_tensors="pt", **padding)
    if any(encoding.overflowing for encoding in inputs.encodings or ()):
        # without the text, which may be that of a report
        logger.warning_once(
            f"A text longer than the model's {limit} tokens is cut off before its end token; shorten it."
        )
    return inputs


def embed_texts(model: PreTrainedModel, tokenizer, texts: Sequence[str], batch_size: int = 64) -> torch.Tensor:
    """Text embeddings, `(texts, dim)`, L2-normalised, float32, on the device of the text tower."""
    # of offloaded weights nothing but a shape is there; their hooks move the inputs on
    device = next((parameter.device for parameter in model.parameters() if not parameter.is_meta), "cpu")
    embeddings = []
    for start in range(0, len(texts), batch_size):
        inputs = tokenize(model, tokenizer, texts[start : start + batch_size]).to(device)
        inputs = {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}
        features = model.get_text_features(**inputs).pooler_output.float()
        embeddings.append(features / features.norm(dim=-1, keepdim=True))  # NaN, not 0, for one without a direction
    return torch.cat(embeddings)


def text_tower_state(model: PreTrainedModel) -> tuple | None:
    """
    What stored embeddings of texts depend on: of each parameter of the text tower its type, the counter of its
    changes, and 16 of its values, since a change through `.data` (merging of LoRA weights) is not counted. `None`,
    which equals no state, where the weights are offloaded and cannot be looked at.
    """
    parameters = [*model.text_model.parameters(), *model.text_projection.parameters()]
    if any(parameter.is_meta for parameter in parameters):
        return None
    tensors = [tensor for parameter in parameters for tensor in plain_tensors(parameter)]
    versions = [(t.dtype, 0 if t.is_inference() else t._version) for t in tensors]
    samples = [tensor.detach().flatten()[:: max(1, tensor.numel() // 16)][:16].float() for tensor in tensors]
    return versions, torch.cat([sample.to(samples[0].device) for sample in samples]).tolist()


def plain_tensors(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensor itself; of a quantized one those that it is made of, since few operations take the whole."""
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [plain for name in names for plain in plain_tensors(getattr(tensor, name))]
