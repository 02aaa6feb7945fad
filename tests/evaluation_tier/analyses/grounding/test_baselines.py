import math

import numpy as np
import pytest
from marked_scenes import ASK, make_dataset, many_scenes

from evaluation_tier.analyses.grounding.baselines import centre_map, position_priors
from evaluation_tier.analyses.grounding.evaluation import evaluate_grounding
from evaluation_tier.analyses.grounding.map_names import map_names
from evaluation_tier.statistics.resampling import Resampling


def test_a_model_that_sees_beats_every_baseline(bright):
    images, marks, patients = many_scenes(0, 30)
    dataset = make_dataset(images, masks=marks, patients=patients)
    results = evaluate_grounding(*bright(), dataset, ASK, resampling=Resampling(200))
    for group in (*results["findings"].values(), results["mean"], results["all_regions"]):
        for name in map_names(("cosine", "contribution")):
            for rival in ("average", "prior", "centre", "random"):
                low, high = group["differences"][name][rival]["pointing"]["ci95"]
                assert 0 < low <= high


def test_the_prior_is_that_of_the_other_patients():
    coverage = np.arange(4.0)[:, None, None] * np.ones((4, 2, 2))
    priors = position_priors(coverage, ["A", "A", "A", "B"], ["x", "x", "y", "y"])
    np.testing.assert_array_equal(priors[:, 0, 0], [2, 2, 0.5, np.nan])


def test_a_finding_of_one_patient_has_no_prior(bright):
    images, marks, _ = many_scenes(6, 3)
    dataset = make_dataset(images, masks=marks, patients=["x"] * 3)
    results = evaluate_grounding(*bright(), dataset, ASK, resampling=Resampling(2))
    assert results["all_regions"]["baselines"]["prior"]["pointing"] == {"mean": None, "ci95": [None, None]}
    assert results["undefined"]["prior"]["pointing"] == 3
    assert results["mean"]["findings"] == [] and results["mean"]["maps"]["positive"]["cnr"]["mean"] is None


def test_the_centre_is_the_same_from_every_side():
    centre = centre_map(6, 9)
    np.testing.assert_allclose(centre, centre[::-1, ::-1])
    assert np.argmax(centre) % 9 == 4 and centre.max() <= 1
    assert centre[0, 4] == pytest.approx(math.exp(-0.5 * ((0.5 / 6 - 0.5) / 0.25) ** 2))
