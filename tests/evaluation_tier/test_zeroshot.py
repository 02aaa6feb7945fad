import json
import shutil

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, CLIPModel

from evaluation_tier.metrics import auroc
from evaluation_tier.zeroshot import (
    check_members_differ,
    choose_device,
    embed_images,
    embed_prompts,
    evaluate_zero_shot,
    load_model,
    select_findings,
    takes_uint8,
    zero_shot_auroc,
    zero_shot_scores,
)
from processing_tier.phantom import PHANTOM_FINDINGS
from processing_tier.prompts import Prompts, load_prompts

BRIGHT = {"Bright": Prompts(["Bright."], ["No brightness."])}


def unit(*shape, seed=0):
    rows = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


# Embedding


def test_image_embeddings_are_the_models_normalised(brightness, make_grey_dataset):
    embeds = embed_images(*brightness, make_grey_dataset([0, 51, 255], [0, 0, 1]), batch_size=2)
    angles = np.array([0, 0.2, 1]) * np.pi / 2
    np.testing.assert_allclose(embeds, np.stack([np.cos(angles), np.sin(angles)], axis=1), atol=1e-6)
    assert embeds.dtype == np.float32


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_image_embeddings_do_not_depend_on_the_batch(tier_model, phantom, batch_size):
    model, _ = tier_model
    embeds = embed_images(*tier_model, phantom, batch_size)
    assert embeds.shape == (60, model.config.projection_dim)
    np.testing.assert_allclose(embeds, embed_images(*tier_model, phantom, 20), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(embeds, axis=1), 1, atol=1e-6)


def test_8_bit_pixels_give_the_embeddings_of_float_pixels(tier_model, phantom, monkeypatch):
    assert takes_uint8(*tier_model)
    embeds = embed_images(*tier_model, phantom)
    monkeypatch.setattr("evaluation_tier.zeroshot.takes_uint8", lambda *_: False)
    np.testing.assert_allclose(embeds, embed_images(*tier_model, phantom), atol=1e-6)


def test_8_bit_pixels_are_left_alone_where_they_would_differ(make_tier_model, brightness):
    model, processor = make_tier_model(0, pixel_mean=[0.1, 0.1, 0.1])
    assert not takes_uint8(model, processor)  # the image processor normalises with other numbers
    assert not takes_uint8(*brightness)


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
    evaluate_zero_shot({"m": brightness}, dataset, None, {"Bright": shared, "Dark": shared}, min_positives=1)
    assert model.num_images == 4
    assert model.num_sentences == 3


def test_prompts_are_normalised_averaged_and_normalised_again(tier_model):
    model, processor = tier_model
    sentences = ["Small left pleural effusion.", "Cardiomegaly.", "No pneumothorax."]
    singles = {text: Prompts([text], [text]) for text in sentences}
    embeds = embed_prompts(model, processor, singles, batch_size=2)[0]
    for row, text in zip(embeds, sentences, strict=True):  # alone, so without padding
        features = model.get_text_features(**processor(text=[text], return_tensors="pt")).pooler_output[0]
        np.testing.assert_allclose(row, (features / features.norm()).detach().numpy(), atol=1e-5)
    positive, negative = embed_prompts(model, processor, {"a": Prompts(sentences[:2], sentences[2:])})
    mean = embeds[:2].mean(axis=0)
    np.testing.assert_allclose(positive[0], mean / np.linalg.norm(mean), atol=1e-6)
    np.testing.assert_allclose(negative[0], embeds[2], atol=1e-6)


def test_long_prompts_are_truncated_to_the_text_tower(tier_model):
    positive, _ = embed_prompts(*tier_model, {"a": Prompts(["effusion " * 300], ["None."])})
    assert np.isfinite(positive).all()


def test_damaged_weights_are_named(make_tier_model, phantom):
    model, processor = make_tier_model(1)
    model.visual_projection.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="embeddings are not finite"):
        embed_images(model, processor, phantom)


# Images that do not decode


def test_an_unreadable_image_is_skipped_counted_and_listed(brightness, make_grey_dataset, caplog):
    levels = list(range(1, 201))
    dataset = make_grey_dataset(levels, [float(level > 100) for level in levels])
    broken = dataset.map(lambda row, i: {"image": {"bytes": b"no", "path": None}} if i == 7 else {}, with_indices=True)
    metrics, predictions = evaluate_zero_shot({"m": brightness}, broken, prompts=BRIGHT, n_bootstrap=10)
    assert metrics["protocol"]["images_skipped"] == ["image7"]
    assert metrics["n_images"] == 199
    assert metrics["findings"]["Bright"]["n_negative"] == 99
    assert 7 not in predictions.index and len(predictions) == 199
    assert "Skipped an image" in caplog.text
    assert metrics["findings"]["Bright"]["auroc"] == 1.0
    assert zero_shot_auroc(*brightness, broken, ["Bright"], BRIGHT)["mean"] == 1.0


def test_too_many_unreadable_images_stop(brightness, make_grey_dataset):
    dataset = make_grey_dataset([1, 2, 3] * 20, [0, 1, 0] * 20)
    broken = dataset.map(lambda row, i: {"image": {"bytes": b"no", "path": None}} if i == 3 else {}, with_indices=True)
    with pytest.raises(ValueError, match="1 of 60 images do not decode, more than 1 %"):
        embed_images(*brightness, broken)


def test_an_empty_data_set_is_refused(brightness, make_grey_dataset):
    with pytest.raises(ValueError, match="empty"):
        embed_images(*brightness, make_grey_dataset([1], [0]).select([]))


# Scoring


def test_scores_by_hand():
    image, positive, negative = np.array([[1.0, 0.0]]), np.array([[0.6, 0.8]]), np.array([[0.8, -0.6]])
    assert zero_shot_scores(image, positive, negative, "difference")[0, 0] == pytest.approx(-0.2)
    expected = np.exp(0.6) / (np.exp(0.6) + np.exp(0.8))
    assert zero_shot_scores(image, positive, negative, "softmax")[0, 0] == pytest.approx(expected)
    with pytest.raises(ValueError, match="difference, softmax, but is 'ratio'"):
        zero_shot_scores(image, positive, negative, "ratio")


def test_both_scorings_rank_one_model_alike():
    images, positive, negative = unit(2000, 64), unit(5, 64, seed=1), unit(5, 64, seed=2)
    difference = zero_shot_scores(images, positive, negative, "difference")
    softmax = zero_shot_scores(images, positive, negative, "softmax")
    np.testing.assert_array_equal(np.argsort(difference, axis=0), np.argsort(softmax, axis=0))
    labels = np.random.default_rng(3).integers(0, 2, 2000)
    assert [auroc(labels, row) for row in difference.T] == [auroc(labels, row) for row in softmax.T]


def test_an_ensemble_averages_scores(make_tier_model, phantom):
    models = {str(seed): make_tier_model(seed) for seed in range(3)}
    prompts = load_prompts("report", ["Cardiomegaly"])
    options = {"findings": ["Cardiomegaly"], "prompts": prompts, "scoring": "softmax", "n_bootstrap": 10}
    options["min_positives"] = 1
    alone = [evaluate_zero_shot({n: m}, phantom, **options)[1]["score_Cardiomegaly"] for n, m in models.items()]
    metrics, together = evaluate_zero_shot(models, phantom, **options)
    np.testing.assert_allclose(together["score_Cardiomegaly"], np.mean(alone, axis=0), rtol=1e-12)
    assert metrics["models"] == ["0", "1", "2"]


def test_an_ensemble_of_copies_is_refused(make_tier_model):
    first, second, third = make_tier_model(0), make_tier_model(1), make_tier_model(0)
    check_members_differ({"a": first, "b": second})
    with pytest.raises(ValueError, match="a and c have identical weights"):
        check_members_differ({"a": first, "b": second, "c": third})


# The evaluation


def test_numbers_of_a_known_case(brightness, make_grey_dataset):
    dataset = make_grey_dataset([10, 20, 30, 40, 250, 0], [0, 1, 0, 1, -1, float("nan")])
    metrics, predictions = evaluate_zero_shot(
        {"m": brightness}, dataset, prompts=BRIGHT, min_positives=2, dataset_name="grey"
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
    metrics, _ = evaluate_zero_shot({"m": tier_model}, phantom, n_bootstrap=10)
    assert list(metrics) == ["dataset", "protocol", "n_images", "models", "findings", "mean", "versions"]
    keys = "auroc auroc_ci95 auprc mcc f1 threshold scale bias n_positive n_negative n_excluded".split()
    assert all(list(result) == keys for result in metrics["findings"].values())
    assert list(metrics["mean"]) == ["auroc", "auroc_ci95", "auprc", "mcc", "f1"]
    assert set(metrics["versions"]) == {"python", "torch", "transformers", "numpy", "tier-clip"}
    for result in metrics["findings"].values():
        assert result["auroc_ci95"][0] <= result["auroc"] <= result["auroc_ci95"][1]
    mean = np.mean([result["auroc"] for result in metrics["findings"].values()])
    assert metrics["mean"]["auroc"] == pytest.approx(mean)


def test_the_cheap_auroc_of_the_training_loop_is_the_same_number(tier_model, phantom):
    metrics, _ = evaluate_zero_shot({"m": tier_model}, phantom, n_bootstrap=10)
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
    first, second = (evaluate_zero_shot({"m": tier_model}, phantom, n_bootstrap=50, seed=4) for _ in range(2))
    assert json.dumps(first[0]) == json.dumps(second[0])
    assert first[1].equals(second[1])


def test_thresholds_may_come_from_another_split(brightness, make_grey_dataset):
    dataset = make_grey_dataset([10, 20, 30, 40], [0, 1, 0, 1])
    other = make_grey_dataset([5, 15, 25], [0, 1, 1])
    options = {"prompts": BRIGHT, "min_positives": 2, "n_bootstrap": 10}
    metrics, predictions = evaluate_zero_shot({"m": brightness}, dataset, threshold_dataset=other, **options)
    low, high = predictions["score_Bright"][0], predictions["score_Bright"][1]
    assert low < metrics["findings"]["Bright"]["threshold"] < high  # the score of grey level 15
    assert metrics["protocol"]["thresholds"] == "highest MCC on a split apart"
    flattered, _ = evaluate_zero_shot({"m": brightness}, dataset, **options)
    assert flattered["protocol"]["thresholds"].endswith("(optimistic)")
    with pytest.raises(ValueError, match="no column 'Bright'"):
        evaluate_zero_shot({"m": brightness}, dataset, threshold_dataset=other.remove_columns("Bright"), **options)


def test_prompts_for_every_finding_are_needed(brightness, make_grey_dataset):
    with pytest.raises(ValueError, match="no prompts for 'Bright'"):
        evaluate_zero_shot({"m": brightness}, make_grey_dataset([1, 2], [0, 1]), prompts={}, min_positives=1)


# Findings


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


# Loading


@pytest.fixture
def folder(tmp_path, tier_model):
    for part in tier_model:
        part.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_saved_model_embeds_as_before(folder, tier_model, phantom):
    model, processor = load_model(folder)
    assert not model.training and model.dtype == torch.float32
    np.testing.assert_array_equal(embed_images(model, processor, phantom), embed_images(*tier_model, phantom))


def test_a_plain_clip_model_is_evaluated_too(make_tier_model, phantom, tmp_path):
    model, processor = make_tier_model(0)
    model.config.image_pooling = "cls"
    clip = model.to_clip()
    assert type(clip) is CLIPModel
    clip.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, loaded_processor = load_model(tmp_path)
    assert type(loaded) is CLIPModel and not takes_uint8(loaded, loaded_processor)
    options = {"findings": ["Cardiomegaly"], "min_positives": 1, "n_bootstrap": 10}
    as_clip, _ = evaluate_zero_shot({"m": (loaded, loaded_processor)}, phantom, **options)
    as_tier, _ = evaluate_zero_shot({"m": (model, processor)}, phantom, **options)
    model.config.image_pooling = "patch_mean"
    assert as_clip["mean"]["auroc"] == pytest.approx(as_tier["mean"]["auroc"], abs=1e-9)


def test_what_is_no_model_folder_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="no model folder .*nowhere"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no config.json\): did you mean .*model"):
        load_model(tmp_path)
    (folder / "model.safetensors").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="holds no weights"):
        load_model(folder)
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ValueError, match="holds no weights .*pickled weights"):
        load_model(folder)


def test_damaged_folders_are_refused(folder, tmp_path):
    for name, content in {
        "model.safetensors": (folder / "model.safetensors").read_bytes()[:-1000],
        "config.json": b"{",
    }.items():
        broken = tmp_path / f"broken_{name}"
        shutil.copytree(folder, broken)
        (broken / name).write_bytes(content)
        with pytest.raises(ValueError, match="does not load"):
            load_model(broken)
    without_processor = tmp_path / "without"
    shutil.copytree(folder, without_processor)
    for path in without_processor.glob("*[rt][_o]*.json"):
        if path.name != "config.json":
            path.unlink()
    with pytest.raises(ValueError, match="does not load|processor"):
        load_model(without_processor)


def test_weights_that_do_not_fill_the_model_are_refused(folder):
    """Silence here would evaluate random weights (TIER's strict=False did)."""
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] += 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="lack 16 of the model's tensors, for example vision_model"):
        load_model(folder)


def test_a_model_of_another_kind_is_refused(folder, tmp_path):
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=20)
    shutil.copytree(folder, tmp_path / "bert")
    BertModel(config).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="BertModel, which does not embed images and texts"):
        load_model(tmp_path / "bert")


def test_devices():
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device().type in ("cpu", "cuda")
    for name in ("gpu", "cuda:99"):
        with pytest.raises(ValueError, match=f"'{name}' cannot be used here"):
            choose_device(name)
