import json
import shutil

import numpy as np
import pytest
from saved_results import save_result

from evaluation_tier.output.metrics_file import write_metrics
from evaluation_tier.statistics.baseline_comparison import compare_with_baseline, name_results
from evaluation_tier.statistics.comparison import compare_evaluations
from evaluation_tier.statistics.paired import holm
from evaluation_tier.statistics.resampling import Resampling

FINDINGS = ("Edema", "Mass", "Nodule")


@pytest.fixture
def labels() -> dict:
    return {name: np.random.default_rng(i).integers(0, 2, 80) for i, name in enumerate(FINDINGS)}


@pytest.fixture
def make(tmp_path, labels):
    """A result of three findings, of 80 images of 40 patients; a higher `gain` is a better model."""

    def save(name, gain, findings=FINDINGS, patients=True, **options):
        generator = np.random.default_rng(len(name))
        scores = {finding: gain * labels[finding] + generator.standard_normal(80) for finding in findings}
        options = {"patients": [f"p{i // 2}" for i in range(80)] if patients else None, **options}
        return save_result(tmp_path / name, scores, labels, **options)

    return save


def change(folder, **changes):
    metrics = json.loads((folder / "metrics.json").read_text())
    write_metrics(folder / "metrics.json", {**metrics, **changes})


def test_each_gain_is_that_of_the_pair(make):
    named = {"a": make("a", 0.5), "bb": make("bb", 1.0), "ccc": make("ccc", 1.5)}
    resampling = Resampling(100, seed=3)
    comparison = compare_with_baseline(named, "bb", resampling)
    assert comparison["baseline"] == "bb" and list(comparison["results"]) == ["a", "bb", "ccc"]
    assert "gain" not in comparison["results"]["bb"]
    for name in ("a", "ccc"):
        pair = compare_evaluations(named["bb"], named[name], resampling)
        gain = comparison["results"][name]["gain"]
        for part in (gain["mean"], *gain["findings"].values()):
            for entry in part.values():
                if isinstance(entry, dict):
                    assert entry.pop("p_holm") >= entry["p_bootstrap"]
        assert gain == {key: pair[key] for key in ("findings", "mean")}
        assert comparison["results"][name]["mean"]["auroc"] == pair["mean"]["auroc"]["second"]
        for key in ("n_images", "n_patients", "n_bootstrap", "seed", "dataset", "findings_left_out"):
            assert comparison[key] == pair[key]


@pytest.mark.parametrize("patients", [True, False])
def test_the_family_is_all_models_in_one_number(make, patients):
    named = {name: make(name, gain, patients=patients) for name, gain in (("a", 0.5), ("bb", 0.9), ("ccc", 1.3))}
    comparison = compare_with_baseline(named, "a", Resampling(200))
    gains = [comparison["results"][name]["gain"] for name in ("bb", "ccc")]
    # several images of a patient: the p-values of the resamples; one each: those of DeLong's test, which means lack
    shown = "p_bootstrap" if patients else "p_delong"
    for finding in FINDINGS:
        entries = [gain["findings"][finding]["auroc"] for gain in gains]
        assert [entry["p_holm"] for entry in entries] == holm([entry[shown] for entry in entries]).tolist()
    for key in ("auroc", "mcc"):
        entries = [gain["mean"][key] for gain in gains]
        assert [entry["p_holm"] for entry in entries] == holm([entry["p_bootstrap"] for entry in entries]).tolist()


def test_own_intervals_are_of_the_same_resamples(make):
    named = {"a": make("a", 0.5), "bb": make("bb", 1.0)}
    results = compare_with_baseline(named, resampling=Resampling(200))["results"]
    for result in results.values():
        for part in (result["mean"], *result["findings"].values()):
            assert part["auroc_ci95"][0] < part["auroc"] < part["auroc_ci95"][1]
    # the order of the results does not change any of them
    turned = compare_with_baseline(dict(reversed(named.items())), "a", Resampling(200))["results"]
    assert turned == results and list(turned) == ["bb", "a"]


def test_only_shared_findings_count_and_the_others_are_named(make):
    named = {
        "a": make("a", 0.5),
        "bb": make("bb", 1.0, findings=("Mass", "Edema")),
        "ccc": make("ccc", 1.0, findings=("Edema", "Nodule")),
    }
    comparison = compare_with_baseline(named, resampling=Resampling(50))
    assert list(comparison["findings"]) == ["Edema"]
    assert comparison["findings_left_out"] == {"Mass": f"not in {named['ccc']}", "Nodule": f"not in {named['bb']}"}
    assert comparison["results"]["a"]["mean"]["auroc"] == comparison["results"]["a"]["findings"]["Edema"]["auroc"]


def test_sizes_add_up_over_an_ensemble(make):
    named = {"a": make("a", 0.5), "bb": make("bb", 1.0)}
    sizes = {"m": {"parameters": 100, "image_size": 224}, "n": {"parameters": 20, "image_size": 448}}
    change(named["bb"], sizes=sizes)
    results = compare_with_baseline(named, resampling=Resampling(50))["results"]
    assert (results["a"]["parameters"], results["a"]["image_size"]) == (None, [])
    assert (results["bb"]["parameters"], results["bb"]["image_size"]) == (120, [224, 448])
    change(named["bb"], sizes={"m": 5})
    with pytest.raises(ValueError, match="lacks a valid size of 'm': evaluate the model again"):
        compare_with_baseline(named)


def test_protocols_that_differ_are_told_of_the_one(make, caplog):
    named = {"a": make("a", 0.5), "bb": make("bb", 1.0), "ccc": make("ccc", 1.0, prompts="chexzero")}
    results = compare_with_baseline(named, resampling=Resampling(100))["results"]
    assert [result["protocol_differences"] for result in results.values()] == [
        {},
        {},
        {"prompts": ["report", "chexzero"]},
    ]
    (message,) = caplog.messages
    assert message.startswith("The protocols of a and ccc differ in prompts (report / chexzero): scores")


def test_other_images_are_refused_as_of_two(make):
    named = {"a": make("a", 0.5), "bb": make("bb", 1.0)}
    named["ccc"] = make("ccc", 1.0, patients=False, image_ids=[f"image{i + 1}" for i in range(80)])
    with pytest.raises(ValueError, match=f"{named['a']} has 80, {named['ccc']} 80, and 79 are in both"):
        compare_with_baseline(named)


def test_training_images_are_excluded_from_all(make, labels, tmp_path):
    import pandas as pd

    named = {"a": make("a", 0.5), "bb": make("bb", 1.0), "ccc": make("ccc", 1.0)}
    for name, seen in (("bb", range(4)), ("ccc", range(2, 8))):
        path = named[name] / "predictions.parquet"
        table = pd.read_parquet(path)
        table.assign(trained_on=[i in seen for i in range(80)]).to_parquet(path)
    with pytest.raises(ValueError, match=r"counts 4 images .* Exclude them from all results with --exclude_trained"):
        compare_with_baseline(named)
    for trained, number in (("exclude", 72), ("include", 80)):
        assert compare_with_baseline(named, None, Resampling(50), trained)["n_images"] == number


def test_few_resamples_for_many_models_are_told(make, caplog):
    named = {"a": make("a", 0.5), "bb": make("bb", 1.0), "ccc": make("ccc", 1.0)}
    compare_with_baseline(named, resampling=Resampling(79))
    assert not caplog.records
    compare_with_baseline(named, resampling=Resampling(78))
    assert caplog.messages == [
        "With 78 resamples, the correction over 2 models leaves no p-value of the resamples below 0.051: raise "
        "--n_bootstrap to 80."
    ]


def test_names(make, tmp_path):
    folders = [str(make(name, 0.5)) for name in ("a", "x=y")]
    shutil.copytree(folders[0], tmp_path / "copy" / "a")
    assert name_results([folders[0], f"own={folders[1]}"]) == {"a": folders[0], "own": folders[1]}
    assert name_results(folders) == {"a": folders[0], "x=y": folders[1]}  # a folder's name may have a "="
    other = str(tmp_path / "copy" / "a")
    with pytest.raises(ValueError, match="Two results are called 'a' .*: name each differently, as in NAME="):
        name_results([folders[0], other])
    assert list(name_results([folders[0], f"b={other}"])) == ["a", "b"]
    with pytest.raises(ValueError, match="needs at least two results"):
        name_results(folders[:1])
    with pytest.raises(ValueError, match="The baseline 'c' is not one of the results: choose one of a, b."):
        compare_with_baseline({"a": folders[0], "b": other}, "c")
