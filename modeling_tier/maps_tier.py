"""
Similarity maps on the grid of patches: what each patch adds to the cosine of image and text, or its own cosine. All
code that draws or measures maps uses these. The image processor maps them to original pixels
(`post_process_similarity_map`).
"""

import torch
from torch.nn import functional as F
from transformers import PreTrainedConfig

from .pooling_tier import ADDS_UP

MAP_KINDS = ("contribution", "cosine", "direct")


def map_kinds(config: PreTrainedConfig) -> tuple[str, ...]:
    """
    Those of `MAP_KINDS` that a model has; people see the first one.

    Args:
        config (`PreTrainedConfig`): Of a TIER model.
    """
    if config.image_pooling in ADDS_UP:
        return "contribution", "cosine"
    if config.model_type == "tier_clip" and config.image_pooling == "cls":
        return "direct", "cosine"
    return ("cosine",)


def check_map_kind(kind: str, config: PreTrainedConfig) -> None:
    """
    Raises:
        ValueError: The kind does not exist, or a model with this configuration does not have such maps.
    """
    if kind not in MAP_KINDS:
        raise ValueError(f"kind must be one of {', '.join(map(repr, MAP_KINDS))}, not {kind!r}.")
    if kind == "contribution" and config.image_pooling not in ADDS_UP:
        raise ValueError(
            f'The image embedding of a model with image_pooling="{config.image_pooling}" is not a sum over its '
            f'patches, so the model does not have kind="contribution"; pass kind="{map_kinds(config)[0]}".'
        )


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


def patch_weights(patch_map: torch.Tensor) -> torch.Tensor:
    """
    How much each patch weighs in the mean of the patches: with the patches u, `|u_p| / (P |mean of u|)`.

    A cosine of a patch times its weight is the patch's contribution. Where the mean is 0, the image does not have a
    direction: its cosines count as 0, as `torch.nn.functional.normalize` has it, and so do its weights.

    Args:
        patch_map (`torch.Tensor` of shape `(images, rows, columns, dim)`): As `get_patch_map` returns it.

    Returns:
        `torch.Tensor` of shape `(images, rows, columns)`: float32, at least 0.
    """
    patches = patch_map.float()
    rows, columns = patches.shape[1:3]
    length = patches.mean(dim=(1, 2)).norm(dim=-1)[:, None, None]  # (images, 1, 1)
    return torch.where(length == 0, 0.0, patches.norm(dim=-1) / (rows * columns * length))


def similarity_map(text_embeds: torch.Tensor, patch_map: torch.Tensor, kind: str = "cosine") -> torch.Tensor:
    """
    The map of each text on each image. Each text has its own matrix product, so that its map does not depend on the
    other texts, to the last bit.

    The image embedding of `image_pooling="patch_mean"` is the mean of the patches u, so the cosine of text and
    image is a sum over patches: `cos(t, image) = sum over p of t . u_p / (P |mean of u|)`. These summands are the
    contributions. By linearity, those of a difference of two texts are the difference of the maps.

    Args:
        text_embeds (`torch.Tensor` of shape `(..., dim)`): L2-normalised; of texts, tokens, or a [`mean_direction`].
        patch_map (`torch.Tensor` of shape `(images, rows, columns, dim)`): As `get_patch_map` returns it.
        kind (`str`, *optional*, defaults to `"cosine"`):
            `"cosine"` of the text with each patch, in [-1, 1] (BioViL: Boecking et al., ECCV 2022), or
            `"contribution"` of each patch; these sum to the cosine of the text with the image embedding.

    Returns:
        `torch.Tensor` of shape `(images, ..., rows, columns)`: float32, on the device of the texts.
    """
    patch_map = patch_map.to(text_embeds.device).float()
    maps = cosine_map(text_embeds, F.normalize(patch_map, dim=-1))
    return contribution_map(maps, patch_weights(patch_map)) if kind == "contribution" else maps


def contribution_map(cosines: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The contributions of patches with these cosines (images, ..., rows, columns) and [`patch_weights`]."""
    return cosines * weights.reshape(len(weights), *[1] * (cosines.ndim - 3), *weights.shape[1:])


def cosine_map(text_embeds: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
    """The cosines of `similarity_map`, of float32 patches that are L2-normalised and on the device of the texts."""
    texts = text_embeds.float().reshape(-1, text_embeds.shape[-1])  # (texts, dim)
    maps = torch.stack([patches @ text for text in texts], dim=1)  # (images, texts, rows, columns)
    return maps.unflatten(1, text_embeds.shape[:-1]) if text_embeds.ndim > 1 else maps[:, 0]
