"""The image tower in 8-bit integers: static quantization, calibrated on the user's images.

Weights get one scale per output channel, activations one per tensor, from the range that they take on the calibration
images. Softmax, norms and activation functions stay in float32. The text tower stays as it is: it runs once for each
sentence, and the sentences of a run are few.

Weights use 7 of their 8 bits. Processors that have AVX2, but no VNNI, add two products in 16 bits. Full weights
overflow there, and no error says so (ONNX Runtime's documentation of `reduce_range`).

Static, because with ranges that are found anew for each batch (dynamic quantization) the score of an image would
depend on the other images of its batch.
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


def quantize(folder: Path, pixels: Sequence[np.ndarray]) -> None:
    """
    Replaces the ONNX file of the image tower in a folder by one of 8-bit integers; see the module.

    Args:
        folder: with `image.onnx`.
        pixels: of the calibration images, each (1, 3, height, width).
    """
    import_backend("onnx")
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.inputs: Iterator[dict[str, np.ndarray]] = iter([{"pixel_values": image} for image in pixels])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.inputs, None)

    path, partial = folder / "image.onnx", folder / "image.int8.onnx"
    with quiet():
        quantize_static(
            path,
            partial,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            reduce_range=True,  # of weights
            # products of two activations, those inside the attention, stay in float32
            extra_options={"MatMulConstBOnly": True},
        )
    partial.replace(path)
