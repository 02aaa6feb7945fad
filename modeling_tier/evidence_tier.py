"""
The evidence entropy, a term of this project: from how many patches does the evidence for a text come?

With `image_pooling="patch_mean"`, the score of a text and an image is a sum over the patches u_p of the image
(projected, not normalised): cos = sum_p t . u_p / (P |mean u|). What distinguishes the text t from the others is
t - m, with m the mean of all texts of the global batch. So patch p gives the evidence e_p = (t - m) . u_p and has the
share a_p = |e_p| / sum |e|. The entropy H = - sum a_p ln a_p of the shares counts patches: exp(H) lies between 1 and
the number of patches P.

The shares do not need a temperature. They do not change with the length of an image's vectors, nor with a vector that
is added to all texts: it does not change which text fits an image best either, so without m one patch that all texts
share could take all the shares. |e| and not max(e, 0), because evidence against a text comes from patches as well.
Source: this project.

Related: SPARC (Bica et al. 2024, arXiv:2401.09865) aligns tokens with sparse sums of patches.
"""

import math

import torch

# Shorter differences of two L2-normalised texts are rounding: the texts are equal.
SAME_TEXT = 1e-5


def evidence_shares(text_embeds: torch.Tensor, patches: torch.Tensor, text_mean: torch.Tensor) -> torch.Tensor:
    """
    The share of each patch in the evidence for the text of its image.

    Args:
        text_embeds (`torch.Tensor` of shape `(texts, dim)`):
            L2-normalised; all first texts in the order of the images, then, with several texts for each image, all
            second ones, and so on.
        patches (`torch.Tensor` of shape `(images, patches, dim)`): Projected, not normalised.
        text_mean (`torch.Tensor` of shape `(dim,)`): Mean of all texts of the batch, without gradient.

    Returns:
        `torch.Tensor` of shape `(texts, patches)`: In [0, 1], with the sum 1; all 0 where nothing distinguishes the
        text from the mean, or no patch from 0.
    """
    difference = text_embeds - text_mean
    difference = difference * (difference.norm(dim=-1, keepdim=True) > SAME_TEXT)
    of_images = difference.unflatten(0, (-1, len(patches))).permute(1, 2, 0)  # (images, dim, texts of an image)
    evidence = torch.bmm(patches, of_images).permute(2, 0, 1).flatten(0, 1).abs()  # (texts, patches)
    total = evidence.sum(-1, keepdim=True)
    return evidence / total.masked_fill(total == 0, 1.0)


def evidence_entropy_sum(
    text_embeds: torch.Tensor, patches: torch.Tensor, text_mean: torch.Tensor, evidence_patches: float = 1.0
) -> torch.Tensor:
    """
    The penalties max(0, H - ln(evidence_patches)) of texts and their images, summed; H is the entropy of
    [`evidence_shares`]. Divided by the number of such pairs of the global batch, the sum over all is the evidence
    entropy.

    Args:
        text_embeds, patches, text_mean: See [`evidence_shares`].
        evidence_patches (`float`, *optional*, defaults to 1.0):
            At least 1. Evidence from so many patches (exp(H)) or fewer is not penalised.

    Returns:
        `torch.Tensor`: Scalar, nats; in [0, texts * ln(patches / evidence_patches)].

    Raises:
        ValueError: The images have no more patches than `evidence_patches`, so nothing would ever be penalised.
    """
    if 1 < evidence_patches >= patches.shape[1]:
        raise ValueError(
            f"evidence_patches={evidence_patches:g} must be below the number of patches of an image, "
            f"{patches.shape[1]}: more than those cannot hold evidence."
        )
    shares = evidence_shares(text_embeds, patches, text_mean)
    smallest = torch.finfo(shares.dtype).tiny  # the gradient of the logarithm of 0 would be NaN
    entropies = -(shares * shares.clamp(min=smallest).log()).sum(-1)
    return (entropies - math.log(evidence_patches)).clamp(min=0).sum()
