"""Scores of findings from the embeddings of images and prompts."""

import numpy as np

SCORINGS = ("difference", "softmax")


def zero_shot_scores(
    image_embeds: np.ndarray, positive: np.ndarray, negative: np.ndarray, scoring: str = "difference"
) -> np.ndarray:
    """Scores, (images, findings) float64; higher means that the finding is more likely.

    Args:
        image_embeds: (images, dim), L2-normalised.
        positive: (findings, dim), L2-normalised.
        negative: likewise.
        scoring: `"difference"`: cosine to the positive minus cosine to the negative prompt, in [-2, 2] (TIER,
            utils.py:376-381); `"softmax"`: e^positive / (e^positive + e^negative) of the raw cosines, without
            logit scale, in [0.12, 0.88] (CheXzero, zero_shot.py:258-261). Both rank one model's images alike;
            averaged over an ensemble they differ.
    """
    if scoring not in SCORINGS:
        raise ValueError(f"The scoring must be one of {', '.join(SCORINGS)}, but is {scoring!r}.")
    # float64: in float32 the sigmoid would merge scores that the difference still tells apart
    difference = image_embeds.astype(np.float64) @ (positive.astype(np.float64) - negative.astype(np.float64)).T
    return difference if scoring == "difference" else 1 / (1 + np.exp(-difference))
