"""Learning rates of parts of a model, and parts that are not trained at all."""

import math

import torch
from torch import nn
from transformers import PreTrainedModel

from modeling_tier.towers_tier import layer_depths


def learning_rate_scales(
    model: PreTrainedModel, vision_lr_scale: float = 1.0, text_lr_scale: float = 1.0, layer_decay: float = 1.0
) -> dict[nn.Parameter, float]:
    """
    The factor of the learning rate of each parameter: of a tower, its scale times `layer_decay` to the power of how
    many layers lie above (Clark et al. 2020, ELECTRA; Bao et al. 2022, BEiT): 1 for the last layer, and for what comes
    before the first layer one more than for the layer. 1.0 of what lies outside of the towers (projection heads,
    `logit_scale`, a classifier's head).

    Args:
        model ([`PreTrainedModel`]): with a `vision_model` and, unless it is a classifier, a `text_model`.
        vision_lr_scale, text_lr_scale (`float`, *optional*, default to 1.0): above 0.
        layer_decay (`float`, *optional*, defaults to 1.0): in (0, 1].

    Raises:
        `ValueError`: a tower has no list of its layers.
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
    Parts the groups of a new optimizer so that each has parameters of one learning rate: its own times their factor.
    Groups of the factor 1 come first, since a [`Trainer`] logs the learning rate of the first.
    """
    parted: dict[tuple[int, float], dict] = {}
    for number, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            scale = scales[parameter]
            options = {**group, "params": [], "lr": group["lr"] * scale}
            parted.setdefault((number, scale), options)["params"].append(parameter)
    optimizer.param_groups.clear()
    for _, group in sorted(parted.items(), key=lambda item: (item[0][1] != 1.0, item[0])):
        optimizer.add_param_group(group)
