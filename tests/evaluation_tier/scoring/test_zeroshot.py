import json
import weakref
from functools import partial

import datasets
import numpy as np
import pytest

from evaluation_tier.models.cache import hash_weights
from evaluation_tier.scoring.findings import select_findings
from evaluation_tier.scoring.protocols import choose_protocol
from evaluation_tier.scoring.zeroshot import evaluate_zero_shot, zero_shot_auroc
from evaluation_tier.statistics.resampling import Resampling
from processing_tier.phantom.findings import PHANTOM_FINDINGS
from processing_tier.prompts.loader import Prompts, load_prompts

BRIGHT = {"Bright": Prompts(["Bright."], ["No brightness."])}
BY_BRIGHT = choose_protocol(prompts=BRIGHT)


def test_the_model_returns_to_its_mode(brightness, make_grey_dataset):
    model, processor = brightness
    for mode in (True, False):
        model.train(mode)
        zero_shot_auroc(model, processor, make_grey_dataset([0, 255], [0, 1]), ["Bright"], BRIGHT)
        assert model.training is mode


def test_each_image_and_each_sentence_is_embedded_once(brightness, make_grey_dataset):
    model, processor = brightness
    dataset = make_grey_dataset([0, 100, 200, 255], [0, 1, 0, 1], Dark=[1, 0, 1, 0])
    shared = Prompts(["Bright.", "Shining.", "Bright."], ["No brightness."])
    evaluate_zero_shot(
        {"m": brightness}, dataset, None, choose_protocol(prompts={"Bright": shared, "Dark": shared}), min_positives=1
    )
    assert model.num_images == 4
    assert model.num_sentences == 3


def test_an_unreadable_image_is_skipped_counted_and_listed(brightness, make_grey_dataset, caplog):
    levels = list(range(1, 201))
    dataset = make_grey_dataset(levels, [float(level > 100) for level in levels])
    broken = dataset.map(lambda row, i: {"image": {"bytes": b"no", "path": None}} if i == 7 else {}, with_indices=True)
    metrics, predictions = evaluate_zero_shot({"m": brightness}, broken, protocol=BY_BRIGHT, resampling=Resampling(10))
    assert metrics["protocol"]["images_skipped"] == ["image7"]
    assert metrics["n_images"] == 199
    assert metrics["findings"]["Bright"]["n_negative"] == 99
    assert 7 not in predictions.index and len(predictions) == 199
    assert "Skipped an image" in caplog.text
    assert metrics["findings"]["Bright"]["auroc"] == 1.0
    assert zero_shot_auroc(*brightness, broken, ["Bright"], BRIGHT)["mean"] == 1.0


@pytest.mark.slow
def test_an_ensemble_holds_one_model_at_a_time(make_tier_model, phantom):
    alive = []

    def load(seed):
        assert not any(reference() for reference in alive)
        model, processor = make_tier_model(seed)
        alive.append(weakref.ref(model))
        return model, processor

    options = {"resampling": Resampling(5), "min_positives": 5, "threshold_dataset": phantom}
    lazily = evaluate_zero_shot({str(seed): partial(load, seed) for seed in range(3)}, phantom, **options)
    at_once = evaluate_zero_shot({str(seed): make_tier_model(seed) for seed in range(3)}, phantom, **options)
    assert json.dumps(lazily[0]) == json.dumps(at_once[0]) and lazily[1].equals(at_once[1])


def test_copies_in_an_ensemble_are_refused(make_tier_model, phantom):
    models = {name: partial(make_tier_model, seed) for name, seed in (("a", 0), ("b", 1), ("c", 0))}
    with pytest.raises(ValueError, match="a and c have identical weights"):
        evaluate_zero_shot(models, phantom, resampling=Resampling(5))


def test_an_ensemble_averages_scores(make_tier_model, phantom):
    models = {str(seed): make_tier_model(seed) for seed in range(3)}
    prompts = load_prompts("report", ["Cardiomegaly"])
    options = {
        "findings": ["Cardiomegaly"],
        "protocol": choose_protocol(prompts=prompts, scoring="softmax"),
        "resampling": Resampling(10),
    }
    options["min_positives"] = 1
    alone = [evaluate_zero_shot({n: m}, phantom, **options)[1]["score_Cardiomegaly"] for n, m in models.items()]
    metrics, together = evaluate_zero_shot(models, phantom, **options)
    np.testing.assert_allclose(together["score_Cardiomegaly"], np.mean(alone, axis=0), rtol=1e-12)
    assert metrics["models"] == ["0", "1", "2"]


def test_numbers_of_a_known_case(brightness, make_grey_dataset):
    dataset = make_grey_dataset([10, 20, 30, 40, 250, 0], [0, 1, 0, 1, -1, float("nan")])
    metrics, predictions = evaluate_zero_shot(
        {"m": brightness}, dataset, protocol=BY_BRIGHT, min_positives=2, dataset_name="grey"
    )
    bright = metrics["findings"]["Bright"]
    assert bright["auroc"] == 0.75  # of 4 pairs only (20, 30) is the wrong way round
    assert bright["auprc"] == pytest.approx((1 + 2 / 3) / 2)
    assert (bright["n_positive"], bright["n_negative"], bright["n_excluded"]) == (2, 2, 2)
    # at 40 and above: TP 1, FP 0, FN 1, TN 2 -> MCC 2 / sqrt(12); at 20: TP 2, FP 1, TN 1 -> the same; the higher wins
    assert bright["mcc"] == pytest.approx(2 / np.sqrt(12))
    assert bright["f1"] == pytest.approx(2 / 3)
    assert bright["threshold"] == predictions["score_Bright"][3]
    assert metrics["n_images"] == 6 and metrics["mean"]["auroc"] == 0.75
    assert list(predictions.columns) == ["image_id", "patient_id", "score_Bright", "label_Bright"]
    np.testing.assert_array_equal(predictions["label_Bright"], [0, 1, 0, 1, -1, np.nan])


def test_keys_are_those_of_the_contract(tier_model, phantom):
    metrics, _ = evaluate_zero_shot({"m": tier_model}, phantom, resampling=Resampling(10))
    assert metrics["weights"] == {"m": hash_weights(tier_model[0])}
    assert list(metrics) == [
        "dataset",
        "protocol",
        "n_images",
        "models",
        "weights",
        "sizes",
        "findings",
        "mean",
        "versions",
        "score_levels",
        "subgroups",
    ]
    measured = "auroc auprc mcc f1 sensitivity specificity".split()
    measured = [key for name in measured for key in (name, f"{name}_ci95")]
    counts = "n_positive n_negative n_uncertain n_missing n_excluded".split()
    keys = [
        *measured,
        "threshold",
        "f1_threshold",
        "thresholds",
        "scale",
        "bias",
        "ece",
        "brier",
        "brier_ci95",
        *counts,
    ]
    assert all(list(result) == keys for result in metrics["findings"].values())
    assert list(metrics["mean"]) == [*measured, "brier", "brier_ci95", "ece"]
    assert list(metrics["subgroups"]) == ["sex", "age", "view"]
    assert set(metrics["versions"]) == {"python", "torch", "transformers", "numpy", "tier-clip"}
    for result in metrics["findings"].values():
        assert result["auroc_ci95"][0] <= result["auroc"] <= result["auroc_ci95"][1]
    mean = np.mean([result["auroc"] for result in metrics["findings"].values()])
    assert metrics["mean"]["auroc"] == pytest.approx(mean)


def test_the_cheap_auroc_of_the_training_loop_is_the_same_number(tier_model, phantom):
    metrics, _ = evaluate_zero_shot({"m": tier_model}, phantom, resampling=Resampling(10))
    findings = list(metrics["findings"])
    cheap = zero_shot_auroc(*tier_model, phantom, findings, load_prompts("report", findings))
    assert list(cheap) == [*findings, "mean"]
    for finding in findings:
        assert cheap[finding] == metrics["findings"][finding]["auroc"]
    assert cheap["mean"] == metrics["mean"]["auroc"]


def test_the_cheap_auroc_leaves_an_undefined_finding_out_of_the_mean(brightness, make_grey_dataset):
    dataset = make_grey_dataset([10, 20], [0, 1], Absent=[0, 0])
    prompts = {**BRIGHT, "Absent": Prompts(["Absent."], ["No."])}
    aurocs = zero_shot_auroc(*brightness, dataset, ["Bright", "Absent"], prompts)
    assert aurocs["Bright"] == aurocs["mean"] == 1.0 and np.isnan(aurocs["Absent"])


def test_evaluation_is_deterministic(tier_model, phantom):
    first, second = (evaluate_zero_shot({"m": tier_model}, phantom, resampling=Resampling(50, 4)) for _ in range(2))
    assert json.dumps(first[0]) == json.dumps(second[0])
    assert first[1].equals(second[1])


def test_thresholds_may_come_from_another_split(brightness, make_grey_dataset):
    dataset = make_grey_dataset([10, 20, 30, 40], [0, 1, 0, 1])
    other = make_grey_dataset([5, 15, 25], [0, 1, 1])
    options = {"protocol": BY_BRIGHT, "min_positives": 2, "resampling": Resampling(10)}
    metrics, predictions = evaluate_zero_shot({"m": brightness}, dataset, threshold_dataset=other, **options)
    low, high = predictions["score_Bright"][0], predictions["score_Bright"][1]
    assert low < metrics["findings"]["Bright"]["threshold"] < high  # the score of grey level 15
    assert metrics["protocol"]["thresholds"] == "highest MCC on a split apart"
    flattered, _ = evaluate_zero_shot({"m": brightness}, dataset, **options)
    assert flattered["protocol"]["thresholds"].endswith("(optimistic)")
    message = r"The split, where thresholds are chosen, has no labels of 'Bright': add .* \(--threshold_split\)"
    with pytest.raises(ValueError, match=message):
        evaluate_zero_shot({"m": brightness}, dataset, threshold_dataset=other.remove_columns("Bright"), **options)


def test_images_that_are_all_the_same_rank_nobody(tier_model, phantom):
    same = datasets.concatenate_datasets([phantom.select([0])] * 40)
    same = same.remove_columns(["patient_id", "Edema"]).add_column("patient_id", [str(i) for i in range(40)])
    edema = datasets.Dataset.from_dict({"Edema": [0.0] * 32 + [1.0] * 8})  # the last batch, which is smaller
    same = datasets.concatenate_datasets([same, edema.cast_column("Edema", datasets.Value("float32"))], axis=1)
    for protocol in ("report", "chexzero", "plain"):
        metrics, _ = evaluate_zero_shot(
            {"m": tier_model}, same, ["Edema"], resampling=Resampling(40), protocol=protocol
        )
        assert metrics["findings"]["Edema"]["auroc"] == 0.5
        assert {level["auroc"] for level in metrics["score_levels"].values()} == {0.5}


def test_a_finding_without_a_class_where_thresholds_are_chosen_is_named(brightness, make_grey_dataset, caplog):
    dataset = make_grey_dataset([10, 20, 30, 40], [0, 1, 0, 1])
    other = make_grey_dataset([5, 15, 25], [0, 0, -1]).add_column("split", ["train"] * 3)
    options = {"protocol": BY_BRIGHT, "min_positives": 2, "resampling": Resampling(10)}
    metrics, _ = evaluate_zero_shot({"m": brightness}, dataset, threshold_dataset=other, **options)
    assert np.isnan(metrics["findings"]["Bright"]["mcc"])
    assert "The split 'train' has no positive image of Bright, so its threshold" in caplog.text
    caplog.clear()
    evaluate_zero_shot({"m": brightness}, dataset, **options)
    assert caplog.messages == ["No interval for Bright, the mean: fewer than 5 patients."]


def test_prompts_for_every_finding_are_needed(brightness, make_grey_dataset):
    with pytest.raises(ValueError, match="no prompts for 'Bright'"):
        evaluate_zero_shot(
            {"m": brightness}, make_grey_dataset([1, 2], [0, 1]), protocol=choose_protocol(prompts={}), min_positives=1
        )


def test_findings_with_enough_of_both_classes_are_chosen(make_grey_dataset):
    dataset = make_grey_dataset(
        [1] * 4, [1, 1, 0, -1], Rare=[1, 0, 0, 0], Always=[1, 1, 1, float("nan")], Never=[0, 0, 0, 0]
    )
    findings, left_out = select_findings(dataset, min_positives=2)
    assert findings == ["Bright"]
    assert left_out == {"Rare": "1 positive", "Always": "no negatives", "Never": "0 positives"}
    assert select_findings(dataset, ["Rare", "Bright", "Rare"], min_positives=2) == (["Rare", "Bright"], {})


def test_impossible_findings_are_refused_by_name_with_the_counts(make_grey_dataset):
    dataset = make_grey_dataset([1] * 3, [1, 1, 0], Never=[0, 0, 0], Always=[1, 1, 1])
    with pytest.raises(ValueError, match=r"'Never' has no positive image .* Bright 2, Never 0, Always 3"):
        select_findings(dataset, ["Bright", "Never"])
    with pytest.raises(ValueError, match="'Always' has no negative image"):
        select_findings(dataset, ["Always"])
    with pytest.raises(ValueError, match="no finding 'brigth': did you mean 'Bright'"):
        select_findings(dataset, ["brigth"])
    with pytest.raises(ValueError, match=r"No finding has 10 positives .* Bright 2, Never 0, Always 3"):
        select_findings(dataset)
    with pytest.raises(ValueError, match="no finding column"):
        select_findings(dataset.remove_columns(["Bright", "Never", "Always"]))


def test_the_phantoms_masks_are_no_findings(phantom):
    findings, left_out = select_findings(phantom, min_positives=1)
    assert set(findings) | set(left_out) == set(PHANTOM_FINDINGS)
