import tracemalloc

import numpy as np
import pandas as pd

from processing_tier.reports.duplicates import duplicate_groups


def test_duplicates_differ_in_case_space_punctuation_list_numbers_and_marks_alone():
    texts = ["No acute disease.", "", "1. NO  acute\tdisease", "Acute disease.", "XXXX ___.", "No ___ acute disease!"]
    groups = duplicate_groups(texts)
    assert groups.dtype == np.int64 and groups.tolist() == [0, -1, 0, 1, -1, 0]
    assert duplicate_groups(["1.5 cm", "15 cm", "1.5 CM."]).tolist() == [0, 1, 0]
    assert duplicate_groups(["\uff21\ufb01", "afi"]).tolist() == [0, 0]
    assert duplicate_groups([]).tolist() == [] and duplicate_groups(iter(["."])).tolist() == [-1]


def test_duplicates_are_found_without_keeping_the_texts():
    count = 4_000
    texts = (f"Finding {i % 1_000} " + "in the lung " * 20 for i in range(count))
    tracemalloc.start()
    groups = duplicate_groups(texts)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert groups.tolist() == [i % 1_000 for i in range(count)]
    assert peak < 100 * count  # the texts have 250 characters each


def test_duplicates_among_real_impressions(shared_data):
    impressions = pd.read_csv(shared_data / "iu_cxr" / "train" / "metadata.csv", keep_default_na=False)["impression"]
    groups = duplicate_groups(impressions)
    counts = np.bincount(groups[groups >= 0])
    assert (len(groups), (groups < 0).sum(), len(counts), counts[counts > 1].sum()) == (2654, 6, 1196, 1583)


def test_surrogate_dates_do_not_make_two_reports():
    """As CheXpert Plus has them: each image of a study has other dates."""
    study = "FINDINGS: AP chest of {}, compared with {}. IMPRESSION: Small effusion. Signed {}."
    dates = [("3/14/2012", "02-11-2012", "10:54 AM"), ("March 2, 2010", "2009-12-30", "7:05"), ("5 Jan 2014",) * 3]
    texts = [study.format(*surrogates) for surrogates in dates]
    other = study.replace("Small", "Large").format(*dates[0])
    assert duplicate_groups([*texts, other, "Ratio 1/2.", "Ratio 1/3."]).tolist() == [0, 0, 0, 1, 2, 3]
