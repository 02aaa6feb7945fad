import copy

import pytest
import torch
from transformers import AutoConfig, AutoModel

from modeling_tier import TierCLIPModel, TierDualEncoderModel
from training_tier.data.text_packing import PACKABLE, Packing, can_pack, pack, read_packed
from training_tier.memory.gradient_caching import backward_in_chunks
from training_tier.start.presets import preset_config

WORDS = (3, 40, 16, 17, 70, 5)


@pytest.fixture
def batch(processor):
    tokenizer = processor.tokenizer
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.full((len(WORDS), max(WORDS)), tokenizer.pad_token_id)
    attention_mask = torch.zeros_like(input_ids)
    for row, count in enumerate(WORDS):
        input_ids[row, :count] = torch.randint(5, 200, (count,), generator=generator)
        input_ids[row, 0], input_ids[row, count - 1] = tokenizer.bos_token_id, tokenizer.eos_token_id
        attention_mask[row, :count] = 1
    pixel_values = torch.randint(0, 256, (len(WORDS), 1, 32, 32), dtype=torch.uint8, generator=generator)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "pixel_values": pixel_values}


def test_the_longest_text_comes_first_and_each_goes_into_the_first_row_with_room():
    assert pack(list(WORDS)) == Packing(rows=[1, 1, 2, 1, 0, 1], starts=[62, 0, 0, 40, 0, 57], width=70)
    assert pack([5, 5, 5]) == Packing(rows=[0, 1, 2], starts=[0, 0, 0], width=5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", PACKABLE)
def test_each_packable_tower_reads_packed_texts_as_single_ones(kind, attention):
    if (kind, attention) == ("mpnet", "sdpa"):
        pytest.skip("transformers has no such attention for it")
    no_dropout = dict.fromkeys(
        ("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout", "dropout"), 0.0
    )
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 100}
    if kind != "distilbert":  # which names it otherwise
        size["intermediate_size"] = 32
    special = {"bos_token_id": 1, "eos_token_id": 3} if kind == "clip_text_model" else {}
    config = AutoConfig.for_model(kind, **no_dropout, **size, **special, max_position_embeddings=80)
    torch.manual_seed(0)
    model = AutoModel.from_config(config, attn_implementation=attention).train()
    input_ids = torch.full((len(WORDS), 72), config.pad_token_id)  # wider than the longest text
    is_token = torch.arange(72) < torch.tensor(WORDS)[:, None]
    input_ids[is_token] = torch.randint(5, 100, (sum(WORDS),))
    input_ids[torch.arange(len(WORDS)), torch.tensor(WORDS) - 1] = 3
    packed = copy.deepcopy(model)
    read_packed(packed)
    target, losses = torch.randn(len(WORDS), 72, 16), []
    for one in (model, packed):
        outputs = one(input_ids=input_ids, attention_mask=is_token.long())
        loss = (outputs.last_hidden_state * target)[is_token].sum()
        if getattr(outputs, "pooler_output", None) is not None:
            loss = loss + (outputs.pooler_output * target[:, 0]).sum()
        loss.backward()
        losses.append(loss.item())
        assert outputs.last_hidden_state.isfinite().all()
    assert losses[0] == pytest.approx(losses[1], rel=1e-5, abs=1e-5)
    gradients = [(one.grad, two.grad) for one, two in zip(model.parameters(), packed.parameters(), strict=True)]
    scale = max(float(one.abs().max()) for one, _ in gradients if one is not None)
    for one, two in gradients:
        assert (one is None) == (two is None)
        assert one is None or torch.allclose(one, two, atol=1e-5 * scale, rtol=0)


def test_a_tower_that_cannot_take_the_mask_is_refused():
    config = AutoConfig.for_model("albert", embedding_size=16, hidden_size=16, num_attention_heads=2)
    model = AutoModel.from_config(config)
    assert not can_pack(model.config)
    with pytest.raises(
        ValueError, match="^group_texts cannot pack the texts of 'albert' with the attention 'sdpa', onl"
    ):
        read_packed(model)


@pytest.mark.parametrize("chunk_size", [None, 4])
@pytest.mark.parametrize("preset", ["tiniest", "tiniest-dual"])
def test_loss_and_gradients_are_the_same_and_the_padding_is_not_read(batch, processor, preset, chunk_size):
    torch.manual_seed(0)
    model_class = TierCLIPModel if preset == "tiniest" else TierDualEncoderModel
    weights = {"token_entropy_weight": 0.1, "patch_entropy_weight": 0.2}
    model = model_class(preset_config(preset, processor.tokenizer, **weights)).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if preset == "tiniest-dual":
        model.config.text_config.attention_probs_dropout_prob = 0.0
        for layer in model.text_model.encoder.layer:
            layer.attention.self.dropout_prob = 0.0
    packed = copy.deepcopy(model)
    shapes = []
    layers = packed.text_model.encoder
    (layers.layers if preset == "tiniest" else layers.layer)[0].register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple((args or (kwargs["hidden_states"],))[0].shape[:2])),
        with_kwargs=True,
    )
    read_packed(packed.text_model)
    losses = []
    for one in (model, packed):
        if chunk_size is None:
            outputs = one(**batch, return_loss=True)
            outputs.loss.backward()
        else:
            outputs = backward_in_chunks(one, batch, chunk_size)
        losses.append(outputs["loss"].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    if chunk_size is None:
        assert shapes == [(3, 70)]
    scale = max(float(parameter.grad.abs().max()) for parameter in model.parameters() if parameter.grad is not None)
    for (name, expected), got in zip(model.named_parameters(), packed.parameters(), strict=True):
        if expected.grad is None:
            assert got.grad is None, name
            continue
        assert torch.allclose(got.grad, expected.grad, atol=1e-5 * scale, rtol=0), name


def test_evaluation_is_as_ever(batch, processor):
    model = TierCLIPModel(preset_config("tiniest", processor.tokenizer)).eval()
    expected = model(**batch).logits_per_image
    read_packed(model.text_model)
    assert torch.equal(model(**batch).logits_per_image, expected)


def test_a_copy_reads_its_own_tower(batch, processor):
    model = TierCLIPModel(preset_config("tiniest", processor.tokenizer)).train()
    read_packed(model.text_model)
    copied = copy.deepcopy(model)
    for parameter in copied.text_model.parameters():
        parameter.data.zero_()
    texts = {name: batch[name] for name in ("input_ids", "attention_mask")}
    assert model.get_text_features(**texts).pooler_output.abs().min() > 0
    assert not copied.get_text_features(**texts).pooler_output.any()


def test_texts_padded_on_the_left_are_read_one_in_a_row(batch, processor):
    model = TierDualEncoderModel(preset_config("tiniest-dual", processor.tokenizer)).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for layer in model.text_model.encoder.layer:
        layer.attention.self.dropout_prob = 0.0
    texts = {name: batch[name].flip(1) for name in ("input_ids", "attention_mask")}
    expected = model.text_model(**texts).last_hidden_state
    read_packed(model.text_model)
    assert torch.equal(model.text_model(**texts).last_hidden_state, expected)
