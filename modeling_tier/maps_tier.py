"""
Similarity maps on the grid of patches: the cosine of each patch with texts. All code that draws or measures maps uses
these. The image processor maps them to original pixels (`post_process_similarity_map`).
"""

import torch
from torch.nn import functional as F


def mean_direction(text_embeds: torch.Tensor) -> torch.Tensor:
    """
    One embedding for several sentences: their mean, normalised again (TIER, CLIP_Embedding.py:221-232; CheXzero,
    zero_shot.py:119-124).

    Args:
        text_embeds (`torch.Tensor` of shape `(sentences, dim)`): L2-normalised.

    Returns:
        `torch.Tensor` of shape `(dim,)`: L2-normalised.
    """
    return F.normalize(text_embeds.mean(dim=0), dim=-1)


def similarity_map(text_embeds: torch.Tensor, patch_map: torch.Tensor) -> torch.Tensor:
    """
    Cosine of each text with each patch of each image. Each text has its own matrix product, so that its map does not
    depend on the other texts, to the last bit.

    Args:
        text_embeds (`torch.Tensor` of shape `(..., dim)`): L2-normalised.
        patch_map (`torch.Tensor` of shape `(images, rows, columns, dim)`): As `get_patch_map` returns it.

    Returns:
        `torch.Tensor` of shape `(images, ..., rows, columns)`: float32, in [-1, 1], on the device of the texts.
    """
    patches = F.normalize(patch_map.to(text_embeds.device).float(), dim=-1)
    return cosine_map(text_embeds, patches)


def cosine_map(text_embeds: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
    """What `similarity_map` gives, of float32 patches that are L2-normalised and on the device of the texts."""
    texts = text_embeds.float().reshape(-1, text_embeds.shape[-1])  # (texts, dim)
    maps = torch.stack([patches @ text for text in texts], dim=1)  # (images, texts, rows, columns)
    return maps.unflatten(1, text_embeds.shape[:-1]) if text_embeds.ndim > 1 else maps[:, 0]
