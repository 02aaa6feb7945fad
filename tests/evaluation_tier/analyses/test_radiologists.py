import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score, matthews_corrcoef

from evaluation_tier.analyses.radiologists import compare_evaluation, compare_with_radiologists
from evaluation_tier.output.result_tables import radiologist_tables
from evaluation_tier.scoring.protocols import PROTOCOLS
from evaluation_tier.statistics.resampling import Resampling, draw_resamples
from evaluation_tier.statistics.summary import summarize
from evaluation_tier.statistics.thresholds import ThresholdChoice

# The three benchmark radiologists on the 500 studies of CheXpert's test set: true and false positives of each finding,
# and MCC and F1 as published (to 4 digits), which these counts and no others give.
POSITIVES = {"Atelectasis": 153, "Cardiomegaly": 151, "Consolidation": 29, "Edema": 78, "Pleural Effusion": 104}
COUNTS = {
    "bc4": [(123, 74), (72, 16), (19, 52), (49, 36), (85, 21)],
    "bc6": [(109, 61), (129, 81), (14, 42), (62, 79), (86, 69)],
    "bc8": [(141, 109), (106, 37), (13, 16), (45, 31), (93, 54)],
}
MCC = {
    "bc4": [0.5571, 0.5196, 0.3648, 0.5244, 0.7590],
    "bc6": [0.5220, 0.5788, 0.2917, 0.4900, 0.5728],
    "bc8": [0.5599, 0.6055, 0.4143, 0.5088, 0.6752],
}
F1 = {
    "bc4": [0.7029, 0.6025, 0.3800, 0.6012, 0.8095],
    "bc6": [0.6749, 0.7147, 0.3294, 0.5662, 0.6641],
    "bc8": [0.6998, 0.7211, 0.4483, 0.5844, 0.7410],
}
MEAN_OF_READERS = {"mcc": [0.5463, 0.5680, 0.3569, 0.5078, 0.6690], "f1": [0.6925, 0.6794, 0.3859, 0.5840, 0.7382]}
MEAN_OF_FINDINGS = {"bc4": (0.5450, 0.6192), "bc6": (0.4911, 0.5899), "bc8": (0.5527, 0.6389)}
FINDINGS = list(POSITIVES)


def benchmark():
    """Labels, and readers with those counts; which studies are wrong is not published and makes no difference."""
    studies = pd.Index([f"patient{i:05d}_study1" for i in range(500)], name="study_id")
    labels = pd.DataFrame(0.0, index=studies, columns=FINDINGS)
    readers = {reader: labels.copy() for reader in COUNTS}
    for i, (finding, positives) in enumerate(POSITIVES.items()):
        labels.iloc[:positives, i] = 1
        for reader, counts in COUNTS.items():
            right, wrong = counts[i]
            readers[reader].iloc[:right, i] = 1
            readers[reader].iloc[positives : positives + wrong, i] = 1
        assert labels[finding].sum() == positives
    return labels, pd.concat(readers, names=["reader"]).astype("float32")


def noisy_scores(labels, seed: int = 0):
    return labels + np.random.default_rng(seed).standard_normal(labels.shape)


def test_published_table_of_the_radiologists():
    labels, readers = benchmark()
    thresholds = dict.fromkeys(FINDINGS, 0.5)
    found = compare_with_radiologists(labels, labels, thresholds, readers, resampling=Resampling(5))
    assert found["readers"] == ["bc4", "bc6", "bc8"] and found["n_studies"] == 500
    for i, finding in enumerate(FINDINGS):
        for reader in COUNTS:
            values = found["findings"][finding]["readers"][reader]
            assert round(values["mcc"], 4) == MCC[reader][i] and round(values["f1"], 4) == F1[reader][i]
            right, wrong = COUNTS[reader][i]
            assert values["tpr"] == values["recall"] == right / POSITIVES[finding]
            assert values["fpr"] == pytest.approx(wrong / (500 - POSITIVES[finding]))
            assert values["precision"] == right / (right + wrong)
        mean = found["findings"][finding]["readers_mean"]
        assert (round(mean["mcc"], 4), round(mean["f1"], 4)) == tuple(MEAN_OF_READERS[name][i] for name in mean)
        # a model that is always right
        assert found["findings"][finding]["model"]["mcc"] == 1
        assert found["findings"][finding]["difference"]["f1"] == pytest.approx(1 - mean["f1"])
    for reader, expected in MEAN_OF_FINDINGS.items():
        assert tuple(round(value, 4) for value in found["mean"]["readers"][reader].values()) == expected
    assert round(found["mean"]["readers_mean"]["mcc"], 4) == 0.5296
    assert round(found["mean"]["readers_mean"]["f1"], 4) == 0.6160


def test_difference_equals_a_loop_over_scikit_learn():
    labels, readers = benchmark()
    labels, findings = labels.iloc[::4], FINDINGS[:2]
    labels, readers = labels[findings], readers[findings]
    scores, thresholds = noisy_scores(labels), {"Atelectasis": 0.7, "Cardiomegaly": 0.4}
    found = compare_with_radiologists(labels, scores, thresholds, readers, resampling=Resampling(6, 2))
    draws = draw_resamples(labels.index, 6, 2)
    for name, function in (("mcc", matthews_corrcoef), ("f1", f1_score)):
        differences = np.empty((6, 2))
        for r, row in enumerate(draws):
            drawn = labels.index.repeat(row)
            for i, finding in enumerate(findings):
                truth = labels.loc[drawn, finding]
                model = function(truth, scores.loc[drawn, finding] >= thresholds[finding])
                theirs = [function(truth, readers.loc[reader].loc[drawn, finding]) for reader in COUNTS]
                differences[r, i] = model - np.mean(theirs)
        for i, finding in enumerate(findings):
            expected = np.percentile(differences[:, i], [2.5, 97.5])
            assert found["findings"][finding]["difference"][f"{name}_ci95"] == pytest.approx(expected)
        expected = np.percentile(differences.mean(axis=1), [2.5, 97.5])
        assert found["mean"]["difference"][f"{name}_ci95"] == pytest.approx(expected)
        parts = [found["findings"][finding]["difference"][name] for finding in findings]
        assert found["mean"]["difference"][name] == pytest.approx(np.mean(parts))
        assert found["mean"]["difference"][name] == pytest.approx(
            found["mean"]["model"][name] - found["mean"]["readers_mean"][name]
        )


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["tier", "chexzero"])
def test_f1_is_at_the_threshold_of_the_protocol(protocol):
    """TIER's F1 is at the threshold with the best F1 on validation, CheXzero's at that of MCC."""
    labels, readers = benchmark()
    scores, rule = noisy_scores(labels), PROTOCOLS[protocol].rule
    validation = ThresholdChoice(rule, labels.to_numpy(), noisy_scores(labels, 1).to_numpy())
    studies, ids = list(labels.index), {"image_id": labels.index, "patient_id": labels.index}
    summary = summarize(
        labels.to_numpy(), scores.to_numpy(), studies, FINDINGS, thresholds=validation, resampling=Resampling(5)
    )
    how = {"thresholds": rule.describe("the split 'validation'"), "n_bootstrap": 5, "seed": 0}
    predictions = pd.DataFrame(
        ids | scores.add_prefix("score_").to_dict("series") | labels.add_prefix("label_").to_dict("series")
    )
    found = compare_evaluation({"findings": summary["findings"], "protocol": how}, predictions, studies, readers)
    differing = 0
    for finding in FINDINGS:
        candidates = np.sort(validation.scores[:, FINDINGS.index(finding)])[::-1]
        model, best = found["findings"][finding]["model"], {}
        for name, function in (("mcc", matthews_corrcoef), ("f1", f1_score)):
            values = [
                function(labels[finding], validation.scores[:, FINDINGS.index(finding)] >= at) for at in candidates
            ]
            best[name] = candidates[np.argmax(values)]
        at = best["f1" if protocol == "tier" else "mcc"]
        differing += best["f1"] != best["mcc"]
        assert model["mcc"] == pytest.approx(matthews_corrcoef(labels[finding], scores[finding] >= best["mcc"]))
        assert model["f1"] == pytest.approx(f1_score(labels[finding], scores[finding] >= at))
        assert model["f1"] == pytest.approx(summary["findings"][finding]["f1"])
        assert found["findings"][finding]["difference"]["f1"] == pytest.approx(
            model["f1"] - found["findings"][finding]["readers_mean"]["f1"]
        )
    assert differing > 1
    expected = "highest MCC on the split 'validation'" + (
        "; for F1 the highest F1 there" if protocol == "tier" else ""
    )
    assert found["thresholds"] == expected
    (table, each) = radiologist_tables({"radiologists": found})
    assert table.note.endswith(f"Thresholds: {expected}.") and each.note.endswith(f"Thresholds: {expected}.")


def test_order_of_studies_and_excluded_labels_make_no_difference():
    labels, readers = benchmark()
    scores, thresholds = noisy_scores(labels), dict.fromkeys(FINDINGS, 0.5)
    expected = compare_with_radiologists(labels, scores, thresholds, readers, resampling=Resampling(10))
    shuffled = compare_with_radiologists(
        labels, scores.iloc[::-1], thresholds, readers.iloc[::-1], resampling=Resampling(10)
    )
    assert shuffled["findings"]["Edema"]["readers"] == expected["findings"]["Edema"]["readers"]
    assert shuffled["findings"]["Edema"]["model"] == expected["findings"]["Edema"]["model"]
    labels.iloc[:10, 0], labels.iloc[490:, 0] = -1, np.nan
    fewer = compare_with_radiologists(labels, scores, thresholds, readers, resampling=Resampling(10))
    assert fewer["findings"]["Atelectasis"]["readers"]["bc4"]["tpr"] == 113 / 143
    assert fewer["findings"]["Edema"] == expected["findings"]["Edema"]


def test_a_finding_without_positives_is_nan_and_leaves_the_mean():
    labels, readers = benchmark()
    labels["Edema"] = 0.0
    found = compare_with_radiologists(
        labels, noisy_scores(labels), dict.fromkeys(FINDINGS, 0.5), readers, resampling=Resampling(5)
    )
    assert np.isnan(found["findings"]["Edema"]["difference"]["mcc"])
    parts = [found["findings"][finding]["difference"]["mcc"] for finding in FINDINGS if finding != "Edema"]
    assert found["mean"]["difference"]["mcc"] == pytest.approx(np.mean(parts))
    assert not np.isnan(found["mean"]["difference"]["mcc_ci95"]).any()


def test_tables_that_do_not_fit_are_refused():
    labels, readers = benchmark()
    scores, thresholds = noisy_scores(labels), dict.fromkeys(FINDINGS, 0.5)
    for given, message in (
        ((labels, scores.iloc[:498], thresholds, readers), "2 of the 500 studies are not in the table of scores"),
        (
            (labels.rename("other-{}".format), scores.rename("other-{}".format), thresholds, readers),
            r"None of the 500 studies was read by bc4: .* its test set: use --benchmark chexpert-5 --split test",
        ),
        ((labels, scores, thresholds, readers.iloc[:-1]), "1 of the 500 studies are not in the table of reader bc8"),
        ((labels, scores.iloc[[0, *range(500)]], thresholds, readers), "table of scores has a study more than once"),
        ((labels.drop(columns="Edema"), scores, thresholds, readers), "'Edema' has scores, but labels lack it"),
        ((labels, scores, {}, readers), "'Atelectasis' has scores, but thresholds lack it"),
        ((labels, scores, thresholds, readers.replace(1, 2)), "Readers' labels must be 0 or 1"),
        ((labels, scores[[]], thresholds, readers), "comparison needs scores"),
    ):
        with pytest.raises(ValueError, match=message):
            compare_with_radiologists(*given, resampling=Resampling(5))
