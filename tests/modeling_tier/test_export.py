"""Exports of both towers: torch.export and ONNX, and the recipe in docs/export.md."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from modeling_tier import TierCLIPConfig, TierCLIPModel
from processing_tier import TierImageProcessor, TierProcessor, train_tokenizer


def example(model, tower: str, batch) -> tuple[nn.Module, dict, dict]:
    """A module around one tower, its inputs by name, and which of their dimensions vary."""

    class Tower(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

    class ImageTower(Tower):
        def forward(self, pixel_values):
            return self.model.get_image_features(pixel_values).pooler_output

    class TextTower(Tower):
        def forward(self, input_ids, attention_mask):
            return self.model.get_text_features(input_ids, attention_mask).pooler_output

    count = torch.export.Dim("batch")
    if tower == "text":
        varying = {0: count, 1: torch.export.Dim("tokens", max=20)}
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        return TextTower().eval(), inputs, {name: varying for name in inputs}
    return ImageTower().eval(), {"pixel_values": batch["pixel_values"]}, {"pixel_values": {0: count}}


@pytest.mark.slow
@pytest.mark.parametrize("tower", ["image", "text"])
def test_torch_export(model, batch, tower, tmp_path):
    module, inputs, shapes = example(model, tower, batch)
    program = torch.export.export(module, tuple(inputs.values()), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "tower.pt2")
    exported = torch.export.load(tmp_path / "tower.pt2").module()
    for count, length in ((4, 8), (3, 7), (1, 5)):
        others = [x[:count] if tower == "image" else x[:count, :length] for x in inputs.values()]
        torch.testing.assert_close(exported(*others), module(*others), rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("tower", ["image", "text"])
def test_onnx(model, batch, tower, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    module, inputs, shapes = example(model, tower, batch)
    path = tmp_path / "tower.onnx"
    torch.onnx.export(
        module,
        tuple(inputs.values()),
        path,
        dynamo=True,
        dynamic_shapes=shapes,
        input_names=list(inputs),
        opset_version=18,
        external_data=False,
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [node.name for node in session.get_inputs()] == list(inputs)
    for count, length in ((4, 8), (3, 7), (1, 5)):
        others = [x[:count] if tower == "image" else x[:count, :length] for x in inputs.values()]
        [computed] = session.run(None, {key: x.numpy() for key, x in zip(inputs, others, strict=True)})
        torch.testing.assert_close(torch.from_numpy(computed), module(*others).detach(), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_the_recipe_in_docs(tiny_sizes, tmp_path, monkeypatch, capsys):
    """docs/export.md as it stands, on another folder; then its graphs on batches of other sizes."""
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    tokenizer = train_tokenizer(["Cardiomegaly.", "No cardiomegaly."], vocab_size=600)
    tokenizer.model_max_length = 20
    text_config = {**tiny_sizes["text_config"], "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    model = TierCLIPModel(TierCLIPConfig(**{**tiny_sizes, "text_config": text_config})).eval()
    model.save_pretrained(tmp_path / "model")
    TierProcessor(TierImageProcessor(size=32), tokenizer).save_pretrained(tmp_path / "model")
    recipe = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    [code] = re.findall(r"```python\n(.*?)```", recipe, re.DOTALL)
    assert code.count('"runs/phantom"') == 1
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace('"runs/phantom"', repr(str(tmp_path / "model"))), "docs/export.md", "exec"), {})
    assert float(capsys.readouterr().out.split()[-1]) < 2e-5  # what it prints

    pixels = torch.randn(5, 3, 32, 32)
    session = onnxruntime.InferenceSession("image.onnx", providers=["CPUExecutionProvider"])
    [computed] = session.run(None, {"pixel_values": pixels.numpy()})
    expected = F.normalize(model.get_image_features(pixels).pooler_output, dim=-1).detach()
    torch.testing.assert_close(torch.from_numpy(computed), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.export.load("image.pt2").module()(pixels), expected, rtol=0, atol=1e-6)
