import math

import pytest
import torch
from torch.nn import functional as F

from modeling_tier.contrastive_loss_tier import contrastive_loss


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_contrastive_loss_against_its_definition():
    images, texts, scale = unit(5, 8), unit(5, 8, seed=1), torch.tensor(2.6592)
    logits = math.exp(2.6592) * images.double() @ texts.double().T
    expected = -(logits.log_softmax(0).diag().mean() + logits.log_softmax(1).diag().mean()) / 2
    assert contrastive_loss(images, texts, scale).item() == pytest.approx(expected.item(), rel=1e-6)


def test_contrastive_loss_needs_pairs():
    with pytest.raises(ValueError, match="one text per image, but there are 3 images and 2 texts"):
        contrastive_loss(unit(3, 8), unit(2, 8), torch.tensor(1.0))


def test_soft_targets_by_hand():
    """Pairs 0 and 2 have the same text: each is to be matched with both, half and half, and pair 1 with itself."""
    eye = torch.eye(3)
    images, texts = eye, eye[[0, 1, 0]]
    scale = torch.tensor(2.0).log()  # cosines 0 or 1, logits 0 or 2
    # texts 0 and 2 have the logits (2, 0, 0), text 1 (0, 2, 0); images 0: (2, 0, 2), 1: (0, 2, 0), 2: (0, 0, 0)
    one, two, none = (math.log(math.exp(2) * n + 3 - n) for n in (1, 2, 0))
    by_text = ((one - 1) + (one - 2) + (one - 1)) / 3
    by_image = ((two - 2) + (one - 2) + none) / 3
    soft = contrastive_loss(images, texts, scale, torch.tensor([5, -7, 5]))
    assert soft.item() == pytest.approx((by_text + by_image) / 2, rel=1e-6)
    hard = ((one - 2) + (one - 2) + one + (two - 2) + (one - 2) + none) / 6
    assert contrastive_loss(images, texts, scale).item() == pytest.approx(hard, rel=1e-6)


def test_soft_targets_without_equal_texts_are_the_plain_loss_and_of_one_text_alone_have_no_gradient():
    images, texts, scale = unit(6, 8), unit(6, 8, seed=1), torch.tensor(1.5)
    plain = contrastive_loss(images, texts, scale)
    torch.testing.assert_close(contrastive_loss(images, texts, scale, torch.arange(6)), plain, rtol=1e-6, atol=0)
    same = unit(1, 8).expand(6, 8).clone().requires_grad_()
    loss = contrastive_loss(same, same.detach(), scale, torch.zeros(6, dtype=torch.long))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(6), rel=1e-6) and same.grad.abs().max() < 1e-6


def test_soft_targets_take_bfloat16():
    images, texts = unit(6, 8), unit(6, 8, seed=1)
    groups = torch.tensor([0, 1, 0, 2, 2, 3])
    expected = contrastive_loss(images, texts, torch.tensor(1.5), groups)
    with torch.autocast("cpu", torch.bfloat16):
        assert contrastive_loss(images, texts, torch.tensor(1.5), groups).item() == pytest.approx(
            expected.item(), rel=0.01
        )


def test_soft_targets_of_equal_embeddings_are_the_plain_loss():
    """Rows of equal texts have equal logits, so that it does not matter which of them the targets name."""
    images, texts, scale = unit(5, 8).requires_grad_(), unit(5, 8, seed=1)[[0, 1, 0, 2, 0]], torch.tensor(2.0)
    losses = [contrastive_loss(images, texts, scale, groups) for groups in (None, torch.tensor([0, 1, 0, 2, 0]))]
    gradients = [torch.autograd.grad(loss, images)[0] for loss in losses]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=0)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-7)
