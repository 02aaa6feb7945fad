"""torch.compile of the models, forward and backward."""

import shutil

import pytest
import torch
from model_checks import assert_equal_outputs, gradients


@pytest.fixture
def raw_batch(batch):
    """As training sends it: grey levels, normalised inside the forward."""
    return {**batch, "pixel_values": torch.randint(0, 256, (4, 1, 32, 32), dtype=torch.uint8)}


def test_the_forward_compiles_without_graph_breaks(make_model, raw_batch):
    model = make_model("patch_mean")
    torch._dynamo.reset()
    with torch.no_grad():
        output = torch.compile(model, backend="eager", fullgraph=True)(**raw_batch, return_loss=True)
        assert_equal_outputs(output, model(**raw_batch, return_loss=True), atol=0)


def check_compiled_training(model, batch, backend: str) -> None:
    expected, expected_gradients = model(**batch, return_loss=True), gradients(model, batch)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True)  # which raises at a graph break
    model.zero_grad()
    output = compiled(**batch, return_loss=True)
    assert type(output) is type(expected)
    assert_equal_outputs(output, expected, atol=1e-5)
    output.loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected_gradients[name], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_training_step_compiles(model, raw_batch):
    check_compiled_training(model, raw_batch, "aot_eager")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler, and there is no g++")
def test_a_training_step_compiles_with_inductor(make_model, raw_batch, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # whatever a killed process has left in the usual one
    check_compiled_training(make_model("patch_mean"), raw_batch, "inductor")


@pytest.mark.slow
def test_inference_compiles_without_graph_breaks(model, raw_batch):
    torch._dynamo.reset()
    with torch.no_grad():
        computed = torch.compile(model, backend="eager", fullgraph=True)(**raw_batch).logits_per_image
        assert torch.equal(computed, model(**raw_batch).logits_per_image)
