import json
import resource

import numpy as np
import pytest
import torch

from evaluation_tier.models.cache import EmbeddingCache, hash_image, hash_weights
from evaluation_tier.models.clip import ClipFamily
from evaluation_tier.models.embedding import embed_batches, embed_pixels
from evaluation_tier.scoring.protocols import choose_protocol
from evaluation_tier.scoring.zeroshot import evaluate_zero_shot
from evaluation_tier.statistics.resampling import Resampling


def collect(model, processor, dataset, **options):
    """Image and patch embeddings in the order of the data set."""
    batches = list(embed_batches(model, processor, dataset, 16, **options))
    rows = np.concatenate([rows for rows, _ in batches])
    assert sorted(rows) == list(range(len(dataset)))
    order = np.argsort(rows)
    return [torch.cat([outputs[name] for _, outputs in batches]).numpy()[order] for name in ("image", "patches")]


@pytest.fixture
def count_read(monkeypatch):
    """How many images were read to be embedded."""
    counts = []

    def count(model, pixels, patches):
        counts.append(len(pixels))
        return embed_pixels(model, pixels, patches)

    monkeypatch.setattr("evaluation_tier.models.embedding.embed_pixels", count)
    return counts


def test_the_cache_changes_nothing_and_saves_the_work(tier_model, phantom, tmp_path, count_read):
    expected = collect(*tier_model, phantom)
    count_read.clear()
    for embedded in (60, 0):
        for array, other in zip(collect(*tier_model, phantom, cache_dir=tmp_path), expected, strict=True):
            np.testing.assert_array_equal(array, other)
        assert sum(count_read) == embedded
        count_read.clear()
    collect(*tier_model, phantom.select(range(59, 9, -1)), cache_dir=tmp_path)  # an image is known wherever it is
    assert not count_read


def test_the_cache_keeps_the_layout_in_memory(tier_model, phantom, tmp_path):
    """The patches of a convolutional tower are transposed, and products round differently with another layout."""
    model, processor = tier_model

    def embed(batch):
        outputs = embed_pixels(model, batch.pixels, patches=True)
        outputs["patches"] = outputs["patches"].mT.contiguous().mT
        return outputs

    def collect_outputs():
        cached = {"embedders": {"transposed": embed}, "cache_dir": tmp_path}
        return [outputs for _, outputs in embed_batches(model, processor, phantom.select(range(20)), 16, **cached)]

    expected, found = collect_outputs(), collect_outputs()
    for outputs, others in zip(expected, found, strict=True):
        assert outputs["patches"].stride()[1] == 1
        for name, array in others.items():
            assert array.stride() == outputs[name].stride()
            np.testing.assert_array_equal(array, outputs[name])


def test_names_of_files_do_not_matter(tier_model, phantom, tmp_path, count_read):
    for name, index in (("a", 0), ("b", 1)):
        (tmp_path / f"{name}.png").write_bytes(phantom[index]["image"]["bytes"])

    def dataset(names):
        paths = [{"bytes": None, "path": str(tmp_path / f"{name}.png")} for name in names]
        return phantom.select(range(2)).map(lambda _, i: {"image": paths[i]}, with_indices=True)

    first = collect(*tier_model, dataset("ab"), cache_dir=tmp_path / "cache")
    (tmp_path / "a.png").rename(tmp_path / "c.png")
    (tmp_path / "b.png").rename(tmp_path / "a.png")  # another image by the old name
    second = collect(*tier_model, dataset("ca"), cache_dir=tmp_path / "cache")
    assert sum(count_read) == 2
    np.testing.assert_array_equal(first[0], second[0])


def test_whatever_decides_the_numbers_is_in_the_key(make_tier_model, phantom, tmp_path):
    model, processor = make_tier_model(0)
    first = EmbeddingCache(tmp_path, ClipFamily(model, processor), "image").folder
    assert EmbeddingCache(tmp_path, ClipFamily(*make_tier_model(0)), "image").folder == first
    assert EmbeddingCache(tmp_path, ClipFamily(*make_tier_model(1)), "image").folder != first
    assert EmbeddingCache(tmp_path, ClipFamily(model, processor), "image and patches").folder != first
    assert (
        EmbeddingCache(tmp_path, ClipFamily(*make_tier_model(0, pixel_mean=[0.1, 0.1, 0.1])), "image").folder != first
    )
    pooled = make_tier_model(0)[0]
    pooled.config.image_pooling = "cls"
    assert EmbeddingCache(tmp_path, ClipFamily(pooled, processor), "image").folder != first
    calibrated = make_tier_model(0)[0]
    calibrated.config.zero_shot_findings = {"Edema": {"positive": ["Edema."], "negative": ["No edema."]}}
    assert EmbeddingCache(tmp_path, ClipFamily(calibrated, processor), "image").folder == first
    geometry = processor.image_processor.geometry
    processor.image_processor.geometry = "squash" if geometry != "squash" else "pad"
    assert EmbeddingCache(tmp_path, ClipFamily(model, processor), "image").folder != first
    processor.image_processor.geometry = geometry
    levels = processor.image_processor.grey_levels
    processor.image_processor.grey_levels = "divide"
    assert EmbeddingCache(tmp_path, ClipFamily(model, processor), "image").folder != first
    processor.image_processor.grey_levels = levels


def test_weights_are_hashed_with_names_and_types(make_tier_model):
    model, _ = make_tier_model(0)
    first = hash_weights(model)
    model.logit_scale.data += 1e-6
    assert hash_weights(model) != first
    assert hash_weights(model.half()) != first


@pytest.mark.parametrize("damage", ["cut", "bit", "empty", "not safetensors"])
def test_damaged_entries_are_made_anew(tier_model, phantom, tmp_path, count_read, damage):
    dataset = phantom.select(range(20))
    expected = collect(*tier_model, dataset, cache_dir=tmp_path)
    path = sorted(tmp_path.rglob("*.safetensors"))[0]
    content = bytearray(path.read_bytes())
    whole = bytes(content)
    content[-100] ^= 1
    path.write_bytes({"cut": whole[:-7], "bit": bytes(content), "empty": b"", "not safetensors": b"x" * 999}[damage])
    count_read.clear()
    for array, other in zip(collect(*tier_model, dataset, cache_dir=tmp_path), expected, strict=True):
        np.testing.assert_array_equal(array, other)
    assert sum(count_read) in (4, 16)  # the batch that the image is in
    assert path.read_bytes() == whole


def test_unreadable_images_are_no_entries(tmp_path):
    assert hash_image({"bytes": None, "path": str(tmp_path / "nowhere.png")}) is None
    assert hash_image({"bytes": b"a", "path": "x"}) == hash_image({"bytes": b"a", "path": "y"}) == hash_image(b"a")


def test_an_evaluation_with_a_cache_is_the_same(make_tier_model, phantom, tmp_path):
    models = {str(seed): make_tier_model(seed) for seed in range(2)}
    options = {"resampling": Resampling(40), "min_positives": 5}
    expected = evaluate_zero_shot(models, phantom, protocol=choose_protocol(score_level="both-lse"), **options)
    for name in ("report", "report", "chexzero"):  # other sentences need no other embeddings
        protocol = choose_protocol(name, score_level="both-lse")
        result = evaluate_zero_shot(models, phantom, protocol=protocol, cache_dir=tmp_path, **options)
        if name == "report":
            assert json.dumps(result[0]) == json.dumps(expected[0]) and result[1].equals(expected[1])
    assert len(list(tmp_path.iterdir())) == 2
    assert not list(tmp_path.rglob("*partial*"))


def test_a_full_disk_costs_the_cache_and_not_the_evaluation(tier_model, phantom, tmp_path, caplog):
    """A limit on the size of files fails a write as a full disk does."""
    expected = collect(*tier_model, phantom)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with caplog.at_level("WARNING"):
            found = collect(*tier_model, phantom, cache_dir=tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    for array, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(array, other)
    assert [record.getMessage() for record in caplog.records] == [
        f"The cache {tmp_path / 'cache'} cannot be written (File too large): the evaluation continues without it."
    ]
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
