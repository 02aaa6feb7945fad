"""Where the patches of a model look: the position of their centres in the model's input."""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
PADDINGS = (aten.constant_pad_nd, aten.reflection_pad2d, aten.replication_pad2d)
POOLINGS = (aten.max_pool2d_with_indices, aten.avg_pool2d)


class TraceCenters(TorchDispatchMode):
    """
    Follows the positions of feature maps through the layers of a model. A map at positions `first + step * i` (pixels)
    has the attribute `centers = (first, step)`, and so has all that is computed from it.

    A window of `kernel` cells that starts `padding` cells before the map has its middle at cell
    `(kernel - 1) / 2 - padding`. All other operations keep positions: those of the first argument that has any, hence
    of the queries in an attention. A shortcut looks where its main path looks, so either of them may come first.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        centers = next((tensor.centers for tensor in flat(args) if hasattr(tensor, "centers")), None)
        if centers is not None:
            centers = move(func.overloadpacket, args, *centers)
            for tensor in flat((outputs,)):
                tensor.centers = centers
        return outputs


def flat(values: tuple | list) -> list[torch.Tensor]:
    """The tensors among values and in lists of them."""
    tensors: list[torch.Tensor] = []
    for value in values:
        tensors += flat(value) if isinstance(value, (tuple, list)) else [value] * isinstance(value, torch.Tensor)
    return tensors


def move(operation: Any, args: tuple, first: float, step: float) -> tuple[float, float]:
    """First centre and step after one operation on a map that has these; windows are square."""
    if operation is aten.convolution and args[0].ndim == 4 and not args[6]:  # 6: whether it is transposed
        kernel, stride, padding, dilation = args[1].shape[-1], args[3][-1], args[4][-1], args[5][-1]
    elif operation in POOLINGS:
        kernel = args[1][-1]
        stride = args[2][-1] if len(args) > 2 and args[2] else kernel
        padding, dilation = args[3][-1] if len(args) > 3 else 0, 1
    elif operation in PADDINGS:
        # two numbers an axis, the last axis first: columns, rows; or channels, columns, rows, with the same third one
        return first - step * (args[1][2] if len(args[1]) > 2 else 0), step
    else:
        return first, step
    return first + step * (dilation * (kernel - 1) / 2 - padding), step * stride


def trace_patch_centers(model: Any, size: int) -> tuple[float, float]:
    """
    The centre of what the first patch sees, and the distance to the next one, by the windows of the model's layers.

    The trace embeds one black image. Where layers without a window halve the map (Swin merges patches by twos), a
    patch looks at the middle of those that it joins. Where the result does not fit the number of patches, they are
    taken to tile the image.

    Args:
        model ([`TierCLIPModel`] or [`TierDualEncoderModel`]): Its state and its mode stay as they are.
        size (`int`): Edge of its input in pixels.

    Returns:
        `tuple[float, float]`: Pixels from the upper (and left) edge of the input to the first centre, and from each
        centre to the next. (8, 16) for a ViT of 16-pixel patches; (0.5, 32) for a ResNet-50, whose layers are padded.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.inference_mode(False), torch.no_grad():
            device = "cpu" if model.device.type == "meta" else model.device  # meta: all weights are offloaded
            pixels = torch.zeros(1, 1, size, size, dtype=torch.uint8, device=device)
            pixels.centers = (0.5, 1.0)
            with TraceCenters():
                patches = model.encode_images(pixels)[1]  # (1, rows, columns, dim)
    finally:
        for module in training:
            module.training = True
    rows = patches.shape[1]
    first, step = getattr(patches, "centers", (0.5, 1.0))
    while size / step >= 1.5 * rows:
        first, step = first + step / 2, 2 * step
    return (first, step) if abs(size / step - rows) < 1 else (size / rows / 2, size / rows)
