"""A text that contradicts an image competes in the softmax of that image alone."""

import pytest
import torch
from torch.nn import functional as F

from modeling_tier import contrastive_loss_tier
from modeling_tier.contrastive_loss_tier import contrastive_loss
from modeling_tier.global_batch_tier import Pairs, by_image
from modeling_tier.hard_negatives_tier import HardNegatives

SCALE = torch.tensor(1.5)
GROUPS = torch.tensor([5, 7, 8, 1, 6, 9, 5, 2, -4, 7, 9, 3])  # of 4 images with 3 texts each
MASK = torch.tensor([True, False, True, True])
CASES = [(None, 0), (torch.tensor([3, 1, 3, 2]), 0), (None, 3), (GROUPS, 3)]


def unit(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=-1)


def reference(images, texts, negatives, groups, per_image, scale):
    """By the definition, in float64: the softmax of an image with one column more."""
    rows = len(texts)
    numbers = list(range(rows)) if groups is None else groups.tolist()
    own = [set(numbers[i :: len(images)]) for i in range(len(images))]
    logits = images.double() @ texts.double().T * scale
    belongs = torch.tensor([[numbers[s] in own[i] for s in range(rows)] for i in range(len(images))])
    weights = torch.tensor([1 / numbers.count(number) if per_image else 1.0 for number in numbers]).double()
    target = belongs * weights
    target = target / target.sum(1, keepdim=True)
    of_images = []
    for i, (image, negative) in enumerate(zip(images.double(), negatives.double(), strict=True)):
        total = (weights * logits[i].exp()).sum() + (MASK[i] * (scale * image @ negative).exp())
        of_images.append(total.log() - (target[i] * logits[i]).sum())
    of_texts = logits.logsumexp(0) - (logits * belongs).sum(0) / belongs.sum(0)
    return (torch.stack(of_images).mean() + (weights * of_texts).sum() / weights.sum()) / 2


@pytest.mark.parametrize(("groups", "per_image"), CASES)
def test_values_and_gradients_are_those_of_one_column_more(groups, per_image):
    inputs = [unit(4, 8), unit(4 * max(per_image, 1), 8, seed=1), unit(4, 8, seed=2), SCALE.clone()]
    images, texts, hard, scale = (tensor.requires_grad_() for tensor in inputs)
    loss = contrastive_loss(images, texts, scale, groups, per_image, negatives=HardNegatives(hard, MASK))
    expected = reference(images, texts, hard, groups, per_image, scale.double().exp())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    of_loss, wanted = (torch.autograd.grad(value, inputs) for value in (loss, expected))
    for gradient, expected_gradient in zip(of_loss, wanted, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-7)
    assert of_loss[2][1].eq(0).all() and of_loss[2][MASK].ne(0).all()


@pytest.mark.parametrize(("groups", "per_image"), CASES)
def test_images_without_a_hard_negative_have_the_plain_loss(groups, per_image):
    images, texts = unit(4, 8), unit(4 * max(per_image, 1), 8, seed=1)
    none = HardNegatives(unit(4, 8, seed=2), torch.zeros(4, dtype=torch.bool))
    plain = contrastive_loss(images, texts, SCALE, groups, per_image)
    assert contrastive_loss(images, texts, SCALE, groups, per_image, negatives=none) == plain


def test_logits_far_apart_are_finite():
    images = unit(4, 8).requires_grad_()
    negatives = HardNegatives(images.detach(), MASK)
    loss = contrastive_loss(images, -images.detach(), torch.tensor(100.0).log(), negatives=negatives)
    loss.backward()
    assert loss.isfinite() and images.grad.isfinite().all()


def test_gradients_by_finite_differences():
    inputs = [unit(4, 3, dtype=torch.float64), unit(12, 3, seed=1, dtype=torch.float64)]
    inputs += [unit(4, 3, seed=2, dtype=torch.float64), SCALE.double()]
    assert torch.autograd.gradcheck(
        lambda images, texts, hard, scale: contrastive_loss(
            images, texts, scale, GROUPS, 3, negatives=HardNegatives(hard, MASK)
        ),
        [tensor.requires_grad_() for tensor in inputs],
    )


@pytest.mark.parametrize(("groups", "per_image"), CASES)
def test_the_mean_over_the_processes_is_the_loss_of_all(groups, per_image, monkeypatch):
    images, count = unit(4, 8), max(per_image, 1)
    texts, hard = unit(4 * count, 8, seed=1), unit(4, 8, seed=2)
    expected = contrastive_loss(images, texts, SCALE, groups, per_image, negatives=HardNegatives(hard, MASK))
    whole = Pairs(images, by_image(texts, count), None if groups is None else by_image(groups, count), per_image > 0)
    monkeypatch.setattr(contrastive_loss_tier, "world_size", lambda: 2)
    losses = []
    for first, rows in ((0, 1), (1, 3)):
        monkeypatch.setattr(contrastive_loss_tier, "gather_pairs", lambda own, first=first: (whole, first))
        own = slice(first, first + rows)
        of_own = [t if t is None else t.unflatten(0, (count, 4))[:, own].flatten(0, 1) for t in (texts, groups)]
        negatives = HardNegatives(hard[own], MASK[own])
        losses.append(contrastive_loss(images[own], of_own[0], SCALE, of_own[1], per_image, negatives=negatives))
    torch.testing.assert_close(torch.stack(losses).mean(), expected)


@pytest.fixture
def with_negatives(batch) -> dict:
    """The four pairs of `batch`, and their texts in reversed order as hard negatives of three images."""
    both = {name: torch.cat([batch[name], batch[name].flip(0)]) for name in ("input_ids", "attention_mask")}
    return {**batch, **both, "negative_mask": MASK, "return_loss": True}


def test_a_model_with_hard_negatives(model, batch, with_negatives):
    output = model(**with_negatives)
    negatives = HardNegatives(output.text_embeds[4:], MASK)
    expected = contrastive_loss(output.image_embeds, output.text_embeds[:4], model.logit_scale, negatives=negatives)
    torch.testing.assert_close(output.contrastive_loss, expected)
    plain = model(**batch, return_loss=True)  # the entropies do not see hard negatives
    torch.testing.assert_close(output.token_entropy, plain.token_entropy)
    torch.testing.assert_close(output.patch_entropy, plain.patch_entropy)
    assert output.token_embeds.shape == plain.token_embeds.shape
    assert abs(output.contrastive_loss - plain.contrastive_loss) > 0.01
    sums = model(**{**with_negatives, "return_loss": False}, return_entropy_sums=True)
    plain_sums = model(**batch, return_entropy_sums=True)
    torch.testing.assert_close(sums.entropy_sums, plain_sums.entropy_sums)
    assert torch.equal(sums.entropy_counts, plain_sums.entropy_counts)


def test_they_do_not_go_with_views(model, with_negatives):
    with pytest.raises(ValueError, match="^image_views=2 and hard negatives do not work together; leave one out.$"):
        model(**with_negatives, image_views=2)
