"""Numbers that say how concentrated similarities are: entropy, Gini index, Hoyer's sparseness and shares."""

import math

import torch

from modeling_tier.losses_tier import masked_entropy

STATISTICS = ("entropy", "gini", "hoyer", "near_zero", "negative")

NEAR_ZERO = 0.05


def gini(values: torch.Tensor) -> torch.Tensor:
    """Gini index along the last dimension (Hurley & Rickard 2009, Comparing Measures of Sparsity, table I).

    1 - 2 sum_k c_(k) / |c|_1 * (N - k + 1/2) / N, of the magnitudes c_(1) <= ... <= c_(N): as there, a negative value
    counts by how far it lies from zero. Multiplying all values by a number changes nothing.

    Returns:
        `values` without the last dimension, float32: 0 for equal magnitudes (zeros too), 1 - 1 / N where all but one
        are zero.
    """
    magnitudes = values.float().abs().sort(dim=-1).values
    count = magnitudes.shape[-1]
    shares = (count - torch.arange(count, device=values.device) - 0.5) / count
    total = magnitudes.sum(-1)
    return torch.where(total > 0, 1 - 2 * (magnitudes * shares).sum(-1) / total.clamp(min=1e-30), 0.0)


def hoyer(values: torch.Tensor) -> torch.Tensor:
    """Hoyer's sparseness along the last dimension (Hoyer 2004, JMLR 5:1457-1469, section 3.1).

    (sqrt(N) - |c|_1 / |c|_2) / (sqrt(N) - 1); a negative value counts by its magnitude.

    Returns:
        `values` without the last dimension, float32: 0 for equal magnitudes (zeros and a single value too), 1 where
        all but one are zero.
    """
    values = values.float()
    root = math.sqrt(values.shape[-1])
    length = values.norm(dim=-1)
    if root == 1:
        return torch.zeros_like(length)
    return torch.where(length > 0, (root - values.abs().sum(-1) / length.clamp(min=1e-30)) / (root - 1), 0.0)


def row_statistics(similarity: torch.Tensor, temperature: float = 1.0, near_zero: float = NEAR_ZERO) -> torch.Tensor:
    """The `STATISTICS` of each row of similarities, along a new last dimension.

    Args:
        similarity: (..., patches), cosines.
        temperature: divides the cosines in the entropy, in nats, and in nothing else.
        near_zero: a cosine of a smaller magnitude is near zero; its share and that of negative ones are in [0, 1].
    """
    return torch.stack(
        [
            masked_entropy(similarity / temperature),
            gini(similarity),
            hoyer(similarity),
            (similarity.abs() < near_zero).float().mean(-1),
            (similarity < 0).float().mean(-1),
        ],
        dim=-1,
    )
