"""
Relaxed positives: a text and its image that are close enough stop attracting each other.

The plain contrastive loss pulls a text and its image together until nothing else is near, although a report also says
much that its image shares with others. Jang et al. 2022 (arXiv:2212.07050, abstract) relax the loss of positive pairs
for this reason. The formula here is this project's: with the factor s of the cosines and a ceiling m, the logit of a
positive pair is

    s * min(cosine, m)

in both softmaxes, and that of a negative pair is s * cosine as before. Above m, a pair does not pull at its embeddings
any more, while the negatives still push. Below m, and with m = 1, nothing changes.
"""

import torch
from torch import nn


def relax_positives(
    logits: torch.Tensor, target: torch.Tensor, scale: torch.Tensor, max_positive_cosine: float
) -> torch.Tensor:
    """
    The logits with those of positive pairs limited to `scale * max_positive_cosine`.

    Args:
        logits (`torch.Tensor` of shape `(rows, columns)`): `scale` times the cosines.
        target (`torch.Tensor`):
            As `cross_entropy` takes it: the column of each row (int64 of shape `(rows,)`), or float of shape `(rows,
            columns)`, where the pairs above 0 are positive.
        scale (`torch.Tensor`): Scalar, the factor of the cosines.
        max_positive_cosine (`float`): In (0, 1]; 1 returns the logits as they are.

    Returns:
        `torch.Tensor` of shape `(rows, columns)`.
    """
    if max_positive_cosine == 1:
        return logits
    if target.is_floating_point():
        is_positive = target > 0
    else:
        is_positive = nn.functional.one_hot(target, logits.shape[1]).bool()
    return torch.where(is_positive, torch.minimum(logits, max_positive_cosine * scale), logits)
