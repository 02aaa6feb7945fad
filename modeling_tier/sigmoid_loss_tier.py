"""
SigLIP's contrastive term (Zhai et al. 2023, arXiv:2303.15343): a yes-or-no question about each pair of a text and an
image, over the global batch.
"""

import torch
from torch import nn

from .contrastive_loss_tier import pair
from .global_batch_tier import Pairs, gather_pairs, group_sizes, world_size


def sigmoid_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor,
    logit_bias: torch.Tensor,
    text_groups: torch.Tensor | None = None,
    texts_per_image: int = 0,
) -> torch.Tensor:
    """
    With the logits l_si = exp(logit_scale) cos(s, i) + logit_bias, and z_si = 1 where text s belongs to image i and -1
    elsewhere: the mean over the texts of `- sum over the images of log sigmoid(z_si l_si)` (big_vision,
    trainers/proj/image_text/siglip.py:287 at 01edb81).

    On one process and without `texts_per_image`, the operations and their order are those of `SiglipModel`, so the
    result is equal to the last bit. With several processes, each compares its own texts with all images, and never
    holds the whole matrix. The mean over the processes is the loss of the global batch.

    Args:
        image_embeds (`torch.Tensor` of shape `(batch, dim)`): L2-normalised.
        text_embeds (`torch.Tensor` of shape `(texts, dim)`):
            L2-normalised; all first texts in the order of the images, then all second ones, and so on.
        logit_scale (`torch.Tensor`), logit_bias (`torch.Tensor`): As in `SiglipModel`.
        text_groups (`torch.Tensor` of shape `(texts,)`, *optional*):
            int64, equal for texts that say the same. Each of them belongs to the images of all.
        texts_per_image (`int`, *optional*, defaults to 0):
            Texts of each image, the same in all processes; each belongs to it. Texts that say the same then count
            once together in the mean over the texts. 0 for one text per image, each of which counts.

    Returns:
        `torch.Tensor`: Scalar, nats.

    Raises:
        ValueError: The number of texts does not fit that of the images.
    """
    own = pair(image_embeds, text_embeds, text_groups, texts_per_image)
    if world_size() == 1 and not texts_per_image:
        return losses_of_texts(own, own, 0, logit_scale, logit_bias).mean()
    return sigmoid_loss_share(own, *gather_pairs(own), logit_scale, logit_bias)


def sigmoid_loss_share(
    own: Pairs, all_pairs: Pairs, first: int, logit_scale: torch.Tensor, logit_bias: torch.Tensor
) -> torch.Tensor:
    """
    The part of some images' texts in [`sigmoid_loss`], times the number of processes, because DistributedDataParallel
    averages the gradients over them.

    Args:
        own ([`Pairs`]): Those images with their texts; their groups are those of `all_pairs`.
        all_pairs ([`Pairs`]): All pairs, `own` among them.
        first (`int`): Index of the first image of `own` in `all_pairs`.
        logit_scale, logit_bias: See [`sigmoid_loss`].

    Returns:
        `torch.Tensor`: Scalar, nats.
    """
    losses = losses_of_texts(own, all_pairs, first, logit_scale, logit_bias)
    if not all_pairs.each_group_once or all_pairs.groups is None:
        return losses.sum() * (world_size() / len(all_pairs.texts))
    weights = 1 / group_sizes(all_pairs.groups)
    start = first * all_pairs.texts_per_image
    return (weights[start : start + len(losses)] * losses).sum() * (world_size() / weights.sum())


def losses_of_texts(
    own: Pairs, all_pairs: Pairs, first: int, logit_scale: torch.Tensor, logit_bias: torch.Tensor
) -> torch.Tensor:
    """For each text of `own` (see [`sigmoid_loss_share`]) the sum over all images, nats, `(texts,)`."""
    logits = torch.matmul(own.texts, all_pairs.images.t()) * logit_scale.exp() + logit_bias  # (texts, images)
    belongs = belonging(all_pairs, first * all_pairs.texts_per_image, len(own.texts))
    signs = -torch.ones_like(logits) + 2 * belongs.to(logits.dtype)
    return -nn.functional.logsigmoid(signs * logits).sum(dim=-1)


def belonging(all_pairs: Pairs, start: int, count: int) -> torch.Tensor:
    """Which images (columns) `count` texts from the text `start` on (rows) belong to; bool."""
    per_image, device = all_pairs.texts_per_image, all_pairs.texts.device
    if all_pairs.groups is None:
        image_of = torch.arange(start, start + count, device=device) // per_image
        return image_of[:, None] == torch.arange(len(all_pairs.images), device=device)
    own = all_pairs.groups[start : start + count]
    return (own[:, None, None] == all_pairs.groups.view(1, -1, per_image)).any(-1)
