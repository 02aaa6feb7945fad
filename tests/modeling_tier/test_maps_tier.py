"""Contribution maps: they add up to the score."""

import pytest
import torch
from torch.nn import functional as F

from modeling_tier import TierCLIPConfig, TierDualEncoderConfig, TierDualEncoderModel, TierSiglipConfig
from modeling_tier.maps_tier import contribution_map, map_kinds, mean_direction, patch_weights, similarity_map
from modeling_tier.pooling_tier import IMAGE_POOLINGS

ARCHITECTURES = ("patch_mean", "vit", "resnet")  # of CLIP with patch_mean, and dual encoders


@pytest.fixture(params=ARCHITECTURES)
def inputs(request, make_model, batch, bert_batch) -> tuple:
    """A model whose image embedding is the mean of its patches, and the token ids, pixels and mask of four pairs."""
    model = make_model(request.param)
    texts = bert_batch if isinstance(model, TierDualEncoderModel) else batch
    return model, texts["input_ids"], batch["pixel_values"], texts["attention_mask"]


@torch.no_grad()
def test_contributions_sum_to_the_cosine_that_the_model_scores_with(inputs):
    model, ids, pixels, mask = inputs
    outputs = model(ids, pixels, mask)
    maps = model.get_similarity_map(ids, pixels, mask, kind="contribution")
    cosines = outputs.logits_per_image / model.logit_scale.exp()
    assert maps.shape[:2] == cosines.shape == (4, 4) and maps.dtype == torch.float32
    torch.testing.assert_close(maps.sum(dim=(2, 3)), cosines, rtol=0, atol=1e-6)
    assert maps.std(dim=(2, 3)).min() > 0  # and they are not the score spread evenly


@torch.no_grad()
def test_contributions_of_tokens_sum_to_the_cosines_of_the_tokens(inputs):
    model, ids, pixels, mask = inputs
    maps = model.get_similarity_map(ids, pixels, mask, per_token=True, kind="contribution")
    tokens = F.normalize(model.text_projection(model.get_text_features(ids, mask).last_hidden_state), dim=-1)
    images = F.normalize(model.get_image_features(pixels).pooler_output, dim=-1)
    assert maps.shape[:3] == (4, 4, 8)
    torch.testing.assert_close(maps.sum(dim=(3, 4)), torch.einsum("id,ntd->int", images, tokens), rtol=0, atol=1e-6)


@torch.no_grad()
def test_contributions_of_several_sentences_and_of_a_difference(inputs):
    """The sentences of a side are averaged and normalised; a difference of two sides is one of two maps."""
    model, ids, pixels, mask = inputs
    texts = F.normalize(model.get_text_features(ids, mask).pooler_output, dim=-1)
    sides = torch.stack([mean_direction(texts[:2]), mean_direction(texts[2:])])
    outputs, patches = model.encode_images(pixels)
    scores = F.normalize(outputs.pooler_output, dim=-1) @ sides.T
    maps = similarity_map(sides, patches, "contribution")
    torch.testing.assert_close(maps.sum(dim=(2, 3)), scores, rtol=0, atol=1e-6)
    difference = similarity_map(sides[0] - sides[1], patches, "contribution")  # a direction that is not of length 1
    torch.testing.assert_close(difference, maps[:, 0] - maps[:, 1], rtol=0, atol=1e-6)
    torch.testing.assert_close(difference.sum(dim=(1, 2)), scores[:, 0] - scores[:, 1], rtol=0, atol=1e-6)


def test_contributions_of_a_hand_made_image():
    """Two patches of lengths 3 and 4 at a right angle: their mean (1.5, 2) has length 2.5."""
    patches = torch.tensor([[[[3.0, 0.0], [0.0, 4.0]]]])
    texts = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    torch.testing.assert_close(patch_weights(patches), torch.tensor([[[0.6, 0.8]]]))
    maps = similarity_map(texts, patches, "contribution")
    torch.testing.assert_close(maps, torch.tensor([[[[0.6, 0.0]], [[0.36, 0.64]]]]))
    cosines = similarity_map(texts, patches)
    torch.testing.assert_close(cosines, torch.tensor([[[[1.0, 0.0]], [[0.6, 0.8]]]]))  # blind to the lengths
    assert torch.equal(contribution_map(cosines, patch_weights(patches)), maps)
    torch.testing.assert_close(similarity_map(texts, 7 * patches, "contribution"), maps)


@torch.no_grad()
def test_a_contribution_map_does_not_depend_on_the_other_texts_and_images(inputs):
    model, ids, pixels, mask = inputs
    texts = F.normalize(model.get_text_features(ids, mask).pooler_output, dim=-1)
    patches = model.get_patch_map(pixels)
    maps = similarity_map(texts, patches, "contribution")
    for i in range(4):
        assert torch.equal(similarity_map(texts[i], patches, "contribution"), maps[:, i])
        assert torch.equal(similarity_map(texts, patches[i : i + 1], "contribution"), maps[i : i + 1])


def test_images_without_a_direction():
    """Where the patches cancel, the normalised mean is 0 and so is the score; nothing hides what is not finite."""
    cancelling = torch.tensor([[[[1.0, 2.0], [-1.0, -2.0]]]])
    text = torch.tensor([0.6, 0.8])
    assert torch.equal(similarity_map(text, cancelling, "contribution"), torch.zeros(1, 1, 2))
    assert torch.equal(similarity_map(text, torch.zeros(1, 1, 2, 2), "contribution"), torch.zeros(1, 1, 2))
    for bad in (float("nan"), float("inf")):
        damaged = torch.stack([torch.ones(1, 2, 2), torch.tensor([[[1.0, 2.0], [bad, 1.0]]])])
        finite, broken = similarity_map(text, damaged, "contribution").isfinite().all(dim=-1)[:, 0].tolist()
        assert (finite, broken) == (True, False)


@torch.no_grad()
def test_contributions_of_uint8_pixels_and_of_other_sizes(make_model, batch):
    model = make_model("patch_mean")
    pixels = torch.randint(0, 256, (2, 1, 48, 64), dtype=torch.uint8)
    options = {"interpolate_pos_encoding": True}
    maps = model.get_similarity_map(batch["input_ids"], pixels, kind="contribution", **options)
    assert maps.shape == (2, 4, 6, 8)
    cosines = model(batch["input_ids"], pixels, **options).logits_per_image / model.logit_scale.exp()
    torch.testing.assert_close(maps.sum(dim=(2, 3)), cosines, rtol=0, atol=1e-6)


@torch.no_grad()
def test_contributions_in_bfloat16_add_up_in_float32(inputs):
    """The sum is exact for the mean of the patches as they are; the model's own mean is rounded to bfloat16."""
    model, ids, pixels, mask = inputs
    model, pixels = model.to(torch.bfloat16), pixels.to(torch.bfloat16)
    maps = model.get_similarity_map(ids, pixels, mask, kind="contribution")
    assert maps.dtype == torch.float32
    texts = F.normalize(model.get_text_features(ids, mask).pooler_output.float(), dim=-1)
    images = F.normalize(model.get_patch_features(pixels).float().mean(dim=1), dim=-1)
    torch.testing.assert_close(maps.sum(dim=(2, 3)), images @ texts.T, rtol=0, atol=1e-6)
    cosines = (model(ids, pixels, mask).logits_per_image / model.logit_scale.exp()).float()
    torch.testing.assert_close(maps.sum(dim=(2, 3)), cosines, rtol=0, atol=0.02)


def test_models_without_contributions_name_the_alternative(make_model, batch):
    model, ids = make_model("cls"), batch["input_ids"]
    with pytest.raises(ValueError) as error:
        model.get_similarity_map(ids, batch["pixel_values"], kind="contribution")
    assert str(error.value) == (
        'The image embedding of a model with image_pooling="cls" is not a sum over its patches, so the model does not '
        'have kind="contribution"; pass kind="direct".'
    )
    with pytest.raises(ValueError, match="^kind must be one of 'contribution', 'cosine', 'direct', not 'cosines'.$"):
        model.get_similarity_map(ids, batch["pixel_values"], kind="cosines")


def test_the_kinds_of_maps_that_a_model_has():
    clip = {pooling: map_kinds(TierCLIPConfig(image_pooling=pooling)) for pooling in IMAGE_POOLINGS}
    assert clip == {"cls": ("direct", "cosine"), "patch_mean": ("contribution", "cosine")}
    dual = {pooling: map_kinds(TierDualEncoderConfig(image_pooling=pooling)) for pooling in IMAGE_POOLINGS}
    assert dual == {"cls": ("cosine",), "patch_mean": ("contribution", "cosine")}
    assert map_kinds(TierSiglipConfig()) == ("cosine",)
