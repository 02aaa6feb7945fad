import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from modeling_tier.losses_tier import (
    attended_tokens,
    counted_tokens,
    masked_entropy,
    token_and_patch_entropy,
    token_patch_similarity,
)

BOS, EOS = 97, 98


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def entropy_float64(logits: torch.Tensor) -> torch.Tensor:
    """Of the last dimension, by another formula than the code's: ln Z - E[x]."""
    logits = logits.double()
    log_z = logits.logsumexp(-1)
    return log_z - ((logits - log_z[..., None]).exp() * logits).sum(-1)


def authors_penalty(tokens: np.ndarray, patches: np.ndarray) -> tuple[float, float]:
    """Both penalties as in the authors' code (Modeling/utils.py:87-141), pair by pair, in float64."""
    over_patches, over_tokens = [], []
    for w, v in zip(tokens.astype(np.float64), patches.astype(np.float64), strict=True):
        cosines = (w / np.linalg.norm(w, axis=1, keepdims=True)) @ (v / np.linalg.norm(v, axis=1, keepdims=True)).T
        for axis, entropies in ((1, over_patches), (0, over_tokens)):
            probabilities = np.exp(cosines) / np.exp(cosines).sum(axis=axis, keepdims=True) + 1e-7
            entropies.extend(-(probabilities * np.log(probabilities)).sum(axis=axis))
    return float(np.mean(over_patches)), float(np.mean(over_tokens))


# masked_entropy


@pytest.mark.parametrize("size", [1, 2, 20, 49, 128])
def test_uniform_logits_have_the_entropy_ln_k(size):
    assert masked_entropy(torch.full((3, size), 0.7)) == pytest.approx([math.log(size)] * 3, abs=2e-6)


def test_a_certain_choice_has_no_entropy():
    logits = torch.zeros(49)
    logits[7] = 1000.0
    assert masked_entropy(logits).item() == 0.0


@pytest.mark.parametrize(
    ("size", "uniform", "opposite", "orthogonal"),
    [(49, 3.8918, 3.7476, 3.8727), (20, 2.9957, 2.7129, 2.9530), (128, 4.8520, 4.7908, 4.8444)],
)
def test_bounds_of_the_entropy_of_raw_cosines(size, uniform, opposite, orthogonal):
    """Cosines all equal; one at 1 and the others at -1, the lowest there is; one at 1 and the others at 0."""
    cosines = torch.ones(3, size)
    cosines[1, 1:] = -1.0
    cosines[2, 1:] = 0.0
    assert masked_entropy(cosines).tolist() == pytest.approx([uniform, opposite, orthogonal], abs=5e-5)


def test_entropy_against_another_formula_in_float64():
    logits = 5 * torch.randn(6, 13, 49, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(masked_entropy(logits).double(), entropy_float64(logits), rtol=1e-6, atol=1e-6)


def test_masked_elements_are_as_good_as_absent():
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([True] * 5 + [False] * 4)
    logits[:, 5:] = 1e4  # whatever is there
    logits.requires_grad_()
    entropy = masked_entropy(logits, mask)
    torch.testing.assert_close(entropy, masked_entropy(logits[:, :5]), rtol=1e-6, atol=0)
    entropy.sum().backward()
    assert torch.equal(logits.grad[:, 5:], torch.zeros(4, 4))


def test_a_wholly_masked_slice_gives_no_gradient():
    logits = torch.randn(2, 5, requires_grad=True)
    entropy = masked_entropy(logits, torch.tensor([[True] * 5, [False] * 5]))
    assert entropy[1].item() == pytest.approx(math.log(5))
    entropy.sum().backward()
    assert torch.equal(logits.grad[1], torch.zeros(5))
    assert logits.grad[0].abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("eps", [0.0, 1e-7])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4, 6e4])
def test_gradients_are_finite_at_extreme_logits(dtype, eps, scale):
    logits = (scale * torch.linspace(-1, 1, 12)).reshape(3, 4).to(dtype).requires_grad_()
    mask = torch.tensor([[True, True, False, False], [True] * 4, [False] * 4])
    entropy = masked_entropy(logits, mask, eps=eps)
    assert entropy.dtype == torch.float32
    assert entropy.isfinite().all()
    entropy.sum().backward()
    assert logits.grad.isfinite().all()


def test_gradients_are_finite_at_the_end_of_float32():
    logits = torch.tensor([1e38, -1e38, 0.0, 1e38], requires_grad=True)
    masked_entropy(logits, torch.tensor([True, True, True, False])).backward()
    assert logits.grad.isfinite().all()


# token_patch_similarity, token_and_patch_entropy


def test_similarity_is_the_cosine_over_the_temperature():
    tokens, patches = unit(2, 3, 8), unit(2, 5, 8, seed=1)
    similarity = token_patch_similarity(tokens, patches, temperature=0.5)
    assert similarity.shape == (2, 3, 5)
    assert similarity[1, 2, 4].item() == pytest.approx((tokens[1, 2] @ patches[1, 4]).item() / 0.5, abs=1e-6)


def test_the_two_entropies_are_means_of_their_own_kind():
    similarity = 3 * torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True, True, True, False], [False, True, False, False]])
    token_entropy, patch_entropy = token_and_patch_entropy(similarity, mask)
    counted = [similarity[0, :3], similarity[1, 1:2]]
    over_patches = torch.cat([entropy_float64(s) for s in counted])  # 4 tokens
    over_tokens = torch.cat([entropy_float64(s.T) for s in counted])  # 12 patches
    assert token_entropy.item() == pytest.approx(over_patches.mean().item(), abs=1e-6)
    assert patch_entropy.item() == pytest.approx(over_tokens.mean().item(), abs=1e-6)


def test_normalisation_divides_by_ln_k_of_each_text():
    similarity = torch.zeros(3, 4, 6)  # uniform: every entropy is ln K
    mask = torch.tensor([[True] * 4, [True, True, False, False], [True] + [False] * 3])
    plain = token_and_patch_entropy(similarity, mask)
    normalized = token_and_patch_entropy(similarity, mask, normalize=True)
    assert plain[0].item() == pytest.approx(math.log(6))
    assert plain[1].item() == pytest.approx((math.log(4) + math.log(2) + 0) / 3)
    assert normalized[0].item() == pytest.approx(1.0)
    assert normalized[1].item() == pytest.approx(2 / 3)  # the text of one token has an entropy of 0


def test_an_entropy_over_one_patch_is_zero():
    similarity = torch.randn(2, 3, 1, requires_grad=True)
    token_entropy, _ = token_and_patch_entropy(similarity, normalize=True)
    assert token_entropy.item() == 0.0
    token_entropy.backward()
    assert similarity.grad.isfinite().all()


def test_padding_changes_nothing():
    similarity = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True, True, True, True], [True, True, False, False]])
    padded = torch.cat([similarity, torch.full((2, 30, 6), 9.0)], dim=1)
    padded_mask = F.pad(mask, (0, 30), value=False)
    for normalize in (False, True):
        short = token_and_patch_entropy(similarity, mask, normalize)
        long = token_and_patch_entropy(padded, padded_mask, normalize)
        torch.testing.assert_close(long, short, rtol=1e-6, atol=0)


def test_order_changes_nothing():
    similarity = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True] * 5, [True, True, True, False, False], [True] + [False] * 4])
    pairs, tokens, patches = torch.tensor([2, 0, 1]), torch.randperm(5), torch.randperm(7)
    permuted = token_and_patch_entropy(similarity[pairs][:, tokens][:, :, patches], mask[pairs][:, tokens])
    torch.testing.assert_close(permuted, token_and_patch_entropy(similarity, mask), rtol=1e-6, atol=0)


def test_texts_without_a_counted_token_are_left_out():
    similarity = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    mask = torch.tensor([[True] * 4, [False] * 4, [True, True, False, False]])
    with_empty = token_and_patch_entropy(similarity, mask)
    torch.testing.assert_close(with_empty, token_and_patch_entropy(similarity[[0, 2]], mask[[0, 2]]))
    sum(with_empty).backward()
    assert torch.equal(similarity.grad[1], torch.zeros(4, 6))


def test_a_batch_without_any_counted_token_is_zero_with_zero_gradient():
    similarity = torch.randn(2, 4, 6, requires_grad=True)
    entropies = token_and_patch_entropy(similarity, torch.zeros(2, 4, dtype=torch.bool), normalize=True)
    assert [entropy.item() for entropy in entropies] == [0.0, 0.0]
    sum(entropies).backward()
    assert torch.equal(similarity.grad, torch.zeros(2, 4, 6))


def test_eps_and_no_mask_are_what_the_authors_compute():
    generator = torch.Generator().manual_seed(0)
    tokens, patches = torch.randn(3, 11, 16, generator=generator), torch.randn(3, 49, 16, generator=generator)
    expected = authors_penalty(tokens.numpy(), patches.numpy())
    similarity = token_patch_similarity(F.normalize(tokens, dim=-1), F.normalize(patches, dim=-1))
    computed = [entropy.item() for entropy in token_and_patch_entropy(similarity, eps=1e-7)]
    assert computed == pytest.approx(expected, abs=2e-6)
    # uniform: ln 49 and the effect of the eps
    uniform = token_and_patch_entropy(torch.zeros(1, 1, 49), eps=1e-7)[0].item()
    assert uniform - math.log(49) == pytest.approx(1.35e-5, abs=1e-6)


# counted_tokens

IDS = torch.tensor([[BOS, 5, 6, 7, EOS, EOS], [BOS, 8, EOS, EOS, EOS, EOS], [BOS, EOS, EOS, EOS, EOS, EOS]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]])


@pytest.mark.parametrize("attention_mask", [None, MASK, MASK.bool()])
def test_counted_tokens_where_eos_pads(attention_mask):
    words = counted_tokens(IDS, attention_mask, EOS, "words")
    assert words.int().tolist() == [[0, 1, 1, 1, 0, 0], [0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]
    assert torch.equal(counted_tokens(IDS, attention_mask, EOS, "attended"), MASK.bool())
    assert counted_tokens(IDS, attention_mask, EOS, "all").all()


@pytest.mark.parametrize("attention_mask", [None, MASK])
def test_counted_tokens_of_an_old_checkpoint(attention_mask):
    """eos_token_id 2 in the configuration stands for the highest id of each text."""
    words = counted_tokens(IDS, attention_mask, 2, "words")
    assert torch.equal(words, counted_tokens(IDS, MASK, EOS, "words"))


def test_counted_tokens_with_padding_on_the_left():
    ids, mask = torch.tensor([[0, 0, BOS, 5, 6, EOS]]), torch.tensor([[0, 0, 1, 1, 1, 1]])
    assert counted_tokens(ids, mask, EOS, "words").int().tolist() == [[0, 0, 0, 1, 1, 0]]


def test_a_text_cut_before_its_eos_keeps_its_last_word():
    ids = torch.tensor([[BOS, 5, 6, 7]])
    assert counted_tokens(ids, None, EOS, "words").int().tolist() == [[0, 1, 1, 1]]


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ([1, 1, 1, 1, 0, 0], [0, 1, 1, 0, 0, 0]),
        ([0, 0, 1, 1, 1, 1], [0, 0, 0, 1, 1, 0]),  # padding on the left
        ([1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]),
        ([1, 1, 1, 0, 1, 0], [0, 1, 1, 0, 0, 0]),  # a gap
    ],
)
def test_counted_tokens_without_a_known_end_token(mask, words):
    """BERT's configuration does not name [SEP]: it is the last attended token, whatever its id (RoBERTa's is 2)."""
    ids = torch.tensor([[2, 5, 6, 2, 0, 0]])
    assert counted_tokens(ids, torch.tensor([mask]), None, "words").int().tolist() == [words]
    assert counted_tokens(ids, torch.tensor([mask]), None, "attended").int().tolist() == [mask]
    assert counted_tokens(ids, torch.tensor([mask]), None, "all").all()


def test_attended_tokens_are_all_but_the_padding():
    ids = torch.tensor([[2, 5, 3, 0, 0], [2, 3, 3, 3, 3]])
    assert attended_tokens(ids, 0, None).tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert attended_tokens(ids, 3, 3).tolist() == [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]  # the first end token is attended
    assert attended_tokens(ids, None, 3).tolist() == [[1] * 5] * 2
