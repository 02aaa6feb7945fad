import numpy as np
import pytest

from processing_tier.reports.contradictions import contradict, contradict_text
from processing_tier.reports.sides import named_side


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("No pleural effusion.", ["Pleural effusion."]),
        ("no pneumothorax or pleural effusion.", ["pneumothorax or pleural effusion."]),
        ("There is no pneumothorax.", ["There is pneumothorax."]),
        ("No evidence of active disease.", ["Evidence of active disease."]),
        ("The heart is not enlarged.", ["The heart is enlarged."]),
        ("The lungs are free of focal airspace disease.", ["The lungs are not free of focal airspace disease."]),
        ("Lungs are clear without effusion.", ["Lungs are clear with effusion."]),
        ("Negative for pneumothorax.", ["Positive for pneumothorax."]),
        ("Pleural effusion.", ["No pleural effusion."]),
        ("CHF with edema.", ["No CHF with edema."]),
        ("There is a small effusion.", ["There is no small effusion."]),
        ("The lungs are clear.", ["The lungs are not clear."]),
        ("The lungs appear clear.", ["The lungs do not appear clear."]),
        ("Lungs clear.", ["Lungs not clear."]),
        ("Clear lungs.", ["Not clear lungs."]),
        ("Normal heart size.", ["Abnormal heart size."]),
        ("Heart size within normal limits.", ["Heart size not within normal limits."]),
        ("Small left pleural effusion.", ["No small left pleural effusion.", "Small right pleural effusion."]),
        ("There is a right nodule.", ["There is no right nodule.", "There is a left nodule."]),
        ("Stable left effusion.", ["Stable right effusion."]),  # its negation may be true: it was stable or not
    ],
)
def test_what_contradicts_a_sentence(sentence, expected):
    assert contradict(sentence) == expected


@pytest.mark.parametrize(
    "sentence",
    [
        "Possible effusion.",
        "Pneumonia cannot be excluded.",
        "? pneumonia.",
        "Atelectasis versus pneumonia.",
        "No significant change.",
        "Heart size is unchanged.",
        "Left effusion is unlikely.",
        "Three views.",
        "Image no. 5.",
        "Keine Ergüsse.",
        "",
    ],
)
def test_what_is_left_alone(sentence):
    assert contradict(sentence) == []


@pytest.mark.parametrize(
    "sentence",
    [
        "No left effusion.",
        "Left and right effusion.",
        "Left effusion, RLL atelectasis.",
        "Left lateral view shows edema.",
    ],
)
def test_a_side_is_not_swapped_where_the_other_may_be_true(sentence):
    assert [other for other in contradict(sentence) if named_side(other) not in (None, named_side(sentence))] == []


def take_first(count: int) -> int:
    return 0


def test_a_text_keeps_its_form():
    report = "1. No effusion. 2. Possible nodule."
    assert contradict_text([report], report, take_first) == "1. Effusion. 2. Possible nodule."
    assert contradict_text(["No effusion.", "Possible nodule."], report, take_first) == "Effusion."
    assert contradict_text(["Possible nodule."], report, take_first) is None
    assert contradict_text(["2."], report, take_first) is None


def test_what_the_report_says_elsewhere_does_not_contradict_it():
    assert contradict_text(["No edema."], "No edema. EDEMA", take_first) is None
    swaps = {
        "Stable left nodule.": "Stable right nodule.",
        "Stable left nodule. Right scar.": None,
        "Stable left nodule. Bilateral effusions.": None,
    }
    for report, expected in swaps.items():
        assert contradict_text(["Stable left nodule."], report, take_first) == expected


def test_all_sentences_are_chosen_about_equally_often():
    report = "No effusion. No edema. The lungs are clear."
    rng = np.random.default_rng(0)
    drawn = [contradict_text([report], report, rng.integers) for _ in range(300)]
    wanted = ["Effusion. No edema.", "No effusion. Edema.", "The lungs are not clear."]
    assert all(80 <= sum(text in one for one in drawn) <= 120 for text in wanted)
