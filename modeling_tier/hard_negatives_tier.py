"""
Hard negatives: a text that contradicts an image's own text competes with it, in the softmax of that image alone.

The text may be true of another image ("No effusion." is the contradiction of "Effusion."), so no other image is
contrasted with it, and it has no softmax of its own. With Z_i the log of the sum over the softmax of image i, and n_i
the logit of its hard negative, the cross-entropy of the image grows from Z_i - l_i to

    log(exp Z_i + exp n_i) - l_i  =  (Z_i - l_i) + softplus(n_i - Z_i)

Negations as hard negatives: Ko and Park 2025 (arXiv:2505.22079, abstract). The form here is this project's.
"""

from typing import NamedTuple

import torch
from torch import nn


class HardNegatives(NamedTuple):
    """One text for each of some images that contradicts it."""

    texts: torch.Tensor  # (images, dim), L2-normalised
    mask: torch.Tensor  # (images,), bool: whether the image has such a text; the others do not count


def hard_negative_loss(
    normalizers: torch.Tensor, images: torch.Tensor, negatives: HardNegatives, scale: torch.Tensor
) -> torch.Tensor:
    """
    What the hard negatives add to the cross-entropies of their images, summed.

    Args:
        normalizers (`torch.Tensor` of shape `(images,)`): The log of the sum over the softmax of each image.
        images (`torch.Tensor` of shape `(images, dim)`): L2-normalised.
        negatives ([`HardNegatives`]): Of these images.
        scale (`torch.Tensor`): Scalar, the factor of the cosines.

    Returns:
        `torch.Tensor`: Scalar, nats; 0 where no image has a hard negative.
    """
    logits = (images * negatives.texts).sum(-1) * scale
    return (nn.functional.softplus(logits - normalizers) * negatives.mask).sum()
