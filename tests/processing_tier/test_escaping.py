from processing_tier.escaping import markdown_text, printable, spreadsheet_cell


def test_a_terminal_gets_no_control_and_no_bidirectional_characters():
    assert printable("a\x1b[31mb\x07\u202ec\u2066\n肺炎 é") == "a\\x1b[31mb\\x07\\u202ec\\u2066\n肺炎 é"


def test_a_spreadsheet_gets_no_formula():
    for text in ('=HYPERLINK("http://x")', "+1", "-1", "@a", "\tx", "\rx"):
        assert spreadsheet_cell(text) == f"'{text}"
    assert spreadsheet_cell("00=1") == "00=1" and spreadsheet_cell("") == ""


def test_markdown_shows_text_as_it_is():
    assert markdown_text("<img src=x> [a](http://b) | *c* `d` pleural_effusion _e_\n# f\u202e") == (
        "\\<img src=x\\> \\[a\\](http://b) \\| \\*c\\* \\`d\\` pleural_effusion \\_e\\_ # f\\u202e"
    )
