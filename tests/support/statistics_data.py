"""Labels and scores for the tests of `evaluation_tier.statistics`."""

import numpy as np
from hypothesis import strategies as st


def normal_scores(num_images: int, num_findings: int = 1, effect: float = 1.0, seed: int = 0):
    rng = np.random.default_rng(seed)
    labels = (rng.random((num_images, num_findings)) < 0.3).astype(float)
    return labels, rng.standard_normal((num_images, num_findings)) + effect * labels


@st.composite
def labelled_scores(draw):
    """Labels with both classes, and scores with many ties."""
    size = draw(st.integers(2, 60))
    labels = draw(st.lists(st.integers(0, 1), min_size=size, max_size=size).filter(lambda row: 0 < sum(row) < size))
    scores = draw(st.lists(st.integers(-6, 6).map(lambda score: score / 4), min_size=size, max_size=size))
    return np.array(labels), np.array(scores)
