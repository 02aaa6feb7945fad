import time

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from modeling_tier import TierCLIPForImageClassification, TierCLIPModel, TierDualEncoderModel
from training_tier.loop.throughput import Throughput, flops_by_length, peak_flops, training_flops
from training_tier.start.presets import PRESETS, preset_config


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA GeForce RTX 3090", None),
        ("NVIDIA A1000", None),
    ],
)
def test_the_peak_of_a_gpu_by_its_name(name, peak):
    assert peak_flops(name) == peak


def test_operations_of_a_pair_are_counted_without_a_trace(processor):
    model = TierCLIPModel(preset_config("tiniest", processor.tokenizer)).train()
    generator = torch.get_rng_state()
    inputs = {
        "input_ids": torch.tensor([[5, 6, 7, processor.tokenizer.eos_token_id]]),
        "attention_mask": torch.ones(1, 4, dtype=torch.long),
        "pixel_values": torch.zeros(1, 1, 32, 32, dtype=torch.uint8),
    }
    flops = training_flops(model, inputs)
    # multiplications and additions of the matrices, by hand
    text = 4 * (4 * 16 * 16 + 2 * 16 * 64) + 2 * 4 * 4 * 16 + 16 * 16  # tokens x (projections, MLP), attention, head
    image = 4 * 3 * 16 * 16 * 16 + 5 * (4 * 16 * 16 + 2 * 16 * 64) + 2 * 5 * 5 * 16 + 16 * 16  # 4 patches, 5 positions
    assert flops == pytest.approx(3 * 2 * (text + image), rel=0.02)
    assert model.training and torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize(("preset", "length"), [("nano", 9), ("nano", 24), ("resnet-tiny", 24), ("bert", 24)])
def test_three_forward_passes_are_what_is_computed_within_4_percent(preset, length, processor, monkeypatch):
    text = {"model_type": "bert", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    monkeypatch.setitem(PRESETS, "bert", {**PRESETS["resnet-tiny"], "text_config": text})
    config = preset_config(preset, processor.tokenizer, image_size=112)
    model = (TierCLIPModel if preset == "nano" else TierDualEncoderModel)(config)
    ids = torch.full((4, length), 5)
    ids[:, 0], ids[:, -1] = processor.tokenizer.bos_token_id, processor.tokenizer.eos_token_id
    pixels = torch.zeros(4, 1, 112, 112, dtype=torch.uint8)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**batch, return_loss=True).loss.backward()
    pair = {name: value[:1] for name, value in batch.items()}
    coefficients = flops_by_length(model, pair)
    flops = coefficients @ [1, length, length**2]
    assert flops == pytest.approx(training_flops(model, pair), rel=1e-9)  # an exact quadratic
    assert 1 < flops / (counter.get_total_flops() / 4) < 1.04  # the pixels, which are first, need no gradient


def test_a_classifier_has_no_tokens(processor):
    config = preset_config("tiniest", processor.tokenizer).vision_config
    model = TierCLIPForImageClassification(TierCLIPModel(preset_config("tiniest", processor.tokenizer)).config)
    pair = {"pixel_values": torch.zeros(1, 1, config.image_size, config.image_size, dtype=torch.uint8)}
    assert flops_by_length(model, pair).tolist() == [training_flops(model, pair), 0, 0]


def test_images_a_second_and_the_share_of_waiting(monkeypatch):
    clock = iter([0.0, 1.0, 4.0, 10.0, 10.5, 12.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    throughput = Throughput()
    throughput.flops = np.array([1e12, 2e11, 1e10])
    model = torch.nn.Linear(1, 1)
    model.device = torch.device("cpu")
    assert throughput.pop(model, 1, half_precision=True) == {}
    for length in (4, 2):  # 4 seconds of which 1 is waiting, and 2 of which 0.5; from 4 to 10 there is an evaluation
        throughput.on_batch_wait()
        throughput.on_batches([{"pixel_values": torch.zeros(6, 1), "input_ids": torch.zeros(6, length)}])
        throughput.on_step_end(None, None, None)
    logs = throughput.pop(model, 2, half_precision=True)
    per_pair = [1 + 0.2 * length + 0.01 * length**2 for length in (4, 2)]
    assert logs == {"images_per_second": 4.0, "data_wait": 0.25, "tflops": pytest.approx(sum(per_pair))}
    assert throughput.pop(model, 2, half_precision=True) == {}


@pytest.mark.parametrize("group_texts", [False, True])
def test_all_the_texts_of_an_image_are_counted(group_texts):
    throughput = Throughput(group_texts)
    throughput.started = 0.0
    mask = (torch.arange(40) < torch.tensor([[5], [40]] * 3)).long()
    throughput.on_batches([{"pixel_values": torch.zeros(2, 1), "input_ids": mask, "attention_mask": mask}])
    lengths = [40] * (4 if group_texts else 6)  # three of 40 tokens, and one row of three texts of 5
    assert throughput.counted.tolist() == [2, sum(lengths), sum(length**2 for length in lengths)]
