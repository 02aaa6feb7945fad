"""The evidence entropy: its value, bounds, invariances and gradient, and as a term of the losses of both models."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from modeling_tier import TierCLIPConfig, TierDualEncoderConfig
from modeling_tier.evidence_tier import evidence_entropy_sum, evidence_shares
from modeling_tier.global_batch_tier import mean_row

WITH_EVIDENCE = {"evidence_entropy_weight": 0.5, "evidence_patches": 2.0}


@pytest.fixture
def pairs():
    """Texts, patches and the mean of the texts: 5 pairs, 7 patches, 4 dimensions; float64."""
    texts = normalize(torch.randn(5, 4, dtype=torch.float64), dim=-1)
    patches = torch.randn(5, 7, 4, dtype=torch.float64)
    return texts, patches, texts.mean(0)


def by_hand(texts, patches, mean, evidence_patches) -> float:
    """The sum over the pairs, in loops of numpy."""
    total = 0.0
    for text, image in zip(texts.detach().double().numpy(), patches.detach().double().numpy(), strict=True):
        evidence = np.array([abs((text - mean.detach().double().numpy()) @ patch) for patch in image])
        shares = evidence / evidence.sum()
        total += max(0.0, -sum(share * math.log(share) for share in shares) - math.log(evidence_patches))
    return total


@pytest.mark.parametrize("evidence_patches", [1.0, 4.5])
def test_the_value_is_the_formulas(pairs, evidence_patches):
    computed = evidence_entropy_sum(*pairs, evidence_patches).item()
    assert computed == pytest.approx(by_hand(*pairs, evidence_patches), rel=1e-12)
    assert 0 < computed < 5 * math.log(7 / evidence_patches)


def test_the_evidence_adds_up_to_what_sets_the_score_apart(pairs):
    """The signed evidence, divided by P |mean u|, sums to the cosine of the text minus the mean of the cosines."""
    texts, patches, mean = pairs
    signed = torch.einsum("nd,npd->np", texts - mean, patches)
    torch.testing.assert_close(signed.abs() / signed.abs().sum(1, keepdim=True), evidence_shares(*pairs))
    pooled = patches.mean(1)
    cosines = normalize(pooled, dim=-1) @ texts.t()  # (images, texts)
    above_average = cosines.diagonal() - cosines.mean(1)
    torch.testing.assert_close(signed.sum(1) / (7 * pooled.norm(dim=-1)), above_average)


def test_bounds():
    texts, mean = torch.eye(2, 4), torch.zeros(4)
    equal = torch.ones(2, 7, 4)
    assert evidence_entropy_sum(texts, equal, mean).item() == pytest.approx(2 * math.log(7), rel=1e-6)
    assert evidence_entropy_sum(texts, equal * torch.tensor([[[1.0]], [[-3.0]]]), mean).item() == pytest.approx(
        2 * math.log(7), rel=1e-6
    )  # evidence against a text counts as well
    one = torch.zeros(2, 7, 4)
    one[:, 3] = 1.0
    assert evidence_entropy_sum(texts, one, mean).item() == 0.0
    message = "evidence_patches=7 must be below the number of patches of an image, 7: more than those cannot hold"
    with pytest.raises(ValueError, match=f"^{message}"):
        evidence_entropy_sum(texts, equal, mean, 7)
    one[:, 5] = -1.0
    assert evidence_entropy_sum(texts, one, mean).item() == pytest.approx(2 * math.log(2), rel=1e-6)


def test_what_changes_nothing(pairs):
    texts, patches, mean = pairs
    expected = evidence_shares(*pairs)
    lengths = torch.tensor([1e-3, 0.5, 1.0, 20.0, 1e3]).double().view(5, 1, 1)
    torch.testing.assert_close(evidence_shares(texts, patches * lengths, mean), expected)
    shift = torch.randn(4, dtype=torch.float64)
    torch.testing.assert_close(evidence_shares(texts + shift, patches, mean + shift), expected)
    order = [6, 2, 0, 1, 5, 4, 3]
    torch.testing.assert_close(evidence_shares(texts, patches[:, order], mean), expected[:, order])
    assert (expected.sum(1) - 1).abs().max() < 1e-12


def test_the_gradient(pairs):
    texts, patches = (tensor.requires_grad_() for tensor in pairs[:2])
    mean = pairs[2].detach()
    for evidence_patches in (1.0, 4.5):
        assert torch.autograd.gradcheck(
            lambda texts, patches, n=evidence_patches: evidence_entropy_sum(texts, patches, mean, n), (texts, patches)
        )
    image_gradient = torch.autograd.grad(evidence_entropy_sum(texts, patches, mean), patches)[0]
    along = (image_gradient * patches).sum((1, 2))  # the length of an image's patches does not matter
    torch.testing.assert_close(along, torch.zeros_like(along), rtol=0, atol=1e-12)


def test_evidence_from_few_patches_has_no_gradient(pairs):
    texts, patches = (tensor.detach().requires_grad_() for tensor in pairs[:2])
    shares = evidence_shares(texts, patches, pairs[2])
    counts = (-(shares * shares.log()).sum(1)).exp().detach()  # exp(H) of each pair
    between = counts.sort().values[2:4].mean().item()
    evidence_entropy_sum(texts, patches, pairs[2], between).backward()
    for gradient in (texts.grad, patches.grad):
        assert ((gradient.flatten(1).norm(dim=1) > 0) == (counts > between)).all()
    assert evidence_entropy_sum(texts, patches, pairs[2], 6.999).item() == 0.0


@pytest.mark.parametrize("what", ["texts", "patches", "a patch"])
def test_without_evidence_there_is_nothing_to_penalise(what):
    texts = normalize(torch.randn(3, 4), dim=-1)
    patches = torch.randn(3, 7, 4)
    if what == "texts":
        texts = texts[:1].repeat(3, 1)
    elif what == "patches":
        patches = torch.zeros_like(patches)
    else:
        patches[:, 0] = 0.0
    texts.requires_grad_()
    patches.requires_grad_()
    value = evidence_entropy_sum(texts, patches, mean_row(texts))
    value.backward()
    assert (value.item() == 0.0) == (what != "a patch")
    assert texts.grad.isfinite().all() and patches.grad.isfinite().all()


def test_the_mean_text_has_no_gradient():
    texts = torch.randn(6, 4, requires_grad=True)
    assert not mean_row(texts).requires_grad and mean_row(texts.bfloat16()).dtype == torch.float32
    torch.testing.assert_close(mean_row(texts), texts.detach().mean(0))


@pytest.mark.parametrize("name", ["patch_mean", "resnet", "vit"])
def test_it_is_a_term_of_the_loss(make_model, batch, name):
    plain = make_model(name)(**batch, return_loss=True)
    model = make_model(name, **WITH_EVIDENCE)
    output = model(**batch, return_loss=True)
    assert plain.evidence_entropy is None and plain.entropy_sums is None
    assert torch.equal(output.contrastive_loss, plain.contrastive_loss)
    patches = model.get_patch_features(batch["pixel_values"])
    expected = by_hand(output.text_embeds, patches, output.text_embeds.mean(0), 2.0) / 4
    assert output.evidence_entropy.item() == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(output.loss, plain.loss + 0.5 * output.evidence_entropy, rtol=1e-6, atol=0)
    model.entropy_scale = 0.25
    warm = model.train()(**batch, return_loss=True)
    terms = 0.3 * warm.token_entropy + 0.7 * warm.patch_entropy + 0.5 * warm.evidence_entropy
    torch.testing.assert_close(warm.loss, warm.contrastive_loss + 0.25 * terms, rtol=1e-6, atol=0)


def test_alone_it_leaves_out_the_backward_pass_of_the_others(make_model, batch):
    model = make_model("patch_mean", **{"token_entropy_weight": 0.0, "patch_entropy_weight": 0.0, **WITH_EVIDENCE})
    output = model(**batch, return_loss=True)
    torch.testing.assert_close(output.loss, output.contrastive_loss + 0.5 * output.evidence_entropy, rtol=1e-6, atol=0)
    (output.token_entropy + output.patch_entropy).backward(retain_graph=True)
    assert not any(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())
    output.evidence_entropy.backward()
    assert model.text_projection.weight.grad.any() and model.visual_projection.weight.grad.any()


def test_it_is_the_mean_over_all_pairs_of_a_text_and_its_image(make_tier, batch):
    model = make_tier(image_pooling="patch_mean", **WITH_EVIDENCE)
    order = [3, 1, 0, 2]
    texts = {name: torch.cat([batch[name], batch[name][order]]) for name in ("input_ids", "attention_mask")}
    several = model(**batch | texts, texts_per_image=2, return_loss=True)
    patches = model.get_patch_features(batch["pixel_values"])
    mean = several.text_embeds.mean(0)
    expected = by_hand(several.text_embeds, patches.repeat(2, 1, 1), mean, 2.0) / 8
    assert several.evidence_entropy.item() == pytest.approx(expected, rel=1e-5)

    pixels = torch.cat([batch["pixel_values"], batch["pixel_values"].flip(-1)])
    views = model(**batch | {"pixel_values": pixels}, image_views=2, return_loss=True)
    embeds = views.text_embeds
    expected = by_hand(embeds.repeat(2, 1), model.get_patch_features(pixels), embeds.mean(0), 2.0) / 8
    assert views.evidence_entropy.item() == pytest.approx(expected, rel=1e-5)


def test_the_sums_of_parts_add_up_to_the_term(make_tier, batch):
    model = make_tier(image_pooling="patch_mean", **WITH_EVIDENCE)
    output = model(**batch, return_loss=True)
    mean = mean_row(output.text_embeds)
    parts = [
        model(**{name: value[rows] for name, value in batch.items()}, return_entropy_sums=True, text_mean=mean)
        for rows in (slice(0, 1), slice(1, 4))
    ]
    sums, counts = (sum(part[name] for part in parts) for name in ("entropy_sums", "entropy_counts"))
    assert counts[2] == 4
    torch.testing.assert_close(sums[2] / 4, output.evidence_entropy, rtol=1e-6, atol=0)
    assert model(**batch, return_entropy_sums=True).entropy_sums[2] == 0


@pytest.mark.parametrize("config_class", [TierCLIPConfig, TierDualEncoderConfig])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"evidence_entropy_weight": 0.1, "image_pooling": "cls"},
            "evidence_entropy_weight=0.1 needs scores that are sums over the patches, unlike those of "
            'image_pooling="cls"; set image_pooling="patch_mean", or the weight to 0.',
        ),
        (
            {"evidence_entropy_weight": math.inf},
            "evidence_entropy_weight must be a finite number of at least 0 (0 switches the term off), not inf.",
        ),
        (
            {"evidence_patches": 0.5},
            "evidence_patches must be a finite number of at least 1 (evidence from one patch), not 0.5.",
        ),
    ],
)
def test_bad_values_are_refused(config_class, options, message):
    with pytest.raises(ValueError) as error:
        config_class(**options)
    assert str(error.value) == message
