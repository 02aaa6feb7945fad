import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_texts import examples, pieces

from processing_tier.reports.deidentification import clean_text


@pytest.mark.parametrize(
    ("mode", "cleaned"),
    [
        ("keep", "Seen by XXXX. At [**Hospital 12**] x-XXXX of ___-year-old 1) a (b) see c [DATE]"),
        ("remove", "Seen by. At of 1) a (b) see c"),
        ("replace", "Seen by ___. At ___ x-___ of ___-year-old 1) a (b) see c ___"),
    ],
)
def test_clean_text(mode, cleaned):
    text = "Seen by XXXX.\tAt [**Hospital\n 12**] x-XXXX of ___-year-old 1) a (b) (see  c [DATE]"
    assert clean_text(text, mode) == cleaned


@given(pieces, st.sampled_from(["keep", "remove", "replace"]))
@examples
def test_cleaning_twice_is_cleaning_once(text, mode):
    once = clean_text(text, mode)
    assert clean_text(once, mode) == once
    assert once == " ".join(once.split())
