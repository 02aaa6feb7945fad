"""What is kept of frozen towers, of which images and texts, and what is refused."""

import pytest
import torch
from small_trainings import TINIEST, break_images

from modeling_tier import TierCLIPConfig, TierCLIPModel
from processing_tier import train_tokenizer
from processing_tier.phantom.dataset import make_phantom
from training_tier.data import feature_cache, feature_folder, feature_store
from training_tier.data.collator import PairCollator
from training_tier.data.feature_cache import cache_features
from training_tier.data.feature_store import FeatureStore
from training_tier.data.pairs import PairDataset, PairOptions


@pytest.fixture(scope="module")
def tokenizer(records):
    return train_tokenizer(records["impression"][:] + records["findings"][:], vocab_size=600)


@pytest.fixture
def model(tokenizer):
    torch.manual_seed(0)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    text = {**TINIEST["text_config"], **ids, "vocab_size": len(tokenizer)}
    model = TierCLIPModel(TierCLIPConfig(text_config=text, vision_config=TINIEST["vision_config"], projection_dim=8))
    for tower in (model.vision_model, model.text_model):
        tower.requires_grad_(False)
    return model.train()


@pytest.fixture
def cache(model, tokenizer, image_processor, tmp_path):
    """Function that caches the features of records; it returns their data set and the collator."""

    def cache(records, options=PairOptions(), dtype=torch.float32):  # noqa: B008
        dataset, collator = PairDataset(records, image_processor, options), PairCollator(tokenizer)
        cache_features(model, collator, [dataset], tmp_path / "features", dtype)
        return dataset, collator

    return cache


def stores(folder):
    return {path.name.split("-")[0]: FeatureStore(path) for path in sorted((folder / "features").iterdir())}


def test_pairs_have_what_the_towers_give(cache, model, records, tokenizer, image_processor):
    dataset, collator = cache(records)
    assert model.training
    pixels = PairCollator(tokenizer)([PairDataset(records, image_processor)[i] for i in range(6)])
    batch = collator([dataset[i] for i in range(6)])
    assert "pixel_values" not in batch and list(batch)[0] == "vision_hidden_state"
    model.eval()
    hidden = model.encode_images(pixels["pixel_values"])[0].last_hidden_state
    torch.testing.assert_close(batch["vision_hidden_state"], hidden, rtol=1e-5, atol=1e-6)
    texts = model.get_text_features(pixels["input_ids"], pixels["attention_mask"]).last_hidden_state
    attended = pixels["attention_mask"].bool()
    torch.testing.assert_close(batch["text_hidden_state"][attended], texts[attended], rtol=1e-5, atol=1e-6)
    assert not batch["text_hidden_state"][~attended].any()
    assert torch.equal(batch["input_ids"], pixels["input_ids"]) and batch["indices"] == list(range(6))


def test_computing_features_uses_none_of_the_random_numbers_of_the_training(cache, records):
    """A first run, which computes them, drops the same channels as the next one, which reads them."""
    state = torch.get_rng_state()
    cache(records.select(range(6)))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("form", [{"sentences_per_image": 2}, {"text": "both"}])
def test_each_distinct_text_is_kept_once(cache, records, tmp_path, tokenizer, form):
    dataset, collator = cache(records.select([0, 0, 1, 2]), PairOptions(**form))
    for epoch in range(20):
        dataset.set_epoch(epoch)
        assert "text_hidden_state" in collator([dataset[i] for i in range(4)])
    texts = list(dataset.texts_of_all_epochs())
    distinct = {tuple(ids) for ids in tokenizer(texts, truncation=True)["input_ids"]}
    assert len(stores(tmp_path)["texts"].places) == len(distinct) < len(texts)
    assert len(stores(tmp_path)["images"].places) == 3


def test_texts_that_are_drawn_anew_or_whose_tower_is_trained_are_not_kept(cache, model, records, tmp_path, caplog):
    dataset, collator = cache(records, PairOptions(sample_sentences=True))
    assert "text_hidden_state" not in collator([dataset[i] for i in range(4)])
    assert "sample_sentences makes other texts in each epoch: only the outputs of the image tower" in caplog.text
    model.text_model.final_layer_norm.requires_grad_(True)
    dataset, collator = cache(records)
    assert "text_hidden_state" not in collator([dataset[i] for i in range(4)])
    assert list(stores(tmp_path)) == ["images"]


def test_a_text_that_is_not_kept_is_read_by_the_tower(cache, model, records, image_processor):
    _, collator = cache(records)
    other = PairDataset(make_phantom(4, seed=5, image_size=64), image_processor)
    batch = collator([other[i] for i in range(4)])
    assert "text_hidden_state" not in batch and model(**{k: v for k, v in batch.items() if torch.is_tensor(v)})


def test_an_interruption_is_continued(cache, model, records, monkeypatch, tmp_path):
    monkeypatch.setattr(feature_cache, "BATCH", 2)
    monkeypatch.setattr(feature_store, "PART_BYTES", 1)
    run_tower, seen = type(model).get_image_features, []

    def interrupted(self, pixels):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(len(pixels))
        return run_tower(self, pixels)

    monkeypatch.setattr(type(model), "get_image_features", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache(records)
    assert len(stores(tmp_path)["images"].places) == 4
    seen.clear()
    cache(records)
    assert seen == [2]


def test_an_image_that_does_not_decode_has_its_reason(cache, records, image_processor):
    broken = break_images(records, [2])
    dataset, collator = cache(broken)
    assert dataset[2] == PairDataset(broken, image_processor)[2] and "error" in dataset[2]
    batch = collator([dataset[i] for i in range(6)])
    assert len(batch["vision_hidden_state"]) == 5 and batch["unreadable"][0][0] == 2
    assert "vision_hidden_state" not in collator([dataset[2]])


def test_float16_halves_the_space_and_is_told_apart(cache, records, tmp_path):
    whole, _ = cache(records)
    half, _ = cache(records, dtype=torch.float16)
    assert len(list((tmp_path / "features").iterdir())) == 4
    one, other = whole[0]["vision_hidden_state"], half[0]["vision_hidden_state"]
    assert other.dtype == torch.float16 and torch.equal(one.half(), other)


def test_numbers_that_float16_does_not_hold_are_refused(cache, model, records):
    model.vision_model.encoder.layers[-1].mlp.fc2.bias.data += 1e5
    with pytest.raises(
        ValueError, match=r"^The image tower gives numbers up to 1e\+05, which cache_features does not "
    ):
        cache(records, dtype=torch.float16)


def test_a_disk_without_space_is_known_beforehand(cache, records, monkeypatch):
    monkeypatch.setattr(
        feature_folder.shutil, "disk_usage", lambda folder: feature_folder.shutil._ntuple_diskusage(1, 1, 9)
    )
    with pytest.raises(
        ValueError, match=r"needs 0\.0 GiB for these images, but the disk has 0\.0 GiB free; free some "
    ):
        cache(records)


def test_what_does_not_allow_it_is_refused(cache, model, records):
    with pytest.raises(ValueError, match="^cache_features keeps one output for each image, but augmentation='tier'"):
        cache(records, PairOptions(augmentation="tier"))
    model.vision_model.post_layernorm.requires_grad_(True)
    with pytest.raises(
        ValueError, match="^cache_features needs a frozen image tower, but this one is trained, so its"
    ):
        cache(records)
