"""TierSiglipModel: equality with SiglipModel, tokens and patches, entropies, what it refuses."""

import math

import pytest
import torch
from model_checks import TERMS, WEIGHTS
from tiny_siglip import make_siglip, siglip_sizes
from torch.nn import functional as F
from transformers import SiglipModel, SiglipTextConfig

from modeling_tier import TierSiglipConfig, TierSiglipModel
from modeling_tier.modeling_siglip_tier import text_positions

PAD = 1  # ends the texts too, as in SigLIP's own tokenizer


@pytest.fixture
def siglip() -> SiglipModel:
    return make_siglip()


@pytest.fixture
def make_tier(siglip):
    """Function that makes a TierSiglipModel with the weights of `siglip`."""

    def make(**options) -> TierSiglipModel:
        tier = TierSiglipModel(TierSiglipConfig(**siglip_sizes(), **options)).eval()
        tier.load_state_dict(siglip.state_dict(), strict=True)
        return tier

    return make


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Four pairs; texts of 63, 20, 2 and 0 words, padded to 64 positions."""
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(5, 44, (4, 64), generator=generator)
    for row, words in enumerate((63, 20, 2, 0)):
        input_ids[row, words:] = PAD
    return {"input_ids": input_ids, "pixel_values": torch.randn(4, 3, 32, 32, generator=generator)}


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
def test_zero_weights_are_bit_equal_to_siglip(make_tier, siglip, batch, attn_implementation):
    tier = make_tier()
    assert list(tier.state_dict()) == list(siglip.state_dict())
    tier.set_attn_implementation(attn_implementation)
    siglip.set_attn_implementation(attn_implementation)
    expected, computed = siglip(**batch, return_loss=True), tier(**batch, return_loss=True)
    for name in ("loss", "logits_per_image", "logits_per_text", "image_embeds", "text_embeds"):
        assert torch.equal(computed[name], expected[name]), name
    assert torch.equal(computed.contrastive_loss, expected.loss)

    expected.loss.backward()
    computed.loss.backward()
    for (name, parameter), other in zip(tier.named_parameters(), siglip.named_parameters(), strict=True):
        assert torch.equal(parameter.grad, other[1].grad), name


def test_zero_weights_are_bit_equal_to_siglip_under_autocast(make_tier, siglip, batch):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, computed = siglip(**batch, return_loss=True), make_tier()(**batch, return_loss=True)
    assert torch.equal(computed.loss, expected.loss)
    assert torch.equal(computed.logits_per_image, expected.logits_per_image)


def test_inference_is_siglips(make_tier, siglip, batch):
    inputs = {"input_ids": batch["input_ids"][:3], "pixel_values": batch["pixel_values"]}
    computed, expected = make_tier(**WEIGHTS)(**inputs), siglip(**inputs)
    assert computed.logits_per_image.shape == (4, 3)
    assert torch.equal(computed.logits_per_image, expected.logits_per_image)
    assert [computed[name] for name in ("loss", *TERMS) if name in computed] == []
    as_tuple = make_tier()(**inputs, return_dict=False)
    assert torch.equal(as_tuple[0], expected.logits_per_image)


def test_a_patch_is_what_the_head_gives_for_it_alone(make_tier, siglip, batch):
    tier = make_tier()
    outputs, patches = tier.encode_images(batch["pixel_values"])
    assert patches.shape == (4, 4, 4, 24)
    alone = siglip.vision_model.head(outputs.last_hidden_state.flatten(0, 1).unsqueeze(1))
    torch.testing.assert_close(patches.flatten(0, 2), alone, rtol=0, atol=1e-6)
    constant = outputs.last_hidden_state[:1, :1].expand(1, 16, -1)  # an image of equal patches is one of them
    torch.testing.assert_close(siglip.vision_model.head(constant)[0], patches[0, 0, 0], rtol=0, atol=1e-6)
    torch.testing.assert_close(tier.get_patch_features(batch["pixel_values"]), patches.flatten(1, 2))


def test_the_last_token_is_the_text(make_tier, batch):
    tier = make_tier()
    text = tier.get_text_features(batch["input_ids"])
    torch.testing.assert_close(tier.project_tokens(text.last_hidden_state)[:, -1], text.pooler_output)


@pytest.mark.parametrize(
    ("entropy_tokens", "counts"), [("words", [63, 20, 2, 0]), ("attended", [64, 21, 3, 0]), ("all", [64] * 4)]
)
def test_the_loss_is_the_sigmoid_loss_and_the_weighted_entropies(make_tier, batch, entropy_tokens, counts):
    tier = make_tier(entropy_tokens=entropy_tokens, entropy_temperature=0.5, **WEIGHTS)
    output = tier(**batch, return_loss=True)
    tokens = F.normalize(tier.project_tokens(output.text_model_output.last_hidden_state), dim=-1).double()
    patches = F.normalize(tier.get_patch_features(batch["pixel_values"]), dim=-1).double()
    of_tokens, of_patches = [], []
    for text, patch, count in zip(tokens, patches, counts, strict=True):
        similarity = text[:count] @ patch.T / 0.5
        eps = 1e-7 if entropy_tokens == "all" else 0
        for rows, entropies in ((similarity, of_tokens), (similarity.T, of_patches)):
            probabilities = rows.softmax(-1) + eps
            if count:
                entropies.append(-(probabilities * probabilities.log()).sum(-1))
    expected = [torch.cat(entropies).mean().item() for entropies in (of_tokens, of_patches)]
    assert output.token_entropy.item() == pytest.approx(expected[0], rel=1e-5)
    assert output.patch_entropy.item() == pytest.approx(expected[1], rel=1e-5)
    total = output.contrastive_loss.item() + 0.3 * expected[0] + 0.7 * expected[1]
    assert output.loss.item() == pytest.approx(total, rel=1e-5)


def test_every_parameter_gets_a_gradient(make_tier, batch):
    model = make_tier(**WEIGHTS)
    model(**batch, return_loss=True).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert model.logit_scale.grad.abs() > 1e-4 and model.logit_bias.grad.abs() > 1e-4


def test_the_ends_of_a_text_are_found_with_any_padding():
    ends = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 0, 0, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]]).bool()
    words = [[1, 1, 0, 0, 0], [0, 0, 1, 1, 0], [1, 1, 1, 1, 1], [0] * 5]
    attended = [[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0] * 5]
    assert text_positions(ends, "words").int().tolist() == words
    assert text_positions(ends, "attended").int().tolist() == attended
    assert text_positions(ends, "all").all()


def test_a_text_alone_and_in_a_batch_are_equal(make_tier, batch):
    tier = make_tier()
    together = tier(**batch)
    for row in range(4):
        alone = tier(**{name: value[row : row + 1] for name, value in batch.items()})
        torch.testing.assert_close(alone.text_embeds[0], together.text_embeds[row], rtol=0, atol=1e-6)
        torch.testing.assert_close(alone.image_embeds[0], together.image_embeds[row], rtol=0, atol=1e-6)


def test_uint8_pixels_are_normalised_in_the_model(make_tier, batch):
    levels = torch.randint(0, 256, (4, 1, 32, 32), dtype=torch.uint8)
    pixels = (levels.float() / 255 - 0.5) / 0.5
    tier = make_tier()
    expected = tier(input_ids=batch["input_ids"], pixel_values=pixels.expand(-1, 3, -1, -1))
    computed = tier(input_ids=batch["input_ids"], pixel_values=levels)
    assert torch.equal(computed.logits_per_image, expected.logits_per_image)


def test_maps_are_cosines_and_patches_look_at_the_middle_of_their_pixels(make_tier, batch):
    tier = make_tier()
    maps = tier.get_similarity_map(**batch)
    text = F.normalize(tier.get_text_features(batch["input_ids"]).pooler_output, dim=-1)
    patches = F.normalize(tier.get_patch_map(batch["pixel_values"]), dim=-1)
    torch.testing.assert_close(maps, torch.einsum("td,ircd->itrc", text, patches), rtol=0, atol=1e-6)
    assert tier.patch_centers == (4.0, 8.0)
    assert tier.get_similarity_map(**batch, per_token=True).shape == (4, 4, 64, 4, 4)
    for kind in ("contribution", "direct"):
        with pytest.raises(ValueError, match=f'image_pooling="attention".* kind="{kind}"'):
            tier.get_similarity_map(**batch, kind=kind)


def test_another_image_size_is_interpolated(make_tier, siglip, batch, tmp_path):
    siglip.save_pretrained(tmp_path)
    larger = TierSiglipModel.from_pretrained(tmp_path, image_size=48)
    assert larger.config.vision_config.image_size == 48
    pixels = torch.randn(1, 3, 48, 48)
    expected = make_tier().get_image_features(pixels, interpolate_pos_encoding=True).pooler_output
    torch.testing.assert_close(larger.get_image_features(pixels).pooler_output, expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="pixel_values of 48x48 pixels do not fit this model, which takes 32x32"):
        make_tier()(batch["input_ids"], pixels)


def test_to_siglip_has_identical_logits(make_tier, batch, tmp_path):
    tier = make_tier(**WEIGHTS)
    plain = tier.to_siglip()
    assert type(plain) is SiglipModel and plain.config.model_type == "siglip"
    plain.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    loaded = SiglipModel.from_pretrained(tmp_path)
    assert torch.equal(loaded(**batch).logits_per_image, tier(**batch).logits_per_image)
    plain.logit_scale.data.zero_()
    assert tier.logit_scale.item() != 0  # a copy


def test_several_views_of_an_image_are_refused(make_tier, batch):
    batch["pixel_values"] = torch.cat([batch["pixel_values"]] * 2)
    with pytest.raises(ValueError, match="image_views=2 does not work with SigLIP, whose loss does not compare"):
        make_tier()(**batch, return_loss=True, image_views=2)


@pytest.mark.parametrize(
    "text, end",
    [
        ({"vocab_size": 256_000}, 1),  # SigLIP 2's, as released: 49407 is the default of transformers, and a word
        ({"vocab_size": 32_000}, 1),
        ({}, 1),
        ({"vocab_size": 49_408}, 49_407),  # CLIP's tokenizer
        ({"vocab_size": 256_000, "eos_token_id": 107}, 107),
        ({"vocab_size": 256_000, "eos_token_id": [1, 107]}, [1, 107]),
        ({"vocab_size": 256_000, "eos_token_id": None}, None),
    ],
)
def test_the_end_of_a_text_is_that_of_the_tokenizer(text, end):
    """Whether the configuration is built in Python, of another one's dict or object, or read again."""
    config = TierSiglipConfig(text_config=text)
    assert config.text_config.eos_token_id == end
    assert TierSiglipConfig(**config.to_dict()).text_config.eos_token_id == end
    own = SiglipTextConfig(**text)
    before = own.eos_token_id
    assert TierSiglipConfig(text_config=own).text_config.eos_token_id == end and own.eos_token_id == before


def test_a_word_of_siglip_2_does_not_end_its_text():
    """49407 is a word of Gemma's vocabulary; 1 ends the text and 0 pads it."""
    sizes = siglip_sizes()
    sizes["text_config"] |= {"vocab_size": 50_000}
    model = TierSiglipModel(TierSiglipConfig(**sizes))
    ids = torch.tensor([[7, 49_407, 8, 1, 0, 0], [9, 1, 0, 0, 0, 0]])
    assert model.counted_tokens(ids).int().tolist() == [[1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0]]
    model.config.entropy_tokens = "attended"
    assert model.counted_tokens(ids).int().tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_pooling": "patch_mean"}, "image_pooling must be one of attention, not 'patch_mean'."),
        (
            {"evidence_entropy_weight": 0.1},
            "evidence_entropy_weight=0.1 needs scores that are sums over the patches, unlike those of "
            'image_pooling="attention"; set the weight to 0.',
        ),
        ({"token_entropy_weight": -1.0}, "token_entropy_weight must be a finite number of at least 0"),
        ({"patch_entropy_wieght": 1.0}, "no option 'patch_entropy_wieght'; the nearest one is 'patch_entropy_weight'"),
    ],
)
def test_bad_values_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TierSiglipConfig(**siglip_sizes(), **options)


def test_an_image_tower_without_its_head_is_refused():
    with pytest.raises(ValueError, match="vision_use_head=False leaves out the head that pools SigLIP's images"):
        TierSiglipModel(TierSiglipConfig(**siglip_sizes(vision_use_head=False)))


def test_a_long_text_is_refused(make_tier, batch):
    batch["input_ids"] = F.pad(batch["input_ids"], (0, 6), value=PAD)
    with pytest.raises(ValueError, match="Texts of 70 tokens are longer than the 64 that this model reads"):
        make_tier()(**batch)
    assert math.isfinite(make_tier()(batch["input_ids"][:, :64], batch["pixel_values"]).logits_per_image.sum())
