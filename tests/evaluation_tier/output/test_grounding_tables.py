"""The tables of grounding."""

from evaluation_tier.output.analysis_tables import grounding_tables


def test_grounding():
    numbers = {"pointing": {"mean": 0.5, "ci95": [0.25, 0.75]}, "pixel_auroc": {"mean": 0.75, "ci95": None}}
    part = {
        "n_regions": 3,
        "n_patients": 2,
        "maps": {"difference": numbers, "above_average": numbers},
        "baselines": {"random": {"pointing": {"mean": 0.125}}},
    }
    grounding = {"findings": {"A": part | {"n_regions": 1}}, "mean": {"maps": {}}, "all_regions": part}
    maps, baselines, findings = grounding_tables(grounding)
    assert maps.title == "Maps of the model: cosines"
    assert maps.header == ("Measure", "Difference (95 % CI)", "Above average (95 % CI)")
    assert maps.rows == (
        ("Pointing", "0.500 (0.250, 0.750)", "0.500 (0.250, 0.750)"),
        ("Pixel AUROC", "0.750", "0.750"),
    )
    assert "3 regions of 2 patients" in maps.note
    assert "Pointing: how often the highest pixel" in maps.note and "IoU" not in maps.note  # of what is shown
    numbers |= {"iou_top_5": {"mean": 0.25}, "iou_best_optimistic": {"mean": 0.5}, "dice_best_optimistic": {}}
    more = grounding_tables(grounding)[0]
    assert [row[0] for row in more.rows[2:]] == ["IoU top 5 %", "IoU best optimistic", "Dice best optimistic"]
    for sentence in (
        "IoU top 5 %: IoU of the 5 % highest",
        "IoU best and Dice best: ",
        "Optimistic: the threshold was",
    ):
        assert sentence in more.note
    assert baselines.rows == (("Pointing", "0.125"), ("Pixel AUROC", "–"))
    assert findings.rows == (("A", "1", "0.500 (0.250, 0.750)", "0.750"),)
    assert findings.note.startswith("The map of cosines minus the average map.")


def test_grounding_of_both_kinds():
    """Contributions come first, and cosines have the one row that only they have."""
    cosines = {"pointing": {"mean": 0.25}, "miou_cosine": {"mean": 0.125}}
    maps = {"difference": cosines, "above_average": cosines}
    maps |= {f"{name}_contribution": {"pointing": {"mean": 0.5}} for name in maps}
    part = {"n_regions": 3, "n_patients": 2, "maps": maps, "baselines": {"average_contribution": {}}}
    grounding = {"findings": {"A": part}, "mean": part}
    tables = grounding_tables(grounding)
    assert [table.name for table in tables] == [
        f"grounding-{name}" for name in ("contributions", "cosines", "baselines", "findings")
    ]
    assert tables[0].header == tables[1].header == ("Measure", "Difference (95 % CI)", "Above average (95 % CI)")
    assert tables[0].rows == (("Pointing", "0.500", "0.500"),)
    assert tables[1].rows == (("Pointing", "0.250", "0.250"), ("mIoU cosine", "0.125", "0.125"))
    assert "3 regions of 2 patients" in tables[0].note and "Pointing" not in tables[1].note
    assert tables[2].header == ("Measure", "Average contribution")
    assert tables[3].rows == (("A", "3", "0.500"),)
    assert tables[3].note.startswith("The map of contributions minus the average map.")


def test_grounding_of_a_classifier():
    numbers = {"pointing": {"mean": 0.25}, "pixel_auroc": {"mean": 0.5}}
    maps = {"class_activation": numbers, "above_average_class_activation": {"pointing": {"mean": 0.75}}}
    part = {"n_regions": 3, "n_patients": 2, "maps": maps, "baselines": {"average_class_activation": {}}}
    tables = grounding_tables({"findings": {"A": part}, "mean": part})
    assert [table.name for table in tables] == [
        f"grounding-{name}" for name in ("class-activations", "baselines", "findings")
    ]
    assert tables[0].title == "Maps of the model: class activations"
    assert tables[0].header == ("Measure", "Class activation (95 % CI)", "Above average (95 % CI)")
    assert tables[0].rows == (("Pointing", "0.250", "0.750"), ("Pixel AUROC", "0.500", "–"))
    assert tables[1].header == ("Measure", "Average class activation")
    assert tables[2].rows == (("A", "3", "0.750", "–"),)
    assert tables[2].note.startswith("The map of class activations minus the average map.")
