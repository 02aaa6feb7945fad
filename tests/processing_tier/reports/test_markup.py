import time

import datasets
import numpy as np
import pytest

from processing_tier.reports.markup import join_text, repair_markup


@pytest.mark.parametrize(
    ("text", "repaired"),
    [
        (r"A.\nB.\r\nC.\n", "A.\nB.\nC.\n"),
        (r"Clear and\nor normal", r"Clear and\nor normal"),  # not the end of a line
        ("A.<br>B.<BR/>C.<br />D.", "A.\nB.\nC.\nD."),
        ("<p>A.</p><div class='x'>B.</div>", "\nA.\n\nB.\n"),
        ("<b>A</b> &amp; <i>B</i>&nbsp;C", "A & B\xa0C"),
        ("&lt; 5 mm &#39;ok&#39; &amp;lt;", "< 5 mm 'ok' <"),
        ("A._x000D_\nB._x000d_\r\nC._x0009_D.", "A.\nB.\nC.\tD."),
        ("<unk> <hcw> [**x**] ___ XXXX < 5 and > 3; A&B; AT&T", "<unk> <hcw> [**x**] ___ XXXX < 5 and > 3; A&B; AT&T"),
    ],
)  # fmt: skip
def test_markup(text, repaired):
    assert repair_markup(text) == repaired


def test_lists_are_joined():
    assert join_text(["Clear lungs.", None, "Normal."], "t: c") == "Clear lungs.\nNormal."
    assert join_text(np.array(["A.", "B."], dtype=object), "t: c") == "A.\nB."
    assert join_text(float("nan"), "t: c") == join_text(None, "t: c") == ""
    assert join_text(5, "t: c") == "5"
    for value, message in (
        ({"a": 1}, "t: c holds dict, not text; name another column."),
        (b"x", "t: c holds bytes, not text; name another column."),
        ([["A."]], "t: c holds lists of lists; give text, or a list of sentences."),
    ):
        with pytest.raises(ValueError) as error:
            join_text(value, "t: c")
        assert str(error.value) == message


def test_time_is_linear():
    start = time.perf_counter()
    for text in (
        "<" * 200_000,
        "<b " * 70_000,
        "&" * 200_000,
        "\\n" * 100_000,
        "_x000" * 40_000,
        "<br" + " " * 200_000,
    ):
        repair_markup(text)
    assert time.perf_counter() - start < 2


def test_the_text_of_a_table_is_repaired(tmp_path):
    from PIL import Image

    from processing_tier.readers import read_records

    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text(
        'image,patient_id,report\na.png,1,"FINDINGS: A &amp; B.\\nIMPRESSION: C._x000D_"\n'
    )
    record = read_records(tmp_path / "t.csv", "train")[0]
    assert (record["findings"], record["impression"]) == ("A & B.", "C.")
    assert record["report"] == "FINDINGS: A & B.\nIMPRESSION: C.\n"
    data = {"image": ["a.png"], "patient_id": ["1"], "impression": [["Clear lungs.", "No effusion."]]}
    datasets.Dataset.from_dict(data).to_parquet(tmp_path / "t.parquet")
    assert read_records(tmp_path / "t.parquet", "train")["impression"][0] == "Clear lungs.\nNo effusion."
