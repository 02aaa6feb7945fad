"""The integers of a quantized graph, which must not overflow on any processor."""

import numpy as np
import pytest

from evaluation_tier.export.int8 import quantize


@pytest.fixture
def tower(tmp_path):
    """A folder with a graph whose sums, of a convolution and of a product, are as large as integers can make them."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    rng = np.random.default_rng(0)
    weights = {
        "kernel": rng.uniform(0.9, 1, (8, 3, 3, 3)).astype(np.float32),
        "matrix": rng.uniform(0.9, 1, (128, 16)).astype(np.float32),
    }
    make = onnx.helper
    graph = make.make_graph(
        [
            make.make_node("Conv", ["pixel_values", "kernel"], ["patches"], strides=[2, 2], pads=[1, 1, 1, 1]),
            make.make_node("Flatten", ["patches"], ["row"]),
            make.make_node("MatMul", ["row", "matrix"], ["embeds"]),
        ],
        "tower",
        [make.make_tensor_value_info("pixel_values", onnx.TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [make.make_tensor_value_info("embeds", onnx.TensorProto.FLOAT, ["batch", 16])],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "image.onnx")
    return tmp_path


def embed(folder, pixels):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(folder / "image.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, {"pixel_values": pixels})[0]


def test_large_sums_do_not_overflow(tower):
    """Processors without VNNI add two products in 16 bits, which full 8-bit weights overflow."""
    onnx = pytest.importorskip("onnx")
    pixels = [np.random.default_rng(seed).uniform(0.9, 1, (1, 3, 8, 8)).astype(np.float32) for seed in range(8)]
    before = embed(tower, pixels[0])
    quantize(tower, pixels)
    np.testing.assert_allclose(embed(tower, pixels[0]), before, rtol=0.02)
    stored = onnx.load(tower / "image.onnx").graph.initializer
    integers = [onnx.numpy_helper.to_array(t) for t in stored if t.data_type == onnx.TensorProto.INT8 and t.dims]
    largest = max(int(np.abs(values.astype(int)).max()) for values in integers)
    assert largest == 64 and 2 * 255 * largest < 2**15
