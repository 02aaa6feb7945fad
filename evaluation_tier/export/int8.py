"""The image tower in 8-bit integers: static quantization, calibrated on the user's images.

Weights get one scale per output channel, activations one per tensor, from the range that they take on the calibration
images. Softmax, norms and activation functions stay in float32. The text tower stays as it is: it runs once for each
sentence, and the sentences of a run are few.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets
import numpy as np
from transformers import PreTrainedModel, ProcessorMixin

from evaluation_tier.export.graphs import quiet
from evaluation_tier.models.images import read_batches
from modeling_tier.exported_tier import import_backend

MIN_CALIBRATION_IMAGES = 8


def choose_images(dataset: datasets.Dataset, count: int) -> np.ndarray:
    """Rows of at most `count` images, spread evenly over the data set, so that no patient or source prevails."""
    return np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(np.int64))


def read_pixels(
    model: PreTrainedModel, processor: ProcessorMixin, dataset: datasets.Dataset, rows: np.ndarray
) -> list[np.ndarray]:
    """
    The pixels of some images as the exported image tower takes them, each (1, 3, height, width) float32.

    Raises:
        ValueError: fewer than `MIN_CALIBRATION_IMAGES` images, or images that do not decode.
    """
    pixels: list[np.ndarray] = []
    for batch in read_batches(model, processor, dataset, 8, "reading calibration images", rows):
        pixels += [image[None].numpy() for image in model.normalize_pixels(batch.pixels).float().cpu()]
    if len(pixels) < MIN_CALIBRATION_IMAGES:
        raise ValueError(
            f"--int8 is calibrated on images, and {len(pixels)} are too few: give --data and --split with at least "
            f"{MIN_CALIBRATION_IMAGES}, for which no labels are needed."
        )
    return pixels


def quantize(folder: Path, graph_format: str, pixels: Sequence[np.ndarray]) -> None:
    """Replaces the image tower in a folder by one of 8-bit integers; see the module."""
    with quiet():
        {"onnx": quantize_onnx, "openvino": quantize_openvino}[graph_format](folder, pixels)


def quantize_onnx(folder: Path, pixels: Sequence[np.ndarray]) -> None:
    import_backend("onnx")
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.inputs: Iterator[dict[str, np.ndarray]] = iter([{"pixel_values": image} for image in pixels])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.inputs, None)

    path, partial = folder / "image.onnx", folder / "image.int8.onnx"
    quantize_static(
        path,
        partial,
        Reader(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "Gemm", "MatMul"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        # products of two activations, those inside the attention, stay in float32
        extra_options={"MatMulConstBOnly": True},
    )
    partial.replace(path)


def quantize_openvino(folder: Path, pixels: Sequence[np.ndarray]) -> None:
    openvino = import_backend("openvino")
    try:
        import nncf
    except ImportError as error:
        raise ImportError("--int8 for OpenVINO needs the package nncf: pip install 'tier-clip[openvino]'.") from error
    path = folder / "image.xml"
    graph = openvino.Core().read_model(path)
    is_transformer = any(operation.get_type_name() == "Softmax" for operation in graph.get_ops())
    quantized = nncf.quantize(
        graph,
        nncf.Dataset(list(pixels)),
        preset=nncf.QuantizationPreset.MIXED,  # activations from their least to their greatest value, as for ONNX
        subset_size=len(pixels),
        model_type=nncf.ModelType.TRANSFORMER if is_transformer else None,
    )
    partial = folder / "image_int8.xml"
    openvino.save_model(quantized, partial, compress_to_fp16=False)
    del graph, quantized  # which hold the files
    for suffix in (".xml", ".bin"):
        partial.with_suffix(suffix).replace(path.with_suffix(suffix))
