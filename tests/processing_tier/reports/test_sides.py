import pytest

from processing_tier.reports.sides import mirror, named_side, stated_side


def test_a_sentence_and_its_mirror_image():
    assert mirror("Left effusion; the left angle is blunted.") == "Right effusion; the right angle is blunted."
    assert mirror("Brightness above the right base.") == "Brightness above the left base."
    assert named_side("Left effusion.") == "left" and named_side("Outright opaque.") is None
    for text in ("Edema.", "Left pacemaker with a lead in the right ventricle."):
        assert mirror(text) is None and named_side(text) is None


@pytest.mark.parametrize(
    ("text", "side"),
    [
        ("Small left pleural effusion.", "left"),
        ("There is a right-sided effusion. Heart size is normal.", "right"),
        ("1. Left effusion, unchanged. 2. Small effusion on the left.", "left"),
        ("RLL atelectasis with effusion.", "right"),
        ("Lingular opacity and effusion.", "left"),
        ("Left effusion. No right effusion.", "left"),
        ("Left effusion, no pneumothorax.", "left"),
        ("No significant change in left effusion.", "left"),
        ("Right effusion is seen on the left lateral view.", "right"),
        ("Left-sided pacemaker. Small effusion.", None),
        ("Right PICC line with small effusion.", None),
        ("Left chest tube, small effusion.", None),
        ("Right pacemaker; small left effusion.", "left"),
        ("Right atelectasis; small effusion.", None),
        ("Possible left effusion.", None),
        ("Left effusion is probable.", None),
        ("There may be a left effusion. Small effusion, possibly on the right.", None),
        ("Left effusion in the midline view.", "left"),
        ("Left effusion and right atelectasis.", None),
        ("Left effusion. Small right effusion.", None),
        ("Bilateral effusions, left greater than right.", None),
        ("Left effusion. Effusions on both sides.", None),
        ("No left effusion.", None),
        ("The left effusion is no longer seen.", None),
        ("Left effusion has resolved.", None),
        ("Resolved left effusion.", None),
        ("Lungs clear without right effusion.", None),
        ("Left pneumothorax.", None),
        ("Small effusion.", None),
        ("", None),
    ],
)
def test_the_side_that_a_report_states(text, side):
    assert stated_side(text, "Pleural_Effusion") == side
    assert stated_side(text.upper(), "pleural effusion") == side


def test_findings_without_sides_and_words_within_words():
    assert stated_side("Left heart failure with cardiomegaly.", "Cardiomegaly") is None
    assert stated_side("Left hydropneumothorax.", "Pneumothorax") == "left"
    assert stated_side("Left pneumonitis.", "Pneumonia") is None
