import datasets
import numpy as np
import pytest
from transformers import CLIPConfig, CLIPModel

from evaluation_tier.analyses.ranks import Ranks, chance_ranks, found, median_rank, ranks, recall_at
from evaluation_tier.analyses.retrieval import evaluate_retrieval, read_texts
from evaluation_tier.output.metrics_file import to_json
from evaluation_tier.statistics.resampling import Resampling
from modeling_tier import TierCLIPForImageClassification

EYE = np.eye(4, dtype=np.float32)
NUMBERS = np.arange(4)


def unit(*shape, seed=0):
    rows = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def expected_rank(measured: Ranks) -> np.ndarray:
    return measured.above + 1 + measured.tied_wrong / (measured.tied_right + 1)


# Ranks


def test_ranks_by_hand():
    gallery = np.array([[0.9], [0.5], [0.7], [0.5], [0.5]], dtype=np.float32)
    queries = np.ones((3, 1), dtype=np.float32)
    measured = ranks(queries, gallery, np.array([0, 1, 2]), np.array([0, 1, 2, 3, 1]))
    assert measured.above.tolist() == [0, 2, 1]
    assert measured.tied_wrong.tolist() == [0, 1, 0]
    assert measured.tied_right.tolist() == [1, 2, 1]


def test_a_perfect_and_a_worst_model():
    perfect = ranks(EYE, EYE, NUMBERS, NUMBERS)
    assert recall_at(perfect, 1).item() == 1 and median_rank(perfect).item() == 1
    worst = ranks(EYE, -EYE, NUMBERS, NUMBERS)
    assert [recall_at(worst, k).item() for k in (1, 3, 4)] == [0, 0, 1] and median_rank(worst).item() == 4


def test_duplicates_are_hits():
    # the query is nearest to item 2, which says the same as its own item 0
    measured = ranks(EYE[2:3], EYE, np.array([7]), np.array([7, 1, 7, 3]))
    assert (measured.above, measured.tied_wrong, measured.tied_right) == (0, 0, 1)
    alone = ranks(EYE[2:3], EYE, np.array([7]), np.array([7, 1, 2, 3]))
    assert recall_at(alone, 1).item() == 0


@pytest.mark.parametrize("chunk_size", [1, 3, 40, 1000])
def test_chunks_and_order_change_nothing(chunk_size):
    queries, gallery = unit(40, 8), unit(60, 8, seed=1)
    gallery[50:], gallery[36:48] = gallery[:10], gallery[:12]  # ties, of other groups and of the same
    generator = np.random.default_rng(2)
    query_groups, gallery_groups = generator.integers(12, size=40), np.arange(60) % 12
    whole = np.stack(ranks(queries, gallery, query_groups, gallery_groups))
    assert (whole[1] > 0).any() and (whole[2] > 1).any()
    order = generator.permutation(60)
    np.testing.assert_array_equal(
        np.stack(ranks(queries, gallery[order], query_groups, gallery_groups[order], chunk_size)), whole
    )
    order = generator.permutation(40)
    np.testing.assert_array_equal(
        np.stack(ranks(queries[order], gallery, query_groups[order], gallery_groups, chunk_size)), whole[:, order]
    )


def test_ranks_are_those_of_a_sorted_row():
    queries, gallery = unit(30, 8), unit(50, 8, seed=1)
    query_groups, gallery_groups = np.arange(30) % 9, np.arange(50) % 9
    measured = ranks(queries, gallery, query_groups, gallery_groups)
    for i in range(30):
        by_score = gallery_groups[np.argsort(-(gallery @ queries[i]))]
        assert measured.above[i] == np.flatnonzero(by_score == query_groups[i])[0]
    assert not measured.tied_wrong.any() and (measured.tied_right == 1).all()


def test_ranks_refuse_what_has_no_rank():
    with pytest.raises(ValueError, match="Query 1 has no correct item in the gallery: leave it out"):
        ranks(EYE[:2], EYE, np.array([0, 9]), NUMBERS)
    with pytest.raises(ValueError, match="embeddings of the gallery must be finite"):
        ranks(EYE, EYE * np.nan, NUMBERS, NUMBERS)
    with pytest.raises(ValueError, match=r"have shapes \(4, 4\) and \(3,\)"):
        ranks(EYE, EYE, NUMBERS[:3], NUMBERS)
    with pytest.raises(ValueError, match="Queries of 3 numbers have no score with items of 4"):
        ranks(EYE[:, :3], EYE, NUMBERS, NUMBERS)
    with pytest.raises(ValueError, match="must be at least 1, but is 0"):
        ranks(EYE, EYE, NUMBERS, NUMBERS, chunk_size=0)


# Ties and chance


def test_ties_are_decided_by_lot_in_expectation():
    # two above; then 3 wrong and 2 right share the places 3 to 7
    one = Ranks(np.array([2]), np.array([3]), np.array([2]))
    shares = [found(one, k).item() for k in range(1, 8)]
    # 1 - C(3, j) / C(5, j)
    np.testing.assert_allclose(shares, [0, 0, 1 - 3 / 5, 1 - 3 / 10, 1 - 1 / 10, 1, 1], atol=1e-12)
    assert median_rank(one).item() == 4


def test_ties_agree_with_drawn_lots():
    generator = np.random.default_rng(0)
    above, wrong, right = 3, 17, 4
    places = generator.permuted(np.tile(np.arange(wrong + right), (20000, 1)), axis=1)[:, :right].min(axis=1)
    drawn = above + 1 + places
    one = Ranks(np.array([above]), np.array([wrong]), np.array([right]))
    for k in (4, 7, 12):
        assert found(one, k).item() == pytest.approx((drawn <= k).mean(), abs=0.015)
    assert expected_rank(one).item() == pytest.approx(drawn.mean(), abs=0.1)
    assert median_rank(one).item() == np.median(drawn)


def test_a_model_that_answers_everything_alike_gets_chance():
    groups = np.array([0, 0, 0, 1, 2, 3, 3])
    measured = ranks(np.ones((7, 2), np.float32), np.ones((7, 2), np.float32), groups, groups)
    for left, right in zip(measured, chance_ranks(groups, groups), strict=True):
        np.testing.assert_array_equal(left, right)


def test_chance_by_hand():
    distinct = chance_ranks(np.arange(10), np.arange(10))
    assert [recall_at(distinct, k).item() for k in (1, 5, 10)] == pytest.approx([0.1, 0.5, 1])
    assert median_rank(distinct).item() == 5
    # right items among 4: 2, 2, 1, 1
    twins = chance_ranks(np.array([0, 0, 1, 2]), np.array([0, 0, 1, 2]))
    assert recall_at(twins, 1).item() == pytest.approx((0.5 + 0.5 + 0.25 + 0.25) / 4)
    assert recall_at(twins, 2).item() == pytest.approx((5 / 6 + 5 / 6 + 0.5 + 0.5) / 4)


def test_random_embeddings_are_at_chance():
    groups = np.arange(600) % 400
    measured, chance = ranks(unit(600, 32), unit(600, 32, seed=1), groups, groups), chance_ranks(groups, groups)
    assert recall_at(measured, 60).item() == pytest.approx(recall_at(chance, 60).item(), abs=0.03)
    assert median_rank(measured).item() == pytest.approx(median_rank(chance).item(), abs=30)


def test_the_median_rank_is_numpys_for_ranks_without_ties():
    generator = np.random.default_rng(3)
    above = generator.integers(0, 1000, size=51)
    measured = Ranks(above, np.zeros_like(above), np.ones_like(above))
    weights = generator.multinomial(51, np.full(51, 1 / 51), size=20).astype(float)
    repeated = [np.sort(np.repeat(above + 1, row.astype(int))) for row in weights]
    np.testing.assert_array_equal(median_rank(measured, weights), [np.median(row) for row in repeated])
    np.testing.assert_allclose(recall_at(measured, 400, weights), [(row <= 400).mean() for row in repeated])


# The whole evaluation


@pytest.fixture
def pairs(make_grey_dataset):
    """Dark and bright images: what the stand-in finds dark belongs to texts that begin with "No"."""

    def make(levels, texts, **options):
        dataset = make_grey_dataset(levels, [0] * len(levels), **options)
        return dataset.add_column("impression", texts).add_column("findings", [""] * len(texts))

    return make


def test_evaluation_by_hand(brightness, pairs):
    results = evaluate_retrieval(*brightness, pairs([0, 255, 10, 250], ["No.", "Yes.", "no", "Effusion."]), ks=(1, 2))
    # "No." and "no" say the same but are embedded apart: the stand-in takes only the first for an absence
    text, image = results["image_to_text"], results["text_to_image"]
    assert (results["n_images"], results["n_texts"], results["n_most_frequent_text"]) == (4, 4, 2)
    # dark images: "No." first; bright ones: "Yes.", "Effusion." and "no" tied
    assert text["recall_at_1"] == pytest.approx((1 + 1 + 1 / 3 + 1 / 3) / 4)
    assert text["recall_at_2"] == pytest.approx((1 + 1 + 2 / 3 + 2 / 3) / 4)
    assert text["recall_at_1_chance"] == pytest.approx((2 / 4 + 2 / 4 + 1 / 4 + 1 / 4) / 4)
    assert text["recall_at_1_most_frequent"] == pytest.approx(2 / 4)
    assert text["median_rank"] == 1
    # "No.": image 0 first; "Yes.": image 1; "no": images 1 and 3 before 2 and 0; "Effusion.": image 1 before 3
    assert image["recall_at_1"] == pytest.approx(2 / 4)
    assert image["recall_at_2"] == pytest.approx(3 / 4)
    assert image["median_rank"] == 1


def test_copies_of_a_text_stand_once_in_the_gallery(brightness, pairs):
    dataset = pairs([0, 20, 40, 255], ["No.", "No.", "No.", "Yes."])
    results = evaluate_retrieval(*brightness, dataset, ks=(1,))
    assert results["n_texts"] == 2
    assert results["image_to_text"]["recall_at_1"] == results["text_to_image"]["recall_at_1"] == 1
    assert results["image_to_text"]["recall_at_1_chance"] == pytest.approx(0.5)
    assert results["image_to_text"]["recall_at_1_most_frequent"] == pytest.approx(0.75)
    model, _ = brightness
    assert model.num_sentences == 2  # each embedded once


def test_one_pair(brightness, pairs):
    result = evaluate_retrieval(*brightness, pairs([0], ["No."]), resampling=Resampling(3))["image_to_text"]
    assert {name: value for name, value in result.items() if name.startswith("recall_at_5")} == {
        "recall_at_5": 1,
        "recall_at_5_ci95": [pytest.approx(np.nan, nan_ok=True)] * 2,
        "recall_at_5_chance": 1,
        "recall_at_5_most_frequent": 1,
    }
    assert result["median_rank"] == 1


def test_empty_texts_and_broken_images_are_left_out(brightness, pairs, caplog):
    levels, texts = [0, 255] + [128] * 2 + [0] * 100, ["No.", "Yes.", "", "XXXX."] + ["No."] * 100
    dataset = pairs(levels, texts)
    broken = dataset[1]["image"] | {"bytes": b"no image"}
    images = dataset["image"][:]
    whole = evaluate_retrieval(*brightness, dataset, ks=(1,), resampling=Resampling(2))
    assert whole["n_images"] == 102 and whole["protocol"]["n_without_text"] == 2
    features = dataset.features
    dataset = dataset.remove_columns("image").add_column("image", [images[0], broken, *images[2:]])
    results = evaluate_retrieval(
        *brightness, dataset.cast_column("image", features["image"]), ks=(1,), resampling=Resampling(2)
    )
    assert results["n_images"] == 101 and results["protocol"]["images_skipped"] == ["image1"]
    with pytest.raises(ValueError, match="No record has a word in its 'findings' text"):
        evaluate_retrieval(*brightness, dataset, text="findings")


def test_intervals_resample_patients(brightness, pairs):
    levels, texts = [0, 255, 0, 255] * 5, ["No.", "Yes.", "Yes.", "No."] * 5  # half of them the wrong way round
    five = evaluate_retrieval(*brightness, pairs(levels, texts, patients=[f"p{i // 4}" for i in range(20)]), ks=(1,))
    assert five["image_to_text"]["recall_at_1_ci95"] == [0.5, 0.5]
    assert five["protocol"]["n_patients"] == 5
    one = evaluate_retrieval(*brightness, pairs(levels, texts, patients=["a"] * 20), ks=(1,))
    assert one["image_to_text"]["recall_at_1"] == 0.5 and np.isnan(one["image_to_text"]["recall_at_1_ci95"]).all()
    assert one["protocol"]["intervals"] == "none: 1 patient, and an interval needs 5"
    all_apart = evaluate_retrieval(*brightness, pairs(levels, texts), ks=(1,))
    low, high = all_apart["image_to_text"]["recall_at_1_ci95"]
    assert 0.25 <= low < 0.4 and 0.6 < high <= 0.75
    assert all_apart == evaluate_retrieval(*brightness, pairs(levels, texts), ks=(1,))


@pytest.mark.parametrize("batch_size, chunk_size", [(1, 7), (16, 256)])
def test_batches_and_chunks_change_nothing(tier_model, phantom, batch_size, chunk_size):
    options = {"resampling": Resampling(20), "dataset_name": "phantom"}
    results = evaluate_retrieval(*tier_model, phantom, batch_size=batch_size, chunk_size=chunk_size, **options)
    assert results == evaluate_retrieval(*tier_model, phantom, **options)
    assert to_json(results) == results  # nothing undefined


def test_other_models_of_the_clip_family(tier_model, phantom):
    model, processor = tier_model
    config = {"text_config": model.config.text_config.to_dict(), "vision_config": model.config.vision_config.to_dict()}
    clip = CLIPModel(CLIPConfig(**config, projection_dim=16)).eval()
    clip.load_state_dict(model.state_dict())
    results = evaluate_retrieval(clip, processor, phantom, resampling=Resampling(2))
    mean = evaluate_retrieval(model, processor, phantom, resampling=Resampling(2))  # pools the patches
    assert results["n_images"] == 60
    assert results["image_to_text"]["recall_at_1_chance"] == mean["image_to_text"]["recall_at_1_chance"]


def test_the_texts_are_those_of_a_training():
    sections = {"impression": ["Normal  heart.", "", "XXXX heart."], "findings": ["a", "b", ""]}
    dataset = datasets.Dataset.from_dict(sections)
    assert read_texts(dataset) == ["Normal heart.", "b", "XXXX heart."]
    assert read_texts(dataset, "impression", "remove") == ["Normal heart.", "", "heart."]


def test_bad_input(tier_model, brightness, pairs, make_grey_dataset):
    model, processor = tier_model
    dataset = pairs([0], ["No."])
    classifier = TierCLIPForImageClassification(model.config)
    with pytest.raises(ValueError, match="A TierCLIPForImageClassification does not embed texts"):
        evaluate_retrieval(classifier, processor, dataset)
    with pytest.raises(ValueError, match="has no column 'impression'"):
        evaluate_retrieval(*brightness, make_grey_dataset([0], [0]))
    with pytest.raises(ValueError, match="text source 'abstract' is not known"):
        evaluate_retrieval(*brightness, dataset, text="abstract")
    with pytest.raises(ValueError, match=r"numbers of at least 1, but ks is \(0, 5\)"):
        evaluate_retrieval(*brightness, dataset, ks=(0, 5))
    with pytest.raises(ValueError, match="resamples must be at least 1, but is 0"):
        evaluate_retrieval(*brightness, dataset, resampling=Resampling(0))
