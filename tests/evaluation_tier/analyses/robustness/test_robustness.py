import io
import json
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BatchEncoding, CLIPImageProcessorPil

from evaluation_tier.analyses.robustness import variants
from evaluation_tier.analyses.robustness.evaluation import evaluate_robustness
from evaluation_tier.analyses.robustness.sides import report_texts
from evaluation_tier.analyses.robustness.variants import DEGRADATIONS, VariantEmbeddings, compress, lower_resolution
from evaluation_tier.analyses.robustness.wording import WORDINGS, phrase
from evaluation_tier.figures.robustness import plot_robustness
from evaluation_tier.models.single_pass import Fed, feed
from evaluation_tier.scoring.protocols import choose_protocol
from evaluation_tier.scoring.zeroshot import evaluate_zero_shot
from evaluation_tier.statistics.resampling import Resampling
from processing_tier.image_processing_tier import TierImageProcessor
from processing_tier.prompts.loader import Prompts
from processing_tier.readers import read_records
from processing_tier.records.masks import finding_mask
from processing_tier.reports.sides import stated_side

BRIGHT = {"Bright": Prompts(["Bright."], ["No brightness."])}
ABSENT, PRESENT, LEFT, RIGHT = range(4)


class StandIn(torch.nn.Module):
    """
    A model whose answers are known: an image lies at the angle `measure(pixels) * 90` degrees from "absent" to
    "present", and as far out to the left (or right) as its patient's left half is brighter (or darker).
    """

    def __init__(self, measure, side_weight=1.0):
        super().__init__()
        self.config = SimpleNamespace(projection_dim=3, text_config=SimpleNamespace(max_position_embeddings=8))
        self.measure, self.side_weight, self.device = measure, side_weight, torch.device("cpu")

    def get_image_features(self, pixel_values):
        angle = self.measure(pixel_values[:, 0]) * torch.pi / 2
        middle = pixel_values.shape[-1] // 2
        side = pixel_values[:, 0, :, middle:].mean(dim=(1, 2)) - pixel_values[:, 0, :, :middle].mean(dim=(1, 2))
        return SimpleNamespace(pooler_output=torch.stack([angle.cos(), angle.sin(), self.side_weight * side], dim=1))

    def get_text_features(self, input_ids, attention_mask):
        table = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, -1]])
        return SimpleNamespace(pooler_output=table[input_ids[:, 0]])


def make_processor():
    def image_processor(images, return_tensors):
        pixels = torch.stack([torch.from_numpy(np.asarray(image) / np.float32(255)) for image in images])
        return {"pixel_values": pixels[:, None]}

    def tokenizer(texts, **options):
        words = [set(text.lower().rstrip(".").split()) for text in texts]
        absent = [bool(each & {"no", "without", "absent"}) for each in words]
        sides = [LEFT if "left" in each else RIGHT if "right" in each else PRESENT for each in words]
        ids = torch.tensor([[ABSENT if no else side] for no, side in zip(absent, sides, strict=True)])
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    tokenizer.model_max_length = 8
    return SimpleNamespace(image_processor=image_processor, tokenizer=tokenizer)


def make_dataset(arrays, labels, finding="Pneumothorax", reports=None) -> datasets.Dataset:
    images = []
    for array in arrays:
        file = io.BytesIO()
        Image.fromarray(array).save(file, format="PNG")
        images.append({"bytes": file.getvalue(), "path": None})
    names = [f"image{i}" for i in range(len(arrays))]
    data = {"image": images, "image_id": names, "patient_id": names, finding: labels}
    features = {"image": datasets.Image(decode=False), "image_id": datasets.Value("string")}
    features |= {"patient_id": datasets.Value("string"), finding: datasets.Value("float32")}
    if reports is not None:
        data["findings"], features["findings"] = reports, datasets.Value("string")
    return datasets.Dataset.from_dict(data, features=datasets.Features(features))


def brightness(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.mean(dim=(1, 2))


@pytest.fixture(scope="module")
def results(tier_model, phantom) -> dict:
    return evaluate_robustness(
        *tier_model, phantom, min_positives=5, resampling=Resampling(20), dataset_name="phantom"
    )


def test_there_are_six_wordings_that_differ():
    assert len(WORDINGS) == len(set(WORDINGS.values())) == 6
    assert all(side.count("{}") == 1 for sides in WORDINGS.values() for side in sides)
    assert WORDINGS["name"] == ("{}", "no {}")  # CheXzero's


def test_names_stand_in_sentences_as_one_writes_them():
    assert phrase("no {}", "Pleural_Effusion") == "No pleural effusion"
    assert phrase("{} is seen.", "Nodule/Mass") == "Nodule or mass is seen."


def test_wordings_and_negation_by_hand(brightness, make_grey_dataset):
    # This model knows that sentences which begin with "No" deny, and no other way to deny; bright means 128 and more
    dataset = make_grey_dataset([10, 100, 150, 200, 250], [0, 1, 0, 1, 1])
    results = evaluate_robustness(*brightness, dataset, None, BRIGHT, min_positives=1, resampling=Resampling(5))
    known, unknown = ("name", "evidence", "seen"), ("there is", "presence", "radiograph")
    for level in (results["wordings"]["findings"]["Bright"], results["wordings"]["mean"]):
        aurocs = level["auroc"]
        assert [aurocs[wording] for wording in known] == pytest.approx([5 / 6] * 3)
        assert [aurocs[wording] for wording in unknown] == [0.5] * 3
        assert level["mean"] == pytest.approx(2 / 3)
        assert (level["min"], level["max"]) == pytest.approx((1 / 2, 5 / 6))
        assert level["sd"] == pytest.approx(np.std([1 / 2] * 3 + [5 / 6] * 3, ddof=1))
    assert results["wordings"]["mean"]["auroc_ci95"]["presence"] == [0.5, 0.5]
    for level in (results["negation"]["findings"]["Bright"], results["negation"]["mean"]):
        for wording in known:
            assert level[wording]["on_positives"] == pytest.approx(2 / 3)
            assert level[wording]["on_negatives"] == 0.5
            assert level[wording]["balanced"] == pytest.approx(7 / 12)
        for wording in unknown:
            assert level[wording] == dict.fromkeys(("on_positives", "on_negatives", "balanced"), 0.5) | {
                "balanced_ci95": [0.5, 0.5]
            }
    assert results["negation"]["chance"] == 0.5


def test_no_finding_has_no_negation(brightness, make_grey_dataset):
    dataset = make_grey_dataset([10, 200], [0, 1]).rename_column("Bright", "No Finding")
    prompts = {"No Finding": BRIGHT["Bright"]}
    results = evaluate_robustness(*brightness, dataset, None, prompts, min_positives=1, resampling=Resampling(5))
    assert results["wordings"] == {"findings": {}, "mean": None}
    assert results["negation"] == {"chance": 0.5, "findings": {}, "mean": {}}
    assert results["degradations"]["original"]["findings"]["No Finding"]["auroc"] == 1.0


def test_empty_images_by_hand(brightness, make_grey_dataset):
    levels = [40, 80, 120, 200]  # mean 110
    results = evaluate_robustness(
        *brightness, make_grey_dataset(levels, [0, 0, 1, 1]), None, BRIGHT, min_positives=1, resampling=Resampling(5)
    )
    scored = results["empty_images"]["findings"]["Bright"]
    quantiles = {name: image["quantile"] for name, image in scored["images"].items()}
    assert quantiles == {"black": 0.0, "grey": 0.5, "white": 1.0, "noise": quantiles["noise"], "mean image": 0.5}
    assert scored["threshold_quantile"] == 0.5  # 120
    assert [name for name, image in scored["images"].items() if image["positive"]] == [
        name for name in quantiles if name == "white" or name == "noise" and quantiles[name] > 0.5
    ]
    assert {"finding": "Bright", "image": "white", "quantile": 1.0} in results["empty_images"]["defects"]


def test_a_tie_with_the_empty_image_counts_half(brightness, make_grey_dataset):
    dataset = make_grey_dataset([0, 0, 255, 255], [0, 0, 1, 1])
    results = evaluate_robustness(*brightness, dataset, None, BRIGHT, min_positives=1, resampling=Resampling(5))
    images = results["empty_images"]["findings"]["Bright"]["images"]
    assert images["black"]["quantile"] == 0.25 and images["white"]["quantile"] == 0.75


def test_what_degrading_takes_away_is_measured():
    """The finding is a fine checkerboard, stronger than a coarse step: only at full resolution."""
    board = (np.indices((16, 16)).sum(axis=0) % 2 * 60 + 100).astype(np.uint8)
    step = np.repeat([[120], [140]], 8, axis=0).astype(np.uint8).repeat(16, axis=1)
    dataset = make_dataset([board, step] * 6, [1, 0] * 6)
    model = StandIn(lambda pixels: pixels.std(dim=(1, 2)) * 4)
    results = evaluate_robustness(model, make_processor(), dataset, min_positives=1, resampling=Resampling(20))[
        "degradations"
    ]
    assert list(results) == ["original", *DEGRADATIONS]
    assert results["original"]["mean"]["auroc"] == 1.0
    assert results["JPEG quality 90"]["mean"] == {"auroc": 1.0, "drop": 0.0, "drop_ci95": [0.0, 0.0]}
    for name in ("resolution 1/2", "resolution 1/4", "resolution 1/8"):
        assert results[name]["findings"]["Pneumothorax"]["drop"] >= 0.5
        assert results[name]["mean"]["drop_ci95"][0] > 0


def test_degraded_pictures():
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(256, size=(48, 64), dtype=np.uint8))
    before = picture.tobytes()
    for degrade in DEGRADATIONS.values():
        changed = degrade(picture)
        assert changed.size == picture.size and changed.mode == "L"
    errors = [np.abs(np.asarray(compress(picture, q), float) - np.asarray(picture)).mean() for q in (95, 50, 10)]
    assert errors == sorted(errors) and errors[0] > 0
    spreads = [np.asarray(lower_resolution(picture, divisor)).std() for divisor in (1, 2, 4, 8)]
    assert spreads == sorted(spreads, reverse=True)
    assert lower_resolution(picture, 1).tobytes() == before == picture.tobytes()
    assert lower_resolution(Image.new("L", (4, 4), 7), 8).getextrema() == (7, 7)


@pytest.mark.parametrize(("repeats", "interval"), [(5, [1.0, 1.0]), (3, [None, None])])
def test_a_model_that_sees_sides(repeats, interval):
    """The patient's left is on the image's right, and that half is brighter where the report says left."""
    half = np.zeros((8, 8), dtype=np.uint8)
    half[:, 4:] = 200
    dataset = make_dataset(
        [half, half[:, ::-1], half, half, half] * repeats,
        [1, 1, 1, 0, 1] * repeats,
        reports=["Small left pneumothorax.", "Right pneumothorax.", "LEFT PNEUMOTHORAX.", "No left pneumothorax.", ""]
        * repeats,
    )
    results = evaluate_robustness(
        StandIn(brightness), make_processor(), dataset, min_positives=1, resampling=Resampling(50)
    )
    sides = results["laterality"]
    assert (sides["all"]["n_left"], sides["all"]["n_right"]) == (2 * repeats, repeats)
    assert sides["findings"] == {"Pneumothorax": sides["all"]}
    for name in ("accuracy", "mirrored_accuracy"):  # an interval needs 5 patients of each side
        assert sides["all"][name] == 1.0 and sides["all"][f"{name}_ci95"] == interval
    assert sides["all"]["swapped"] == 1.0 and sides["all"]["swapped_ci95"] == [1.0, 1.0]


@pytest.mark.parametrize(("side_weight", "accuracy", "swapped"), [(0.0, 0.5, 0.0), (-1.0, 0.0, 1.0)])
def test_a_model_that_sees_no_sides_or_the_wrong_ones(side_weight, accuracy, swapped):
    half = np.zeros((8, 8), dtype=np.uint8)
    half[:, 4:] = 200
    dataset = make_dataset(
        [half, half, half, half[:, ::-1], half],
        [1, 1, 1, 1, 0],
        reports=["Left pneumothorax."] * 3 + ["Right pneumothorax."] + [""],
    )
    model = StandIn(brightness, side_weight)
    sides = evaluate_robustness(model, make_processor(), dataset, min_positives=1, resampling=Resampling(5))[
        "laterality"
    ]["all"]
    assert sides["accuracy"] == sides["mirrored_accuracy"] == accuracy  # though three of four are left
    assert sides["swapped"] == swapped


def test_without_reports_there_are_no_sides(brightness, make_grey_dataset):
    results = evaluate_robustness(
        *brightness, make_grey_dataset([0, 255], [0, 1]), None, BRIGHT, min_positives=1, resampling=Resampling(5)
    )
    assert results["laterality"] == {"chance": 0.5, "findings": {}, "all": None}


def test_texts_come_from_sections_or_from_the_whole_report():
    dataset = datasets.Dataset.from_dict(
        {
            "findings": ["A.", "", None],
            "impression": ["B.", "", "C."],
            "report": ["no", "FINDINGS: D. IMPRESSION: E.", "no"],
        }
    )
    assert report_texts(dataset) == ["A.\n\nB.", "D.\n\nE.", "\n\nC."]


def test_sides_of_the_phantom_are_those_it_drew(phantom):
    told = 0
    for record in phantom:
        side = stated_side(f"{record['findings']}\n\n{record['impression']}", "Pneumothorax")
        mask = finding_mask(record["masks"], "Pneumothorax")
        if side:
            assert (np.flatnonzero(mask.any(axis=0)).mean() > mask.shape[1] / 2) == (side == "left")
            told += 1
    assert told >= 5


def test_sides_of_real_reports(shared_data):
    dataset = read_records(shared_data / "iu_cxr", "validation")
    texts = report_texts(dataset)
    counts = {}
    for finding in ("Pleural Effusion", "Atelectasis", "Granuloma"):
        labels = dataset[finding][:]
        sides = [stated_side(text, finding) for text, label in zip(texts, labels, strict=True) if label == 1]
        counts[finding] = (sides.count("left"), sides.count("right"), sides.count(None))
    assert counts == {"Pleural Effusion": (4, 1, 9), "Atelectasis": (9, 2, 14), "Granuloma": (9, 6, 25)}


@pytest.mark.parametrize("pixels", ["uint8", "float", "CLIP"])
def test_pixels_survive_the_way_to_grey_levels_and_back(make_tier_model, phantom, monkeypatch, pixels):
    model, processor = make_tier_model(0, **({"pixel_mean": [0.1, 0.2, 0.3]} if pixels == "float" else {}))
    if pixels == "CLIP":
        sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
        processor = SimpleNamespace(image_processor=CLIPImageProcessorPil(**sizes), tokenizer=processor.tokenizer)
    monkeypatch.setattr(variants, "DEGRADATIONS", {"same": lambda picture: picture})
    embeddings = VariantEmbeddings(model, processor, 10, seed=0)
    feed([Fed(model, processor, [embeddings])], phantom.select(range(10)), np.arange(10), 4)
    images = {name: store.values for name, store in embeddings.stores.items()}
    assert list(images) == ["original", "mirrored", "same"]
    np.testing.assert_allclose(images["same"], images["original"], atol=2e-6)
    assert np.abs(images["mirrored"] - images["original"]).max() > 1e-3


def test_the_originals_score_as_in_a_zero_shot_evaluation(results, tier_model, phantom):
    options = {"protocol": choose_protocol(score_level="global"), "resampling": Resampling(20)}
    metrics, _ = evaluate_zero_shot({"m": tier_model}, phantom, min_positives=5, **options)
    original = results["degradations"]["original"]
    assert original["mean"] == {key: pytest.approx(metrics["mean"][key]) for key in ("auroc", "auroc_ci95")}
    for finding, result in metrics["findings"].items():
        assert original["findings"][finding]["auroc"] == pytest.approx(result["auroc"])


def test_results_are_json_and_the_seed_fixes_them(results, tier_model, phantom):
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    model, processor = tier_model
    model.train()
    again = evaluate_robustness(
        model, processor, phantom, min_positives=5, resampling=Resampling(20), dataset_name="phantom"
    )
    assert model.training
    model.eval()
    assert again == results


def test_every_image_is_decoded_once(tier_model, phantom, monkeypatch):
    model, processor = tier_model
    read, times = TierImageProcessor.read, []
    monkeypatch.setattr(TierImageProcessor, "read", lambda self, image: times.append(1) or read(self, image))
    evaluate_robustness(model, processor, phantom.select(range(30)), min_positives=1, resampling=Resampling(2))
    assert len(times) == 30


def test_an_unreadable_image_is_left_out_everywhere(brightness, make_grey_dataset):
    levels = list(range(1, 201))
    dataset = make_grey_dataset(levels, [float(level > 100) for level in levels])
    broken = dataset.map(lambda row, i: {"image": {"bytes": b"no", "path": None}} if i == 7 else {}, with_indices=True)
    results = evaluate_robustness(*brightness, broken, None, BRIGHT, resampling=Resampling(5))
    assert results["n_images"] == results["protocol"]["n_patients"] == 199
    assert results["degradations"]["original"]["findings"]["Bright"]["auroc"] == 1.0


def test_bad_input(tier_model, brightness, make_grey_dataset):
    class TierCLIPForImageClassification:
        pass

    dataset = make_grey_dataset([0, 255], [0, 1])
    with pytest.raises(ValueError, match="TierCLIPForImageClassification does not read sentences: name a model of"):
        evaluate_robustness(TierCLIPForImageClassification(), None, dataset)
    with pytest.raises(ValueError, match="resamples must be at least 1, but is 0"):
        evaluate_robustness(*brightness, dataset, resampling=Resampling(0))
    with pytest.raises(ValueError, match="no prompts for 'Bright': add sentences"):
        evaluate_robustness(*brightness, dataset, ["Bright"], {}, min_positives=1)


@pytest.mark.slow
def test_figure(results, tmp_path):
    pytest.importorskip("matplotlib")
    path = plot_robustness(results, tmp_path / "robustness.png")
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.width > 1500 and picture.height > 900
        colours = np.asarray(picture.convert("RGB")).astype(int)
    blue = np.abs(colours - [0x00, 0x72, 0xB2]).max(axis=-1) < 12  # intervals, and the first wording
    assert blue.sum() > 1000


def test_figure_of_what_could_be_measured(brightness, make_grey_dataset, tmp_path):
    pytest.importorskip("matplotlib")
    dataset = make_grey_dataset([10, 200], [0, 1]).rename_column("Bright", "No Finding")
    prompts = {"No Finding": BRIGHT["Bright"]}
    results = evaluate_robustness(*brightness, dataset, None, prompts, min_positives=1, resampling=Resampling(5))
    assert plot_robustness(results, tmp_path / "robustness.png").stat().st_size > 10_000
