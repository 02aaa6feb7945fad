import io
import json
import math
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from evaluation_tier.analyses.grounding.baselines import centre_map, position_priors
from evaluation_tier.analyses.grounding.evaluation import bootstrap_means, evaluate_grounding
from evaluation_tier.analyses.grounding.map_metrics import METRICS, measure_map
from evaluation_tier.analyses.grounding.maps import BASELINES, COSINES, MAPS, compute_grids
from evaluation_tier.analyses.grounding.measurements import best_thresholds, measure_cases
from evaluation_tier.analyses.grounding.regions import Case, boxes_to_mask, read_cases, read_region
from evaluation_tier.figures import grounding
from evaluation_tier.figures.grounding import plot_grounding
from evaluation_tier.statistics.resampling import Resampling
from modeling_tier import TierCLIPForImageClassification
from processing_tier import TierImageProcessor
from processing_tier.prompts.loader import Prompts, load_prompts
from processing_tier.readers.ms_cxr import read_ms_cxr
from processing_tier.records.annotations import BOXES, MASKS
from processing_tier.records.masks import counts_from_siim, encode_mask

# Regions


def test_boxes_cover_the_pixels_whose_centre_they_hold():
    box = {"x": 1.0, "y": 0.4, "w": 2.0, "h": 1.0}
    np.testing.assert_array_equal(boxes_to_mask([box], 3, 4), [[0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    inner = {"x": 0.6, "y": 0.0, "w": 0.8, "h": 9.0}  # between the centres 0.5 and 1.5
    assert not boxes_to_mask([inner], 3, 4).any()
    beyond = {"x": -5.0, "y": 2.0, "w": 6.0, "h": 50.0}
    np.testing.assert_array_equal(boxes_to_mask([box, beyond], 3, 4).sum(axis=1), [2, 0, 1])
    assert not boxes_to_mask([{"x": 10.0, "y": 0.0, "w": 5.0, "h": 3.0}], 3, 4).any()


def box(finding, x, y, w, h, phrase=""):
    return {"finding": finding, "phrase": phrase, "x": float(x), "y": float(y), "w": float(w), "h": float(h)}


def as_mask(finding, mask):
    return {"finding": finding, "height": mask.shape[0], "width": mask.shape[1], "counts": encode_mask(mask)}


def test_a_region_is_the_union_of_boxes_and_masks_of_its_finding():
    drawn = np.zeros((6, 8), dtype=bool)
    drawn[5, 7] = True
    record = {
        "boxes": [box("Mass", 0, 0, 2, 2), box("Mass", 1, 1, 2, 2), box("Edema", 4, 0, 4, 6)],
        "masks": [as_mask("Mass", drawn), as_mask("Edema", ~drawn)],
    }
    region = read_region(record, Case(0, "Mass", ""), 6, 8)
    expected = drawn.copy()
    expected[:2, :2] = expected[1:3, 1:3] = True
    np.testing.assert_array_equal(region.mask, expected)
    assert (region.num_marks, region.num_outside) == (3, 0)
    assert region.mask.sum() == 8  # not 9: the overlap counts once


def test_the_same_region_as_box_mask_and_run_lengths_is_the_same():
    box_region = read_region({"boxes": [box("Mass", 2, 1, 3, 4)]}, Case(0, "Mass", ""), 7, 9).mask
    drawn = np.zeros((7, 9), dtype=bool)
    drawn[1:5, 2:5] = True
    # SIIM: offset from the end of the last run, length; column by column
    siim = counts_from_siim("15 4 3 4 3 4", 7, 9)
    for counts in (siim, encode_mask(drawn)):
        mask = {"finding": "Mass", "height": 7, "width": 9, "counts": counts}
        region = read_region({"masks": [mask]}, Case(0, "Mass", ""), 7, 9).mask
        np.testing.assert_array_equal(region, box_region)
        similarity = np.random.default_rng(3).integers(7, size=(7, 9)).astype(np.float32)
        np.testing.assert_array_equal(measure_map(similarity, region)[0], measure_map(similarity, box_region)[0])


def png(array) -> dict:
    file = io.BytesIO()
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(file, format="PNG")
    return {"bytes": file.getvalue(), "path": None}


def make_dataset(images, boxes=None, masks=None, patients=None) -> datasets.Dataset:
    data = {
        "image": [png(image) for image in images],
        "image_id": [f"image{i}" for i in range(len(images))],
        "patient_id": patients or [f"patient{i}" for i in range(len(images))],
    }
    features = {"image": datasets.Image(decode=False)}
    features |= {name: datasets.Value("string") for name in ("image_id", "patient_id")}
    for name, values, feature in (("boxes", boxes, BOXES), ("masks", masks, MASKS)):
        if values is not None:
            data[name], features[name] = values, feature
    return datasets.Dataset.from_dict(data, features=datasets.Features(features))


def test_cases_in_the_order_of_the_data():
    dataset = make_dataset(
        [np.zeros((8, 8))] * 3,
        [
            [box("B", 0, 0, 1, 1, "left"), box("B", 2, 2, 1, 1, "right"), box("A", 0, 0, 1, 1)],
            [],
            [box("B", 1, 1, 1, 1)],
        ],
        [[], [as_mask("C", np.eye(8))], [as_mask("B", np.eye(8))]],
    )
    assert read_cases(dataset) == [(0, "B", ""), (0, "A", ""), (1, "C", ""), (2, "B", "")]
    assert read_cases(dataset, ["A", "C"]) == [(0, "A", ""), (1, "C", "")]
    assert read_cases(dataset, phrases=True) == [(0, "B", "left"), (0, "B", "right")]
    record = dataset[0]
    assert read_region(record, Case(0, "B", "right"), 8, 8).mask.sum() == 1
    assert read_region(record, Case(0, "B", ""), 8, 8).mask.sum() == 2


def test_data_without_what_is_needed_are_refused():
    images = [np.zeros((8, 8))]
    with pytest.raises(ValueError, match="^The data set has neither boxes nor masks: grounding is measured"):
        read_cases(make_dataset(images))
    with pytest.raises(ValueError, match="^None of the 1 images has a box or a mask"):
        read_cases(make_dataset(images, [[]]))
    boxed = make_dataset(images, [[box("A", 0, 0, 1, 1)]])
    with pytest.raises(ValueError, match="^None of the 1 images has a box with a sentence"):
        read_cases(boxed, phrases=True)
    with pytest.raises(ValueError, match="^No box or mask is of 'B': there are some of 'A'"):
        read_cases(boxed, ["B"])


# Whole evaluations, of a model whose maps are known


class BrightPatches(torch.nn.Module):
    """A patch of brightness b (0..1) lies at b * 90 degrees, "No ..." at 0 and any other sentence at 90."""

    def __init__(self, patch: int = 4):
        super().__init__()
        self.config = SimpleNamespace(projection_dim=2, text_config=SimpleNamespace(max_position_embeddings=8))
        self.device, self.patch, self.num_images = torch.device("cpu"), patch, 0

    def get_patch_map(self, pixel_values):
        assert not self.training and not torch.is_grad_enabled()
        self.num_images += len(pixel_values)
        angle = torch.nn.functional.avg_pool2d(pixel_values[:, 0], self.patch) * torch.pi / 2
        return 5 * torch.stack([angle.cos(), angle.sin()], dim=-1)  # without unit length

    def get_text_features(self, input_ids, attention_mask):
        present = input_ids[:, 0].float()
        return SimpleNamespace(pooler_output=torch.stack([1 - present, present], dim=1))


@pytest.fixture
def bright(brightness):
    """The model with a processor of images of 32 pixels, black 0 and white 1."""

    def make(geometry: str = "pad", **options):
        options = {"image_mean": [0, 0, 0], "image_std": [1, 1, 1], "geometry": geometry, **options}
        image_processor = TierImageProcessor(size={"height": 32, "width": 32}, **options)
        processor = SimpleNamespace(image_processor=image_processor, tokenizer=brightness[1].tokenizer)
        return BrightPatches().train(), processor

    return make


ASK = {"A": Prompts(["a"], ["No a"]), "B": Prompts(["b"], ["No b"])}


def scene(height, width, top, left, side):
    """A dark image with a white square, and the square as mask."""
    image = np.full((height, width), 20, dtype=np.uint8)
    image[top : top + side, left : left + side] = 250
    return image, image == 250


@pytest.mark.parametrize(
    "geometry, options", [("pad", {}), ("crop", {}), ("crop", {"resize_edge": 40}), ("squash", {})]
)
@pytest.mark.parametrize("height, width", [(96, 160), (160, 96)])
def test_maps_lie_where_the_square_is_in_the_pixels_of_the_image(bright, geometry, options, height, width):
    # well inside of what any crop leaves, and far from the centre and the diagonal
    top, left = (30, 84) if height < width else (84, 30)
    image, mask = scene(height, width, top, left, 32)
    dataset = make_dataset([image, np.full_like(image, 20)], masks=[[as_mask("A", mask)], []])
    model, processor = bright(geometry, **options)
    results = evaluate_grounding(model, processor, dataset, ASK, n_bootstrap=2)
    assert model.training and model.num_images == 2
    values = results["all_regions"]["maps"]["difference"]
    assert values["pointing"]["mean"] == 1
    assert values["pixel_auroc"]["mean"] > 0.97
    assert results["regions"][0]["area"] == pytest.approx(32 * 32 / height / width)
    # the transposed, or the other geometry's, reading would miss: the same map on the mirrored mask
    mirrored = make_dataset([image, np.full_like(image, 20)], masks=[[as_mask("A", mask[::-1, ::-1])], []])
    missed = evaluate_grounding(*bright(geometry, **options), mirrored, ASK, n_bootstrap=2)
    assert missed["all_regions"]["maps"]["difference"]["pointing"]["mean"] == 0


def test_what_a_crop_cut_away_counts_as_missed(bright):
    image, mask = scene(64, 160, 20, 22, 24)  # the centre crop begins at column 48
    dataset = make_dataset([image], masks=[[as_mask("A", mask)]])
    maps = evaluate_grounding(*bright("crop"), dataset, ASK, n_bootstrap=2)
    values = maps["all_regions"]["maps"]["difference"]
    assert values["pointing"]["mean"] == values["iou_top_20"]["mean"] == values["iou_best_optimistic"]["mean"] == 0
    assert values["pixel_auroc"]["mean"] < 0.35 and values["cnr"]["mean"] is None
    seen = evaluate_grounding(*bright("pad"), dataset, ASK, n_bootstrap=2)["all_regions"]["maps"]["difference"]
    assert seen["pointing"]["mean"] == 1 and seen["pixel_auroc"]["mean"] > 0.95


def test_boxes_masks_and_run_lengths_evaluate_alike(bright):
    image, mask = scene(96, 160, 8, 100, 32)
    as_box = make_dataset([image], boxes=[[box("A", 100, 8, 16, 32), box("A", 110, 8, 22, 32)]])  # overlapping halves
    as_masks = make_dataset([image], masks=[[as_mask("A", mask)]])
    first = evaluate_grounding(*bright(), as_box, ASK, n_bootstrap=2)
    second = evaluate_grounding(*bright(), as_masks, ASK, n_bootstrap=2)
    assert first["regions"][0].pop("n_marks") == 2 and second["regions"][0].pop("n_marks") == 1
    assert first == second


def test_maps_are_cosines_and_what_exceeds_the_average_image(bright):
    levels = [0, 51, 153, 255]
    dataset = make_dataset([np.full((32, 32), level) for level in levels], boxes=[[box("A", 0, 0, 9, 9)]] * 4)
    cases = read_cases(dataset)
    grids, num_reference = compute_grids(*bright(), dataset, cases, ASK, batch_size=3)
    assert num_reference == 4 and list(grids) == cases
    angles = np.array(levels) / 255 * np.pi / 2
    positive, negative = np.sin(angles), np.cos(angles)
    for i, case in enumerate(cases):
        difference = positive[i] - negative[i]
        usual = positive.mean() - negative.mean()
        expected = [positive[i], difference, difference - usual, positive.mean(), usual]
        assert grids[case].shape == (5, 8, 8)
        np.testing.assert_allclose(grids[case], np.broadcast_to(np.reshape(expected, (5, 1, 1)), (5, 8, 8)), atol=1e-6)


def test_sentences_of_boxes_are_asked_one_by_one(bright):
    image, _ = scene(64, 64, 4, 4, 16)
    boxes = [[box("A", 4, 4, 16, 16, "here"), box("A", 40, 40, 16, 16, "No there")]]
    results = evaluate_grounding(*bright(), make_dataset([image], boxes=boxes), ASK, phrases=True, n_bootstrap=2)
    assert results["n_images"] == 1 and results["n_regions"] == 2
    here, there = (region["maps"]["positive"] for region in results["regions"])
    assert here["pointing"] == 1 and there["pointing"] == pytest.approx(0.06, abs=0.05)
    assert here["pixel_auroc"] > 0.95
    assert (
        "here" not in json.dumps(results["regions"]) and results["protocol"]["prompts"] == "the sentences of the boxes"
    )


def many_scenes(seed: int, count: int = 12):
    generator = np.random.default_rng(seed)
    scenes = [scene(64, 64, *generator.integers(40, size=2), 16) for _ in range(count)]
    images, masks = zip(*scenes, strict=True)
    findings = ["A" if i % 3 else "B" for i in range(count)]
    marks = [[as_mask(finding, mask)] for finding, mask in zip(findings, masks, strict=True)]
    return images, marks, [f"{seed}-{i // 2}" for i in range(count)]


def test_a_model_that_sees_beats_every_baseline(bright):
    images, marks, patients = many_scenes(0, 30)
    dataset = make_dataset(images, masks=marks, patients=patients)
    results = evaluate_grounding(*bright(), dataset, ASK, n_bootstrap=200)
    for group in (*results["findings"].values(), results["mean"], results["all_regions"]):
        for name in MAPS:
            for rival in ("average", "prior", "centre", "random"):
                low, high = group["differences"][name][rival]["pointing"]["ci95"]
                assert 0 < low <= high


def test_a_difference_is_the_mean_of_the_differences(bright):
    images, marks, patients = many_scenes(1)
    results = evaluate_grounding(*bright(), make_dataset(images, masks=marks, patients=patients), ASK, n_bootstrap=5)
    group = results["all_regions"]
    for name, average in (("positive", "average_positive"), ("above_average", "average")):
        for metric in ("pixel_auroc", "cnr", "iou_best_optimistic", "miou_cosine"):
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
    apart = evaluate_grounding(*bright(), dataset, ASK, threshold_dataset=other, n_bootstrap=2)
    same = evaluate_grounding(*bright(), dataset, ASK, n_bootstrap=2)
    assert "iou_best" in apart["mean"]["maps"]["difference"] and "iou_best" not in same["mean"]["maps"]["difference"]
    assert apart["protocol"]["best_thresholds"] == "highest mean on a split apart"
    assert same["protocol"]["best_thresholds"] == "highest mean on the evaluated regions"
    own = evaluate_grounding(*bright(), other, ASK, n_bootstrap=2)
    for finding in ("A", "B"):
        for name in (*MAPS, *BASELINES):
            for kind in ("iou", "dice"):
                curve = same["findings"][finding]["curves"][name]
                place = int(np.argmax(curve[kind]))
                assert same["findings"][finding]["thresholds"][name][kind] == curve["thresholds"][place]
                group = "maps" if name in MAPS else "baselines"
                optimistic = same["findings"][finding][group][name][f"{kind}_best_optimistic"]["mean"]
                assert optimistic == pytest.approx(curve[kind][place])
                threshold = apart["findings"][finding]["thresholds"][name][kind]
                assert threshold == own["findings"][finding]["thresholds"][name][kind]
                at = curve["thresholds"].index(threshold)
                honest = apart["findings"][finding][group][name][f"{kind}_best"]["mean"]
                assert honest == pytest.approx(curve[kind][at]) and honest <= optimistic + 1e-12
    with pytest.raises(ValueError, match="patients are in both 'evaluated' and 'thresholds'"):
        evaluate_grounding(*bright(), dataset, ASK, threshold_dataset=dataset)


def test_results_are_json_and_the_seed_fixes_them(bright):
    images, marks, patients = many_scenes(4)
    dataset = make_dataset(images, masks=marks, patients=patients)
    first = evaluate_grounding(*bright(), dataset, ASK, n_bootstrap=20, seed=1, dataset_name="squares")
    again = evaluate_grounding(*bright(), dataset, ASK, n_bootstrap=20, seed=1, batch_size=5, dataset_name="squares")
    other = evaluate_grounding(*bright(), dataset, ASK, n_bootstrap=20, seed=2, dataset_name="squares")
    assert json.loads(json.dumps(first, allow_nan=False)) == first == again
    interval = [r["all_regions"]["maps"]["difference"]["cnr"] for r in (first, other)]
    assert interval[0]["mean"] == interval[1]["mean"] and interval[0]["ci95"] != interval[1]["ci95"]
    assert first["dataset"] == "squares" and first["n_regions"] == 12 and first["protocol"]["n_patients"] == 6
    # B has 4 regions of 4 patients, too few for an interval and for the mean
    assert first["findings"]["B"]["maps"]["difference"]["cnr"]["ci95"] == [None, None]
    assert first["mean"]["findings"] == ["A"] and first["mean"]["n_regions"] == 8
    assert first["mean"]["maps"]["difference"] == first["findings"]["A"]["maps"]["difference"]


def test_a_tolerance_makes_pointing_easier_for_all(bright):
    images, marks, patients = many_scenes(5)
    dataset = make_dataset(images, masks=marks, patients=patients)
    strict, loose = (
        evaluate_grounding(*bright(), dataset, ASK, tolerance=t, n_bootstrap=2)["all_regions"] for t in (0, 8)
    )
    assert loose["baselines"]["random"]["pointing"]["mean"] > strict["baselines"]["random"]["pointing"]["mean"]
    assert loose["maps"]["difference"]["cnr"] == strict["maps"]["difference"]["cnr"]
    with pytest.raises(ValueError, match="^The tolerance must be at least 0 pixels, but is -1"):
        evaluate_grounding(*bright(), dataset, ASK, tolerance=-1, n_bootstrap=2)


# Baselines and intervals


def test_the_prior_is_that_of_the_other_patients():
    coverage = np.arange(4.0)[:, None, None] * np.ones((4, 2, 2))
    priors = position_priors(coverage, ["A", "A", "A", "B"], ["x", "x", "y", "y"])
    np.testing.assert_array_equal(priors[:, 0, 0], [2, 2, 0.5, np.nan])


def test_a_finding_of_one_patient_has_no_prior(bright):
    images, marks, _ = many_scenes(6, 3)
    dataset = make_dataset(images, masks=marks, patients=["x"] * 3)
    results = evaluate_grounding(*bright(), dataset, ASK, n_bootstrap=2)
    assert results["all_regions"]["baselines"]["prior"]["pointing"] == {"mean": None, "ci95": [None, None]}
    assert results["undefined"]["prior"]["pointing"] == 3
    assert results["mean"]["findings"] == [] and results["mean"]["maps"]["positive"]["cnr"]["mean"] is None


def test_the_centre_is_the_same_from_every_side():
    centre = centre_map(6, 9)
    np.testing.assert_allclose(centre, centre[::-1, ::-1])
    assert np.argmax(centre) % 9 == 4 and centre.max() <= 1
    assert centre[0, 4] == pytest.approx(math.exp(-0.5 * ((0.5 / 6 - 0.5) / 0.25) ** 2))


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


# Bad input


def test_models_without_maps_are_refused(tier_model, phantom, brightness):
    with pytest.raises(ValueError, match="^A BrightnessModel gives no similarity maps of sentences: grounding needs"):
        evaluate_grounding(*brightness, phantom)
    model, processor = tier_model
    config = type(model.config).from_dict(model.config.to_dict())
    config.num_labels = 2
    classifier = TierCLIPForImageClassification(config)
    with pytest.raises(ValueError, match="^A TierCLIPForImageClassification gives no similarity maps of sentences"):
        evaluate_grounding(classifier, processor.image_processor, phantom)


def test_boxes_of_another_size_are_refused(bright):
    dataset = make_dataset([np.zeros((64, 64))] * 2, boxes=[[box("A", 500, 40, 200, 200)], [box("A", 5, 5, 9, 9)]])
    with pytest.raises(
        ValueError, match="^1 of 2 boxes and masks have no area or reach beyond their image.* image_size"
    ):
        evaluate_grounding(*bright(), dataset, ASK)


def test_few_boxes_outside_are_cut_or_left_out_and_counted(bright, caplog):
    boxes = [[box("A", 4, 4, 8, 8)] for _ in range(41)]
    boxes[3] = [box("A", 60, 4, 8, 8)]  # half of it
    boxes[4] = [box("A", 64, 4, 8, 8)]  # nothing of it
    dataset = make_dataset([np.eye(64) * 255] * 41, boxes=boxes)
    results = evaluate_grounding(*bright(), dataset, ASK, n_bootstrap=2)
    assert results["n_regions"] == 40 and results["protocol"]["boxes_beyond_image"] == 2
    assert results["protocol"]["regions_without_area"] == 1
    assert results["regions"][3]["area"] == pytest.approx(4 * 8 / 64**2)
    assert "2 boxes reach beyond their image and are cut; 1 regions have no pixel" in caplog.text


def test_masks_of_another_size_are_refused(bright):
    dataset = make_dataset([np.zeros((64, 64))], masks=[[as_mask("A", np.eye(32))]])
    with pytest.raises(ValueError, match=r"^Image 0 of the data set .* has 64x64 pixels .*, but a mask of it 32x32"):
        evaluate_grounding(*bright(), dataset, ASK)


def test_other_bad_input(bright):
    dataset = make_dataset([np.zeros((64, 64))], boxes=[[box("C", 4, 4, 8, 8)]])
    with pytest.raises(ValueError, match="^There are no prompts for 'C': add sentences"):
        evaluate_grounding(*bright(), dataset, ASK)
    with pytest.raises(ValueError, match="^The number of bootstrap resamples must be at least 1, but is 0"):
        evaluate_grounding(*bright(), dataset, ASK, n_bootstrap=0)
    other = make_dataset([np.zeros((64, 64))], boxes=[[box("D", 4, 4, 8, 8)]], patients=["other"])
    with pytest.raises(ValueError, match="^The data that choose the thresholds have no box or mask of the evaluated"):
        evaluate_grounding(*bright(), dataset, {"C": ASK["A"]}, threshold_dataset=other)


def test_an_image_that_does_not_decode_is_left_out_and_named(bright, monkeypatch):
    monkeypatch.setattr("evaluation_tier.models.embedding.MAX_UNREADABLE", 0.5)
    images, marks, patients = many_scenes(7, 6)
    dataset = make_dataset(images, masks=marks, patients=patients)
    broken = dataset.to_dict()
    broken["image"][2] = {"bytes": b"no image", "path": None}
    results = evaluate_grounding(
        *bright(), datasets.Dataset.from_dict(broken, features=dataset.features), ASK, n_bootstrap=2
    )
    assert results["n_regions"] == 5 and results["protocol"]["images_skipped"] == ["image2"]
    assert [region["row"] for region in results["regions"]] == [0, 1, 3, 4, 5]


# The phantom, and real boxes


@pytest.fixture(scope="module")
def on_phantom(tier_model, phantom):
    return evaluate_grounding(*tier_model, phantom, n_bootstrap=10, dataset_name="phantom")


def test_phantom_masks(on_phantom, tier_model, phantom):
    results, (model, processor) = on_phantom, tier_model
    assert results["n_regions"] == sum(len(masks) for masks in phantom["masks"])
    for finding, group in results["findings"].items():
        assert group["n_regions"] == sum(phantom[finding][:]) == group["n_images"]
        assert set(group["maps"]) == set(MAPS) and set(group["baselines"]) == {*BASELINES, "random"}
    # one region by hand
    region = results["regions"][5]
    record, finding = phantom[region["row"]], region["finding"]
    prompts = load_prompts("report", [finding])[finding]
    sentences = prompts.positive + prompts.negative
    image = processor.image_processor.read(record["image"])
    inputs = processor(text=sentences, images=[image], return_tensors="pt", padding=True)
    with torch.no_grad():
        maps = model.get_similarity_map(inputs["input_ids"], inputs["pixel_values"], inputs["attention_mask"])
    if len(prompts.positive) == len(prompts.negative) == 1:
        grid = maps[:, 0] - maps[:, 1]
        similarity = processor.image_processor.post_process_similarity_map(grid, [(64, 64)])[0].numpy()
        mask = read_region(record, Case(region["row"], finding, ""), 64, 64).mask
        expected = dict(zip(METRICS, measure_map(similarity, mask)[0], strict=True))
        for metric in METRICS:
            assert region["maps"]["difference"][metric] == pytest.approx(expected[metric], rel=1e-3)
        assert region["area"] == mask.mean()


def test_findings_can_be_chosen(on_phantom, tier_model, phantom):
    some = evaluate_grounding(*tier_model, phantom, findings=["Edema", "Nodule"], n_bootstrap=10)
    assert list(some["findings"]) == ["Edema", "Nodule"]
    means = [r["findings"]["Edema"]["maps"]["positive"]["pixel_auroc"]["mean"] for r in (some, on_phantom)]
    assert means[0] == pytest.approx(means[1])


def test_thresholds_of_a_data_set_without_a_finding(bright):
    images, marks, patients = many_scenes(8, 4)
    measured = measure_cases(
        *bright(), make_dataset(images, masks=marks, patients=patients), ASK, [Case(0, "B", ""), Case(1, "A", "")]
    )
    assert set(best_thresholds(measured)) == {"A", "B"} and measured.values.shape == (2, 7, len(METRICS))
    assert (best_thresholds(measured)["A"][[*MAPS, *BASELINES].index("prior")] == -1).all()
    assert np.isfinite(measured.curves[:, : len(COSINES)]).all()


def test_boxes_of_the_nih(shared_data):
    from processing_tier.readers import read_records

    dataset = datasets.concatenate_datasets(
        [read_records(shared_data / "nih_cxr14", split) for split in ("train", "validation")]
    )
    cases = read_cases(dataset)
    assert len(cases) == 50
    regions = [read_region(dataset[case.row], case, 320, 320) for case in cases]
    assert sum(region.num_marks for region in regions) == 50 and not any(region.num_outside for region in regions)
    assert all(0.005 < region.mask.mean() < 0.6 for region in regions)


def test_sentences_of_ms_cxr_from_its_archive(bright, tmp_path):
    rows = ["dicom_id,category_name,label_text,path,x,y,w,h,image_width,image_height,split"]
    for i in range(3):
        name, image = f"d{i}", scene(60, 80, 10, 40 + i, 20)[0]
        path = f"files/p10/p1000000{i}/s5000000{i}/{name}.jpg"
        (tmp_path / path).parent.mkdir(parents=True)
        Image.fromarray(image).save(tmp_path / path, quality=95)
        for x, phrase in ((40 + i, "opacity on the left"), (50 + i, "opacity on the left"), (0, "No opacity")):
            rows.append(f"{name},Lung Opacity,{phrase},{path},{x},10,10,20,80,60,test")
    (tmp_path / "MS_CXR_Local_Alignment_v1.1.0.csv").write_text("\n".join(rows))
    dataset = read_ms_cxr(tmp_path, "test")
    prompts = {"Lung Opacity": Prompts(["opacity"], ["No opacity"])}
    results = evaluate_grounding(*bright(), dataset, prompts, phrases=True, n_bootstrap=2)
    assert (
        results["n_images"] == 3
        and results["n_regions"] == 6
        and results["findings"]["Lung Opacity"]["n_patients"] == 3
    )
    left, no = results["regions"][:2]
    assert (left["n_marks"], no["n_marks"]) == (2, 1) and left["area"] == 2 * no["area"] == 400 / 4800
    assert left["maps"]["difference"]["pointing"] == 1 and left["maps"]["positive"]["pixel_auroc"] > 0.95
    assert no["maps"]["positive"]["pointing"] == 0  # it asks for the dark, which is elsewhere
    whole = evaluate_grounding(*bright(), dataset, prompts, n_bootstrap=2)
    assert whole["n_regions"] == 3 and whole["regions"][0]["area"] == pytest.approx(600 / 4800)


# The sheet of images


def test_a_sheet_shows_the_best_the_median_and_the_worst(bright, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    images, marks, patients = many_scenes(9, 7)
    dataset = make_dataset(images, masks=marks, patients=patients)
    model, processor = bright()
    results = evaluate_grounding(model, processor, dataset, ASK, n_bootstrap=2)
    shown = []
    monkeypatch.setattr(
        grounding, "draw_grounding", lambda *args, draw=grounding.draw_grounding: shown.append(args) or draw(*args)
    )
    monkeypatch.setattr(grounding, "REGIONS_PER_ROW", 2)
    path = plot_grounding(model, processor, dataset, ASK, results, tmp_path / "sheet.png")
    with Image.open(path) as sheet:
        assert sheet.format == "PNG" and sheet.width > sheet.height
    order = sorted(
        results["regions"],
        key=lambda region: (region["maps"]["above_average"]["iou_best_optimistic"],),
        reverse=True,
    )
    expected = [order[i]["row"] for i in (0, 1, 2, 3, 5, 6)]
    cases = {case.row: case for case in read_cases(dataset)}
    for row, (*_, sketch) in zip(expected, shown, strict=True):
        np.testing.assert_array_equal(sketch.mask, read_region(dataset[row], cases[row], 64, 64).mask)
        assert "image" not in sketch.title and " IoU 0." in sketch.title
    best = shown[0][-1]
    assert best.mask.shape == best.similarity.shape == (64, 64) and best.hit is True
    grids, _ = compute_grids(model, processor, dataset, read_cases(dataset), ASK)
    grid = torch.from_numpy(grids[read_cases(dataset)[order[0]["case"]]][2])[None]
    np.testing.assert_allclose(
        best.similarity, processor.image_processor.post_process_similarity_map(grid, [(64, 64)])[0], atol=1e-6
    )
    assert list(tmp_path.iterdir()) == [path]


def test_a_sheet_of_fewer_regions_than_places(bright, tmp_path):
    pytest.importorskip("matplotlib")
    image, mask = scene(48, 80, 4, 40, 20)
    dataset = make_dataset([image], boxes=[[box("A", 40, 4, 20, 20)]])
    results = json.loads(json.dumps(evaluate_grounding(*bright("crop"), dataset, ASK, n_bootstrap=2)))
    path = plot_grounding(*bright("crop"), dataset, ASK, results, tmp_path / "one.png", map_name="positive")
    assert path.stat().st_size > 1000
    with pytest.raises(
        ValueError, match="^A sheet shows one of the maps positive, difference, above_average, not 'x'"
    ):
        plot_grounding(*bright(), dataset, ASK, results, tmp_path / "x.png", map_name="x")
    with pytest.raises(ValueError, match="^The results are not of these data"):
        plot_grounding(
            *bright(), make_dataset([image], boxes=[[box("B", 40, 4, 20, 20)]]), ASK, results, tmp_path / "x"
        )
    assert not (tmp_path / "x.png").exists()
