"""Class activation maps of classifiers: what each patch adds to each logit."""

import math

import pytest
import torch
from torch.nn import functional as F

from modeling_tier import (
    TierCLIPForImageClassification,
    TierDualEncoderForImageClassification,
    TierDualEncoderModel,
)
from modeling_tier.maps_tier import similarity_map

FINDINGS = ["Edema", "Pleural Effusion", "Pneumothorax"]


def make_classifier(model) -> TierCLIPForImageClassification | TierDualEncoderForImageClassification:
    """On a copy of the model's image tower, with a head that is not 0."""
    is_dual = isinstance(model, TierDualEncoderModel)
    kind = TierDualEncoderForImageClassification if is_dual else TierCLIPForImageClassification
    classifier = kind.from_image_tower(model, FINDINGS)
    torch.nn.init.normal_(classifier.classifier.weight)
    torch.nn.init.normal_(classifier.classifier.bias)
    return classifier


@pytest.fixture(params=["patch_mean", "vit", "resnet"])  # CLIP's and dual encoders
def model(request, make_model):
    return make_model(request.param)


@torch.no_grad()
def test_maps_sum_to_the_logits_minus_the_biases(model, batch):
    classifier, pixels = make_classifier(model), batch["pixel_values"]
    maps = classifier.get_class_activation_map(pixels)
    logits = classifier(pixels).logits - classifier.classifier.bias
    assert maps.shape[:2] == logits.shape == (4, 3) and maps.dtype == torch.float32
    torch.testing.assert_close(maps.sum(dim=(2, 3)), logits, rtol=1e-6, atol=1e-6 * logits.abs().max().item())
    assert classifier.patch_centers == model.patch_centers
    assert maps.std(dim=(2, 3)).min() > 0  # and they are not the logit spread evenly


@torch.no_grad()
def test_the_map_is_that_of_the_paper(model, batch):
    """The head's weights times the patches, divided by what normalises their mean (Zhou et al. 2016, equation 2)."""
    classifier, pixels = make_classifier(model), batch["pixel_values"]
    patches = classifier.encode_images(pixels)[1].double()  # (images, rows, columns, dim)
    weights = classifier.classifier.weight.double() * math.sqrt(patches.shape[-1])
    length = patches.mean(dim=(1, 2)).norm(dim=-1) * patches.shape[1] * patches.shape[2]
    expected = torch.einsum("kd,nrcd->nkrc", weights, patches) / length[:, None, None, None]
    torch.testing.assert_close(classifier.get_class_activation_map(pixels), expected.float(), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_of_a_zero_shot_head_it_is_the_scaled_difference_of_the_texts(model, batch):
    texts = F.normalize(torch.randn(2, 3, model.config.projection_dim), dim=-1)
    classifier = make_classifier(model)
    classifier.set_zero_shot_head(*texts, scale=14.0)
    contributions = similarity_map(texts, model.get_patch_map(batch["pixel_values"]), "contribution")
    expected = 14 * (contributions[:, 0] - contributions[:, 1])
    maps = classifier.get_class_activation_map(batch["pixel_values"])
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_maps_of_grey_bytes_and_of_other_sizes(make_model):
    classifier = make_classifier(make_model("patch_mean"))
    pixels = torch.randint(0, 256, (2, 1, 48, 64), dtype=torch.uint8)
    maps = classifier.get_class_activation_map(pixels, interpolate_pos_encoding=True)
    assert maps.shape == (2, 3, 6, 8)
    logits = classifier(pixels, interpolate_pos_encoding=True).logits - classifier.classifier.bias
    torch.testing.assert_close(maps.sum(dim=(2, 3)), logits, rtol=1e-6, atol=1e-6 * logits.abs().max().item())


def test_a_class_token_does_not_have_them(make_model, batch):
    classifier = make_classifier(make_model("cls"))
    with pytest.raises(ValueError) as error:
        classifier.get_class_activation_map(batch["pixel_values"])
    assert str(error.value) == (
        'A TierCLIPForImageClassification with image_pooling="cls" does not have class activation maps, because its '
        'logits are not sums over the patches: train a classifier on a model with image_pooling="patch_mean".'
    )
