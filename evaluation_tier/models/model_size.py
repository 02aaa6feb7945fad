"""The size of a model, as results state it."""

from torch import nn


def model_size(model: nn.Module) -> dict[str, int | None]:
    """
    Args:
        model: of images and texts, or a classifier.

    Returns:
        `parameters`, of both towers, and `image_size`, the height and width in pixels that its config states (None if
        it does not state one, or a height that is not the width).
    """
    config = getattr(model, "config", None)
    vision = getattr(config, "vision_config", None)
    stated = [getattr(part, "image_size", None) for part in (config, vision)]
    size = next((size for size in stated if type(size) is int), None)
    return {"parameters": sum(parameter.numel() for parameter in model.parameters()), "image_size": size}
