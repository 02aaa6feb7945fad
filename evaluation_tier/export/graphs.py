"""The two towers of a model as graphs: from torch to ONNX, and from there to OpenVINO."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from modeling_tier.exported_tier import TOWERS, import_backend, start
from modeling_tier.maps_tier import map_kinds
from modeling_tier.texts_tier import is_padded_to_the_end

OPSET = 18  # of ONNX: the oldest that torch's exporter writes without a conversion
MAX_GRAPH_BYTES = 2**31 - 2**20  # protobuf's limit, less what is not weights
TOLERANCE = 1e-3  # of the largest number of an output; rounding makes differences of 1e-6
INT8_TOLERANCE = 0.1  # of two backends, which round the same integers differently
OUTPUTS = {"image": ["image_embeds", "patches", "direct"], "text": ["text_embeds", "tokens"]}


class ImageTower(nn.Module):
    """Pixels (batch, 3, height, width) to the image embedding (batch, dim) and the patches (batch, rows, columns,
    dim), neither normalised, and to the direct map (batch, rows, columns, dim) of a model that has one."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        encode = self.model.encode_direct if "direct" in map_kinds(self.model.config) else self.model.encode_images
        outputs, *maps = encode(pixel_values)
        return outputs.pooler_output, *maps


class TextTower(nn.Module):
    """Token ids and mask (texts, tokens) to the text embedding (texts, dim) and the projected tokens (texts, tokens,
    dim), neither normalised."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        outputs = self.model.get_text_features(input_ids=input_ids, attention_mask=attention_mask, return_dict=True)
        return outputs.pooler_output, self.model.project_tokens(outputs.last_hidden_state)


def text_length(model: PreTrainedModel) -> int:
    """The longest text that a model takes, in tokens."""
    for length in range(model.config.text_config.max_position_embeddings, 1, -1):
        with contextlib.suppress(ValueError):  # RoBERTa's table is longer than the texts that it takes
            model.check_text_length(torch.zeros(1, length, dtype=torch.long))
            return length
    return 1


def example_inputs(model: PreTrainedModel, tower: str) -> tuple[dict[str, torch.Tensor], dict[str, dict]]:
    """Inputs to trace a tower with, by name, and the dimensions of each that may vary."""
    count = torch.export.Dim("batch")
    if tower == "image":
        size = getattr(model.config, "image_size", None) or model.config.vision_config.image_size
        return {"pixel_values": torch.zeros(2, 3, size, size)}, {"pixel_values": {0: count}}
    length = text_length(model)
    if is_padded_to_the_end(model.config):  # SigLIP's texts have one length, and no mask
        return {"input_ids": torch.ones(2, length, dtype=torch.long)}, {"input_ids": {0: count}}
    varying = {0: count, 1: torch.export.Dim("tokens", max=length)}
    names = ("input_ids", "attention_mask")
    # two tensors: torch would trace one as a single input
    return {name: torch.ones(2, min(8, length), dtype=torch.long) for name in names}, dict.fromkeys(names, varying)


def check_size(model: PreTrainedModel) -> None:
    """Raises ValueError for a model whose weights do not fit the files of ONNX."""
    size = sum(parameter.numel() * 4 for parameter in model.parameters())
    if size > MAX_GRAPH_BYTES:
        raise ValueError(
            f"The model has {size / 2**30:.1f} GiB of weights, but a file of ONNX holds at most 2: use it with torch."
        )


def export_towers(model: PreTrainedModel, folder: Path) -> list[str]:
    """
    Writes both towers into a folder as ONNX, in float32.

    Args:
        model: a TIER model in evaluation mode, float32, on the CPU.
        folder: where to write.

    Returns:
        The inputs of the text tower.

    Raises:
        ValueError: the model is too large, torch cannot trace it, or the graphs give other numbers.
    """
    check_size(model)
    inputs: dict[str, torch.Tensor] = {}
    modules: dict[str, nn.Module] = {"image": ImageTower(model).eval(), "text": TextTower(model).eval()}
    for tower in TOWERS:
        inputs, shapes = example_inputs(model, tower)
        path, others = folder / f"{tower}.onnx", random_inputs(model, tower)
        with torch.inference_mode():
            expected = [output.numpy() for output in modules[tower](**others)]
        try:
            with quiet(), torch.no_grad():
                program = torch.export.export(modules[tower], tuple(inputs.values()), dynamic_shapes=shapes)
                torch.onnx.export(
                    program,
                    f=path,
                    input_names=list(inputs),
                    output_names=OUTPUTS[tower][: len(expected)],
                    opset_version=OPSET,
                    external_data=False,
                )
        except Exception as error:  # the exporter raises many kinds
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"torch cannot export the {tower} tower of this model ({reason}).") from error
        maker = f"torch {torch.__version__} does not export this architecture"
        check_same(expected, run_with("onnx", path, others), TOLERANCE, tower, maker)
    return list(inputs)


def to_openvino(model: PreTrainedModel, folder: Path, int8: bool) -> None:
    """
    Replaces the ONNX file of each tower by OpenVINO's two files with the same numbers.

    Raises:
        ValueError: OpenVINO computes other numbers than ONNX Runtime.
    """
    openvino = import_backend("openvino")
    for tower in TOWERS:
        path, others = folder / f"{tower}.onnx", random_inputs(model, tower)
        openvino.save_model(openvino.convert_model(path), path.with_suffix(".xml"), compress_to_fp16=False)
        tolerance = INT8_TOLERANCE if int8 and tower == "image" else TOLERANCE
        computed = run_with("openvino", path.with_suffix(".xml"), others)
        maker = f"OpenVINO {openvino.__version__} does not run this architecture"
        check_same(run_with("onnx", path, others), computed, tolerance, tower, maker)
        path.unlink()


def random_inputs(model: PreTrainedModel, tower: str) -> dict[str, torch.Tensor]:
    """Inputs of a tower, of another number and length than those of the trace; always the same ones."""
    generator = torch.Generator().manual_seed(0)
    traced, _ = example_inputs(model, tower)
    if tower == "image":
        return {"pixel_values": torch.randn((3, *traced["pixel_values"].shape[1:]), generator=generator)}
    length = traced["input_ids"].shape[1] - ("attention_mask" in traced)
    inputs = {"input_ids": torch.randint(model.config.text_config.vocab_size, (3, length), generator=generator)}
    if "attention_mask" in traced:
        inputs["attention_mask"] = (torch.arange(length) < torch.tensor([[length], [length - 1], [2]])).long()
    return inputs


def run_with(backend: str, path: Path, inputs: Mapping[str, torch.Tensor]) -> list[np.ndarray]:
    """The outputs of a graph."""
    return start(backend, path)({name: tensor.numpy() for name, tensor in inputs.items()})


def check_same(
    expected: Sequence[np.ndarray], computed: Sequence[np.ndarray], tolerance: float, tower: str, reason: str
) -> None:
    """Raises ValueError with the reason for outputs that differ by more than a share of the largest number."""
    for own, other in zip(expected, computed, strict=True):
        largest = float(np.abs(own - other).max())
        if not largest <= tolerance * max(1.0, float(np.abs(own).max())):  # NaN too
            raise ValueError(
                f"The exported {tower} tower gives other embeddings than the model (by up to {largest:.2g}): {reason}."
            )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps progress, hints and warnings of the exporters from the terminal; errors are raised."""
    disabled = logging.root.manager.disable
    try:
        logging.disable(logging.WARNING)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
