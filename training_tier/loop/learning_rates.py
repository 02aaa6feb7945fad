"""Different learning rates for the parts of a model. Frozen parts are in `start/freezing.py`."""

import math

import torch
from torch import nn
from transformers import PreTrainedModel

from modeling_tier.towers_tier import layer_depths


def learning_rate_scales(
    model: PreTrainedModel, vision_lr_scale: float = 1.0, text_lr_scale: float = 1.0, layer_decay: float = 1.0
) -> dict[nn.Parameter, float]:
    """
    The factor of the learning rate of each parameter. In a tower, it is the tower's scale times `layer_decay` to the
    power of the number of layers above (Clark et al. 2020, ELECTRA; Bao et al. 2022, BEiT): 1 for the last layer.
    Embeddings count as one more layer below the first. Outside the towers (projection heads, `logit_scale`, a
    classifier's head) the factor is 1.0.

    Args:
        model ([`PreTrainedModel`]): with a `vision_model` and, unless it is a classifier, a `text_model`.
        vision_lr_scale, text_lr_scale (`float`, *optional*, default to 1.0): above 0.
        layer_decay (`float`, *optional*, defaults to 1.0): in (0, 1].

    Raises:
        `ValueError`: a tower does not list its layers.
    """
    scales = dict.fromkeys(model.parameters(), 1.0)
    for name, scale in (("vision_model", vision_lr_scale), ("text_model", text_lr_scale)):
        tower = getattr(model, name, None)
        if tower is None:
            continue
        if layer_decay == 1.0:
            scales |= dict.fromkeys(tower.parameters(), scale)
            continue
        depths = layer_depths(tower)
        top = 1 + max(depth for depth in depths.values() if depth < math.inf)
        scales |= {parameter: scale * layer_decay ** (top - min(depth, top)) for parameter, depth in depths.items()}
    return scales


def scale_learning_rates(optimizer: torch.optim.Optimizer, scales: dict[nn.Parameter, float]) -> None:
    """
    Splits the groups of a new optimizer so that all parameters of a group have one learning rate: the group's times
    their factor. Groups with the factor 1 come first, because a [`Trainer`] logs the learning rate of the first.
    """
    split_groups: dict[tuple[int, float], dict] = {}
    for number, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            scale = scales[parameter]
            options = {**group, "params": [], "lr": group["lr"] * scale}
            split_groups.setdefault((number, scale), options)["params"].append(parameter)
    optimizer.param_groups.clear()
    for _, group in sorted(split_groups.items(), key=lambda item: (item[0][1] != 1.0, item[0])):
        optimizer.add_param_group(group)
