from evaluation_tier.output.file_names import MAX_LENGTH, file_names


def test_names_that_a_file_system_would_mix_up_stay_apart():
    names = [
        "Nodule/Mass",
        "Edema",
        "edema",
        "肺炎",
        "气胸",
        "Épanchement",
        "x" * 300,
        "x" * 301,
        "../..",
        "Pneumonia",
    ]
    found = file_names(names)
    assert (found["Nodule/Mass"], found["Pneumonia"]) == ("nodule_mass", "pneumonia")
    assert len({name.casefold() for name in found.values()}) == len(names)
    for name in found.values():
        assert (
            name.isascii()
            and len(name) <= MAX_LENGTH + 9
            and set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_")
        )
    assert found["肺炎"].startswith("finding_") and found == file_names(names)
