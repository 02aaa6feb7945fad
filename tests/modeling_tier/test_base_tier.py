"""What both architectures share, tested on TierCLIPModel: the loss, pixels in either form, similarity maps."""

import math

import numpy as np
import pytest
import torch
from model_checks import BOS, EOS, TERMS, WEIGHTS
from PIL import Image
from torch.nn import functional as F
from transformers import CLIPImageProcessorPil

from modeling_tier import TierCLIPOutput


def cosines(output) -> torch.Tensor:
    return torch.einsum("btd,bpd->btp", output.token_embeds.double(), output.patch_embeds.double())


def mean_entropy(logits: list[torch.Tensor]) -> float:
    """Mean over the rows of all the matrices of ln Z - E[x], in float64."""
    rows = [row.logsumexp(-1) - (row.softmax(-1) * row).sum(-1) for row in logits]
    return torch.cat(rows).mean().item()


def test_output_of_a_training_step(make_tier, batch):
    output = make_tier(**WEIGHTS)(**batch, return_loss=True)
    assert isinstance(output, TierCLIPOutput)
    assert output.token_embeds.shape == (4, 8, 24) and output.patch_embeds.shape == (4, 16, 24)
    for embeds in (output.token_embeds, output.patch_embeds):
        torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(embeds.shape[:2]), rtol=1e-6, atol=1e-6)
    expected = output.contrastive_loss + 0.3 * output.token_entropy + 0.7 * output.patch_entropy
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_a_warmup_scales_the_entropies_in_training_alone(make_tier, batch):
    model = make_tier(**WEIGHTS)
    whole = model(**batch, return_loss=True)
    entropies = whole.loss - whole.contrastive_loss
    model.entropy_scale = 0.25
    assert torch.equal(model(**batch, return_loss=True).loss, whole.loss)
    output = model.train()(**batch, return_loss=True)  # CLIP has no dropout
    torch.testing.assert_close(output.loss, whole.contrastive_loss + 0.25 * entropies, rtol=1e-6, atol=0)
    model.entropy_scale = 0.0
    assert torch.equal(model(**batch, return_loss=True).loss, whole.contrastive_loss)
    assert model.config.token_entropy_weight == 0.3 and "entropy_scale" not in model.config.to_dict()


@pytest.mark.parametrize("image_pooling", ["cls", "patch_mean"])
def test_soft_targets(make_tier, batch, image_pooling):
    model = make_tier(image_pooling=image_pooling)
    plain = model(**batch, return_loss=True)
    soft = model(**batch, return_loss=True, text_groups=torch.tensor([3, -1, 4, -1]))
    assert torch.equal(plain.logits_per_text, soft.logits_per_text)
    target = torch.eye(4)
    target[1] = target[3] = torch.tensor([0, 0.5, 0, 0.5])
    logits = soft.logits_per_text
    by_hand = -((target * logits.log_softmax(1)).sum() + (target * logits.log_softmax(0)).sum()) / 8
    torch.testing.assert_close(soft.contrastive_loss, by_hand, rtol=1e-6, atol=0)
    assert abs(plain.loss - soft.loss) > 1e-3


@pytest.mark.parametrize("entropy_tokens", ["words", "attended"])
@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_entropies_against_an_independent_formula(make_tier, batch, entropy_tokens, temperature):
    model = make_tier(entropy_tokens=entropy_tokens, entropy_temperature=temperature)
    output = model(**batch, return_loss=True)
    similarity = cosines(output) / temperature
    # the texts of the batch have 5, 3, 1 and 0 words between BOS and EOS
    spans = [slice(1, 6), slice(1, 4), slice(1, 2)] if entropy_tokens == "words" else [slice(n) for n in (7, 5, 3, 2)]
    counted = [similarity[row, span] for row, span in enumerate(spans)]
    assert output.token_entropy.item() == pytest.approx(mean_entropy(counted), abs=1e-6)
    assert output.patch_entropy.item() == pytest.approx(mean_entropy([s.T for s in counted]), abs=1e-6)


def test_all_tokens_is_what_the_authors_compute(make_tier, batch):
    """Their Modeling/utils.py:87-141: raw cosines, no mask, 1e-7 after the softmax, plain means."""
    model = make_tier(entropy_tokens="all", **WEIGHTS)
    output = model(**batch, return_loss=True)
    hidden = output.text_model_output.last_hidden_state
    w = model.text_projection(hidden).detach().double().numpy()
    v = model.get_patch_features(batch["pixel_values"]).detach().double().numpy()
    token_terms, patch_terms = [], []
    for n in range(4):
        s = np.array([[w_t @ v_p / np.linalg.norm(w_t) / np.linalg.norm(v_p) for v_p in v[n]] for w_t in w[n]])
        for t in range(s.shape[0]):
            a = np.exp(s[t]) / np.exp(s[t]).sum() + 1e-7
            token_terms.append(-(a * np.log(a)).sum())
        for p in range(s.shape[1]):
            b = np.exp(s[:, p]) / np.exp(s[:, p]).sum() + 1e-7
            patch_terms.append(-(b * np.log(b)).sum())
    assert (len(token_terms), len(patch_terms)) == (4 * 8, 4 * 16)  # padding and empty texts included
    assert output.token_entropy.item() == pytest.approx(np.mean(token_terms), abs=2e-6)
    assert output.patch_entropy.item() == pytest.approx(np.mean(patch_terms), abs=2e-6)


def test_normalisation(make_tier, batch):
    plain = make_tier(entropy_normalization=False)(**batch, return_loss=True)
    normalized = make_tier(entropy_normalization=True)(**batch, return_loss=True)
    assert normalized.token_entropy.item() == pytest.approx(plain.token_entropy.item() / math.log(16), rel=1e-6)
    similarity = cosines(plain)
    columns = [similarity[0, 1:6].T, similarity[1, 1:4].T]
    expected = (mean_entropy(columns[:1]) / math.log(5) + mean_entropy(columns[1:]) / math.log(3) + 0) / 3
    assert normalized.patch_entropy.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("entropy_tokens", ["words", "attended"])
@pytest.mark.parametrize("with_mask", [True, False])
def test_padding_changes_nothing(make_tier, batch, entropy_tokens, with_mask):
    model = make_tier(entropy_tokens=entropy_tokens, entropy_normalization=True, **WEIGHTS)
    if not with_mask:
        batch.pop("attention_mask")
    output = model(**batch, return_loss=True)
    batch["input_ids"] = F.pad(batch["input_ids"], (0, 9), value=EOS)
    if with_mask:
        batch["attention_mask"] = F.pad(batch["attention_mask"], (0, 9))
    longer = model(**batch, return_loss=True)
    for name in ("loss", *TERMS):
        assert longer[name].item() == pytest.approx(output[name].item(), rel=1e-5), name


def test_a_mask_that_says_what_the_first_eos_says_changes_nothing(make_tier, batch):
    model = make_tier(**WEIGHTS)
    masked = model(**batch, return_loss=True)
    batch.pop("attention_mask")
    assert model(**batch, return_loss=True).loss.item() == pytest.approx(masked.loss.item(), rel=1e-6)


def test_padding_changes_the_authors_loss(make_tier, batch):
    """The defect that `entropy_tokens="all"` keeps on purpose."""
    model = make_tier(entropy_tokens="all")
    before = model(**batch, return_loss=True).patch_entropy.item()
    batch["input_ids"] = F.pad(batch["input_ids"], (0, 9), value=EOS)
    batch["attention_mask"] = F.pad(batch["attention_mask"], (0, 9))
    assert model(**batch, return_loss=True).patch_entropy.item() - before > 0.5


def test_order_of_the_pairs_changes_nothing(make_tier, batch):
    model = make_tier(image_pooling="patch_mean", **WEIGHTS)
    permuted = {key: value[[2, 0, 3, 1]] for key, value in batch.items()}
    expected, computed = model(**batch, return_loss=True), model(**permuted, return_loss=True)
    for name in ("loss", *TERMS):
        assert computed[name].item() == pytest.approx(expected[name].item(), rel=1e-5), name


def test_a_batch_without_words_has_a_finite_loss(make_tier, batch):
    batch["input_ids"] = torch.tensor([[BOS, EOS, EOS]] * 4)
    batch["attention_mask"] = torch.tensor([[1, 1, 0]] * 4)
    model = make_tier(entropy_normalization=True, **WEIGHTS)
    output = model(**batch, return_loss=True)
    assert (output.token_entropy.item(), output.patch_entropy.item()) == (0.0, 0.0)
    output.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_an_old_eos_token_id_gives_the_same_loss(make_tier, batch):
    model = make_tier(**WEIGHTS)
    expected = model(**batch, return_loss=True)
    model.text_model.eos_token_id = model.config.text_config.eos_token_id = 2
    computed = model(**batch, return_loss=True)
    assert torch.equal(computed.loss, expected.loss)


def test_the_gradient_of_the_logit_scale_is_the_contrastive_terms(make_tier, batch):
    """By finite differences; the entropies do not depend on it."""
    model = make_tier(**WEIGHTS)
    model(**batch, return_loss=True).loss.backward()
    values = []
    for step in (-1e-2, 2e-2):
        model.logit_scale.data += step
        values.append(model(**batch, return_loss=True))
    assert values[0].token_entropy.item() == values[1].token_entropy.item()
    slope = (values[1].contrastive_loss - values[0].contrastive_loss).item() / 2e-2
    assert model.logit_scale.grad.item() == pytest.approx(slope, rel=1e-2)


def test_a_loss_needs_pairs(make_tier, batch):
    batch["input_ids"], batch["attention_mask"] = batch["input_ids"][:2], batch["attention_mask"][:2]
    with pytest.raises(ValueError, match="one text per image, but there are 4 images and 2 texts"):
        make_tier()(**batch, return_loss=True)


@pytest.mark.parametrize("image_pooling", ["cls", "patch_mean"])
def test_uint8_pixels_are_the_image_processors_floats(make_tier, batch, image_pooling):
    mean, std = [0.5, 0.4, 0.3], [0.3, 0.2, 0.25]
    model = make_tier(image_pooling=image_pooling, pixel_mean=mean, pixel_std=std)
    pixels = (torch.randperm(4 * 32 * 32) % 256).view(4, 1, 32, 32).byte()  # each of the 256 values, shuffled
    processor = CLIPImageProcessorPil(do_resize=False, do_center_crop=False, image_mean=mean, image_std=std)
    images = [Image.fromarray(image.numpy()) for image in pixels[:, 0]]
    floats = processor(images, return_tensors="pt").pixel_values
    assert torch.equal(model.normalize_pixels(pixels), floats)
    assert model.normalize_pixels(floats) is floats

    batch["pixel_values"] = floats
    expected = model(**batch, return_loss=True)
    batch["pixel_values"] = pixels
    computed = model(**batch, return_loss=True)
    assert torch.equal(computed.loss, expected.loss)
    assert torch.equal(model.get_patch_features(pixels), model.get_patch_features(floats))
    text = {"input_ids": batch["input_ids"]}
    assert torch.equal(
        model.get_similarity_map(**text, pixel_values=pixels), model.get_similarity_map(**text, pixel_values=floats)
    )


def test_uint8_pixels_of_another_shape_are_refused(make_tier):
    with pytest.raises(ValueError, match=r"shape \(batch, 1, height, width\), not \(4, 32, 32\)"):
        make_tier().get_image_features(torch.zeros(4, 32, 32, dtype=torch.uint8))


@pytest.mark.parametrize("image_pooling", ["cls", "patch_mean"])
def test_similarity_map_values(make_tier, batch, image_pooling):
    model = make_tier(image_pooling=image_pooling)
    ids, mask = batch["input_ids"][:3], batch["attention_mask"][:3]
    images = batch["pixel_values"][:2]
    maps = model.get_similarity_map(ids, images, mask)
    assert maps.shape == (2, 3, 4, 4)
    patch = model.get_patch_features(images)[1, 2 * 4 + 3]  # third row, fourth column
    text = model.get_text_features(ids, mask).pooler_output[2]
    assert maps[1, 2, 2, 3].item() == pytest.approx(F.cosine_similarity(patch, text, dim=0).item(), abs=1e-6)
    assert maps.abs().max() <= 1 + 1e-6

    tokens = model.get_similarity_map(ids, images, mask, per_token=True)
    assert tokens.shape == (2, 3, 8, 4, 4)
    # what a text pools is the token at its EOS: positions 6, 4 and 2
    torch.testing.assert_close(tokens[:, [0, 1, 2], [6, 4, 2]], maps)


def test_similarity_map_of_a_larger_image(make_tier, batch):
    images = torch.randn(1, 3, 48, 64)
    maps = make_tier().get_similarity_map(batch["input_ids"], images, interpolate_pos_encoding=True)
    assert maps.shape == (1, 4, 6, 8)


def test_the_map_has_the_orientation_of_the_image(make_tier, batch):
    """A change in the top right corner changes the top right element of the map most."""
    model = make_tier()
    model.vision_model.encoder.layers = model.vision_model.encoder.layers[:0]  # no mixing of patches
    images = torch.zeros(1, 3, 32, 32)
    before = model.get_similarity_map(batch["input_ids"], images)
    images[:, :, :8, 24:] = 1.0
    change = (model.get_similarity_map(batch["input_ids"], images) - before).abs()[0, 0]
    assert (change > 1e-6).nonzero().tolist() == [[0, 3]]
