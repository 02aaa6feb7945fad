"""
Several texts of an image in the loss: each is a positive of its own, and texts that say the same count once.
"""

import math

import pytest
import torch
from torch.nn import functional as F

from modeling_tier import contrastive_loss_tier
from modeling_tier.contrastive_loss_tier import contrastive_loss
from modeling_tier.global_batch_tier import Pairs, by_image

SCALE = torch.tensor(1.5)
# Of 4 images with 3 texts each: image 2 shares a text with image 0 and one with image 1, which has another one twice.
GROUPS = torch.tensor([5, 7, 8, 1, 6, 9, 5, 2, -4, 7, 9, 3])


def unit(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=-1)


def reference(images: torch.Tensor, texts: torch.Tensor, groups: torch.Tensor, scale: float) -> torch.Tensor:
    """By the definition, one image and one distinct text at a time, in float64."""
    logits = scale * images.double() @ texts.double().T
    numbers = groups.tolist()
    copies = {group: [s for s, other in enumerate(numbers) if other == group] for group in numbers}
    own = [set(numbers[i :: len(images)]) for i in range(len(images))]
    of_images, of_groups = [], []
    for i in range(len(images)):
        total = sum(logits[i, rows].exp().mean() for rows in copies.values()).log()
        of_images.append(total - sum(logits[i, copies[group]].mean() for group in own[i]) / len(own[i]))
    for group, rows in copies.items():
        positive = [i for i in range(len(images)) if group in own[i]]
        of_groups.append(sum(logits[:, s].logsumexp(0) - logits[positive, s].mean() for s in rows) / len(rows))
    return (torch.stack(of_images).mean() + torch.stack(of_groups).mean()) / 2


def deduplicated(images: torch.Tensor, texts: torch.Tensor, positive: torch.Tensor, scale: float) -> torch.Tensor:
    """The loss where each distinct text is one row, and `positive` (images, distinct texts) says which belong."""
    logits = scale * images @ texts.T
    of_images = -(logits.log_softmax(1) * positive).sum(1) / positive.sum(1)
    of_texts = -(logits.log_softmax(0) * positive).sum(0) / positive.sum(0)
    return (of_images.mean() + of_texts.mean()) / 2


@pytest.mark.parametrize("groups", [GROUPS, None])
def test_values_and_gradients_are_those_of_the_definition(groups):
    named = torch.arange(12) if groups is None else groups  # without groups, all texts are distinct
    inputs = [unit(4, 8).requires_grad_(), unit(12, 8, seed=1).requires_grad_(), SCALE.clone().requires_grad_()]
    loss = contrastive_loss(*inputs, groups, texts_per_image=3)
    expected = reference(*inputs[:2], named, inputs[2].double().exp())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for gradient, wanted in zip(*(torch.autograd.grad(x, inputs) for x in (loss, expected)), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("texts_per_image", [3, 1])
def test_copies_are_as_one_text_that_is_embedded_once(texts_per_image):
    """In value and gradients; a text that many images have weighs as much as one that a single image has."""
    groups = torch.tensor([1, 0, 0, 0, 2, 0, 0, 3, 3, 2, 0, 3])[: 4 * texts_per_image]  # image 2 has text 0 alone
    inputs = [unit(4, 8).requires_grad_(), unit(4, 8, seed=1)[: groups.max() + 1].requires_grad_()]
    positive = torch.zeros(4, len(inputs[1]))
    positive[torch.arange(4).repeat(texts_per_image), groups] = 1
    loss = contrastive_loss(inputs[0], inputs[1][groups], SCALE, groups, texts_per_image)
    expected = deduplicated(*inputs, positive, SCALE.exp())
    torch.testing.assert_close(loss, expected)
    for gradient, wanted in zip(*(torch.autograd.grad(x, inputs) for x in (loss, expected)), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-7)
    counted = contrastive_loss(inputs[0], inputs[1][groups][:4], SCALE, groups[:4])
    assert abs(counted - loss) > 0.01


def test_texts_drawn_twice_change_nothing():
    images, texts = unit(4, 8), unit(12, 8, seed=1)
    expected = contrastive_loss(images, texts, SCALE, torch.arange(12), 3)
    drawn = torch.tensor([*range(12), 0, 5, 2, 11, 8, 5, 10, 3])  # images 0, 2 and 3 repeat two of theirs, 1 one twice
    torch.testing.assert_close(contrastive_loss(images, texts[drawn], SCALE, drawn, 5), expected)


def test_gradients_by_finite_differences():
    inputs = [unit(4, 3, dtype=torch.float64), unit(12, 3, seed=1, dtype=torch.float64), SCALE.double()]
    assert torch.autograd.gradcheck(
        lambda *tensors: contrastive_loss(*tensors, GROUPS, 3), [tensor.requires_grad_() for tensor in inputs]
    )


def test_equal_embeddings_cannot_be_told_apart():
    same = unit(1, 8)
    loss = contrastive_loss(same.expand(4, 8), same.expand(12, 8), SCALE, GROUPS, 3)
    assert loss.item() == pytest.approx((math.log(9) + math.log(4)) / 2, rel=1e-6)  # 9 distinct texts


def test_the_order_of_the_texts_of_an_image_and_the_numbers_of_the_groups_do_not_matter():
    images, texts = unit(4, 8), unit(12, 8, seed=1)
    expected = contrastive_loss(images, texts, SCALE, GROUPS, 3)
    order = torch.tensor([4, 1, 10, 7, 0, 9, 2, 3, 8, 5, 6, 11])  # within the images
    torch.testing.assert_close(contrastive_loss(images, texts[order], SCALE, GROUPS[order], 3), expected)
    torch.testing.assert_close(contrastive_loss(images, texts, SCALE, GROUPS * 2**50 + 3, 3), expected)


def test_soft_targets_count_each_text_to_the_last_bit():
    images, texts, groups = unit(5, 8), unit(5, 8, seed=1), torch.tensor([3, 1, 3, 2, 1])
    logits = texts @ images.T * SCALE.exp()
    same = (groups[:, None] == groups).float()
    target = same / same.sum(1, keepdim=True)
    expected = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    assert contrastive_loss(images, texts, SCALE, groups) == expected


def test_other_numbers_of_texts_are_refused():
    with pytest.raises(ValueError, match="^texts_per_image=3 needs 12 texts for 4 images, but there are 8.$"):
        contrastive_loss(unit(4, 8), unit(8, 8), SCALE, None, 3)
    with pytest.raises(ValueError, match="^A loss needs one text per image, but there are 4 images and 8 texts"):
        contrastive_loss(unit(4, 8), unit(8, 8), SCALE)


@pytest.mark.parametrize("rows", [[2, 2], [1, 3]])
@pytest.mark.parametrize("groups", [GROUPS, None])
def test_no_process_holds_all_the_logits_and_their_mean_is_the_loss(rows, groups, monkeypatch):
    images, texts = unit(4, 8), unit(12, 8, seed=1)
    expected = contrastive_loss(images, texts, SCALE, groups, 3)
    whole = Pairs(images, by_image(texts, 3), None if groups is None else by_image(groups, 3), each_group_once=True)
    monkeypatch.setattr(contrastive_loss_tier, "world_size", lambda: 2)
    losses = []
    for first, count in ((0, rows[0]), (rows[0], rows[1])):
        monkeypatch.setattr(contrastive_loss_tier, "gather_pairs", lambda own, first=first: (whole, first))
        own = slice(first, first + count)
        of_own = [t if t is None else t.unflatten(0, (3, 4))[:, own].flatten(0, 1) for t in (texts, groups)]
        losses.append(contrastive_loss(images[own], of_own[0], SCALE, of_own[1], 3))
    torch.testing.assert_close(torch.stack(losses).mean(), expected)


def test_by_image_and_back():
    texts = torch.tensor([10, 20, 30, 11, 21, 31])  # of three images, first and second ones
    assert by_image(texts, 2).tolist() == [10, 11, 20, 21, 30, 31]
    assert by_image(by_image(texts, 2), 3).tolist() == texts.tolist()


@pytest.fixture
def several(batch) -> dict:
    """The four pairs of `batch`, and the same texts again in another order: two texts for each image."""
    both = {name: torch.cat([batch[name], batch[name].flip(0)]) for name in ("input_ids", "attention_mask")}
    return {**batch, **both, "texts_per_image": 2, "return_loss": True}


def test_a_model_with_several_texts(model, batch, several):
    groups = torch.tensor([0, 1, 2, 3, 3, 2, 1, 0])
    output = model(**several, text_groups=groups)
    assert output.logits_per_text.shape == (8, 4) and output.text_embeds.shape[0] == 8
    assert torch.equal(output.logits_per_text, model(**{**several, "return_loss": False}).logits_per_text)
    expected = contrastive_loss(output.image_embeds, output.text_embeds, model.logit_scale, groups, 2)
    torch.testing.assert_close(output.contrastive_loss, expected)
    # the entropies are the means over all pairs of a text and its image: sums over those of the first and second texts
    parts = []
    for rows in (slice(0, 4), slice(4, 8)):
        texts = {name: several[name][rows] for name in ("input_ids", "attention_mask")}
        parts.append(model(**{**batch, **texts}, return_entropy_sums=True))
    sums, counts = (sum(part[name] for part in parts) for name in ("entropy_sums", "entropy_counts"))
    torch.testing.assert_close(torch.stack([output.token_entropy, output.patch_entropy]), (sums / counts)[:2])
    together = model(**{**several, "return_loss": False}, return_entropy_sums=True)
    torch.testing.assert_close(together.entropy_sums, sums)
    loss = output.contrastive_loss + 0.3 * output.token_entropy + 0.7 * output.patch_entropy
    torch.testing.assert_close(output.loss, loss)
    output.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_views_and_texts_of_an_image_do_not_go_together(model, several):
    with pytest.raises(
        ValueError, match="^image_views=2 and texts_per_image=2 do not work together; leave one of them out"
    ):
        model(**several, image_views=2)
    with pytest.raises(ValueError, match="^texts_per_image=3 needs 12 texts for 4 images, but there are 8.$"):
        model(**{**several, "texts_per_image": 3})
