import numpy as np
import pytest
import torch

from evaluation_tier.analyses.relative_similarity import RelativeSimilarity
from evaluation_tier.figures.relative_similarity import plot_relative_similarity


def test_the_shares_are_those_of_the_reference():
    """TIER divides each row of cosines by its sum and sorts it; here in two batches, and by hand."""
    cosines = torch.from_numpy(np.random.default_rng(0).uniform(0.0, 1.0, (12, 49)))
    relative = RelativeSimilarity()
    for part in cosines.sort(dim=1, descending=True).values.split(7):
        relative.add(part)
    expected = np.sort(cosines.numpy() / cosines.numpy().sum(axis=1, keepdims=True), axis=1)[:, ::-1]
    found = relative.result()
    np.testing.assert_allclose(found["mean"], expected.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(found["std"], expected.std(axis=0), atol=1e-9)
    assert sum(found["mean"]) == pytest.approx(1) and (found["n_pairs"], found["n_left_out"]) == (12, 0)


def test_pairs_without_a_positive_total_are_left_out_and_counted():
    relative = RelativeSimilarity()
    relative.add(torch.tensor([[0.5, 0.3], [0.4, -0.4], [0.1, -0.7], [0.3, 0.1]]))
    found = relative.result()
    assert found["mean"] == pytest.approx([(0.625 + 0.75) / 2, (0.375 + 0.25) / 2])
    assert (found["n_pairs"], found["n_left_out"]) == (2, 2)
    nothing = RelativeSimilarity()
    nothing.add(torch.tensor([[0.1, -0.7]]))
    assert np.isnan(nothing.result()["mean"]).all() and nothing.result()["n_left_out"] == 1
    results = {"models": {"m": {"ranked": {"relative": nothing.result()}}}, "dataset": "", "n_images": 1}
    with pytest.raises(ValueError, match="needs a pair of text and image"):
        plot_relative_similarity(results, "unused.png")
