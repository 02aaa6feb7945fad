import numpy as np
import pytest

from evaluation_tier.analyses.sides import evaluate_sides, lies_on, mirror, named_side
from evaluation_tier.analyses.word_grounding import find_questions
from evaluation_tier.statistics.resampling import Resampling
from processing_tier.phantom.wording import FINDING_WORDS


def test_a_sentence_and_its_mirror_image():
    assert mirror("Left effusion; the left angle is blunted.") == "Right effusion; the right angle is blunted."
    assert mirror("Brightness above the right base.") == "Brightness above the left base."
    assert named_side("Left effusion.") == "left" and named_side("Outright opaque.") is None
    for text in ("Edema.", "Left pacemaker with a lead in the right ventricle."):
        assert mirror(text) is None and named_side(text) is None


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
