import copy

import pytest
import torch

from modeling_tier import TierCLIPModel, TierDualEncoderModel
from training_tier.data.text_lengths import padded_lengths, pays_on_cpu, read_by_length
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


def test_lengths_are_multiples_but_no_more_than_the_batch_has(batch):
    assert padded_lengths(batch["attention_mask"]).tolist() == [16, 48, 16, 32, 70, 16]


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
    grouped = copy.deepcopy(model)
    shapes = []
    layers = grouped.text_model.encoder
    (layers.layers if preset == "tiniest" else layers.layer)[0].register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple((args or (kwargs["hidden_states"],))[0].shape[:2])),
        with_kwargs=True,
    )
    read_by_length(grouped.text_model)
    losses = []
    for one in (model, grouped):
        if chunk_size is None:
            outputs = one(**batch, return_loss=True)
            outputs.loss.backward()
        else:
            outputs = backward_in_chunks(one, batch, chunk_size)
        losses.append(outputs["loss"].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    if chunk_size is None:
        assert shapes == [(3, 16), (1, 32), (1, 48), (1, 70)]
    scale = max(float(parameter.grad.abs().max()) for parameter in model.parameters() if parameter.grad is not None)
    for (name, expected), got in zip(model.named_parameters(), grouped.parameters(), strict=True):
        if expected.grad is None:
            assert got.grad is None, name
            continue
        assert torch.allclose(got.grad, expected.grad, atol=1e-5 * scale, rtol=0), name


def test_evaluation_is_as_ever(batch, processor):
    model = TierCLIPModel(preset_config("tiniest", processor.tokenizer)).eval()
    expected = model(**batch).logits_per_image
    read_by_length(model.text_model)
    assert torch.equal(model(**batch).logits_per_image, expected)


def test_a_copy_reads_its_own_tower(batch, processor):
    model = TierCLIPModel(preset_config("tiniest", processor.tokenizer)).train()
    read_by_length(model.text_model)
    copied = copy.deepcopy(model)
    for parameter in copied.text_model.parameters():
        parameter.data.zero_()
    texts = {name: batch[name] for name in ("input_ids", "attention_mask")}
    assert model.get_text_features(**texts).pooler_output.abs().min() > 0
    assert not copied.get_text_features(**texts).pooler_output.any()


def test_groups_pay_from_a_width_times_texts_and_never_draw_other_dropout(processor):
    config = preset_config("tiny", processor.tokenizer).text_config  # 128 wide
    assert pays_on_cpu(config, 32) and not pays_on_cpu(config, 31)
    config.attention_dropout = 0.1
    assert not pays_on_cpu(config, 32)
    assert not pays_on_cpu(preset_config("resnet-50-bert", processor.tokenizer).text_config, 32)  # BERT's 0.1
