"""Made-up texts of reports, for tests that must hold of any text."""

from hypothesis import settings
from hypothesis import strategies as st

from processing_tier.reports.headings import HEADINGS

examples = settings(max_examples=60, deadline=None, derandomize=True)
words = st.sampled_from(
    "the heart is normal right lower lobe effusion of 1.5 cm seen by Dr. ___ in XXXX comparison findings".split()
)
sentences = st.lists(words, min_size=1, max_size=8).map(lambda w: f"There {' '.join(w)} today.")
pieces = st.lists(
    st.one_of(
        st.text(max_size=6),
        st.sampled_from(["\n", "\n\n", " ", ":", ". ", "(", ")", "[**", "**]", "XXXX", "___", "x-", "1. "]),
        st.sampled_from(sorted(HEADINGS)).map(str.upper),
        st.sampled_from(["findings", "FINAL REPORT", "Dr.", "IMPRESSION:", "There", "CHEST, 2 VIEWS:", "SUMMARY: 2"]),
    ),
    max_size=14,
).map("".join)  # fmt: skip
