import json

import datasets
import numpy as np
import pytest
import torch
from marked_scenes import ASK, as_mask, box, make_dataset, many_scenes, scene
from PIL import Image

from evaluation_tier.analyses.grounding.evaluation import evaluate_grounding
from evaluation_tier.analyses.grounding.map_metrics import METRICS, measure_map
from evaluation_tier.analyses.grounding.map_names import baseline_names, map_names
from evaluation_tier.analyses.grounding.maps import compute_grids
from evaluation_tier.analyses.grounding.regions import Case, read_cases, read_region
from evaluation_tier.statistics.resampling import Resampling
from modeling_tier import TierCLIPForImageClassification
from processing_tier.prompts.loader import Prompts, load_prompts
from processing_tier.readers.ms_cxr import read_ms_cxr

KINDS = ("cosine", "contribution")  # of maps, of a model whose score is a sum over patches


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
    results = evaluate_grounding(model, processor, dataset, ASK, resampling=Resampling(2))
    assert model.training and model.num_images == 2
    values = results["all_regions"]["maps"]["difference"]
    assert values["pointing"]["mean"] == 1
    assert values["pixel_auroc"]["mean"] > 0.97
    assert results["regions"][0]["area"] == pytest.approx(32 * 32 / height / width)
    # the transposed, or the other geometry's, reading would miss: the same map on the mirrored mask
    mirrored = make_dataset([image, np.full_like(image, 20)], masks=[[as_mask("A", mask[::-1, ::-1])], []])
    missed = evaluate_grounding(*bright(geometry, **options), mirrored, ASK, resampling=Resampling(2))
    assert missed["all_regions"]["maps"]["difference"]["pointing"]["mean"] == 0


def test_what_a_crop_cut_away_counts_as_missed(bright):
    image, mask = scene(64, 160, 20, 22, 24)  # the centre crop begins at column 48
    dataset = make_dataset([image], masks=[[as_mask("A", mask)]])
    maps = evaluate_grounding(*bright("crop"), dataset, ASK, resampling=Resampling(2))
    values = maps["all_regions"]["maps"]["difference"]
    assert values["pointing"]["mean"] == values["iou_top_20"]["mean"] == values["iou_best_optimistic"]["mean"] == 0
    assert values["pixel_auroc"]["mean"] < 0.35 and values["cnr"]["mean"] is None
    seen = evaluate_grounding(*bright("pad"), dataset, ASK, resampling=Resampling(2))["all_regions"]["maps"][
        "difference"
    ]
    assert seen["pointing"]["mean"] == 1 and seen["pixel_auroc"]["mean"] > 0.95


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
        expected = {"positive": positive[i], "difference": difference, "above_average": difference - usual}
        expected |= {"average_positive": positive.mean(), "average": usual}
        assert len(grids[case]) == 10
        for name, value in expected.items():
            np.testing.assert_allclose(grids[case][name], np.full((8, 8), value), atol=1e-6)
            # where all patches are alike, each contributes its share of the cosine
            contribution = grids[case][f"{name}_contribution"]
            np.testing.assert_allclose(contribution, np.full((8, 8), value / 64), atol=1e-8)


def test_contributions_know_what_cosines_ignore(bright):
    """
    The marked square is grey and its patches are long; another one is white and its patches are short. The white one
    has the highest cosine, the grey one contributes most to the score.
    """
    image, mask = scene(32, 32, 4, 4, 8)
    image[mask] = 200
    image[20:28, 20:28] = 255
    dataset = make_dataset([image], masks=[[as_mask("A", mask)]])
    model, processor = bright()
    lengths = torch.ones(8, 8, 1)
    lengths[4:, 4:] = 0.1
    encode = model.encode_images

    def encode_images(pixel_values):
        outputs, grid = encode(pixel_values)
        outputs.pooler_output = (grid * lengths).mean(dim=(1, 2))
        return outputs, grid * lengths

    model.encode_images = encode_images
    results = evaluate_grounding(model, processor, dataset, ASK, resampling=Resampling(2))
    maps = results["all_regions"]["maps"]
    assert [maps[name]["pointing"]["mean"] for name in ("positive", "difference")] == [0, 0]
    assert [maps[f"{name}_contribution"]["pointing"]["mean"] for name in ("positive", "difference")] == [1, 1]

    (case,) = cases = read_cases(dataset)
    grids, _ = compute_grids(model, processor, dataset, cases, ASK)
    angles = np.full((8, 8), 20 / 255 * np.pi / 2)
    angles[1:3, 1:3], angles[5:7, 5:7] = 200 / 255 * np.pi / 2, np.pi / 2
    patches = np.stack([np.sin(angles), np.cos(angles)]) * lengths[..., 0].numpy()
    positive, negative = patches / 64 / np.linalg.norm(patches.mean(axis=(1, 2)))
    np.testing.assert_allclose(grids[case]["positive_contribution"], positive, atol=1e-7)
    np.testing.assert_allclose(grids[case]["difference_contribution"], positive - negative, atol=1e-7)
    assert grids[case]["above_average_contribution"] == pytest.approx(0, abs=1e-7)  # of one image

    # cosine thresholds say nothing of contributions
    region = results["regions"][0]["maps"]
    for of_maps in (maps, region):
        assert set(of_maps["positive"]) - set(of_maps["positive_contribution"]) == {"miou_cosine"}
    assert not any("miou_cosine" in undefined for undefined in results["undefined"].values())
    assert "miou_cosine" not in results["all_regions"]["differences"]["positive_contribution"]["average"]


def test_a_model_whose_score_is_not_a_sum_has_the_maps_of_cosines_alone(bright):
    images, marks, patients = many_scenes(10, 4)
    dataset = make_dataset(images, masks=marks, patients=patients)
    both = evaluate_grounding(*bright(), dataset, ASK, resampling=Resampling(2))
    model, processor = bright()
    model.config.image_pooling = "cls"
    cosines = evaluate_grounding(model, processor, dataset, ASK, resampling=Resampling(2))
    assert list(cosines["mean"]["maps"]) == ["positive", "difference", "above_average"]
    assert list(cosines["mean"]["baselines"]) == ["average_positive", "average", "prior", "centre", "random"]
    for part in ("maps", "baselines", "differences"):
        for name, numbers in cosines["all_regions"][part].items():
            assert both["all_regions"][part][name] == numbers  # the same numbers under the same names


def test_sentences_of_boxes_are_asked_one_by_one(bright):
    image, _ = scene(64, 64, 4, 4, 16)
    boxes = [[box("A", 4, 4, 16, 16, "here"), box("A", 40, 40, 16, 16, "No there")]]
    results = evaluate_grounding(
        *bright(), make_dataset([image], boxes=boxes), ASK, phrases=True, resampling=Resampling(2)
    )
    assert results["n_images"] == 1 and results["n_regions"] == 2
    here, there = (region["maps"]["positive"] for region in results["regions"])
    assert here["pointing"] == 1 and there["pointing"] == pytest.approx(0.06, abs=0.05)
    assert here["pixel_auroc"] > 0.95
    assert (
        "here" not in json.dumps(results["regions"]) and results["protocol"]["prompts"] == "the sentences of the boxes"
    )


def test_results_are_json_and_the_seed_fixes_them(bright):
    images, marks, patients = many_scenes(4)
    dataset = make_dataset(images, masks=marks, patients=patients)
    first = evaluate_grounding(*bright(), dataset, ASK, resampling=Resampling(20, 1), dataset_name="squares")
    again = evaluate_grounding(
        *bright(), dataset, ASK, resampling=Resampling(20, 1), batch_size=5, dataset_name="squares"
    )
    other = evaluate_grounding(*bright(), dataset, ASK, resampling=Resampling(20, 2), dataset_name="squares")
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
        evaluate_grounding(*bright(), dataset, ASK, tolerance=t, resampling=Resampling(2))["all_regions"]
        for t in (0, 8)
    )
    assert loose["baselines"]["random"]["pointing"]["mean"] > strict["baselines"]["random"]["pointing"]["mean"]
    assert loose["maps"]["difference"]["cnr"] == strict["maps"]["difference"]["cnr"]
    with pytest.raises(ValueError, match="^The tolerance must be at least 0 pixels, but is -1"):
        evaluate_grounding(*bright(), dataset, ASK, tolerance=-1, resampling=Resampling(2))


def test_models_without_maps_are_refused(tier_model, phantom, brightness):
    with pytest.raises(ValueError, match="^BrightnessModel does not give similarity maps of sentences: use"):
        evaluate_grounding(*brightness, phantom)
    model, processor = tier_model
    config = type(model.config).from_dict(model.config.to_dict())
    config.num_labels, config.image_pooling = 2, "cls"
    classifier = TierCLIPForImageClassification(config)
    with pytest.raises(ValueError) as error:
        evaluate_grounding(classifier, processor.image_processor, phantom)
    assert str(error.value) == (
        'A TierCLIPForImageClassification with image_pooling="cls" does not have class activation maps, because its '
        'logits are not sums over the patches: train a classifier on a model with image_pooling="patch_mean".'
    )


def test_other_bad_input(bright):
    dataset = make_dataset([np.zeros((64, 64))], boxes=[[box("C", 4, 4, 8, 8)]])
    with pytest.raises(ValueError, match="^There are no prompts for 'C': add sentences"):
        evaluate_grounding(*bright(), dataset, ASK)
    with pytest.raises(ValueError, match="^The number of bootstrap resamples must be at least 1, but is 0"):
        evaluate_grounding(*bright(), dataset, ASK, resampling=Resampling(0))
    other = make_dataset([np.zeros((64, 64))], boxes=[[box("D", 4, 4, 8, 8)]], patients=["other"])
    with pytest.raises(ValueError, match="^The data that choose the thresholds have no box or mask of the evaluated"):
        evaluate_grounding(*bright(), dataset, {"C": ASK["A"]}, threshold_dataset=other)


def test_an_image_that_does_not_decode_is_left_out_and_named(bright, monkeypatch):
    monkeypatch.setattr("evaluation_tier.models.images.MAX_UNREADABLE", 0.5)
    images, marks, patients = many_scenes(7, 6)
    dataset = make_dataset(images, masks=marks, patients=patients)
    broken = dataset.to_dict()
    broken["image"][2] = {"bytes": b"no image", "path": None}
    results = evaluate_grounding(
        *bright(), datasets.Dataset.from_dict(broken, features=dataset.features), ASK, resampling=Resampling(2)
    )
    assert results["n_regions"] == 5 and results["protocol"]["images_skipped"] == ["image2"]
    assert [region["row"] for region in results["regions"]] == [0, 1, 3, 4, 5]


@pytest.fixture(scope="module")
def on_phantom(tier_model, phantom):
    return evaluate_grounding(*tier_model, phantom, resampling=Resampling(10), dataset_name="phantom")


def test_phantom_masks(on_phantom, tier_model, phantom):
    results, (model, processor) = on_phantom, tier_model
    assert results["n_regions"] == sum(len(masks) for masks in phantom["masks"])
    for finding, group in results["findings"].items():
        assert group["n_regions"] == sum(phantom[finding][:]) == group["n_images"]
        assert tuple(group["maps"]) == map_names(KINDS)
        assert tuple(group["baselines"]) == (*baseline_names(KINDS), "random")
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
        to_pixels = processor.image_processor.post_process_similarity_map
        similarity = to_pixels(grid, [(64, 64)], model.patch_centers)[0].numpy()
        mask = read_region(record, Case(region["row"], finding, ""), 64, 64).mask
        expected = dict(zip(METRICS, measure_map(similarity, mask)[0], strict=True))
        for metric in METRICS:
            assert region["maps"]["difference"][metric] == pytest.approx(expected[metric], rel=1e-3)
        assert region["area"] == mask.mean()


def test_findings_can_be_chosen(on_phantom, tier_model, phantom):
    some = evaluate_grounding(*tier_model, phantom, findings=["Edema", "Nodule"], resampling=Resampling(10))
    assert list(some["findings"]) == ["Edema", "Nodule"]
    means = [r["findings"]["Edema"]["maps"]["positive"]["pixel_auroc"]["mean"] for r in (some, on_phantom)]
    assert means[0] == pytest.approx(means[1])


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
    results = evaluate_grounding(*bright(), dataset, prompts, phrases=True, resampling=Resampling(2))
    assert (
        results["n_images"] == 3
        and results["n_regions"] == 6
        and results["findings"]["Lung Opacity"]["n_patients"] == 3
    )
    left, no = results["regions"][:2]
    assert (left["n_marks"], no["n_marks"]) == (2, 1) and left["area"] == 2 * no["area"] == 400 / 4800
    assert left["maps"]["difference"]["pointing"] == 1 and left["maps"]["positive"]["pixel_auroc"] > 0.95
    assert no["maps"]["positive"]["pointing"] == 0  # it asks for the dark, which is elsewhere
    whole = evaluate_grounding(*bright(), dataset, prompts, resampling=Resampling(2))
    assert whole["n_regions"] == 3 and whole["regions"][0]["area"] == pytest.approx(600 / 4800)
