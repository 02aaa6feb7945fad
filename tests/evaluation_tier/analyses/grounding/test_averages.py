import numpy as np
import pytest
from marked_scenes import ASK, make_dataset, many_scenes

from evaluation_tier.analyses.grounding.averages import bootstrap_means
from evaluation_tier.analyses.grounding.evaluation import evaluate_grounding
from evaluation_tier.analyses.grounding.map_metrics import METRICS
from evaluation_tier.analyses.grounding.map_names import baseline_names, map_names
from evaluation_tier.analyses.grounding.maps import PatchMaps
from evaluation_tier.analyses.grounding.measurements import best_thresholds, measure_regions
from evaluation_tier.analyses.grounding.regions import Case
from evaluation_tier.models.single_pass import Fed, asked_rows, feed
from evaluation_tier.statistics.resampling import Resampling

KINDS = ("cosine", "contribution")  # of maps, of a model whose score is a sum over patches


def test_bootstrap_is_that_of_a_loop_over_patients():
    generator = np.random.default_rng(0)
    values, groups = generator.random((40, 3)), generator.integers(2, size=40)
    values[generator.random((40, 3)) < 0.2] = np.nan
    patients = np.array([f"p{i}" for i in generator.integers(12, size=40)])
    means, intervals = bootstrap_means(values, groups, 2, patients, Resampling(50, 3))
    names = np.unique(patients)
    drawn = np.random.default_rng(3).integers(len(names), size=(50, len(names)))
    resampled = []
    for draw in drawn:
        rows = np.concatenate([np.flatnonzero(patients == names[i]) for i in draw])
        per_group = [np.nanmean(values[rows[groups[rows] == g]], axis=0) for g in (0, 1)]
        resampled.append([*per_group, np.mean(per_group, axis=0), np.nanmean(values[rows], axis=0)])
    per_group = [np.nanmean(values[groups == g], axis=0) for g in (0, 1)]
    np.testing.assert_allclose(means, [*per_group, np.mean(per_group, axis=0), np.nanmean(values, axis=0)])
    np.testing.assert_allclose(intervals, np.moveaxis(np.percentile(resampled, [2.5, 97.5], axis=0), 0, -1))


def test_bootstrap_without_enough():
    values = np.array([[1.0, np.nan], [2.0, np.nan], [3.0, np.nan], [4.0, np.nan], [5.0, 1.0], [7.0, np.nan]])
    means, intervals = bootstrap_means(values, np.array([0, 0, 0, 0, 0, 1]), 3, np.arange(6), Resampling(100))
    np.testing.assert_allclose(means, [[3, 1], [7, np.nan], [np.nan, np.nan], [3, np.nan], [22 / 6, 1]])
    assert np.isfinite(intervals[[0, 3, 4], 0]).all()
    assert np.isnan(intervals[[1, 2], 0]).all() and np.isnan(intervals[:, 1]).all()


def test_a_difference_is_the_mean_of_the_differences(bright):
    images, marks, patients = many_scenes(1)
    results = evaluate_grounding(
        *bright(), make_dataset(images, masks=marks, patients=patients), ASK, resampling=Resampling(5)
    )
    group = results["all_regions"]
    rivals = {"positive": "average_positive", "above_average": "average"}
    for name, average in (rivals | {f"{a}_contribution": f"{b}_contribution" for a, b in rivals.items()}).items():
        of_cosines = () if name.endswith("contribution") else ("miou_cosine",)
        for metric in ("pixel_auroc", "cnr", "iou_best_optimistic", *of_cosines):
            expected = group["maps"][name][metric]["mean"] - group["baselines"][average][metric]["mean"]
            assert group["differences"][name]["average"][metric]["mean"] == pytest.approx(expected)
    assert (
        "miou_cosine" not in group["baselines"]["prior"]
        and "miou_cosine" not in group["differences"]["positive"]["prior"]
    )
    random = group["baselines"]["random"]["pointing"]["mean"]
    assert random == pytest.approx(group["area"]) == pytest.approx(1 / 16)


def test_the_best_threshold_is_chosen_apart_or_called_optimistic(bright):
    images, marks, patients = many_scenes(2)
    dataset = make_dataset(images, masks=marks, patients=patients)
    images, marks, patients = many_scenes(3)
    other = make_dataset([255 - image // 2 for image in images], masks=marks, patients=patients)
    apart = evaluate_grounding(*bright(), dataset, ASK, threshold_dataset=other, resampling=Resampling(2))
    same = evaluate_grounding(*bright(), dataset, ASK, resampling=Resampling(2))
    assert "iou_best" in apart["mean"]["maps"]["difference"] and "iou_best" not in same["mean"]["maps"]["difference"]
    assert apart["protocol"]["best_thresholds"] == "highest mean on a split apart"
    assert same["protocol"]["best_thresholds"] == "highest mean on the evaluated regions"
    own = evaluate_grounding(*bright(), other, ASK, resampling=Resampling(2))
    for finding in ("A", "B"):
        for name in (*map_names(KINDS), *baseline_names(KINDS)):
            for kind in ("iou", "dice"):
                curve = same["findings"][finding]["curves"][name]
                place = int(np.argmax(curve[kind]))
                assert same["findings"][finding]["thresholds"][name][kind] == curve["thresholds"][place]
                group = "maps" if name in map_names(KINDS) else "baselines"
                optimistic = same["findings"][finding][group][name][f"{kind}_best_optimistic"]["mean"]
                assert optimistic == pytest.approx(curve[kind][place])
                threshold = apart["findings"][finding]["thresholds"][name][kind]
                assert threshold == own["findings"][finding]["thresholds"][name][kind]
                at = curve["thresholds"].index(threshold)
                honest = apart["findings"][finding][group][name][f"{kind}_best"]["mean"]
                assert honest == pytest.approx(curve[kind][at]) and honest <= optimistic + 1e-12
    with pytest.raises(ValueError, match="patients are in both 'evaluated' and 'thresholds'"):
        evaluate_grounding(*bright(), dataset, ASK, threshold_dataset=dataset)


def test_thresholds_of_a_data_set_without_a_finding(bright):
    images, marks, patients = many_scenes(8, 4)
    dataset, (model, processor) = make_dataset(images, masks=marks, patients=patients), bright()
    maps = PatchMaps(model, processor, len(dataset), [Case(0, "B", ""), Case(1, "A", "")], ASK)
    feed([Fed(model, processor, [maps])], dataset, asked_rows(dataset, [maps]), 32)
    measured = measure_regions(maps, dataset, processor.image_processor)
    assert set(best_thresholds(measured)) == {"A", "B"} and measured.values.shape == (2, 12, len(METRICS))
    assert (best_thresholds(measured)["A"][measured.names.index("prior")] == -1).all()
    assert np.isfinite(measured.curves[:, : measured.names.index("prior")]).all()
