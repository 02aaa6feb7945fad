"""Pairs that are close enough stop attracting each other, in every form of the contrastive loss."""

import pytest
import torch
from torch.nn import functional as F

from modeling_tier import TierCLIPConfig, TierDualEncoderConfig, TierSiglipConfig, contrastive_loss_tier
from modeling_tier.contrastive_loss_tier import contrastive_loss, views_contrastive_loss
from modeling_tier.global_batch_tier import Pairs, by_image
from modeling_tier.relaxed_positives_tier import relax_positives

SCALE = torch.tensor(1.5)
CEILING = 0.2
GROUPS = torch.tensor([5, 7, 8, 1, 6, 9, 5, 2, -4, 7, 9, 3])  # of 4 images with 3 texts each
CASES = [(None, 0), (torch.tensor([3, 1, 3, 2]), 0), (None, 3), (GROUPS, 3)]


def unit(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=-1)


def near(images: torch.Tensor, texts: int) -> torch.Tensor:
    """Texts of which some lie above the ceiling at their image, and some below."""
    noise = unit(texts, images.shape[1], seed=1, dtype=images.dtype)
    return F.normalize(images.repeat(texts // len(images), 1) * torch.linspace(-0.5, 1.5, texts)[:, None] + noise)


def reference(images, texts, groups, per_image, scale, ceiling):
    """By the definition, pair by pair, in float64; see `test_several_texts.py` for the plain loss."""
    rows = len(texts)
    numbers = list(range(rows)) if groups is None else groups.tolist()
    own = [set(numbers[i :: len(images)]) for i in range(len(images))]
    cosines = images.double() @ texts.double().T
    belongs = torch.tensor([[numbers[s] in own[i] for s in range(rows)] for i in range(len(images))])
    logits = torch.where(belongs, cosines.clamp(max=ceiling), cosines) * scale
    copies = torch.tensor([numbers.count(number) for number in numbers]).double()
    weights = 1 / copies if per_image else torch.ones(rows).double()
    target = belongs * weights
    target = target / target.sum(1, keepdim=True)
    of_images = (weights * logits.exp()).sum(1).log() - (target * logits).sum(1)
    of_texts = logits.logsumexp(0) - (logits * belongs).sum(0) / belongs.sum(0)
    return (of_images.mean() + (weights * of_texts).sum() / weights.sum()) / 2


@pytest.mark.parametrize(("groups", "per_image"), CASES)
def test_values_and_gradients_are_those_of_the_definition(groups, per_image):
    images = unit(4, 8)
    inputs = [images, near(images, 4 * max(per_image, 1)), SCALE.clone()]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    loss = contrastive_loss(*inputs, groups, per_image, CEILING)
    expected = reference(*inputs[:2], groups, per_image, inputs[2].double().exp(), CEILING)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert abs(loss - contrastive_loss(*inputs, groups, per_image)) > 0.05
    for gradient, wanted in zip(*(torch.autograd.grad(x, inputs) for x in (loss, expected)), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("groups", "per_image"), CASES)
def test_a_ceiling_of_one_is_the_plain_loss_to_the_last_bit(groups, per_image):
    images, texts = unit(4, 8), unit(4 * max(per_image, 1), 8, seed=1)
    assert contrastive_loss(images, texts, SCALE, groups, per_image, 1.0) == contrastive_loss(
        images, texts, SCALE, groups, per_image
    )
    same = contrastive_loss(images, images, SCALE, max_positive_cosine=1.0)  # cosines that round to above 1
    assert same == contrastive_loss(images, images, SCALE)


def test_a_close_pair_stops_pulling_and_its_negatives_still_push():
    scale = torch.tensor(4.0)
    cosines = torch.tensor([[0.9, 0.1], [0.3, 0.5]], requires_grad=True)
    logits = relax_positives(cosines * scale, torch.arange(2), scale, 0.6)
    torch.testing.assert_close(logits, torch.tensor([[2.4, 0.4], [1.2, 2.0]]))
    F.cross_entropy(logits, torch.arange(2)).backward()
    assert cosines.grad[0, 0] == 0 and cosines.grad[1, 1] < 0
    assert cosines.grad[0, 1] > 0 and cosines.grad[1, 0] > 0


def test_gradients_by_finite_differences():
    images = unit(4, 3, dtype=torch.float64)
    inputs = [images, near(images, 12).double(), SCALE.double()]
    assert torch.autograd.gradcheck(
        lambda *tensors: contrastive_loss(*tensors, GROUPS, 3, CEILING), [tensor.requires_grad_() for tensor in inputs]
    )


def test_two_views_of_an_image_are_not_relaxed():
    images = unit(4, 8)
    views, texts = torch.cat([images, near(images, 4)]), near(images, 4)
    losses = [contrastive_loss(view, texts, SCALE, None, 0, CEILING) for view in views.chunk(2)]
    expected = (sum(losses) + contrastive_loss(*views.chunk(2), SCALE)) / 3
    torch.testing.assert_close(views_contrastive_loss(views, texts, SCALE, 2, None, CEILING), expected)


@pytest.mark.parametrize(("groups", "per_image"), CASES)
def test_the_mean_over_the_processes_is_the_loss_of_all(groups, per_image, monkeypatch):
    images, count = unit(4, 8), max(per_image, 1)
    texts = near(images, 4 * count)
    expected = contrastive_loss(images, texts, SCALE, groups, per_image, CEILING)
    whole = Pairs(images, by_image(texts, count), None if groups is None else by_image(groups, count), per_image > 0)
    monkeypatch.setattr(contrastive_loss_tier, "world_size", lambda: 2)
    losses = []
    for first, rows in ((0, 1), (1, 3)):
        monkeypatch.setattr(contrastive_loss_tier, "gather_pairs", lambda own, first=first: (whole, first))
        own = slice(first, first + rows)
        of_own = [t if t is None else t.unflatten(0, (count, 4))[:, own].flatten(0, 1) for t in (texts, groups)]
        losses.append(contrastive_loss(images[own], of_own[0], SCALE, of_own[1], per_image, CEILING))
    torch.testing.assert_close(torch.stack(losses).mean(), expected)


@pytest.mark.parametrize("config", [TierCLIPConfig, TierDualEncoderConfig])
def test_the_configuration_keeps_it_and_refuses_what_is_not_a_ceiling(config):
    assert config().max_positive_cosine == 1.0
    assert config.from_dict(config(max_positive_cosine=0.6).to_dict()).max_positive_cosine == 0.6
    for value in (0.0, -0.5, 1.5, float("nan")):
        with pytest.raises(ValueError, match="^max_positive_cosine must be above 0 and at most 1"):
            config(max_positive_cosine=value)


def test_siglip_has_no_softmax_to_relax():
    with pytest.raises(ValueError, match="^max_positive_cosine=0.6 limits logits of CLIP's softmax, which SigLIP's"):
        TierSiglipConfig(max_positive_cosine=0.6)


def test_a_model_computes_its_loss_with_it(model, batch):
    model.config.max_positive_cosine = 0.01
    output = model(**batch, return_loss=True)
    expected = contrastive_loss(output.image_embeds, output.text_embeds, model.logit_scale, max_positive_cosine=0.01)
    torch.testing.assert_close(output.contrastive_loss, expected)
    assert abs(expected - contrastive_loss(output.image_embeds, output.text_embeds, model.logit_scale)) > 1e-4
