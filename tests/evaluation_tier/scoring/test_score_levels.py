"""Score levels in an evaluation: which one is scored, by which models, and what the results say."""

from functools import partial

import numpy as np
import pytest
import torch

from evaluation_tier.models.embedding import embed_prompts
from evaluation_tier.scoring.protocols import choose_protocol
from evaluation_tier.scoring.zeroshot import evaluate_zero_shot, zero_shot_auroc
from evaluation_tier.statistics.resampling import Resampling
from modeling_tier.score_levels_tier import LEVELS
from processing_tier.prompts.loader import Prompts, load_prompts

BRIGHT = {"Bright": Prompts(["Bright."], ["No brightness."])}
BY_BRIGHT = choose_protocol(prompts=BRIGHT)


@pytest.mark.slow
def test_levels_are_compared_and_the_chosen_one_is_scored(tier_model, phantom):
    options = {"resampling": Resampling(5), "min_positives": 5}
    compared = evaluate_zero_shot({"m": tier_model}, phantom, **options)[0]["score_levels"]
    assert list(compared) == list(LEVELS)
    for level in LEVELS:
        protocol = choose_protocol(score_level=level)
        metrics, _ = evaluate_zero_shot({"m": tier_model}, phantom, protocol=protocol, **options)
        assert metrics["score_levels"] == compared
        assert list(compared[level]) == ["auroc", "auroc_ci95"]
        assert metrics["mean"]["auroc"] == pytest.approx(compared[level]["auroc"], abs=1e-12)
        assert metrics["mean"]["auroc_ci95"] == pytest.approx(compared[level]["auroc_ci95"], abs=1e-12)
        assert metrics["protocol"]["score_level"] == level


@pytest.mark.slow
def test_the_default_protocol_scores_by_what_training_aligned(make_tier_model, phantom):
    """By patches where their mean is the image embedding, else by the whole image, as all published protocols."""
    (mean, processor), (cls, _) = make_tier_model(0), make_tier_model(1)
    mean.config.image_pooling, cls.config.image_pooling = "patch_mean", "cls"
    of_mean, of_cls = {"mean": (mean, processor)}, {"cls": (cls, processor)}

    def evaluate(models, name="report", level=None):
        options = {"protocol": choose_protocol(name, score_level=level), "resampling": Resampling(40)}
        metrics, predictions = evaluate_zero_shot(models, phantom, ["Edema"], min_positives=1, **options)
        return metrics["protocol"]["name"], metrics["protocol"]["score_level"], predictions["score_Edema"].tolist()

    assert evaluate(of_mean)[:2] == ("report", "patches-lse")
    assert evaluate(of_mean)[2] == evaluate(of_mean, level="patches-lse")[2] != evaluate(of_mean, level="global")[2]
    assert evaluate(of_mean, level="global")[:2] == ("report, own score_level", "global")
    assert evaluate(of_cls)[:2] == ("report", "global")
    for name in ("chexzero", "tier", "tier-padchest", "tier-covid", "plain"):
        assert evaluate(of_mean, name)[:2] == (name, "global")
    assert evaluate(of_mean, "chexzero", "auto")[:2] == ("chexzero, own score_level", "patches-lse")
    # one level for all members of an ensemble
    assert evaluate(of_mean | of_cls) == ("report", "global", evaluate(of_cls | of_mean, level="global")[2])
    cls.config.image_pooling = "patch_mean"
    assert evaluate(of_mean | of_cls)[:2] == ("report", "patches-lse")


def test_patches_of_one_image_by_hand(tier_model, phantom):
    model, processor = tier_model
    prompts = load_prompts("chexzero", ["Cardiomegaly", "Edema"])
    findings, protocol = list(prompts), choose_protocol("chexzero", score_level="both-max")
    options = {"protocol": protocol, "min_positives": 1, "resampling": Resampling(40)}
    _, predictions = evaluate_zero_shot({"m": tier_model}, phantom, findings, **options)
    positive, negative = embed_prompts(model, processor, prompts)
    image = processor.image_processor(
        images=[processor.image_processor.read(phantom[3]["image"])], return_tensors="pt"
    )
    with torch.inference_mode():
        patches = torch.nn.functional.normalize(model.get_patch_features(image["pixel_values"])[0], dim=-1).numpy()
        whole = torch.nn.functional.normalize(model.get_image_features(**image).pooler_output[0], dim=-1).numpy()
    difference = (patches @ (positive - negative).T).max(axis=0) / 2 + whole @ (positive - negative).T / 2
    expected = 1 / (1 + np.exp(-difference))
    np.testing.assert_allclose(predictions.loc[3, ["score_Cardiomegaly", "score_Edema"]].tolist(), expected, atol=1e-6)


def test_levels_of_patches_need_patches(brightness, make_grey_dataset):
    dataset = make_grey_dataset([0, 255], [0, 1])
    with pytest.raises(ValueError, match="'patches-max' of m needs embeddings of patches, which BrightnessModel"):
        evaluate_zero_shot(
            {"m": brightness},
            dataset,
            protocol=choose_protocol(prompts=BRIGHT, score_level="patches-max"),
            min_positives=1,
            resampling=Resampling(5),
        )
    metrics, _ = evaluate_zero_shot(
        {"m": brightness}, dataset, protocol=BY_BRIGHT, min_positives=1, resampling=Resampling(5)
    )
    assert "score_levels" not in metrics


@pytest.mark.parametrize(("pooling", "level"), [("cls", "global"), ("patch_mean", "patches-lse")])
def test_the_cheap_auroc_has_the_level_of_the_default_protocol(make_tier_model, phantom, pooling, level):
    model, processor = make_tier_model(0)
    model.config.image_pooling = pooling
    findings = ["Edema", "Pneumothorax"]
    cheap = partial(zero_shot_auroc, model, processor, phantom, findings, load_prompts("report", findings))
    metrics, _ = evaluate_zero_shot({"m": (model, processor)}, phantom, findings, resampling=Resampling(5))
    assert metrics["protocol"]["score_level"] == level
    assert cheap()["mean"] == metrics["mean"]["auroc"] == cheap(score_level=level)["mean"]
    assert {level: cheap(score_level=level)["mean"] for level in LEVELS} == pytest.approx(
        {level: result["auroc"] for level, result in metrics["score_levels"].items()}
    )


def test_levels_of_chexzero_have_its_intervals(tier_model, phantom):
    options = {"protocol": "chexzero", "min_positives": 5, "resampling": Resampling(60)}
    metrics, _ = evaluate_zero_shot({"m": tier_model}, phantom, **options)
    assert metrics["score_levels"]["global"] == {key: metrics["mean"][key] for key in ("auroc", "auroc_ci95")}
