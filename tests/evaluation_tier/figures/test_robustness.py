import pytest

from evaluation_tier.figures.robustness import draw_degradations, draw_laterality
from evaluation_tier.figures.style import import_matplotlib

pytest.importorskip("matplotlib")


@pytest.fixture
def axes():
    return import_matplotlib().figure.Figure().add_subplot()


def dashed_lines(axes) -> list[tuple[list[float], list[float]]]:
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines if line.is_dashed()]


def test_each_row_of_sides_has_its_own_chance(axes):
    row = {"accuracy": 0.9, "mirrored_accuracy": 0.8, "swapped": 0.7}
    laterality = row | {f"{name}_ci95": [0.6, 1.0] for name in row} | {"n_left": 3, "n_right": 4}
    draw_laterality(axes, laterality)
    # a model that is blind to sides is right half of the time, and mirroring does not change what it prefers
    assert dashed_lines(axes) == [([0.5, 0.5], [-0.5, 1.5]), ([0.0, 0.0], [1.5, 2.5])]
    assert [label.get_text() for label in axes.get_yticklabels()][2] == "share that mirroring turns"
    assert axes.get_title() == "Left against right, 7 stated sides"


def test_no_drop_is_the_reference_of_degraded_images(axes):
    rows = {name: {"mean": {"drop": 0.1, "drop_ci95": [0.0, 0.2]}} for name in ("a", "b")}
    draw_degradations(axes, rows | {"c": {"mean": {}}})
    assert dashed_lines(axes) == [([0.0, 0.0], [-0.5, 1.5])]
