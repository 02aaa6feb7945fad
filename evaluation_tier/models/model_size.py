"""The size of a model, as results state it."""

from torch import nn

from modeling_tier import TierExportedModel


def model_size(model: nn.Module) -> dict[str, int | None]:
    """
    Args:
        model: of images and texts, a classifier, or one that meets the contract itself.

    Returns:
        `parameters`, of both towers (None if the model shows none, as that of an adapter may), and `image_size`,
        the height and width in pixels that its config, or the model itself, states (None if neither does, or one of
        other shape).
    """
    config = getattr(model, "config", None)
    stated = [getattr(part, "image_size", None) for part in (config, getattr(config, "vision_config", None), model)]
    size = next((size for size in stated if type(size) is int), None)
    if isinstance(model, TierExportedModel):  # whose weights are in its graphs
        return {"parameters": model.num_parameters(), "image_size": size}
    return {"parameters": sum(parameter.numel() for parameter in model.parameters()) or None, "image_size": size}
