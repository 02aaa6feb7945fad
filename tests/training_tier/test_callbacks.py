import time

import pytest
import torch

from modeling_tier import TierCLIPModel
from training_tier.callbacks import Throughput, peak_flops, training_flops
from training_tier.presets import preset_config


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
    # multiplications and additions of the matrices, by hand; attention itself is too small to matter
    text = 4 * (4 * 16 * 16 + 2 * 16 * 64) + 16 * 16  # tokens times (projections, MLP), head
    image = 4 * 3 * 16 * 16 * 16 + 5 * (4 * 16 * 16 + 2 * 16 * 64) + 16 * 16  # patches, 5 positions, head
    assert flops == pytest.approx(3 * 2 * (text + image), rel=0.03)
    assert model.training and torch.equal(torch.get_rng_state(), generator)


def test_images_a_second_and_the_share_of_waiting(monkeypatch):
    clock = iter([0.0, 1.0, 4.0, 10.0, 10.5, 12.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    throughput = Throughput()
    throughput.flops = 2e12
    model = torch.nn.Linear(1, 1)
    model.device = torch.device("cpu")
    assert throughput.pop(model, 1, half_precision=True) == {}
    for _ in range(2):  # 4 seconds of which 1 is waiting, and 2 of which 0.5; from 4 to 10 there is an evaluation
        throughput.on_batch_wait()
        throughput.on_batches([{"pixel_values": torch.zeros(6, 1)}])
        throughput.on_step_end(None, None, None)
    logs = throughput.pop(model, 2, half_precision=True)
    assert logs == {"images_per_second": 4.0, "data_wait": 0.25, "tflops": 4.0}
    assert throughput.pop(model, 2, half_precision=True) == {}
