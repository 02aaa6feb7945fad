import io
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BatchEncoding

from evaluation_tier.analyses import deletion
from evaluation_tier.analyses.deletion import NUM_RANDOM, Deletion, blank, evaluate_deletion, first_patches
from evaluation_tier.statistics.resampling import Resampling
from processing_tier.prompts.loader import Prompts

SIDE, PATCH = 4, 4  # patches along a side, pixels along a patch
BRIGHT = {"Bright": Prompts(["Bright."], ["No brightness."])}


class BrightPatches(torch.nn.Module):
    """
    A model whose answers are known: a patch of brightness b (0 to 1) is the vector (1, b), an image the mean of its
    patches. "Bright." is (0, 1) and "No brightness." (1, 0). With `lies`, its map shows the opposite: (1, 1 - b).
    """

    def __init__(self, lies=False, pooling="patch_mean"):
        super().__init__()
        text = SimpleNamespace(max_position_embeddings=8)
        self.config = SimpleNamespace(projection_dim=2, text_config=text, image_pooling=pooling, model_type="bright")
        self.lies, self.device = lies, torch.device("cpu")
        self.patch_centers = (PATCH / 2, PATCH)

    def encode_images(self, pixel_values):
        assert not self.training and not torch.is_grad_enabled()
        brightness = torch.nn.functional.avg_pool2d(pixel_values[:, 0], PATCH)  # (images, rows, columns)
        patches = torch.stack([torch.ones_like(brightness), brightness], dim=-1)
        shown = torch.stack([torch.ones_like(brightness), 1 - brightness], dim=-1) if self.lies else patches
        return SimpleNamespace(pooler_output=patches.mean(dim=(1, 2))), shown

    def get_patch_map(self, pixel_values):
        return self.encode_images(pixel_values)[1]

    def get_image_features(self, pixel_values):
        return self.encode_images(pixel_values)[0]

    def get_text_features(self, input_ids, attention_mask):
        return SimpleNamespace(pooler_output=torch.eye(2)[input_ids[:, 0]])


def make_processor():
    def image_processor(images, return_tensors):
        pixels = torch.stack([torch.from_numpy(np.asarray(image) / np.float32(255)) for image in images])
        return {"pixel_values": pixels[:, None]}

    def tokenizer(texts, **options):
        ids = torch.tensor([[0 if text.startswith("No") else 1] for text in texts])
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    tokenizer.model_max_length = 8
    return SimpleNamespace(image_processor=image_processor, tokenizer=tokenizer)


def picture(patches) -> np.ndarray:
    """A dark image with these patches white."""
    grid = np.zeros((SIDE, SIDE), dtype=np.uint8)
    grid.flat[list(patches)] = 255
    return grid.repeat(PATCH, 0).repeat(PATCH, 1)


@pytest.fixture
def dataset() -> datasets.Dataset:
    """8 images with two bright patches each, all in other places, and 8 images with one bright patch."""
    bright = [[2 * i, 2 * i + 1] for i in range(8)] + [[i] for i in range(8)]
    images = []
    for patches in bright:
        file = io.BytesIO()
        Image.fromarray(picture(patches)).save(file, format="PNG")
        images.append({"bytes": file.getvalue(), "path": None})
    names = [f"image{i}" for i in range(16)]
    columns = {"image": images, "image_id": names, "patient_id": names, "Bright": [1.0] * 8 + [0.0] * 8}
    return datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image(decode=False))


def score(levels: np.ndarray) -> float:
    brightness = levels.mean() / 255
    return (brightness - 1) / np.hypot(1, brightness)


def evaluate(model, dataset, **options):
    options = {"prompts": BRIGHT, "min_positives": 1, "resampling": Resampling(20)} | options
    return evaluate_deletion(model, make_processor(), dataset, **options)


def mean_image() -> np.ndarray:
    pictures = [picture([2 * i, 2 * i + 1]) for i in range(8)] + [picture([i]) for i in range(8)]
    return np.mean(pictures, axis=0).round().astype(np.uint8)


@pytest.mark.parametrize("pooling", ["patch_mean", "cls"])
def test_a_faithful_map_by_hand(dataset, pooling):
    results = evaluate(BrightPatches(pooling=pooling), dataset)
    kinds = {"patch_mean": ["contribution", "cosine"], "cls": ["cosine"]}[pooling]
    filling, original = mean_image(), score(picture([0, 1]))
    hottest, random = [], []
    for row in range(8):
        image = picture([2 * row, 2 * row + 1])
        two = np.isin(np.arange(16), [2 * row, 2 * row + 1]).reshape(4, 4)  # 10 % of 16 patches are 2
        hottest.append(original - score(np.where(two.repeat(PATCH, 0).repeat(PATCH, 1), filling, image)))
        generator = np.random.default_rng([0, row])
        sets = [generator.permutation(16)[:2] for _ in range(NUM_RANDOM)]
        blanked = [np.isin(np.arange(16), chosen).reshape(4, 4).repeat(PATCH, 0).repeat(PATCH, 1) for chosen in sets]
        random.append(original - np.mean([score(np.where(mask, filling, image)) for mask in blanked]))
    spread = np.std([original] * 8 + [score(picture([0]))] * 8)
    for part in (results["findings"]["Bright"], results["mean"], results["all_pairs"]):
        assert (part["n_pairs"], part["n_patients"], list(part["maps"])) == (8, 8, kinds)
        assert part["score"]["mean"] == pytest.approx(original, abs=1e-6)
        assert part["random"]["mean"] == pytest.approx(np.mean(random), abs=1e-6)
        for of_kind in part["maps"].values():
            assert of_kind["hottest"]["mean"] == pytest.approx(np.mean(hottest), abs=1e-6)
            difference = np.mean(hottest) - np.mean(random)
            assert of_kind["difference"]["mean"] == pytest.approx(difference, abs=1e-6)
            assert of_kind["difference_sd"]["mean"] == pytest.approx(difference / spread, rel=1e-5)
            low, high = of_kind["difference"]["ci95"]
            assert 0 < low <= difference <= high  # no random set is as good as both bright patches
    assert results["n_images"] == 8 and results["mean"]["findings"] == ["Bright"]


def test_a_lying_map_and_one_that_says_nothing(dataset):
    part = evaluate(BrightPatches(lies=True), dataset)["all_pairs"]
    assert part["maps"]["cosine"]["hottest"]["mean"] <= 0  # dark patches become those of the mean image
    assert part["maps"]["cosine"]["difference"]["ci95"][1] < 0
    model = BrightPatches()
    model.encode_images = lambda pixels: (
        SimpleNamespace(pooler_output=torch.ones(len(pixels), 2)),
        torch.ones(len(pixels), SIDE, SIDE, 2),
    )
    part = evaluate(model, dataset)["all_pairs"]
    assert part["random"]["mean"] == part["maps"]["contribution"]["hottest"]["mean"] == 0
    assert part["maps"]["contribution"]["difference_sd"]["mean"] is None  # scores that do not spread


def test_batches_and_calls_do_not_change_the_result(dataset):
    results = evaluate(BrightPatches(), dataset)
    again = evaluate(BrightPatches(), dataset, batch_size=3)
    assert again["findings"]["Bright"]["random"]["mean"] == pytest.approx(
        results["findings"]["Bright"]["random"]["mean"], abs=1e-7
    )
    assert evaluate(BrightPatches(), dataset) == results
    assert evaluate(BrightPatches(), dataset, resampling=Resampling(20, seed=1)) != results


def test_images_are_capped_evenly(dataset):
    chosen = Deletion(dataset, prompts=BRIGHT, min_positives=1, max_images=3)
    assert chosen.asked == {0: [0], 4: [0], 7: [0]}
    assert evaluate(BrightPatches(), dataset, max_images=3)["n_images"] == 3


def test_sigmoid_scores_only_the_positive_sentences(dataset):
    brightness = picture([0, 1]).mean() / 255
    part = evaluate(BrightPatches(), dataset, scoring="sigmoid")["all_pairs"]
    assert part["score"]["mean"] == pytest.approx(brightness / np.hypot(1, brightness), abs=1e-6)


def test_patches_and_pixels():
    order = np.arange(25)[::-1]
    assert np.flatnonzero(first_patches(order, (5, 5))).tolist() == [23, 24]  # round(2.5) is 2
    assert first_patches(np.arange(4), (2, 2)).sum() == 1  # at least one
    levels, filling = np.zeros((5, 5)), np.ones((5, 5))
    blanked = blank(levels, np.array([[True, False], [False, False]]), filling, (1.25, 2.5))
    assert blanked[:3, :3].all() and blanked.sum() == 9  # of two nearest patches the first
    levels, filling = np.zeros((16, 16)), np.ones((16, 16))
    for centers, edges in (((4, 8), (0, 8, 16)), ((0.5, 8), (0, 5, 16))):  # of a ViT, of a ResNet
        for row in (0, 1):
            patches = np.zeros((2, 2), dtype=bool)
            patches[row, 1] = True
            blanked = blank(levels, patches, filling, centers)
            expected = np.zeros((16, 16))
            expected[edges[row] : edges[row + 1], edges[1] :] = 1
            np.testing.assert_array_equal(blanked, expected)


def test_it_says_what_it_cannot_measure(dataset):
    with pytest.raises(ValueError, match="max_images must be at least 1, but is 0"):
        Deletion(dataset, prompts=BRIGHT, max_images=0)
    with pytest.raises(ValueError, match="does not give similarity maps"):
        evaluate_deletion(torch.nn.Linear(1, 1), make_processor(), dataset)


def test_a_real_model(tier_model, phantom):
    results = evaluate_deletion(*tier_model, phantom, min_positives=5, max_images=4, resampling=Resampling(5))
    assert len(results["findings"]) == 8 and results["all_pairs"]["n_pairs"] == 32
    assert results["mean"]["findings"] == []  # fewer than 5 patients
    assert results["protocol"]["share_blanked"] == deletion.SHARE
    for part in results["findings"].values():
        for of_kind in part["maps"].values():
            difference = of_kind["hottest"]["mean"] - part["random"]["mean"]
            assert of_kind["difference"]["mean"] == pytest.approx(difference, abs=1e-9)


def test_a_model_that_scores_with_the_class_token_has_direct_maps(make_tier_model, phantom):
    model, processor = make_tier_model(1)
    model.config.image_pooling = "cls"
    results = evaluate_deletion(model, processor, phantom, min_positives=5, max_images=2, resampling=Resampling(5))
    assert list(results["all_pairs"]["maps"]) == ["direct", "cosine"]
    assert (
        results["all_pairs"]["maps"]["direct"]["hottest"]["mean"]
        != results["all_pairs"]["maps"]["cosine"]["hottest"]["mean"]
    )
