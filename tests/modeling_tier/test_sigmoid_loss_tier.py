"""SigLIP's loss: values and gradients by its definition, equal texts, several texts of an image, shares of it."""

import pytest
import torch
from torch.nn import functional as F

from modeling_tier import sigmoid_loss_tier
from modeling_tier.global_batch_tier import Pairs
from modeling_tier.sigmoid_loss_tier import losses_of_texts, sigmoid_loss

SCALE, BIAS = torch.tensor([1.5]), torch.tensor([-3.0])
# Of 4 images with 3 texts each: image 2 shares a text with image 0 and one with image 1, which has another one twice.
GROUPS = torch.tensor([5, 7, 8, 1, 6, 9, 5, 2, -4, 7, 9, 3])


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def reference(images, texts, scale, bias, groups: list[int], once: bool = False) -> torch.Tensor:
    """By the definition, one text and one image at a time, in float64."""
    images, texts, scale, bias = (tensor.double() for tensor in (images, texts, scale, bias))
    total, divisor = 0.0, 0.0
    for s, group in enumerate(groups):
        weight = 1 / groups.count(group) if once else 1.0
        divisor += weight
        for i in range(len(images)):
            logit = scale.exp() * (texts[s] @ images[i]) + bias
            belongs = group in groups[i :: len(images)]
            probability = 1 / (1 + torch.exp(-logit))
            total = total - weight * torch.log(probability if belongs else 1 - probability)
    return (total / divisor).squeeze()


@pytest.mark.parametrize(
    ("texts_per_image", "groups"),
    [(0, None), (0, [4, 1, 4, 4]), (1, None), (1, [4, 1, 4, 4]), (3, None), (3, GROUPS.tolist())],
)
def test_values_and_gradients_are_those_of_the_definition(texts_per_image, groups):
    inputs = [unit(4, 8), unit(4 * (texts_per_image or 1), 8, seed=1), SCALE.clone(), BIAS.clone()]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    loss = sigmoid_loss(*inputs, None if groups is None else torch.tensor(groups), texts_per_image)
    named = list(range(len(inputs[1]))) if groups is None else groups
    expected = reference(*inputs, named, once=texts_per_image > 0)
    assert loss.shape == () and loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for gradient, wanted in zip(*(torch.autograd.grad(x, inputs) for x in (loss, expected)), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-7)


def test_a_worked_example():
    """Two orthogonal pairs, scale 1 and bias 0: each text gives -log sigmoid(1) - log sigmoid(0)."""
    pairs = torch.eye(2)
    loss = sigmoid_loss(pairs, pairs, torch.zeros(1), torch.zeros(1))
    assert loss.item() == pytest.approx(0.3132617 + 0.6931472, abs=1e-6)


def test_several_texts_that_differ_are_the_mean_of_one_text_each():
    """The loss asks about pairs, so that the texts of an image do not compete."""
    images, texts = unit(4, 8), unit(12, 8, seed=1)
    several = sigmoid_loss(images, texts, SCALE, BIAS, texts_per_image=3)
    one_each = [sigmoid_loss(images, chunk, SCALE, BIAS) for chunk in texts.chunk(3)]
    torch.testing.assert_close(several, torch.stack(one_each).mean(), rtol=1e-6, atol=0)


def test_copies_of_a_text_count_once_together():
    """Twice the same sentence beside another one weighs as much as the other one."""
    images, texts = unit(3, 8), unit(3, 8, seed=1)
    copied = torch.cat([texts, texts[:1], texts[1:]])  # second texts of the images: copies of their first ones
    groups = torch.tensor([0, 1, 2, 0, 1, 2])
    loss = sigmoid_loss(images, copied, SCALE, BIAS, groups, texts_per_image=2)
    torch.testing.assert_close(loss, sigmoid_loss(images, texts, SCALE, BIAS), rtol=1e-6, atol=0)


def test_equal_texts_belong_to_the_images_of_each_other():
    """The gradient pulls the text to the second image, too; without groups it pushes."""
    images, text = unit(2, 8), unit(1, 8, seed=1)
    texts = torch.cat([text, text]).requires_grad_()
    signs = []
    for groups in (torch.tensor([3, 3]), None):
        (gradient,) = torch.autograd.grad(sigmoid_loss(images, texts, SCALE, BIAS, groups), texts)
        others = images[1] - (images[1] @ images[0]) * images[0]  # what image 1 has and image 0 lacks
        signs.append((gradient[0] @ others).sign().item())
    assert signs == [-1, 1]


def test_other_numbers_of_texts_are_refused():
    with pytest.raises(ValueError, match="A loss needs one text per image, but there are 4 images and 3 texts."):
        sigmoid_loss(unit(4, 8), unit(3, 8), SCALE, BIAS)
    with pytest.raises(ValueError, match="texts_per_image=2 needs 8 texts for 4 images, but there are 4."):
        sigmoid_loss(unit(4, 8), unit(4, 8), SCALE, BIAS, texts_per_image=2)


@pytest.mark.parametrize("texts_per_image", [0, 3])
def test_no_process_holds_all_the_logits(monkeypatch, texts_per_image):
    """Four processes of three images: each compares its texts with 12 images, and the mean is the loss of the 12."""
    per_image = texts_per_image or 1
    images, texts = unit(12, 8), unit(12 * per_image, 8, seed=1)
    expected = sigmoid_loss(images, texts, SCALE, BIAS, texts_per_image=texts_per_image)
    of_images = texts.unflatten(0, (per_image, 12)).transpose(0, 1)  # (images, texts of an image, dim)
    everything = Pairs(images, of_images.flatten(0, 1), None, texts_per_image > 0)
    shapes, losses = [], []

    def spy(own, all_pairs, *args):
        found = losses_of_texts(own, all_pairs, *args)
        shapes.append((len(found), len(all_pairs.images)))
        return found

    monkeypatch.setattr(sigmoid_loss_tier, "losses_of_texts", spy)
    monkeypatch.setattr(sigmoid_loss_tier, "world_size", lambda: 4)
    for first in range(0, 12, 3):
        monkeypatch.setattr(sigmoid_loss_tier, "gather_pairs", lambda own, first=first: (everything, first))
        own = of_images[first : first + 3].transpose(0, 1).flatten(0, 1)
        losses.append(sigmoid_loss(images[first : first + 3], own, SCALE, BIAS, texts_per_image=texts_per_image))
    assert shapes == [(3 * per_image, 12)] * 4
    torch.testing.assert_close(torch.stack(losses).mean(), expected, rtol=1e-6, atol=0)
