import pytest

from processing_tier.records.views import normalize_view


@pytest.mark.parametrize(
    ("value", "view"),
    [
        ("AP", "AP"),
        ("pa", "PA"),
        ("AP AXIAL", "AP"),
        ("Frontal", "PA"),
        ("Lateral", "LATERAL"),
        ("LL", "LATERAL"),
        ("LATERAL LEFT", "LATERAL"),
        ("", "OTHER"),
        (None, "OTHER"),
        (float("nan"), "OTHER"),
        ("swimmers", "OTHER"),
        ("postero-anterior", "PA"),
        ("Postero Anterior", "PA"),
        ("póstero-anterior", "PA"),
        ("P.A.", "PA"),
        ("chest pa view", "PA"),
        ("antero-posterior", "AP"),
        ("AP_horizontal", "AP"),
        ("ap-portable", "AP"),
        ("AP LLD", "AP"),
        ("left lateral", "LATERAL"),
        ("perfil", "LATERAL"),
        ("LATERAL DECUBITUS", "OTHER"),
        ("LLD", "OTHER"),
        ("PA and lateral", "OTHER"),  # of the examination, not of the image
        (1, "OTHER"),
    ],
)
def test_views(value, view):
    assert normalize_view(value) == view
