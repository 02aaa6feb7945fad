"""How the tokens of an image or of a text become one vector: the modes and their effects."""

import torch

IMAGE_POOLINGS = ("cls", "patch_mean")
NEEDS_CLASS_TOKEN = ("cls",)  # those of IMAGE_POOLINGS that a backbone without a class token does not offer
TEXT_POOLINGS = ("cls", "eos", "mean")
ADDS_UP = ("patch_mean",)  # those of IMAGE_POOLINGS whose image embedding is a sum over the patches, up to its length


def pool_image(
    image_pooling: str, patches: torch.Tensor, class_token: torch.Tensor | None = None, dim: int = 1
) -> torch.Tensor:
    """
    The vector of each image.

    Args:
        image_pooling (`str`): One of `IMAGE_POOLINGS`.
        patches (`torch.Tensor` of shape `(batch, patches, features)`): Those of the image, without a class token.
        class_token (`torch.Tensor` of shape `(batch, features)`, *optional*): For the modes in `NEEDS_CLASS_TOKEN`.
        dim (`int`, *optional*, defaults to 1): The dimension of the patches.

    Returns:
        `torch.Tensor` of shape `(batch, features)`

    Raises:
        ValueError: The mode does not exist.
    """
    if image_pooling == "cls":
        return class_token
    if image_pooling == "patch_mean":
        return patches.mean(dim=dim)
    raise ValueError(f"image_pooling must be one of {', '.join(IMAGE_POOLINGS)}, not {image_pooling!r}.")


def pool_text(text_pooling: str, hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """
    The hidden state, or their mean, that stands for each text.

    Args:
        text_pooling (`str`): One of `TEXT_POOLINGS`: the first token ([CLS]), the last attended one ([SEP]), or the
            mean of all attended tokens, as in sentence-transformers (`Pooling.py` there, mode `mean`).
        hidden (`torch.Tensor` of shape `(texts, tokens, hidden)`): The last hidden states.
        attention_mask (`torch.Tensor` of shape `(texts, tokens)`): 0 for padding.

    Returns:
        `torch.Tensor` of shape `(texts, hidden)`
    """
    if text_pooling == "cls":
        return hidden[:, 0]
    if text_pooling == "mean":
        mask = attention_mask.to(hidden.device).ne(0).to(hidden.dtype)[..., None]  # (texts, tokens, 1)
        return (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
    positions = torch.arange(hidden.shape[1], device=hidden.device)
    last = (attention_mask.to(hidden.device).ne(0) * positions).argmax(-1)
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), last]


def pool_end(hidden: torch.Tensor, input_ids: torch.Tensor, eos_token_id: int) -> torch.Tensor:
    """
    The hidden state of each text's end token, as `CLIPTextModel` pools it (transformers, `modeling_clip.py`): the
    first end token; where `eos_token_id` is 2, which marks an old checkpoint, the highest id.

    Args:
        hidden (`torch.Tensor` of shape `(texts, tokens, hidden)`): The last hidden states.
        input_ids (`torch.Tensor` of shape `(texts, tokens)`): Token ids.
        eos_token_id (`int`): As in the text tower's configuration.

    Returns:
        `torch.Tensor` of shape `(texts, hidden)`
    """
    is_end = input_ids == (input_ids.amax(-1, keepdim=True) if eos_token_id == 2 else eos_token_id)
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), is_end.int().argmax(-1).to(hidden.device)]
