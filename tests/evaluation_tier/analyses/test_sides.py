import numpy as np
import pytest

from evaluation_tier.analyses.sides import evaluate_sides, lies_on
from evaluation_tier.analyses.word_grounding import find_questions
from evaluation_tier.statistics.resampling import Resampling
from processing_tier.phantom.wording import FINDING_WORDS
from processing_tier.reports.sides import named_side


def test_the_patients_left_is_on_the_right_of_the_image():
    heat = np.zeros((4, 6))
    heat[1, 5] = 1
    heat[:, 2] = np.nan  # not seen by the model
    assert lies_on(heat, "left") and not lies_on(heat, "right")
    assert lies_on(heat[:, ::-1], "right") and not lies_on(heat[:, ::-1], "left")


def test_a_real_model(tier_model, phantom):
    results = evaluate_sides(*tier_model, phantom, resampling=Resampling(5))
    sided = [q for q in find_questions(phantom, FINDING_WORDS) if named_side(q.sentence)]
    assert results["all_regions"]["n_regions"] == len(sided) > 20
    assert sum(part["n_regions"] for part in results["findings"].values()) == len(sided)
    assert "Edema" not in results["findings"] and "Pneumothorax" in results["findings"]
    for measure in ("preferred", "half", "mirrored_half"):
        parts = results["findings"].values()
        mean = sum(part[measure]["mean"] * part["n_regions"] for part in parts) / len(sided)
        assert results["all_regions"][measure]["mean"] == pytest.approx(mean)


def test_it_says_what_it_cannot_measure(tier_model, phantom):
    with pytest.raises(ValueError, match="^No report names a marked finding and one side"):
        evaluate_sides(*tier_model, phantom, {"Edema": {"edema"}})
