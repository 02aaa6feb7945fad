import json
import math
import re

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertTokenizer, CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from evaluation_tier.analyses.sparsity import evaluate_sparsity
from evaluation_tier.analyses.sparsity_measures import STATISTICS, gini, hoyer, row_statistics
from evaluation_tier.analyses.words import LEXICON, WORD_CLASSES, token_weights, word_class
from evaluation_tier.output.metrics_file import to_json
from evaluation_tier.statistics.resampling import Resampling
from modeling_tier import TierCLIPForImageClassification, TierDualEncoderModel
from modeling_tier.losses_tier import counted_tokens
from modeling_tier.texts_tier import tokenize
from processing_tier import TierImageProcessor, TierProcessor, train_tokenizer

ONE_HOT = torch.tensor([0.0, 0.0, 0.7, 0.0])
UNIFORM = torch.full((4,), 0.3)


# Pure functions


def test_gini_and_hoyer_by_hand():
    # Hurley and Rickard's Gini index of a single value among N is 1 - 1 / N
    assert gini(ONE_HOT).item() == pytest.approx(3 / 4)
    assert hoyer(ONE_HOT).item() == pytest.approx(1)
    assert gini(UNIFORM).item() == pytest.approx(0, abs=1e-6)
    assert hoyer(UNIFORM).item() == pytest.approx(0, abs=1e-6)
    values = torch.tensor([1.0, 3.0])
    assert gini(values).item() == pytest.approx(1 - 2 * (1 / 4 * 0.75 + 3 / 4 * 0.25))
    assert hoyer(values).item() == pytest.approx((math.sqrt(2) - 4 / math.sqrt(10)) / (math.sqrt(2) - 1))


def test_gini_is_half_the_mean_difference_of_magnitudes():
    values = torch.randn(5, 30, generator=torch.Generator().manual_seed(0))
    magnitudes = values.abs()
    differences = (magnitudes[:, :, None] - magnitudes[:, None]).abs().mean((1, 2))
    torch.testing.assert_close(gini(values), differences / (2 * magnitudes.mean(1)))


@pytest.mark.parametrize("measure", [gini, hoyer])
def test_invariances(measure):
    values = torch.randn(3, 20, generator=torch.Generator().manual_seed(1))
    expected = measure(values)
    assert ((expected > 0) & (expected < 1)).all()
    torch.testing.assert_close(measure(-5 * values), expected)
    torch.testing.assert_close(measure(values[:, torch.randperm(20)]), expected)
    assert (measure(values.abs() + 1) < measure(values.abs())).all()  # rising tide
    assert (measure(torch.cat([values, torch.zeros(3, 20)], dim=1)) > expected).all()  # babies
    torch.testing.assert_close(measure(torch.zeros(2, 4)), torch.zeros(2))
    torch.testing.assert_close(measure(torch.ones(2, 1)), torch.zeros(2))


def test_row_statistics_by_hand():
    row = torch.tensor([0.5, 0.04, -0.04, -0.5])
    entropy, gini_index, sparseness, near_zero, negative = row_statistics(row).tolist()
    probabilities = row.softmax(0)
    assert entropy == pytest.approx(-(probabilities * probabilities.log()).sum().item())
    assert (gini_index, sparseness) == pytest.approx((gini(row).item(), hoyer(row).item()))
    assert near_zero == negative == 0.5
    assert row_statistics(row, near_zero=0.03)[3] == 0 and row_statistics(row, near_zero=1)[3] == 1
    assert row_statistics(row, temperature=0.01)[0].item() == pytest.approx(0, abs=1e-6)


# Words


def test_word_classes():
    words = "Effusions Opacities masses pneumothorax lungs costophrenic No without the with normal left xxxx 2"
    found = [word_class(word) for word in words.split()]
    assert found == ["finding"] * 4 + ["anatomy"] * 2 + ["negation"] * 2 + ["function"] * 2 + ["other"] * 4


def test_the_lexicon_holds_each_word_once_and_in_lower_case():
    words = " ".join(LEXICON.values()).split()
    assert len(words) == len(set(words)) and all(re.fullmatch("[a-z]+", word) for word in words)


@pytest.fixture(scope="module")
def bert_tokenizer():
    pieces = ["no", "pleural", "eff", "##us", "##ion", "##s", ".", "heart", "-", "size", "is", "normal"]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *pieces]
    return BertTokenizer(vocab={word: i for i, word in enumerate(words)}, model_max_length=32)


def test_words_of_several_tokens_share_their_weight(bert_tokenizer):
    texts = ["No pleural effusions.", "Heart-size XXXX"]
    inputs = bert_tokenizer(texts, padding=True, return_tensors="pt")
    assert inputs.tokens(0) == ["[CLS]", "no", "pleural", "eff", "##us", "##ion", "##s", ".", "[SEP]"]
    weights = token_weights(inputs, texts)
    expected = torch.zeros(2, len(WORD_CLASSES) + 1, 9)
    place = {name: i for i, name in enumerate((*WORD_CLASSES, "punctuation"))}
    expected[0, place["negation"], 1] = expected[0, place["anatomy"], 2] = expected[0, place["punctuation"], 7] = 1
    expected[0, place["finding"], 3:7] = 1 / 4
    expected[1, place["anatomy"], 1] = expected[1, place["punctuation"], 2] = 1
    expected[1, place["other"], 3:5] = 1  # "size", and "xxxx", which the vocabulary lacks
    torch.testing.assert_close(weights, expected)


def test_both_kinds_of_tokenizer_give_the_same_words(phantom, bert_tokenizer):
    clip = train_tokenizer(phantom["report"][:], vocab_size=560)  # breaks most words
    texts = ["No pleural effusions.", "Heart - size is normal, no effusion", "  Is (NO) heart?!"]
    counts = []
    for tokenizer in (clip, bert_tokenizer):
        inputs = tokenizer(texts, padding=True, return_tensors="pt")
        weights = token_weights(inputs, texts)
        counts.append(weights[:, :-1].sum(2))
        special = torch.tensor([encoding.special_tokens_mask for encoding in inputs.encodings]).bool()
        assert ((weights.sum(1) > 0) == ~special).all()  # all others count
    torch.testing.assert_close(counts[0], counts[1])


def test_a_slow_tokenizer_is_refused(bert_tokenizer):
    inputs = bert_tokenizer(["no"], return_tensors="pt")
    inputs._encodings = None
    with pytest.raises(ValueError, match="does not give the positions of its tokens"):
        token_weights(inputs, ["no"])


# The whole evaluation


@pytest.fixture(scope="module")
def pairs(phantom):
    return phantom.select(range(10))


@pytest.fixture(scope="module")
def results(tier_model, make_tier_model, pairs):
    models = {"plain": tier_model, "sparse": make_tier_model(1, token_entropy_weight=0.2)}
    return evaluate_sparsity(models, pairs, resampling=Resampling(30), batch_size=4, dataset_name="phantom")


@pytest.fixture(scope="module")
def dual_model(tower_folders):
    torch.manual_seed(0)
    model = TierDualEncoderModel.from_vision_text_pretrained(*map(str, tower_folders), image_size=64, projection_dim=8)
    images = TierImageProcessor(size={"height": 64, "width": 64})
    return model.eval(), TierProcessor(images, BertTokenizer.from_pretrained(tower_folders[1]))


def test_entropies_are_those_of_the_loss(tier_model, dual_model, pairs):
    for model, processor in (tier_model, dual_model):
        result = evaluate_sparsity({"m": (model, processor)}, pairs, resampling=Resampling(2))["models"]["m"]
        images = processor.image_processor([processor.image_processor.read(image) for image in pairs["image"]])
        inputs = tokenize(model, processor.tokenizer, pairs["impression"][:])
        eos_token_id = model.config.text_config.eos_token_id if model is tier_model[0] else None
        counted = counted_tokens(inputs["input_ids"], inputs["attention_mask"], eos_token_id, "words")
        assert torch.equal(counted, token_weights(inputs, pairs["impression"][:]).sum(1) > 0)
        with torch.no_grad():
            output = model(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                pixel_values=torch.as_tensor(np.stack(images["pixel_values"])),
                return_loss=True,
            )
        assert result["token_entropy"] == pytest.approx(output.token_entropy.item(), rel=1e-5)
        assert result["patch_entropy"] == pytest.approx(output.patch_entropy.item(), rel=1e-5)


def test_one_pair_by_hand(dual_model, pairs):
    model, processor = dual_model
    one = pairs.select([3])
    result = evaluate_sparsity({"m": dual_model}, one, resampling=Resampling(2))["models"]["m"]
    text = one["impression"][0]
    pixels = processor.image_processor([processor.image_processor.read(one["image"][0])], return_tensors="pt")
    inputs = tokenize(model, processor.tokenizer, [text])
    with torch.no_grad():
        rows = model.get_similarity_map(
            inputs["input_ids"], pixels["pixel_values"], inputs["attention_mask"], per_token=True
        )[0, 0].flatten(1)  # (tokens, patches)
        whole = model.get_similarity_map(inputs["input_ids"], pixels["pixel_values"], inputs["attention_mask"])
    # the tokenizer of this model has a token per letter
    words = [(match.group(), match.start()) for match in re.finditer(r"\w+", text)]
    letters = np.cumsum([0] + [not letter.isspace() for letter in text])
    per_word = []
    for word, start in words:
        first = 1 + letters[start]  # after [CLS]
        per_word.append(rows[first : first + len(word)])
    ginis = [gini(word_rows).mean().item() for word_rows in per_word]
    assert result["words"]["all"]["n_words"] == len(words)
    assert result["words"]["all"]["gini"] == pytest.approx(np.mean(ginis), abs=1e-5)
    classes = [word_class(word) for word, _ in words]
    for name in set(classes):
        of_class = [value for value, word in zip(ginis, classes, strict=True) if word == name]
        assert result["words"][name]["gini"] == pytest.approx(np.mean(of_class), abs=1e-5)
        assert result["words"][name]["n_words"] == len(of_class)
    curves = torch.stack([word_rows.sort(descending=True).values.mean(0) for word_rows in per_word])
    np.testing.assert_allclose(result["ranked"]["all"]["mean"], curves.mean(0), atol=1e-5)
    np.testing.assert_allclose(
        result["ranked"]["text"]["mean"], whole.flatten().sort(descending=True).values, atol=1e-5
    )
    np.testing.assert_allclose(result["ranked"]["text"]["std"], 0, atol=1e-3)


def test_layout(results):
    assert list(results["models"]) == ["plain", "sparse"] and list(results["differences"]) == ["sparse"]
    for model in results["models"].values():
        assert model["num_patches"] == 16
        assert list(model["words"]) == ["all", *WORD_CLASSES, "punctuation"]
        counts = [model["words"][name]["n_words"] for name in ("all", *WORD_CLASSES)]
        assert counts[0] == sum(counts[1:]) > 0
        for name in (name for name, words in model["words"].items() if words["n_words"]):
            for statistic in STATISTICS:
                low, high = model["words"][name][f"{statistic}_ci95"]
                assert low - 1e-9 <= high
        mean = np.array(model["ranked"]["all"]["mean"])
        assert len(mean) == 16 and (np.diff(mean) <= 0).all() and (np.abs(mean) <= 1).all()
    assert results["models"]["sparse"]["token_entropy_weight"] == 0.2
    json.dumps(to_json(results), allow_nan=False)


def test_differences_are_paired(results, tier_model, pairs):
    plain, sparse = results["models"].values()
    difference = results["differences"]["sparse"]
    assert difference["token_entropy"] == pytest.approx(sparse["token_entropy"] - plain["token_entropy"])
    assert difference["words"]["all"]["gini"] == pytest.approx(
        sparse["words"]["all"]["gini"] - plain["words"]["all"]["gini"]
    )
    same = evaluate_sparsity({"a": tier_model, "b": tier_model}, pairs, resampling=Resampling(5))["differences"]["b"]
    assert same["patch_entropy_ci95"] == [0, 0] and same["words"]["all"]["hoyer_ci95"] == [0, 0]


def test_batches_and_order_change_nothing(results, tier_model, pairs):
    again = evaluate_sparsity(
        {"plain": tier_model}, pairs.select(range(9, -1, -1)), resampling=Resampling(2), batch_size=10
    )
    one, other = results["models"]["plain"], again["models"]["plain"]
    for statistic in STATISTICS:
        assert other["words"]["all"][statistic] == pytest.approx(one["words"]["all"][statistic], abs=1e-5)
    for part in ("mean", "std"):
        np.testing.assert_allclose(other["ranked"]["all"][part], one["ranked"]["all"][part], atol=1e-5)
        np.testing.assert_allclose(other["ranked"]["text"][part], one["ranked"]["text"][part], atol=1e-5)


def test_a_seed_fixes_the_result_and_patients_stand_together(tier_model, pairs):
    models = {"plain": tier_model}
    one = evaluate_sparsity(models, pairs, resampling=Resampling(5, 3))
    assert to_json(one) == to_json(evaluate_sparsity(models, pairs, resampling=Resampling(5, 3)))
    single = pairs.remove_columns("patient_id").add_column("patient_id", ["a"] * len(pairs))
    result = evaluate_sparsity(models, single, resampling=Resampling(5))["models"]["plain"]
    assert np.isnan(result["token_entropy_ci95"]).all() and result["token_entropy"] > 0


def test_clip_itself_has_patches(tier_model, pairs):
    model, processor = tier_model
    config = {"text_config": model.config.text_config.to_dict(), "vision_config": model.config.vision_config.to_dict()}
    clip = CLIPModel(CLIPConfig(**config, projection_dim=16)).eval()
    clip.load_state_dict(model.state_dict())
    results = evaluate_sparsity({"tier": tier_model, "clip": (clip, processor)}, pairs, resampling=Resampling(2))
    tier, plain = results["models"].values()
    assert plain["words"]["all"]["gini"] == pytest.approx(tier["words"]["all"]["gini"], abs=1e-5)
    assert plain["token_entropy_weight"] == 0


def test_empty_texts_are_left_out(results, tier_model, pairs):
    texts = [*pairs["impression"][:], "", "...", " "]
    more = datasets.concatenate_datasets([pairs, pairs.select(range(3))])
    more = more.remove_columns(["impression", "findings"]).add_column("impression", texts)
    more = more.add_column("findings", [""] * len(texts))
    again = evaluate_sparsity({"plain": tier_model}, more, resampling=Resampling(2))
    assert again["n_images"] == 10 and again["protocol"]["n_without_text"] == 3
    assert again["models"]["plain"]["token_entropy"] == pytest.approx(
        results["models"]["plain"]["token_entropy"], abs=1e-6
    )


def test_broken_images_are_left_out_for_all_models(tier_model, make_tier_model, phantom):
    many = datasets.concatenate_datasets([phantom, phantom])
    features = many.features
    images = [*many["image"][:]]
    images[1] = {"bytes": b"no image", "path": None}
    many = many.remove_columns("image").add_column("image", images).cast_column("image", features["image"])
    result = evaluate_sparsity({"a": tier_model}, many, resampling=Resampling(2))
    assert result["n_images"] == 119 and result["protocol"]["images_skipped"] == [many["image_id"][1]]


def test_bad_input(tier_model, make_tier_model, dual_model, pairs):
    model, processor = tier_model
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    siglip = SiglipModel(SiglipConfig(text_config=tower, vision_config={**tower, "image_size": 32, "patch_size": 8}))
    for wrong in (TierCLIPForImageClassification(model.config), siglip):
        with pytest.raises(
            ValueError, match=f"m is a {type(wrong).__name__}, which does not embed tokens and patches"
        ):
            evaluate_sparsity({"m": (wrong, processor)}, pairs)
    with pytest.raises(ValueError, match=r"different numbers of patches cannot be compared.*\(a 16, b \d+\)"):
        evaluate_sparsity({"a": tier_model, "b": dual_model}, pairs)
    with pytest.raises(ValueError, match="The list of models is empty"):
        evaluate_sparsity({}, pairs)
    with pytest.raises(ValueError, match="The temperature must be above 0, but is 0"):
        evaluate_sparsity({"a": tier_model}, pairs, temperature=0)
    with pytest.raises(ValueError, match="near_zero must be above 0, but is -1"):
        evaluate_sparsity({"a": tier_model}, pairs, near_zero=-1)
    with pytest.raises(ValueError, match="resamples must be at least 1, but is 0"):
        evaluate_sparsity({"a": tier_model}, pairs, resampling=Resampling(0))
    with pytest.raises(ValueError, match="No record has a word"):
        evaluate_sparsity({"a": tier_model}, pairs.map(lambda _: {"impression": "", "findings": "..."}))


# Figure


def test_figure(results, tmp_path):
    pytest.importorskip("matplotlib")
    from evaluation_tier.figures.sparsity import plot_sparsity
    from evaluation_tier.figures.style import COLOURS

    read_back = json.loads(json.dumps(to_json(results)))
    path = plot_sparsity(read_back, tmp_path / "sparsity.png")
    with Image.open(path) as image:
        picture = np.asarray(image.convert("RGB")).astype(int)
    assert picture.shape[0] > 900 and picture.shape[1] > 1200
    for colour in COLOURS[:2]:
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(picture - wanted).max(axis=-1) < 12).sum() > 200
