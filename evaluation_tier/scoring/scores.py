"""Scores of findings from the embeddings of images, patches and prompts.

Everything is built on the difference of cosines: how much nearer an embedding lies to the positive sentences of a
finding than to its negative ones. A scoring turns the differences into scores, without changing their order. The
levels (of the whole image, of its patches) are in `modeling_tier/score_levels_tier.py`.
"""

import numpy as np

SCORINGS = ("difference", "softmax", "sigmoid")

DECIMALS = 7  # of differences: embeddings are float32, and the same image differs by less in a batch of another size

NEVER_ABNORMAL = ("support devices",)  # may be there in a chest without a finding


def prompt_directions(positive: np.ndarray, negative: np.ndarray, scoring: str) -> np.ndarray:
    """The directions whose product with an embedding gives the differences, (findings, dim) float64.

    float64, since in float32 the sigmoid would merge scores that the difference still tells apart.

    Args:
        positive: (findings, dim), L2-normalised.
        negative: likewise, or zero where a finding has no negative sentences; not used by `"sigmoid"`.

    Raises:
        ValueError: for an unknown scoring.
    """
    if scoring not in SCORINGS:
        raise ValueError(f"The scoring must be one of {', '.join(SCORINGS)}, but is {scoring!r}.")
    positive, negative = positive.astype(np.float64), negative.astype(np.float64)
    return positive if scoring == "sigmoid" else positive - negative


def scores_from_differences(differences: np.ndarray, scoring: str) -> np.ndarray:
    """Scores of the same shape: the differences, rounded to `DECIMALS` so that rounding errors rank nothing, or their
    sigmoid."""
    differences = np.round(differences, DECIMALS)
    return differences if scoring == "difference" else 1 / (1 + np.exp(-differences))


def zero_shot_scores(
    image_embeds: np.ndarray, positive: np.ndarray, negative: np.ndarray, scoring: str = "difference"
) -> np.ndarray:
    """Scores, (images, findings) float64; higher means that the finding is more likely.

    Args:
        image_embeds: (images, dim), L2-normalised.
        positive: (findings, dim), L2-normalised.
        negative: likewise; zero where a finding has no negative sentences.
        scoring: `"difference"`: cosine to the positive minus cosine to the negative prompt, in [-2, 2] (TIER,
            utils.py:376-381); `"softmax"`: e^positive / (e^positive + e^negative) of the raw cosines, without
            logit scale, in [0.12, 0.88] (CheXzero, zero_shot.py:258-261); `"sigmoid"`: of the cosine to the positive
            prompt alone, in [0.27, 0.73]. The first two give one model the same ranking; averaged over an ensemble,
            they differ.
    """
    directions = prompt_directions(positive, negative, scoring)
    return scores_from_differences(image_embeds.astype(np.float64) @ directions.T, scoring)


def no_finding_scores(scores: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """A score of "no finding" from those of the findings: minus the largest of them, in standard deviations.

    A normal chest is one in which the other findings are absent. A sentence such as "no No Finding" does not say so
    (CheXzero's AUROC of "No Finding" is 0.07). Findings whose scores spread more do not outvote the others, since each
    is standardised by its mean and its spread over the reference images, whose labels are not used. A finding whose
    score is the same in all of these says nothing and is left out.

    Args:
        scores: (images, findings), of the other findings.
        reference: (reference images, findings), likewise.

    Returns:
        (images,); 0 without other findings.
    """
    varies = np.ptp(reference, axis=0) > 1e-12 * np.abs(reference).max(axis=0)  # rounding does not count as spread
    if not varies.any():
        return np.zeros(len(scores))
    scores, reference = scores[:, varies], reference[:, varies]
    return -((scores - reference.mean(axis=0)) / reference.std(axis=0)).max(axis=1)
