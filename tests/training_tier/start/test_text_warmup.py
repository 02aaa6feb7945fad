import numpy as np
import pytest
import torch

from modeling_tier import TierCLIPModel, TierDualEncoderModel
from training_tier.start.presets import preset_config
from training_tier.start.text_warmup import halve, warm_up_text


@pytest.fixture
def model(processor):
    torch.manual_seed(0)
    return TierCLIPModel(preset_config("tiniest", processor.tokenizer))


def test_the_halves_are_the_whole_report_and_neither_is_empty():
    impression, findings = ["A.", "B."], ["C."]
    for seed in range(30):
        first, second = halve(impression, findings, np.random.default_rng(seed))
        assert first and second
        assert sorted(f"{first} {second}".split()) == ["A.", "B.", "C."]
    pairs = {halve(impression, findings, np.random.default_rng(seed)) for seed in range(30)}
    assert ("A. B.", "C.") in pairs and len(pairs) > 3


def test_the_loss_falls_and_only_the_text_tower_changes(model, processor, phantom):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    losses = warm_up_text(model, processor.tokenizer, phantom, epochs=12, batch_size=8)
    assert len(losses) == 12 and losses[-1] < 1.9 < losses[0]  # chance is ln 8 = 2.08
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and all(name.startswith("text_") for name in changed)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.slow
def test_a_dual_encoders_text_tower_learns_too(processor, phantom):
    torch.manual_seed(0)
    model = TierDualEncoderModel(preset_config("tiniest-dual", processor.tokenizer))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    losses = warm_up_text(model, processor.tokenizer, phantom, epochs=6, batch_size=8)
    assert losses[-1] < losses[0]
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and all(name.startswith("text_") for name in changed)


def test_a_seed_fixes_it(processor, phantom):
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(0)
        fresh = TierCLIPModel(preset_config("tiniest", processor.tokenizer))
        losses.append(warm_up_text(fresh, processor.tokenizer, phantom, epochs=1, batch_size=8, seed=seed))
    assert losses[0] == losses[1] != losses[2]


def test_too_few_reports_are_refused(model, processor, phantom):
    with pytest.raises(
        ValueError, match="^text_warmup_epochs needs at least 64 reports of two sentences, but there are 4; lea"
    ):
        warm_up_text(model, processor.tokenizer, phantom.select(range(4)), epochs=1)
