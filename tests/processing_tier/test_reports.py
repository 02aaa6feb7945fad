import pytest

from processing_tier.reports import split_sentences


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("1. No acute disease. 2. Stable XXXX cardiomegaly.", ["No acute disease.", "Stable cardiomegaly."]),
        ("Normal chest x-XXXX. Heart size ___ normal.", ["Normal chest.", "Heart size normal."]),
        ("A 2.5 cm nodule.  Compare with\nprior. ", ["A 2.5 cm nodule.", "Compare with prior."]),
        ("No effusion. . XXXX. 12.", ["No effusion."]),
        ("", []),
    ],
)
def test_sentences(text, sentences):
    assert split_sentences(text) == sentences
