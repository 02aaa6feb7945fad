import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_texts import examples, sentences

from processing_tier.reports.sentences import split_sentences


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("1. No acute disease. 2. Stable XXXX cardiomegaly.", ["No acute disease.", "Stable cardiomegaly."]),
        ("1. Low volumes 2. Patchy opacity", ["Low volumes", "Patchy opacity"]),
        ("Chest 1. No disease 2. None seen", ["Chest", "No disease", "None seen"]),
        ("(1) Normal heart. 2) Clear.", ["Normal heart.", "Clear."]),
        ("Old right rib 4. The rest is normal.", ["Old right rib 4.", "The rest is normal."]),
        ("1.Lucency at the apex.There is none.", ["Lucency at the apex.", "There is none."]),
        ("Normal chest x-XXXX. Heart size ___ normal.", ["Normal chest.", "Heart size normal."]),
        ("A 2.5 cm nodule.  Compare with\nprior. ", ["A 2.5 cm nodule.", "Compare with prior."]),
        ("Normal\n\nNo effusion", ["Normal", "No effusion"]),
        ("Dr. Smith, e.g. vs. St. Jude. S. O. B. is new.", ["Dr. Smith, e.g. vs. St. Jude.", "S. O. B. is new."]),
        ("At 3 p.m. on Monday. At 5 p.m. The tube is approx. 2 cm. No change.",
         ["At 3 p.m. on Monday.", "At 5 p.m.", "The tube is approx. 2 cm.", "No change."]),
        ("See lead No. 2. Stable. Effusion: no. Clear.", ["See lead No. 2.", "Stable.", "Effusion: no.", "Clear."]),
        ("Seen on image no. 5. Lungs clear.", ["Seen on image no. 5.", "Lungs clear."]),
        ("1. Effusion: no. 2. Clear lungs.", ["Effusion: no.", "Clear lungs."]),
        ('Hepatitis C. Old (see above). "Stable." Clear', ["Hepatitis C.", "Old (see above).", '"Stable."', "Clear"]),
        ("? pneumonia. Is it? Yes... Normal. lungs clear. heart normal.",
         ["? pneumonia.", "Is it?", "Yes...", "Normal.", "lungs clear.", "heart normal."]),
        ("No effusion. . XXXX. 12.", ["No effusion."]),
        ("", []),
    ],
)  # fmt: skip
def test_sentences(text, sentences):
    assert split_sentences(text) == sentences


@given(st.lists(sentences, min_size=1, max_size=6))
@examples
def test_sentences_join_to_the_text(parts):
    parts = [part.replace("___", "Smith").replace("XXXX", "view") for part in parts]
    assert split_sentences(" ".join(parts)) == parts
    assert split_sentences("\n".join(parts)) == parts
    assert split_sentences("".join(parts)) == parts  # "today.There"
